"""What annotation tools draw, as COCO dicts: shapes of an image, joined to objects, numbered.

Tools keep the box and the mask of an object, or the parts of its mask, as shapes of their own. Shapes of one label and
one group (whatever a tool calls it) are one object. This is the step that the readers of tools' own files share; every
one of them is a module beside this one.
"""

import base64
import binascii
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from boxsup_d2.data.formats.coco_checks import is_int, unused_ids
from boxsup_d2.data.formats.problems import Problems
from boxsup_d2.data.formats.rotated_boxes import rotated_fields
from boxsup_d2.masks.rle import area, encode_masks, encode_window, tight_box, union
from boxsup_d2.masks.segmentation import segmentation_fault

#: Under this key files of tools keep what the COCO json says of an image or object and the tool has no room for.
KEPT = "boxsup_d2"
#: Under this key an image brings along the classes of the json, those that no object has included. The first one's file
#: is enough: of thousands of classes a copy beside every image would be gigabytes.
CATEGORIES = f"{KEPT}:categories"
# The label of an object, and the one that it had when it was written.
_LABEL, _FORMER = f"{KEPT}:label", f"{KEPT}:former"
# Keys of an annotation that its shapes say.
_OF_SHAPES = ("bbox", "segmentation", "area", "iscrowd", "image_id", "confidence", "confidence_exact", "quality")


@dataclass
class Shape:
    """A shape as it was drawn.

    Attributes:
        label: name of its class.
        group: shapes with the same one, and label, are one object; None: it is an object of its own. Those of an object
            that this program wrote stay one when only its box, or only its mask, is given another label.
        box: x, y, w, h, where it is a box.
        mask: COCO polygons or RLE, where it is an area.
        fields: what else is known of the object.
    """

    label: str
    group: Hashable = None
    box: list[float] | None = None
    mask: list[list[float]] | dict[str, Any] | None = None
    fields: dict[str, Any] = field(default_factory=dict)

    def turn(self, rotated: Sequence[float]) -> None:
        """Make it a rotated box (cx, cy, w, h, degrees counter-clockwise)."""
        fields = rotated_fields(rotated)
        self.box = fields.pop("bbox")
        self.fields |= fields


def kept_fields(annotation: dict[str, Any], label: str) -> dict[str, Any]:
    """What a tool's file should keep of an annotation of this class beside its shapes, to read it back."""
    return {**{key: value for key, value in annotation.items() if key not in _OF_SHAPES}, _FORMER: label.strip()}


def objects_of(
    shapes: Iterable[Shape], height: int, width: int, problems: Problems, where: str
) -> list[dict[str, Any]]:
    """Annotations, for :func:`to_coco`, of the shapes of an image.

    Args:
        shapes: of the image.
        height, width: of the image.
        problems: gains the shapes that cannot be used.
        where: name of the file, for them.
    """
    groups: dict[Hashable, list[Shape]] = {}
    shapes = list(shapes)
    ours = {shape.group for shape in shapes if _FORMER in shape.fields} - {None}
    for number, shape in enumerate(shapes):
        fault = None if shape.mask is None else segmentation_fault(shape.mask, height, width)
        if not shape.label:
            fault = "it has no class"
        if fault is not None:
            problems.add("shapes that cannot be used", f"{where}, shape {number + 1}: {fault}")
            continue
        label = "" if shape.group in ours else shape.label
        key = (label, number, None) if shape.group is None else (label, None, shape.group)
        groups.setdefault(key, []).append(shape)
    objects = []
    for members in groups.values():
        boxes = [shape for shape in members if shape.box is not None]
        # Boxes in a group are things that belong together, rather than one thing.
        one = [members] if len(boxes) < 2 else [[shape] for shape in members]
        objects += [_object(shapes_of_it, height, width) for shapes_of_it in one]
    return objects


def _object(shapes: list[Shape], height: int, width: int) -> dict[str, Any]:
    masks = [shape.mask for shape in shapes if shape.mask]
    mask: Any = None
    if masks and all(isinstance(value, list) for value in masks):
        mask = [points for polygons in masks for points in polygons]
    elif masks:
        (mask,) = encode_masks(union(masks, height, width)[:, :, None])
    box = next((shape.box for shape in shapes if shape.box is not None), None)
    if box is None:
        if isinstance(mask, dict):
            x0, y0, x1, y1 = tight_box(mask, height, width) or (0.0, 0.0, 0.0, 0.0)
            box = [x0, y0, x1 - x0, y1 - y0]
        else:
            box = _extent(mask)
    fields: dict[str, Any] = {}
    for shape in shapes:
        fields |= shape.fields
    labels, former = [shape.label for shape in shapes], fields.pop(_FORMER, None)
    label = next((label for label in labels if label != former), labels[0])
    annotation = {**fields, _LABEL: label, "bbox": box, "iscrowd": 0}
    if mask is not None:
        annotation["segmentation"] = mask
        annotation["area"] = float(area(mask, height, width))
    return annotation


