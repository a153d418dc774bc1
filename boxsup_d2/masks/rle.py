"""Run-length encoding of a window of an image. pycocotools would walk over every pixel of the image for each instance.

Arrays here are transposed, W×H: COCO counts pixels down the columns.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from boxsup_d2.masks.segmentation import rle_runs, to_rle

# {"size": [H, W], "counts": str}, as COCO tools read it.
Rle = dict[str, Any]


def encode_window(window: np.ndarray, left: int, top: int, height: int, width: int) -> Rle:
    """Encode a mask that is empty outside a window.

    Args:
        window: w×h bool (columns first), the mask inside the window.
        left: first column of the window in the image.
        top: first row of the window in the image.
        height: H of the image.
        width: W of the image.

    Returns:
        Compressed RLE, byte for byte what pycocotools gives for the whole mask.
    """
    # One empty pixel before and after every column: each run of ones then starts and ends inside its column.
    padded = np.zeros((window.shape[0], window.shape[1] + 2), dtype=np.int8)
    padded[:, 1:-1] = window
    column, row = np.nonzero(np.diff(padded, axis=1))  # even entries are starts, odd ones are ends
    edges = (column + left) * height + row + top
    if len(edges) > 2:
        # A run that reaches the bottom and one that starts at the next column's top are a single run.
        joint = np.flatnonzero(edges[1:-1:2] == edges[2::2]) * 2 + 1
        if len(joint):
            edges = np.delete(edges, np.concatenate([joint, joint + 1]))
    counts = np.diff(edges, prepend=0, append=height * width)
    if len(edges) and edges[-1] == height * width:
        counts = counts[:-1]  # pycocotools has no empty run at the end
    rle = mask_util.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


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
