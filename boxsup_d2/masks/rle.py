"""Run-length encoding of small windows of a large image, without touching the rest of it.

pycocotools encodes a mask by walking over every pixel of the image. A label map that holds all instances of an image
is encoded here per instance inside its box, so the cost follows the instances' size and not number × image size.
Arrays here are transposed, W×H: COCO counts pixels down the columns.
"""

from typing import Any

import numpy as np
from pycocotools import mask as mask_util

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


def empty_rle(height: int, width: int) -> Rle:
    """Compressed RLE of a mask without a pixel."""
    return encode_window(np.zeros((0, 0), dtype=bool), 0, 0, height, width)


def has_mask(segmentation: Any) -> bool:
    """Whether a COCO ``segmentation`` (or None) covers anything: a polygon, or an RLE with a pixel."""
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        return sum(counts[1::2]) > 0 if isinstance(counts, list) else int(mask_util.area(segmentation)) > 0
    return bool(segmentation) and segmentation != [[]]


def decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Decode what COCO allows as ``segmentation``.

    Args:
        segmentation: list of polygons, RLE with a list of counts, or compressed RLE (bytes or str).
        height: H of the image.
        width: W of the image.

    Returns:
        W×H bool (columns first).

    Raises:
        ValueError: the RLE is of another image size, or cannot be read.
    """
    try:
        if isinstance(segmentation, list):
            rle = mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):
            rle = mask_util.frPyObjects(segmentation, *segmentation["size"])
        else:
            rle = segmentation
    except Exception as error:  # pycocotools raises bare Exceptions and TypeErrors for malformed input
        raise ValueError(f"Segmentation cannot be read as polygons or RLE ({error}).") from error
    if list(rle["size"]) != [height, width]:
        raise ValueError(f"Segmentation has size {list(rle['size'])}, its image {[height, width]} (height, width).")
    return mask_util.decode(rle).T.view(bool)
