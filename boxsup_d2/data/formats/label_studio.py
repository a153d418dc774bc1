"""Label Studio's exports, JSON and JSON-MIN, as a COCO dict, and pre-annotations for it out of one.

Formats: https://labelstud.io/guide/export and https://labelstud.io/guide/predictions. Label Studio keeps a task's
``data`` as it was imported: what a COCO json says beyond boxes and masks is there, by the id of the region, and comes
back.
"""

import json
import math
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from boxsup_d2.data.formats.brush_rle import decode_brush, encode_brush
from boxsup_d2.data.formats.coco_checks import is_finite, is_int
from boxsup_d2.data.formats.drawn import (
    CATEGORIES,
    KEPT,
    Shape,
    crop_to_rle,
    ellipse,
    kept_fields,
    objects_of,
    to_coco,
)
from boxsup_d2.data.formats.folders import by_image
from boxsup_d2.data.formats.polygons import decode_mask
from boxsup_d2.data.formats.problems import Problems
from boxsup_d2.data.formats.rotated_boxes import ROTATED_BOX, TURNED, corner_of, rotated_box_of
from boxsup_d2.utils.files import atomic_write

# The names that the controls of the pre-annotations have in the labelling interface, and the picture.
_BOXES, _MASKS, _PICTURE = "box", "mask", "image"
# What follows an object's id in the id of the region of its mask.
_OF_MASK = "-mask"
_TYPES = ("rectanglelabels", "brushlabels", "polygonlabels", "ellipselabels")


def is_label_studio(data: Any) -> bool:
    """Whether a json is an export of tasks, or pre-annotations."""
    if not isinstance(data, list) or not data or not isinstance(data[0], dict):
        return False
    whole = isinstance(data[0].get("data"), dict) and bool(
        {"annotations", "predictions", "completions"} & data[0].keys()
    )
    return whole or "annotation_id" in data[0] or any(True for _ in _min_regions(data[0]))


def read_label_studio(data: list[Any], problems: Problems, notes: Problems) -> dict[str, Any]:
    """Read an export.

    A mask whose parent is a box of the same label is that box's. Of several annotations of a task the last one that
    was not cancelled counts, and where there is none, the last prediction.

    Args:
        data: the json.
        problems: gains tasks and regions that cannot be used.
        notes: gains what is left out, and rotated boxes.

    Returns:
        COCO dict; file names are Label Studio's.
    """
    found: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    for task in data:
        content = _dict(_dict(task).get("data")) or _dict(task)
        picture = task_picture(content)
        if picture is None:
            problems.add("tasks without an image", task)
            continue
        regions = list(task_regions(task, picture, notes))
        size = _size(regions)
        kept = _dict(content.get(KEPT))
        image = {"file_name": picture, **_dict(kept.get("image"))}
        if size is None:  # nothing was drawn in it: its size comes from its file
            found.append((image, []))
            continue
        height, width = size
        fields = _dict(kept.get("annotations"))
        shapes = [shape for region in regions for shape in task_shapes(region, height, width, problems, notes, picture)]
        _join_parents(shapes, fields)
        found.append(
            ({**image, "height": height, "width": width}, objects_of(shapes, height, width, problems, picture))
        )
    return to_coco(found)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def task_picture(content: dict[str, Any]) -> str | None:
    """The first text of a task that names a picture: what its key is called is up to the project."""
    texts = [content[key] for key in ("image", "img", "url") if isinstance(content.get(key), str)]
    texts += [value for value in content.values() if isinstance(value, str) and ("/" in value or "." in value)]
    return texts[0] if texts else None


def task_regions(task: dict[str, Any], picture: str, notes: Problems) -> Iterator[dict[str, Any]]:
    """Regions of a task, of an export or as models get it, in the form of the full export; ``notes`` gains which."""
    if not isinstance(task.get("data"), dict):
        yield from _min_regions(task)
        return
    lists = [task.get("annotations") or task.get("completions"), task.get("predictions")]
    drawn, predicted = ([entry for entry in one or [] if isinstance(entry, dict)] for one in lists)
    drawn = [entry for entry in drawn if not entry.get("was_cancelled")]
    if len(drawn) > 1:
        notes.add("tasks with several annotations: the last one counts", picture)
    if not drawn and predicted:
        notes.add("tasks with predictions alone: these are used", picture)
    for entry in (drawn or predicted)[-1:]:
        yield from (region for region in entry.get("result") or [] if isinstance(region, dict))


