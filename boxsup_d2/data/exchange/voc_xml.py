"""A folder of Pascal VOC's XML files, as LabelImg, CVAT and others write them, as a COCO dict.

Not the data sets in VOC's own layout, which :mod:`boxsup_d2.data.datasets.pascal_voc` registers: here there are no
lists of splits, any class, and images of any kind.
"""

import os
from typing import Any
from xml.etree.ElementTree import Element

from boxsup_d2.data.datasets.catalog import Problems
from boxsup_d2.data.datasets.voc_xml import VocObject, ids_of_names, parse_voc_xml, voc_image_size, voc_object
from boxsup_d2.data.exchange.folders import ImageFinder, header_size, list_files, require_folder


def read_voc_xml(annotations: str, images: str, report: Problems | None = None) -> dict[str, Any]:
    """Read a folder of XML files and the images that they are about.

    Boxes (1-based, inclusive ends) become x, y, w, h: x = xmin − 1, w = xmax − xmin + 1. Images are found by the name
    in ``<filename>``, else by the name of the XML file, whatever their extension, in folders below ``images`` as well.
    Images without an XML file are not in the result. Where an XML file gives no usable size, the image's header does.

    Args:
        annotations: folder of the XML files; those in folders below it count as well.
        images: folder of the images.
        report: where given, files and objects that cannot be used are noted there and left out; without, they are an
            error.

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
            root = parse_voc_xml(path)
        except ValueError as error:
            problems.add("damaged XML files", str(error).replace(path, relative))
            continue
        image = finder.find(relative, (root.findtext("filename") or "").strip())
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
