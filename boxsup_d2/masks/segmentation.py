"""COCO's ``segmentation``, polygons or RLE: what keeps one from being a mask, and the one way from it to pycocotools.

pycocotools checks little: an RLE of too few pixels gives it masks out of unset memory, and a polygon that ends at
infinity takes all memory there is. Nothing may reach it that was not checked here.
"""

import math
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

# Digits of compressed RLE: 48 + five bits of the number, and one bit that says that more follow.
_FIRST_DIGIT, _MORE, _PAYLOAD = 48, 0x20, 0x1F


def to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """A mask as compressed RLE ``{"size": [H, W], "counts": str}``, as COCO tools read and write it.

    Args:
        segmentation: polygons (lists or arrays), RLE with a list of counts, or compressed RLE with str or bytes.
        height, width: H and W of its image.

    Raises:
        ValueError: it is of another image size, damaged, or empty.
    """
    size = [height, width]
    value = _plain(segmentation)
    if isinstance(value, dict) and "size" in value and value["size"] != size:
        raise ValueError(f"Segmentation has size {value['size']}, its image {size} (height, width).")
    if not isinstance(value, dict | list) or value in ([], [[]]):
        fault: str | None = "there is none"
    else:
        fault = segmentation_fault(value, height, width)
    if fault is not None:
        raise ValueError(f"Segmentation cannot be read as polygons or RLE: {fault}.")
    if isinstance(value, dict) and isinstance(value["counts"], str):
        return {"size": size, "counts": value["counts"]}
    if isinstance(value, dict):
        rle = mask_util.frPyObjects(value, height, width)
    else:
        rle = mask_util.merge(mask_util.frPyObjects(list(filter(usable_polygon, value)), height, width))
    return {"size": size, "counts": rle["counts"].decode("ascii")}


def to_runs(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Lengths of a mask's runs, int64, of background and mask in turn; arguments and errors as of :func:`to_rle`."""
    if isinstance(segmentation, dict) and segmentation.get("size") == [height, width]:
        counts = segmentation.get("counts")
        # What labelling and COCO tools write is checked and read in one go.
        runs = rle_runs(counts) if isinstance(counts, str) else None
        if runs is not None and runs.min() >= 0 and int(runs.sum()) == height * width:
            return runs
    runs = rle_runs(to_rle(segmentation, height, width)["counts"])
    assert runs is not None, "to_rle gives none that cannot be read"
    return runs


def _plain(segmentation: Any) -> Any:
    """As a json would hold it: dataset dicts may also have bytes, tuples and NumPy's types."""
    if isinstance(segmentation, dict):
        plain = dict(segmentation)
        if isinstance(plain.get("size"), tuple | np.ndarray):
            plain["size"] = [int(side) for side in plain["size"]]
        if isinstance(plain.get("counts"), bytes):
            plain["counts"] = plain["counts"].decode("latin-1")
        return plain
    if isinstance(segmentation, list):
        return [
            np.asarray(points, dtype=float).tolist()
            if isinstance(points, np.ndarray)
            or (isinstance(points, list | tuple) and points and isinstance(points[0], np.number))
            else points
            for points in segmentation
        ]
    return segmentation


def segmentation_fault(value: Any, height: int, width: int) -> str | None:
    """What keeps a json's ``segmentation`` from being a mask of its image; None where nothing does, or there is none.

    Of several polygons one has to be usable: those of fewer than three points count for nothing, here as in Detectron2.
    """
    if not value or value == [[]]:  # both are what tools write for a box alone
        return None
    if isinstance(value, list):
        return _polygon_fault(value, height, width)
    size = [height, width]
    if not isinstance(value, dict) or value.get("size") != size or not isinstance(value.get("counts"), str | list):
        return f"it is no RLE of size {size}"
    pixels = _rle_pixels(value["counts"])
    if pixels is None:
        return "its RLE cannot be read"
    return None if pixels == height * width else f"its RLE counts {pixels} pixels, its image has {height * width}"


def usable_polygon(points: Any) -> bool:
    """Whether a polygon has three points at least, each with an x and a y."""
    return isinstance(points, list) and len(points) >= 6 and len(points) % 2 == 0


def rle_runs(counts: str) -> np.ndarray | None:
    """Lengths of the runs of a compressed RLE, int64; None where the text is none."""
    try:
        digits = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - _FIRST_DIGIT
    except UnicodeEncodeError:
        return None
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or digits[-1] & _MORE:
        return None
    ends = np.flatnonzero((digits & _MORE) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 6:  # 35 bits: more than a count of pixels has
        return None
    values = np.add.reduceat((digits & _PAYLOAD) << (5 * place), starts)
    # The topmost bit of the last digit is the sign.
    values -= ((digits[ends] & 0x10) != 0).astype(np.int64) << (5 * (ends - starts + 1))
    # From the fourth run on, what is stored is the difference to the run before the last.
    for first in (1, 2):
        values[first::2] = np.cumsum(values[first::2])
    return values


def _rle_pixels(counts: str | list[Any]) -> int | None:
    """Pixels that the runs of an RLE cover together; None where they are no runs."""
    if isinstance(counts, list):
        sound = all(isinstance(run, int | np.integer) and not isinstance(run, bool) and run >= 0 for run in counts)
        return sum(map(int, counts)) if sound else None
    runs = rle_runs(counts)
    return None if runs is None or runs.min() < 0 else int(runs.sum())


def _polygon_fault(polygons: list[Any], height: int, width: int) -> str | None:
    usable = [points for points in polygons if usable_polygon(points)]
    if not usable:
        return "it has no polygon of three points"
    for points in usable:
        if not _all_finite(points):
            return "its polygons are not made of numbers"
        # Far outside of any image: another frame, or damaged. Rasterising takes memory in proportion to the length.
        for values, side in ((points[0::2], width), (points[1::2], height)):
            if min(values) < -side - 1 or max(values) > 2 * side + 1:
                return "its polygons lie far outside of the image"
    return None


def _all_finite(values: list[Any]) -> bool:
    # A single sum is some ten times as fast as a look at each, and there are millions.
    try:
        return set(map(type, values)) <= {int, float} and math.isfinite(sum(values))
    except OverflowError:
        return False
