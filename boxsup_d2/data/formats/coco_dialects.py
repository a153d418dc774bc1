"""What tools write in COCO's form but not by its rules, brought under them; each rule is told and counted.

Only the json is looked at. What is wrong with it, rather than written in another way, is left for
:mod:`.coco_checks` to find.
"""

import hashlib
from typing import Any

from boxsup_d2.data.formats.coco_checks import box_fault, is_finite
from boxsup_d2.data.formats.problems import Problems
from boxsup_d2.data.formats.rotated_boxes import ROTATED_BOX, TURNED, rotated_box_of, rotated_fields, turned_box
from boxsup_d2.masks.segmentation import usable_polygon

# Longer texts of digits than these are no numbers that every json reader keeps exactly.
_MAX_DIGITS = 15
#: Where an id that was a text is kept.
SOURCE_ID = "source_id"


def tidy_coco(data: dict[str, Any], notes: Problems | None = None) -> dict[str, Any]:
    """A json of COCO's form by COCO's rules.

    * Ids that are texts become numbers, the same in every file: digits their number, others a number of their hash.
      The text stays as ``source_id``.
    * A flat list of coordinates, or a list of points, is one polygon. Parts of fewer than three points are left out
      where there are others.
    * CVAT's brushed masks, whose ``iscrowd`` says that they are RLE, are objects.
    * Rotated boxes (five numbers as Detectron2 has them, or a ``rotation`` in degrees clockwise, which CVAT has among
      the attributes, beside the box before it) become their enclosing box; see :mod:`.rotated_boxes`.

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
    return _with_rotated_box(entry, attributes, notes)


def _with_rotated_box(entry: dict[str, Any], attributes: dict[str, Any], notes: Problems) -> dict[str, Any]:
    """The entry with its enclosing box for ``bbox``, and the rotated one in its field."""
    box, name = entry.get("bbox"), f"id {entry.get('id')}"
    if ROTATED_BOX in entry:
        if rotated_box_of(entry) is None:
            notes.add(f"fields '{ROTATED_BOX}' that do not fit their bbox: they count for nothing", name)
        return entry
    rotated = None
    if isinstance(box, list) and len(box) == 5 and all(map(is_finite, box)) and min(box[2:4]) >= 0:
        rotated = box
    else:
        angles: list[Any] = [attributes.get("rotation"), entry.get("rotation")]
        angle = next((angle for angle in angles if is_finite(angle) and angle % 180), None)
        if angle is not None and isinstance(box, list) and box_fault(entry) is None:
            rotated = turned_box(box, angle)
    if rotated is None:
        return entry
    notes.add(TURNED, name)
    return {**entry, **rotated_fields(rotated)}


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