def _extent(polygons: list[list[float]]) -> list[float]:
    xs = [x for points in polygons for x in points[0::2]]
    ys = [y for points in polygons for y in points[1::2]]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def to_coco(found: list[tuple[dict[str, Any], list[dict[str, Any]]]], names: Iterable[str] = ()) -> dict[str, Any]:
    """Images with their objects, of :func:`objects_of`, as a COCO dict.

    Ids that images, objects and classes bring along (``id``, ``category_id``) stay where no two share one. Classes that
    images bring along (:data:`CATEGORIES`) stay, drawn or not; objects that were given another one have its id.

    Args:
        found: image (``file_name``, ``height``, ``width`` and whatever else) and its objects.
        names: of classes in the order of their numbers, where it is known; others follow in the order of the alphabet.
    """
    kept: dict[int, dict[str, Any]] = {}
    for image, _ in found:
        for category in _categories(image):
            kept.setdefault(category["id"], category)
    images = _numbered([{key: v for key, v in image.items() if key != CATEGORIES} for image, _ in found])
    annotations = []
    for image, (_, objects) in zip(images, found, strict=True):
        annotations += [{"category_id": None, **annotation, "image_id": image["id"]} for annotation in objects]
    for annotation in annotations:
        if not is_int(annotation["category_id"]):
            annotation["category_id"] = None
    number_of: dict[str, int] = {}
    for key, category in kept.items():
        number_of.setdefault(category["name"].strip(), key)
    known = dict.fromkeys(names)
    drawn = sorted({annotation[_LABEL] for annotation in annotations} - known.keys())
    claimed: dict[str, set[Any]] = {label: set() for label in [*known, *drawn] if label not in number_of}
    for annotation in annotations:
        if annotation[_LABEL] in claimed:
            claimed[annotation[_LABEL]].add(annotation["category_id"])
    others = [{"id": ids.pop() if len(ids) == 1 else None, "name": label} for label, ids in claimed.items()]
    categories = _numbered([*kept.values(), *others])
    number_of |= {category["name"]: category["id"] for category in categories[len(kept) :]}
    for annotation in annotations:
        label, former = annotation.pop(_LABEL), annotation["category_id"]
        # Of two classes of one name, that which it had.
        unchanged = former in kept and kept[former]["name"].strip() == label
        annotation["category_id"] = former if unchanged else number_of[label]
    return {"images": images, "annotations": _numbered(annotations), "categories": categories}


def _categories(image: dict[str, Any]) -> list[dict[str, Any]]:
    """Classes that an image brings along; a file that others change may hold anything there."""
    value = image.get(CATEGORIES)
    entries = value if isinstance(value, list) else []
    return [x for x in entries if isinstance(x, dict) and isinstance(x.get("name"), str) and is_int(x.get("id"))]


def _numbered(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries, each with an integer ``id`` of its own."""
    new_ids, seen, numbered = unused_ids(entries), set(), []
    for entry in entries:
        key = entry.get("id")
        if not is_int(key) or key in seen:
            key = next(new_ids)
        seen.add(key)
        numbered.append({**entry, "id": key})
    return numbered


def crop_to_rle(crop: np.ndarray, left: int, top: int, height: int, width: int) -> dict[str, Any]:
    """RLE of a mask (h×w bool) at a place of an image of height × width; what lies outside of it is cut off."""
    crop = crop[max(0, -top) : max(0, height - top), max(0, -left) : max(0, width - left)]
    return encode_window(crop.T, max(0, left), max(0, top), height, width)


def decode_png(text: Any) -> np.ndarray | None:
    """A mask, h×w bool, of a PNG in base64; None where it is none."""
    try:
        content = base64.b64decode(text, validate=True)
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE) if content else None
    except (TypeError, ValueError, binascii.Error, cv2.error):
        return None
    return None if image is None else image > 0


def ellipse(cx: float, cy: float, rx: float, ry: float, degrees: float = 0.0, points: int = 72) -> list[float]:
    """A polygon x0, y0, x1, y1, ... of an ellipse that is turned clockwise around its centre."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    x, y, turn = rx * np.cos(angles), ry * np.sin(angles), np.deg2rad(degrees)
    ring = np.stack([cx + x * np.cos(turn) - y * np.sin(turn), cy + x * np.sin(turn) + y * np.cos(turn)], axis=1)
    return ring.reshape(-1).tolist()
