"""What makes an entry of a COCO json usable: each rule once, as a pure function.

The strict reader (:mod:`.coco_dicts`) refuses a file that breaks one of them; the inspection
(:mod:`boxsup_d2.data.formats.inspection`) counts what does and keeps the rest. No file is opened here.
"""

import itertools
import math
from collections.abc import Container, Iterable, Iterator
from typing import Any, NamedTuple, TypeGuard

from boxsup_d2.data.formats.problems import brief

# pycocotools counts the pixels of a mask in 32 bits.
_MAX_PIXELS = 2**31
_MAX_ID = 2**63


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
