"""CVAT's own XML ("CVAT for images 1.1") as a COCO dict: boxes, polygons, masks, ellipses and their attributes.

Format: https://docs.cvat.ai/docs/manual/advanced/xml_format/
"""

from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from boxsup_d2.data.formats.drawn import Shape, crop_to_rle, ellipse, objects_of, to_coco
from boxsup_d2.data.formats.problems import Problems
from boxsup_d2.data.formats.rotated_boxes import TURNED, turned_box
from boxsup_d2.data.formats.voc import parse_xml

_IMAGE_KEYS = ("name", "width", "height", "id")


def read_cvat_xml(path: str, problems: Problems, notes: Problems) -> dict[str, Any]:
    """Read CVAT's XML file of a task or project of images.

    Shapes of one label and group are one object, as in CVAT's own COCO export. Lines, points, cuboids and tags are no
    areas and are left out.

    Args:
        path: of the file.
        problems: gains images and shapes that cannot be used.
        notes: gains what is left out, and rotated boxes.

    Returns:
        COCO dict; file names are CVAT's. Classes have the order of the labels in CVAT. Annotations have ``attributes``
        as in CVAT's COCO export, with ``occluded``.

    Raises:
        ValueError: it is damaged, or of a video.
    """
    root = parse_xml(path)
    if root.find("track") is not None:
        raise ValueError(
            f"'{path}' is CVAT's XML of a video, without names of images. Export the task as 'CVAT for images' or "
            "'COCO', with its images."
        )
    found = []
    for element in root.iter("image"):
        image = _image(element)
        if image is None:
            problems.add("images without a name, a width or a height", str(element.attrib))
            continue
        shapes = [shape for child in element for shape in _shapes(child, image, problems, notes)]
        found.append((image, objects_of(shapes, image["height"], image["width"], problems, image["file_name"])))
    names = [(label.findtext("name") or "").strip() for label in root.iter("label")]
    return to_coco(found, filter(None, names))


def _image(element: Element) -> dict[str, Any] | None:
    try:
        height, width = (int(element.get(key, "")) for key in ("height", "width"))
    except ValueError:
        return None
    name = element.get("name")
    if not name or min(height, width) < 1:
        return None
    others = {key: value for key, value in element.attrib.items() if key not in _IMAGE_KEYS}
    return {"file_name": name, "height": height, "width": width, **others}


def _shapes(element: Element, image: dict[str, Any], problems: Problems, notes: Problems) -> list[Shape]:
    """The shape of an element; none where it is no area or cannot be read."""
    attributes: dict[str, Any] = {
        (attribute.get("name") or ""): attribute.text or "" for attribute in element.findall("attribute")
    }
    attributes["occluded"] = element.get("occluded") == "1"
    group = element.get("group_id") or None
    shape = Shape((element.get("label") or "").strip(), group, fields={"attributes": attributes})
    try:
        if element.tag == "box":
            x0, y0, x1, y1, rotation = (
                float(element.get(key, "0" if key == "rotation" else ""))
                for key in ("xtl", "ytl", "xbr", "ybr", "rotation")
            )
            shape.box = [x0, y0, x1 - x0, y1 - y0]
            if rotation % 180:
                notes.add(TURNED, image["file_name"])
                shape.turn(turned_box(shape.box, rotation))
        elif element.tag == "polygon":
            points = [float(value) for point in element.get("points", "").split(";") for value in point.split(",")]
            shape.mask = [points]
        elif element.tag == "ellipse":
            cx, cy, rx, ry = (float(element.get(key, "")) for key in ("cx", "cy", "rx", "ry"))
            shape.mask = [ellipse(cx, cy, rx, ry, float(element.get("rotation", "0")))]
        elif element.tag == "mask":
            shape.mask = _mask(element, image)
        else:
            notes.add(f"shapes that are no areas: <{element.tag}>, left out", image["file_name"])
            return []
    except ValueError as error:
        problems.add("shapes that cannot be used", f"{image['file_name']}: <{element.tag}>, {error}")
        return []
    return [shape]


def _mask(element: Element, image: dict[str, Any]) -> dict[str, Any]:
    """RLE of a ``<mask>``, whose runs go along the rows of a window."""
    left, top, width, height = (int(float(element.get(key, ""))) for key in ("left", "top", "width", "height"))
    runs = np.array([int(run) for run in element.get("rle", "").split(",")])
    if min(width, height) < 1 or runs.min() < 0 or runs.sum() != width * height:
        raise ValueError(f"its runs cover {runs.sum()} pixels of {width}×{height}")
    crop = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    return crop_to_rle(crop, left, top, image["height"], image["width"])
