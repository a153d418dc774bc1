"""Pascal VOC's annotation XML: one file, its parts and their checks; and a folder of such files, as LabelImg, CVAT and
others write them, as a COCO dict.

The data sets in VOC's own layout, with lists of splits, are :mod:`boxsup_d2.data.datasets.pascal_voc`'s.

Frame: VOC boxes are 1-based with inclusive ends; what is returned is 0-based with exclusive ends (x0 = xmin − 1,
x1 = xmax).
"""

import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

import defusedxml.ElementTree
import numpy as np
from defusedxml.common import DefusedXmlException

from boxsup_d2.data.formats.folders import ImageFinder, header_size, list_files, read_text, require_folder
from boxsup_d2.data.formats.problems import Problems


class VocObject(NamedTuple):
    """An ``<object>``.

    Attributes:
        name: of its class.
        box: x0, y0, x1, y1; 0-based, exclusive ends.
        difficult, truncated: 0 or 1.
    """

    name: str
    box: tuple[float, float, float, float]
    difficult: int
    truncated: int


def parse_xml(path: str) -> Element:
    """The root of an annotation file that exists.

    Raises:
        ValueError: it is damaged.
    """
    try:
        try:
            root = defusedxml.ElementTree.parse(path).getroot()
        except defusedxml.ElementTree.ParseError:
            # As Windows writes it, without saying so: the text, without what it says of its encoding.
            text = read_text(path)
            if text.isascii():
                raise
            root = defusedxml.ElementTree.fromstring(re.sub(r"^\s*<\?xml.*?\?>", "", text))
    except (defusedxml.ElementTree.ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise ValueError(f"'{path}' is damaged or no VOC annotation ({error!r}). Unpack or copy it again.") from error
    return root


def voc_image_size(root: Element, path: str) -> tuple[int, int]:
    """Height and width as the file gives them.

    Raises:
        ValueError: it gives none; names the file.
    """
    width, height = (_number(root, f"size/{key}", path) for key in ("width", "height"))
    if min(width, height) < 1:
        raise ValueError(f"'{path}': the image size is {width:g} by {height:g}. Write the true size into <size>.")
    return int(height), int(width)


def voc_object(element: Element, path: str) -> VocObject:
    """One ``<object>``; the boxes of its parts are not its own.

    Raises:
        ValueError: its box is inverted or no box, or it has no class; names the file.
    """
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError(f"'{path}': an object without a <name>. Name its class, or remove it.")
    xmin, ymin, xmax, ymax = (_number(element, f"bndbox/{key}", path) for key in ("xmin", "ymin", "xmax", "ymax"))
    # Ends are inclusive: xmin = xmax is a box one pixel wide.
    if xmax < xmin or ymax < ymin:
        raise ValueError(
            f"'{path}': inverted box of a '{name}', xmin {xmin:g}, ymin {ymin:g}, xmax {xmax:g}, ymax {ymax:g}. "
            "Swap or remove it."
        )
    difficult, truncated = (int((element.findtext(key) or "0").strip() == "1") for key in ("difficult", "truncated"))
    return VocObject(name, (xmin - 1.0, ymin - 1.0, xmax, ymax), difficult, truncated)


def ids_of_names(stems: Sequence[str]) -> list[int]:
    """Image ids from file names: "2007_000032" is 2007000032. For names of another form, the 1-based position."""
    digits = [stem.replace("_", "") for stem in stems]
    # More than 18 digits do not fit into int64.
    if all(text.isascii() and text.isdigit() and len(text) <= 18 for text in digits):
        ids = [int(text) for text in digits]
        if len(set(ids)) == len(ids):
            return ids
    return list(range(1, len(stems) + 1))


def read_voc_xml(
    annotations: str, images: str, report: Problems | None = None, notes: Problems | None = None
) -> dict[str, Any]:
    """Read a folder of XML files and the images that they are about.

    Boxes (1-based, inclusive ends) become x, y, w, h: x = xmin − 1, w = xmax − xmin + 1. Images are found by the name
    of the XML file, whatever their extension, in folders below ``images`` as well; where there is none of that name, by
    ``<filename>``, which is often stale: files are renamed, and their inside is not.
    Images without an XML file are not in the result. Where an XML file gives no usable size, the image's header does.

    Args:
        annotations: folder of the XML files; those in folders below it count as well.
        images: folder of the images.
        report: where given, files and objects that cannot be used are noted there and left out; without, they are an
            error.
        notes: gains the files whose ``<filename>`` is another image's.

    Returns:
        COCO dict. ``file_name`` is relative to ``images``. Image ids are the numbers in the names of VOC's form, else
        positions from 1; annotation ids count from 1, category ids from 1 in the order of the names. Annotations keep
        ``difficult`` and ``truncated`` (0 or 1).

    Raises:
        FileNotFoundError: a folder is missing, or holds no XML file.
        ValueError: without ``report``: files or objects that cannot be used, all kinds with first examples.
    """
    paths = list_files(require_folder(annotations, "XML files"), [".xml"])
    finder = ImageFinder(require_folder(images, "images"))
    if not paths:
        raise FileNotFoundError(f"There is no XML file in '{annotations}'. Correct the path.")
    problems = Problems() if report is None else report
    found: dict[str, tuple[tuple[int, int], list[VocObject]]] = {}  # by image
    for relative in paths:
        path = os.path.join(annotations, relative)
        try:
            root = parse_xml(path)
        except ValueError as error:
            problems.add("damaged XML files", str(error).replace(path, relative))
            continue
        named = finder.named((root.findtext("filename") or "").strip())
        image = finder.beside(relative) or named
        if notes is not None and named not in (None, image):
            notes.add("XML files whose <filename> is another image's: their own name counts", f"{relative}: {named}")
        if image is None:
            problems.add(f"XML files without an image of their name in '{images}', or with several", relative)
            continue
        if image in found:
            problems.add("XML files of an image that another one describes", f"{relative} ({image})")
            continue
        size = _size(root, images, image, problems)
        if size is not None:
            found[image] = size, _objects(root, relative, problems)
    if report is None:
        problems.raise_if_any(annotations, "Correct or remove these, or go on with the others.")
    return _to_coco(found)


def _size(root: Element, folder: str, image: str, problems: Problems) -> tuple[int, int] | None:
    try:
        return voc_image_size(root, image)
    except ValueError:  # many tools leave it at 0
        return header_size(folder, image, problems)


def _objects(root: Element, path: str, problems: Problems) -> list[VocObject]:
    objects = []
    for element in root.findall("object"):
        try:
            objects.append(voc_object(element, path))
        except ValueError as error:
            problems.add("objects that cannot be used", str(error))
    return objects


def _to_coco(found: dict[str, tuple[tuple[int, int], list[VocObject]]]) -> dict[str, Any]:
    names = sorted({obj.name for _, objects in found.values() for obj in objects})
    category_ids = {name: index for index, name in enumerate(names, start=1)}
    stems = [os.path.splitext(os.path.basename(image))[0] for image in found]
    data: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": key, "name": name} for name, key in category_ids.items()],
    }
    for image_id, (image, ((height, width), objects)) in zip(ids_of_names(stems), found.items(), strict=True):
        data["images"].append({"id": image_id, "file_name": image, "height": height, "width": width})
        for obj in objects:
            x0, y0, x1, y1 = obj.box
            data["annotations"].append(
                {
                    "id": len(data["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": category_ids[obj.name],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    "difficult": obj.difficult,
                    "truncated": obj.truncated,
                }
            )
    return data


def _number(element: Element, path_in_xml: str, path: str) -> float:
    text = element.findtext(path_in_xml)
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise ValueError(f"'{path}': <{path_in_xml}> is {text!r:.40}, not a number. Correct or remove the object.")
    return value
