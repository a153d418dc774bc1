"""Run-length encoding of a window of an image. pycocotools would walk over every pixel of the image for each instance.

Arrays here are transposed, W×H: COCO counts pixels down the columns.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from boxsup_d2.masks.segmentation import rle_runs, to_rle, to_runs

# {"size": [H, W], "counts": str}, as COCO tools read it.
Rle = dict[str, Any]


def mask_edges(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Where the runs of a mask start and end.

    Args:
        segmentation: see :func:`boxsup_d2.masks.segmentation.to_rle`.
        height: H of the image.
        width: W of the image.

    Returns:
        int64, a start and an end (exclusive) in turn, ascending: numbers of pixels, counted down the columns.

    Raises:
        ValueError: see :func:`boxsup_d2.masks.segmentation.to_rle`.
    """
    edges = np.cumsum(to_runs(segmentation, height, width))
    edges = edges[: len(edges) // 2 * 2]
    empty = edges[0::2] == edges[1::2]
    return edges[~np.repeat(empty, 2)] if empty.any() else edges


def window_edges(window: np.ndarray, left: int, top: int, height: int) -> np.ndarray:
    """:func:`mask_edges` of a mask that is empty outside a window.

    Args:
        window: w×h bool (columns first), the mask inside the window.
        left: first column of the window in the image.
        top: first row of the window in the image.
        height: H of the image.
    """
    # One empty pixel before and after every column: each run of ones then starts and ends inside its column.
    padded = np.zeros((window.shape[0], window.shape[1] + 2), dtype=bool)
    padded[:, 1:-1] = window
    column, row = np.divmod(np.flatnonzero(padded[:, 1:] != padded[:, :-1]), window.shape[1] + 1)
    edges = (column + left) * height + row + top
    # A run that reaches the bottom and one that starts at the next column's top are a single run.
    joint = edges[1:-1:2] == edges[2::2]
    if joint.any():
        edges = edges[~np.concatenate([[False], np.repeat(joint, 2), [False]])]
    return edges


def edges_window(edges: np.ndarray, height: int) -> tuple[np.ndarray, int, int]:
    """A mask in its tight box, of its :func:`mask_edges`: what :func:`window_edges` takes.

    Several times as fast as decoding all of the image where the mask covers a part of it.

    Args:
        edges: its edges.
        height: H of the image.

    Returns:
        w×h bool (columns first; 0×0 without a pixel), and the first column and row of the box in the image.
    """
    box = edges_box(edges, height)
    if box is None:
        return np.zeros((0, 0), dtype=bool), 0, 0
    x0, y0, x1, y1 = box
    values = np.zeros(len(edges) + 1, dtype=bool)
    values[1::2] = True
    columns = np.repeat(values, np.diff(edges, prepend=x0 * height, append=x1 * height)).reshape(x1 - x0, height)
    return columns[:, y0:y1], x0, y0


def encode_edges(edges: np.ndarray, height: int, width: int) -> Rle:
    """Compressed RLE of the runs that :func:`mask_edges` describes, none of which is empty or touches another one.

    Returns:
        Byte for byte what pycocotools gives for the whole mask.
    """
    bounds = np.zeros(len(edges) + 2, dtype=np.int64)
    bounds[1:-1], bounds[-1] = edges, height * width
    counts = bounds[1:] - bounds[:-1]
    if len(edges) and not counts[-1]:
        counts = counts[:-1]  # pycocotools has no empty run at the end
    rle = mask_util.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def edges_area(edges: np.ndarray) -> int:
    """Pixels of the mask that :func:`mask_edges` describes."""
    return int(edges[1::2].sum() - edges[0::2].sum())


def edges_box(edges: np.ndarray, height: int) -> tuple[int, int, int, int] | None:
    """Tight box (x0, y0, x1, y1; exclusive ends) of the mask that :func:`mask_edges` describes; None without a pixel.

    Args:
        edges: its edges.
        height: H of the image.
    """
    if not len(edges):
        return None
    (x, y), (last_x, last_y) = np.divmod(edges[0::2], height), np.divmod(edges[1::2] - 1, height)
    # A run that goes on in the next column covers the last row of one and the first of the other.
    y0, y1 = (0, height) if (x < last_x).any() else (int(y.min()), int(last_y.max()) + 1)
    return int(x[0]), y0, int(last_x[-1]) + 1, y1


def encode_window(window: np.ndarray, left: int, top: int, height: int, width: int) -> Rle:
    """Compressed RLE of a mask that is empty outside a window; see :func:`window_edges` and :func:`encode_edges`."""
    return encode_edges(window_edges(window, left, top, height), height, width)


def encode_masks(masks: np.ndarray) -> list[Rle]:
    """H×W×N boolean masks → N compressed RLEs with str counts, as they are written to a json."""
    rles = mask_util.encode(np.asfortranarray(masks, dtype=np.uint8))
    return [{"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")} for rle in rles]


def empty_rle(height: int, width: int) -> Rle:
    """Compressed RLE of a mask without a pixel."""
    return encode_window(np.zeros((0, 0), dtype=bool), 0, 0, height, width)


def has_mask(segmentation: Any) -> bool:
    """Whether a COCO ``segmentation`` (or None) covers anything: a polygon, or an RLE with a pixel or unreadable."""
    if not isinstance(segmentation, dict):
        return bool(segmentation) and segmentation != [[]]
    counts = segmentation["counts"]
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    runs = rle_runs(counts) if isinstance(counts, str) else np.asarray(counts)
    # An unreadable one is for its decoder to complain about.
    return runs is None or bool(runs[1::2].sum() > 0)


def union(segmentations: Iterable[Any], height: int, width: int) -> np.ndarray:
    """What any of some masks covers, H×W uint8; arguments and errors as of :func:`decode`."""
    # Run lengths are merged, which costs little, and decoded once.
    return np.ascontiguousarray(mask_util.decode(mask_util.merge([to_rle(s, height, width) for s in segmentations])))


def area(segmentation: Any, height: int, width: int) -> int:
    """Pixels of a mask; arguments and errors as of :func:`decode`."""
    return int(mask_util.area(to_rle(segmentation, height, width)))


def tight_box(segmentation: Any, height: int, width: int) -> list[float] | None:
    """Tight box (x0, y0, x1, y1; exclusive ends) of a mask; None where it covers no pixel.

    Arguments and errors are those of :func:`decode`.
    """
    x, y, w, h = (float(v) for v in mask_util.toBbox(to_rle(segmentation, height, width)))
    return [x, y, x + w, y + h] if w > 0 and h > 0 else None


def decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Decode what COCO allows as ``segmentation``.

    Args:
        segmentation: see :func:`boxsup_d2.masks.segmentation.to_rle`.
        height: H of the image.
        width: W of the image.

    Returns:
        W×H bool (columns first).

    Raises:
        ValueError: see :func:`boxsup_d2.masks.segmentation.to_rle`.
    """
    return mask_util.decode(to_rle(segmentation, height, width)).T.view(bool)
