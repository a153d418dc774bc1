"""VGG Image Annotator's jsons (a project, or its annotations), which makesense.ai writes too, as a COCO dict."""

import math
from typing import Any

from boxsup_d2.data.formats.drawn import Shape, ellipse, objects_of, to_coco
from boxsup_d2.data.formats.folders import ImageFinder, header_size
from boxsup_d2.data.formats.problems import Problems

# What people call the attribute that holds the class, in the order of preference.
_CLASS_ATTRIBUTES = ("label", "class", "category", "name", "type", "object")


def is_via(data: Any) -> bool:
    """Whether a json is one of VIA's."""
    entries = _entries(data)
    return bool(entries) and all(isinstance(e, dict) and {"filename", "regions"} <= e.keys() for e in entries)


def read_via(data: Any, images: str, problems: Problems, notes: Problems) -> dict[str, Any]:
    """Read a json of VIA.

    A region's class is its attribute of that name (``label``, ``class``, ``category``, ``name``, ``type``, ``object``),
    or its only one.

    Args:
        data: the json, for which :func:`is_via` holds.
        images: folder of the images, whose sizes VIA does not tell.
        problems: gains images and regions that cannot be used.
        notes: gains what is left out.

    Returns:
        COCO dict. Annotations keep ``region_attributes``.
    """
    finder, found = ImageFinder(images), []
    for entry in _entries(data):
        image = finder.named(str(entry["filename"]))
        size = None
        if image is None:
            problems.add(f"images that are not in '{images}'", str(entry["filename"]))
        else:
            size = header_size(images, image, problems)
        if image is None or size is None:
            continue
        regions = entry["regions"]
        regions = list(regions.values()) if isinstance(regions, dict) else regions
        shapes = [shape for region in regions or [] for shape in _shapes(region, image, problems, notes)]
        objects = objects_of(shapes, *size, problems, image)
        found.append(({"file_name": image, "height": size[0], "width": size[1]}, objects))
    return to_coco(found)


def _entries(data: Any) -> list[Any]:
    if isinstance(data, dict):
        data = data.get("_via_img_metadata", data)
    return list(data.values()) if isinstance(data, dict) else []


def _shapes(region: Any, where: str, problems: Problems, notes: Problems) -> list[Shape]:
    drawn, attributes = (
        ({}, {})
        if not isinstance(region, dict)
        else (
            region.get("shape_attributes") or {},
            region.get("region_attributes") or {},
        )
    )
    shape = Shape(_class(attributes), fields={"region_attributes": attributes})
    try:
        kind = drawn.get("name")
        if kind == "rect":
            shape.box = [float(drawn[key]) for key in ("x", "y", "width", "height")]
        elif kind in ("polygon", "polyline"):
            points = zip(drawn["all_points_x"], drawn["all_points_y"], strict=True)
            shape.mask = [[float(value) for point in points for value in point]]
        elif kind in ("circle", "ellipse"):
            rx, ry = (drawn["r"],) * 2 if kind == "circle" else (drawn["rx"], drawn["ry"])
            turn = math.degrees(float(drawn.get("theta", 0)))
            shape.mask = [ellipse(float(drawn["cx"]), float(drawn["cy"]), float(rx), float(ry), turn)]
        else:
            notes.add(f"regions that are no areas: {kind}, left out", where)
            return []
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problems.add("regions that cannot be used", f"{where}: {error!r}")
        return []
    return [shape]


def _class(attributes: Any) -> str:
    if not isinstance(attributes, dict):
        return ""
    keys = [key for key in _CLASS_ATTRIBUTES if attributes.get(key)] or list(attributes)[:2]
    if not keys or (len(keys) > 1 and keys[0] not in _CLASS_ATTRIBUTES):
        return ""
    value = attributes[keys[0]]
    if isinstance(value, dict):  # of check boxes: the one that is checked
        value = next((key for key, checked in value.items() if checked), "")
    return str(value).strip()