def _min_regions(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Regions of JSON-MIN: values beside the size of their image, in a list per control."""
    for regions in task.values():
        for value in regions if isinstance(regions, list) else []:
            if isinstance(value, dict) and "original_width" in value:
                kind = next((kind for kind in _TYPES if kind in value), "region")
                yield {**value, "type": kind, "value": value}


def _size(regions: list[dict[str, Any]]) -> tuple[int, int] | None:
    for region in regions:
        height, width = region.get("original_height"), region.get("original_width")
        if is_int(height) and is_int(width) and min(height, width) > 0:
            return height, width
    return None


def task_shapes(
    region: dict[str, Any], height: int, width: int, problems: Problems, notes: Problems, where: str
) -> list[Shape]:
    """The shape of a region on an image of this size; none where it is no area, or cannot be read."""
    kind, value = region.get("type"), _dict(region.get("value"))
    labels = value.get(kind) if isinstance(kind, str) else None
    if kind not in _TYPES or not isinstance(labels, list) or not labels:
        if isinstance(kind, str) and kind != "labels":
            notes.add(f"regions that are no areas with a label: {kind}, left out", where)
        return []
    shape = Shape(str(labels[0]).strip(), (region.get("parentID") or None, region.get("id")))
    numbers: list[Any] = [value.get(key) for key in ("x", "y", "width", "height")]
    rotation: Any = value.get("rotation") if is_finite(value.get("rotation")) else 0
    try:
        if kind == "brushlabels":
            shape.mask = crop_to_rle(decode_brush(value.get("rle"), height, width), 0, 0, height, width)
        elif kind == "polygonlabels":
            points = [(float(x) * width / 100, float(y) * height / 100) for x, y in value["points"]]
            shape.mask = [[number for point in points for number in point]]
        elif kind == "ellipselabels":
            x, rx = (float(value[key]) * width / 100 for key in ("x", "radiusX"))
            y, ry = (float(value[key]) * height / 100 for key in ("y", "radiusY"))
            shape.mask = [ellipse(x, y, rx, ry, rotation)]
        elif not all(map(is_finite, numbers)):
            raise ValueError(f"its box is {numbers}")
        else:
            x, y, w, h = (n * side / 100 for n, side in zip(numbers, (width, height, width, height), strict=True))
            shape.box = [x, y, w, h]
            if rotation % 180:
                notes.add(TURNED, where)
                shape.turn(_turned(x, y, w, h, rotation))
    except (KeyError, TypeError, ValueError) as error:
        problems.add("regions that cannot be used", f"{where}, {region.get('id')}: {error}")
        return []
    return [shape]


def _turned(x: float, y: float, w: float, h: float, degrees: float) -> list[float]:
    """The rotated box of one that is turned clockwise around its corner."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [x + (w * cos - h * sin) / 2, y + (w * sin + h * cos) / 2, w, h, -degrees]


def _join_parents(shapes: list[Shape], kept: dict[str, Any]) -> None:
    """Give masks the group of the box that is their parent, and objects what was kept of them."""
    boxes = {shape.group[1]: shape for shape in shapes if shape.box is not None and isinstance(shape.group, tuple)}
    for shape in shapes:
        assert isinstance(shape.group, tuple)
        parent, key = shape.group
        if parent is None and isinstance(key, str) and key.endswith(_OF_MASK):
            parent = key.removesuffix(_OF_MASK)
        box = boxes.get(parent) if isinstance(parent, str) else None
        ours = isinstance(key, str) and key.endswith(_OF_MASK)
        joined = box is not None and box is not shape and (ours or box.label == shape.label)
        own = parent if joined else key
        shape.group = own if isinstance(own, str | int) else None
        shape.fields |= _dict(kept.get(str(own)))


def write_label_studio(data: dict[str, Any], out_dir: str) -> dict[str, int]:
    """Write ``tasks.json``, to be imported: a task per image, with a box and a brush mask per object as predictions;
    and ``config.xml``, the labelling interface that shows them.

    The pictures are named as Label Studio's local storage serves them, relative to ``LOCAL_FILES_DOCUMENT_ROOT``, which
    is to be the folder of the images. Crowd regions are left out.

    Args:
        data: COCO dict whose images have sizes and whose masks fit them.
        out_dir: folder to write to.

    Returns:
        ``files``, ``objects``, ``without_mask`` (written as boxes alone) and ``crowds`` (left out).

    Raises:
        ValueError: a mask cannot be read.
    """
    names = {category["id"]: category["name"] for category in data["categories"]}
    counts = {"files": 2, "objects": 0, "without_mask": 0, "crowds": 0}
    with atomic_write(os.path.join(out_dir, "tasks.json")) as file:
        separator = "[\n"
        for image, annotations in by_image(data):
            objects = [annotation for annotation in annotations if not annotation.get("iscrowd")]
            counts["crowds"] += len(annotations) - len(objects)
            counts["objects"] += len(objects)
            if separator == "[\n":
                image = {**image, CATEGORIES: data["categories"]}
            task = _task(image, objects, names)
            counts["without_mask"] += 2 * len(objects) - len(task["predictions"][0]["result"])
            file.write(separator + json.dumps(task))
            separator = ",\n"
        file.write("[]\n" if separator == "[\n" else "\n]\n")
    with open(os.path.join(out_dir, "config.xml"), "w", encoding="utf-8") as file:
        file.write(_config(names.values()))
    return counts


def _task(image: dict[str, Any], objects: list[dict[str, Any]], names: dict[int, str]) -> dict[str, Any]:
    height, width = image["height"], image["width"]
    common = {"original_width": width, "original_height": height, "image_rotation": 0, "to_name": _PICTURE}
    regions = []
    for annotation in objects:
        key, label = str(annotation["id"]), [names[annotation["category_id"]]]
        (x, y, w, h), rotation = annotation["bbox"], 0.0
        rotated = rotated_box_of(annotation)
        if rotated is not None:
            (x, y, rotation), (w, h) = corner_of(rotated), rotated[2:4]
        box = {"x": 100 * x / width, "y": 100 * y / height, "width": 100 * w / width, "height": 100 * h / height}
        value: dict[str, Any] = {**box, "rotation": rotation, "rectanglelabels": label}
        regions.append({**common, "id": key, "from_name": _BOXES, "type": "rectanglelabels", "value": value})
        mask = decode_mask(annotation, height, width)
        if mask.any():
            regions.append(brush_region(mask, label[0], key, of_box=True))
    # A rotated box is drawn as one: whoever turns it back means it.
    kept = {
        str(a["id"]): {key: v for key, v in kept_fields(a, names[a["category_id"]]).items() if key != ROTATED_BOX}
        for a in objects
    }
    picture = f"/data/local-files/?d={quote(image['file_name'])}"
    return {
        "data": {_PICTURE: picture, KEPT: {"image": image, "annotations": kept}},
        "predictions": [{"model_version": "boxsup_d2", "result": regions}],
    }


def brush_region(
    mask: np.ndarray, label: str, key: str, *, of_box: bool, control: str = _MASKS, picture: str = _PICTURE
) -> dict[str, Any]:
    """A region that is a mask.

    Args:
        mask: H×W bool.
        label: its class.
        key: id of the region; with ``of_box`` that of the box whose mask it is.
        of_box: whether it is the mask of a box beside it.
        control, picture: names of the labelling interface's control and picture.
    """
    height, width = mask.shape
    return {
        "id": key + _OF_MASK if of_box else key,
        **({"parentID": key} if of_box else {}),
        "from_name": control,
        "to_name": picture,
        "type": "brushlabels",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {"format": "rle", "rle": encode_brush(mask), "brushlabels": [label]},
    }


def _config(names: Any) -> str:
    """The labelling interface; Label Studio's own converters read such configs. Smart: models may answer boxes."""
    labels = "".join(f"\n    <Label value={quoteattr(name)}/>" for name in names)
    return (
        f'<View>\n  <Image name="{_PICTURE}" value="${_PICTURE}" zoom="true"/>\n'
        f'  <RectangleLabels name="{_BOXES}" toName="{_PICTURE}" smart="true">{labels}\n  </RectangleLabels>\n'
        f'  <BrushLabels name="{_MASKS}" toName="{_PICTURE}">{labels}\n  </BrushLabels>\n</View>\n'
    )
