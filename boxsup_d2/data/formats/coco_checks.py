"""What makes an entry of a COCO json usable: each rule once, as a pure function.

The strict reader (:mod:`.coco_format`) refuses a file that breaks one of them; the inspection
(:mod:`boxsup_d2.data.formats.inspection`) counts what does and keeps the rest. No file is opened here.
"""

import itertools
import math
from collections.abc import Container, Iterable, Iterator
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from boxsup_d2.data.formats.problems import brief

# pycocotools counts the pixels of a mask in 32 bits.
_MAX_PIXELS = 2**31
_MAX_ID = 2**63
# Digits of compressed RLE: 48 + five bits of the number, and one bit that says that more follow.
_FIRST_DIGIT, _MORE, _PAYLOAD = 48, 0x20, 0x1F


class Fault(NamedTuple):
    """What is wrong with an entry.

    Attributes:
        kind: the same text for all entries with this fault, in the plural, e.g. "repeated image ids".
        example: this entry.
    """

    kind: str
    example: Any


def is_int(value: Any) -> TypeGuard[int]:
    """Whether a value is an integer (of 64 bits: what COCO tools store ids in) and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool) and -_MAX_ID <= value < _MAX_ID


def is_finite(value: Any) -> bool:
    """Whether a value is a number that a float can hold: no NaN, no infinity, no truth value."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def category_fault(category: dict[str, Any], known: Container[int]) -> Fault | None:
    """What is wrong with a category, given the ids of those before it."""
    key, name = category.get("id"), category.get("name")
    if not is_int(key) or not isinstance(name, str) or not name.strip():
        return Fault("categories without an integer id or a name", category)
    if key in known:
        return Fault("repeated category ids", key)
    return None


def image_fault(image: dict[str, Any]) -> Fault | None:
    """What is wrong with an image's id or file name."""
    file_name = image.get("file_name")
    if not is_int(image.get("id")) or not isinstance(file_name, str) or not file_name:
        return Fault("images without an integer id or a file_name", image)
    return None


def size_fault(image: dict[str, Any]) -> Fault | None:
    """What is wrong with an image's height and width, as the json gives them."""
    height, width = image.get("height"), image.get("width")
    if not (is_int(height) and is_int(width) and height > 0 and width > 0):
        return Fault("images without a height and width in pixels", image.get("file_name", image.get("id")))
    if height * width >= _MAX_PIXELS:
        return Fault("images of more than 2 billion pixels", f"{brief(image.get('file_name'))}: {width}×{height}")
    return None


def crowd_fault(annotation: dict[str, Any]) -> Fault | None:
    """What is wrong with an annotation's ``iscrowd``; one that is absent or null is 0."""
    value = annotation.get("iscrowd")
    if value is None or (isinstance(value, int | float) and value in (0, 1)):
        return None
    return Fault("annotations whose iscrowd is neither 0 nor 1", f"{_name(annotation)}: {brief(value)}")


def id_fault(annotation: dict[str, Any], seen: Container[int]) -> Fault | None:
    """What is wrong with an annotation's id, given the ids of those before it."""
    key = annotation.get("id")
    if not is_int(key):
        return Fault("annotations without an integer id", annotation)
    if key in seen:
        return Fault("repeated annotation ids", key)
    return None


def unused_ids(annotations: Iterable[dict[str, Any]]) -> Iterator[int]:
    """Ids for annotations that lack one: above all that there are, or, where there is no room, between them."""
    taken = {annotation["id"] for annotation in annotations if is_int(annotation.get("id"))}
    first = max(taken, default=0) + 1
    # Room for every entry that one machine can hold.
    first = first if 0 < first < _MAX_ID - 2**40 else 1
    return (key for key in itertools.count(first) if key not in taken)


def reference_fault(annotation: dict[str, Any], images: Container[int], categories: Container[int]) -> Fault | None:
    """Whether an annotation names an image and a category that there are."""
    if not is_int(annotation.get("image_id")) or annotation["image_id"] not in images:
        return Fault("annotations of unknown images", f"{_name(annotation)}: image {brief(annotation.get('image_id'))}")
    if not is_int(annotation.get("category_id")) or annotation["category_id"] not in categories:
        category = brief(annotation.get("category_id"))
        return Fault("annotations of unknown categories", f"{_name(annotation)}: category {category}")
    return None


def box_fault(annotation: dict[str, Any]) -> Fault | None:
    """What is wrong with an annotation's box x, y, w, h, whatever its image; one without extent is not wrong."""
    box = annotation.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_finite, box))):
        return Fault("boxes that are not four numbers", f"{_name(annotation)}: {brief(box)}")
    if box[2] < 0 or box[3] < 0:
        kind = "inverted boxes (negative width or height; COCO's are x, y, w, h)"
        return Fault(kind, f"{_name(annotation)}: {box}")
    return None


def _name(annotation: dict[str, Any]) -> str:
    return f"id {brief(annotation.get('id'))}"


def segmentation_fault(value: Any, height: int, width: int) -> str | None:
    """What keeps a ``segmentation`` from being a mask of its image; None where nothing does, or where there is none.

    pycocotools checks little: an RLE of too few pixels gives it masks out of unset memory, and a polygon that ends at
    infinity takes all memory there is. Nothing may reach it that was not seen here.

    Args:
        value: polygons, RLE with a list of counts, or compressed RLE with str counts. Of several polygons one has to
            be usable: those of fewer than three points count for nothing, here as in Detectron2.
        height: of the image.
        width: of the image.
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
        return sum(counts) if all(is_int(run) and run >= 0 for run in counts) else None
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
