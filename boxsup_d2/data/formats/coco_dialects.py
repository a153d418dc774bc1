"""What tools write in COCO's form but not by its rules, brought under them; each rule is told and counted.

Only the json is looked at. What is wrong with it, rather than written in another way, is left for
:mod:`.coco_checks` to find.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

from boxsup_d2.data.formats.coco_checks import box_fault, is_finite
from boxsup_d2.data.formats.problems import Problems
from boxsup_d2.masks.segmentation import usable_polygon

# Longer texts of digits than these are no numbers that every json reader keeps exactly.
_MAX_DIGITS = 15
#: Where an id that was a text is kept.
SOURCE_ID = "source_id"
#: Where a rotated box, x, y, w, h and degrees clockwise around its centre, is kept.
ROTATED_BOX = "rotated_box"
#: What is said of rotated boxes, whatever the format.
TURNED = "rotated boxes: the upright box around each is used"


def tidy_coco(data: dict[str, Any], notes: Problems | None = None) -> dict[str, Any]:
    """A json of COCO's form by COCO's rules.

    * Ids that are texts become numbers, the same in every file: digits their number, others a number of their hash.
      The text stays as ``source_id``.
    * A flat list of coordinates, or a list of points, is one polygon. Parts of fewer than three points are left out
      where there are others.
    * CVAT's brushed masks, whose ``iscrowd`` says that they are RLE, are objects.
    * Of CVAT's rotated boxes, whose ``bbox`` is theirs before the rotation, the enclosing box is used; the rotated
      one stays as ``rotated_box``.

    Args:
        data: of that form, see :func:`boxsup_d2.data.formats.coco.check_coco_form`; it is not changed.
        notes: gains what was done; and the images that hold crowd regions alone, for they are no objects.
    """
    notes = Problems() if notes is None else notes
    lists = {
        "images": [_with_numbers(entry, ("id",), notes) for entry in data["images"]],
        "categories": [_with_numbers(entry, ("id",), notes) for entry in data["categories"]],
        "annotations": [_tidy_annotation(entry, notes) for entry in data["annotations"]],
    }
    _note_crowds(lists["annotations"], notes)
    return {**data, **lists}


def _note_crowds(annotations: list[dict[str, Any]], notes: Problems) -> None:
    """Beside objects a crowd region is what COCO means by it; alone, it may be what some tool makes of objects."""
    crowds = [annotation for annotation in annotations if annotation.get("iscrowd") == 1]
    if crowds:
        with_objects = {str(annotation.get("image_id")) for annotation in annotations if not annotation.get("iscrowd")}
        for key in dict.fromkeys(str(annotation.get("image_id")) for annotation in crowds):
            if key not in with_objects:
                notes.add("images with crowd regions (iscrowd 1) alone, which are no objects", f"image {key}")


def enclosing_box(box: Sequence[float], degrees: float) -> list[float]:
    """The upright box x, y, w, h around a box that is turned clockwise around its centre."""
    x, y, w, h = box
    angle = math.radians(degrees)
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    width, height = w * cos + h * sin, w * sin + h * cos
    return [x + (w - width) / 2, y + (h - height) / 2, width, height]


def _tidy_annotation(entry: dict[str, Any], notes: Problems) -> dict[str, Any]:
    entry = _with_numbers(entry, ("id", "image_id", "category_id"), notes)
    name = f"id {entry.get('id')}"
    polygons = _polygons(entry.get("segmentation"))
    if polygons is not None:
        usable = [points for points in polygons if usable_polygon(points)]
        if usable and len(usable) < len(polygons):
            notes.add("masks with parts of fewer than three points, which count for nothing", name)
            polygons = usable
        if polygons != entry["segmentation"]:
            entry = {**entry, "segmentation": polygons}
    own = entry.get("attributes")
    attributes = own if isinstance(own, dict) else {}
    if entry.get("iscrowd") == 1 and isinstance(entry.get("segmentation"), dict) and "occluded" in attributes:
        notes.add("brushed masks of CVAT, marked as crowds: read as objects", name)
        entry = {**entry, "iscrowd": 0}
    rotation: Any = attributes.get("rotation")
    if ROTATED_BOX not in entry and is_finite(rotation) and rotation % 180 and box_fault(entry) is None:
        notes.add(TURNED, name)
        box = entry["bbox"]
        entry = {**entry, "bbox": enclosing_box(box, rotation), ROTATED_BOX: [*box, rotation]}
    return entry


def _with_numbers(entry: dict[str, Any], keys: tuple[str, ...], notes: Problems) -> dict[str, Any]:
    """The entry with numbers for ids; most files have no other, and get their own entries."""
    texts = {key: entry[key] for key in keys if isinstance(entry.get(key), str) and entry[key]}
    if not texts:
        return entry
    if "id" in texts:
        notes.add("ids that are texts: numbered, the text kept as source_id", texts["id"])
        entry = {**entry, SOURCE_ID: texts["id"]}
    return {**entry, **{key: number_of(text) for key, text in texts.items()}}


def number_of(text: str) -> int:
    """A number for an id that is a text; the same for the same text, in any file."""
    if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS:
        return int(text)
    return int(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12], 16)


def _polygons(value: Any) -> list[Any] | None:
    """A segmentation of polygons as a list of flat ones; None for other segmentations, and for none."""
    if not isinstance(value, list) or not value or value == [[]]:
        return None
    if all(is_finite(number) for number in value):
        return [value]
    if len(value) >= 3 and all(map(_is_point, value)):
        return [[number for point in value for number in point]]
    return [
        [number for point in part for number in point]
        if isinstance(part, list) and part and all(map(_is_point, part))
        else part
        for part in value
    ]


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_finite, value))
