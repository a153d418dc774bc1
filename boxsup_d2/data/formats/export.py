"""Masks of a COCO json in other formats: YOLO-seg text files, Pascal VOC's palette PNGs, a PNG per mask.

Every writer takes a COCO dict whose images have ``height`` and ``width`` and whose masks fit them (as labelling writes
it, or :attr:`boxsup_d2.data.formats.inspection.Inspection.usable`), writes below a folder, and returns how many files
and objects it wrote and what it left out. Names are those of the images, folders included. Files of that name are
replaced, others left alone. Crowd regions are objects of no format here.
"""

import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import yaml

from boxsup_d2.data.formats.coco import category_tables
from boxsup_d2.data.formats.folders import by_image, output_stems, write_file
from boxsup_d2.data.formats.polygons import decode_mask, mask_to_polygon
from boxsup_d2.data.images import encode_label_map
from boxsup_d2.masks.label_map import IGNORE_LABEL, MAX_CLASSES


def write_yolo_seg(
    data: dict[str, Any], out_dir: str, image_root: str | None = None, *, tolerance: float = 0.0
) -> dict[str, int]:
    """Write a data set as ``yolo train`` takes it: text files, ``data.yaml``, and links to the images, hard
    ones where the drive allows.

    Text files have a line "class x0 y0 x1 y1 ..." per object in 0..1 of the sides. They lie where these tools look for
    them: the last folder ``images`` in the path of an image becomes ``labels``. Images whose file names have no such
    folder get it before them. A folder that is itself called ``labels`` is that one; the data set is the folder above.

    The format has one polygon per object. A mask of several parts, or with holes, becomes one polygon whose parts are
    joined by cuts, as the format's own tools join COCO's polygons; filled by OpenCV or by pycocotools it is the mask
    again (:func:`.polygons.mask_to_polygon`). Images without an object get an empty file, for they are background;
    those with crowd regions alone are not, and are left out.

    ``data.yaml`` names the classes, numbered from 0 in the order of their category ids, and the folders of the images.

    Args:
        data: see the module.
        out_dir: folder to write to.
        image_root: folder of the images, to make links to; None makes none.
        tolerance: see :func:`.polygons.mask_to_polygons`.

    Returns:
        ``files``, ``objects``, ``without_mask`` (left out: no mask, or an empty one), ``crowds`` (left out) and
        ``images_of_crowds`` (left out).

    Raises:
        ValueError: two images share a name but for its extension, or a mask cannot be read.
    """
    names, class_of = category_tables(data, out_dir)
    root = yolo_root(out_dir)
    counts = {"files": 0, "objects": 0, "without_mask": 0, "crowds": 0, "images_of_crowds": 0}
    counts["crowds"] = sum(bool(annotation.get("iscrowd")) for annotation in data["annotations"])
    counts["images_of_crowds"] = len(data["images"])
    data = _without_images_of_crowds(data)
    counts["images_of_crowds"] -= len(data["images"])
    folders = set()
    for (image, annotations), path in zip(by_image(data), _yolo_paths(data), strict=True):
        objects = [annotation for annotation in annotations if not annotation.get("iscrowd")]
        height, width = image["height"], image["width"]
        lines = []
        for annotation in objects:
            points = np.array(mask_to_polygon(decode_mask(annotation, height, width), tolerance)).reshape(-1, 2)
            if not len(points):
                counts["without_mask"] += 1
                continue
            shares = (points / (width, height)).reshape(-1)
            lines.append(" ".join([str(class_of[annotation["category_id"]]), *(f"{v:.6g}" for v in shares)]))
        before, after = path.rsplit("/images/", 1)
        label = os.path.join(root, f"{before}/labels/{os.path.splitext(after)[0]}.txt".lstrip("/"))
        write_file(label, "".join(f"{line}\n" for line in lines))
        folders.add(f"{before}/images".lstrip("/"))
        counts["files"] += 1
        counts["objects"] += len(lines)
    for link, picture in yolo_links(data, out_dir, image_root) if image_root else ():
        if not os.path.lexists(link):
            os.makedirs(os.path.dirname(link), exist_ok=True)
            _link(picture, link)
    listed = sorted(folders) or ["images"]
    where = listed if len(listed) > 1 else listed[0]
    content = {"train": where, "val": where, "nc": len(names), "names": dict(enumerate(names))}
    write_file(os.path.join(root, "data.yaml"), yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return counts


def yolo_root(out_dir: str) -> str:
    """Folder of the data set that is written to a folder, see :func:`write_yolo_seg`."""
    folder, base = os.path.split(os.path.abspath(out_dir))
    return folder if base == "labels" else os.path.join(folder, base)


def yolo_links(data: dict[str, Any], out_dir: str, image_root: str) -> list[tuple[str, str]]:
    """Where a data set has each image, and which file that is; both absolute."""
    root, data = yolo_root(out_dir), _without_images_of_crowds(data)
    pictures = (os.path.abspath(os.path.join(image_root, image["file_name"])) for image in data["images"])
    links = (os.path.join(root, path.lstrip("/")) for path in _yolo_paths(data))
    return list(zip(links, pictures, strict=True))


def _link(picture: str, link: str) -> None:
    """The same file under another name: a symbolic link out of the data set would be refused when it is read again."""
    try:
        os.link(os.path.realpath(picture), link)
    except OSError:  # another drive, or one without such links
        os.symlink(picture, link)


def _without_images_of_crowds(data: dict[str, Any]) -> dict[str, Any]:
    """The data without images that hold crowd regions and no object."""
    crowds = {annotation["image_id"] for annotation in data["annotations"] if annotation.get("iscrowd")}
    crowds -= {annotation["image_id"] for annotation in data["annotations"] if not annotation.get("iscrowd")}
    return {
        **data,
        "images": [image for image in data["images"] if image["id"] not in crowds],
        "annotations": [annotation for annotation in data["annotations"] if annotation["image_id"] not in crowds],
    }


def _yolo_paths(data: dict[str, Any]) -> list[str]:
    """The path of each image in a data set, from "/", with a folder ``images``."""
    paths = []
    for image, stem in zip(data["images"], output_stems(data["images"]), strict=True):
        path = f"/{stem}{os.path.splitext(image['file_name'])[1]}"
        paths.append(path if "/images/" in path else f"/images{path}")
    return paths


def write_voc_png(data: dict[str, Any], out_dir: str) -> dict[str, int]:
    """Write ``SegmentationObject/<image>.png`` and ``SegmentationClass/<image>.png`` in VOC's palette, and
    ``class_names.txt``, a name per line in the order of the numbers.

    In the first, pixel value i is the i-th annotation of the image that is no crowd region, counted from 1 whether it
    has a mask or not; in the second, 1 + the class's position in the order of the category ids. 0 is the background.
    Where masks overlap, the smaller one is on top, and of equal ones the earlier. VOC's void border (255) is not
    invented; only the pixels of crowd regions that no object has are void.

    Returns:
        ``files``, ``objects`` (with at least a pixel in the maps), ``without_mask`` (no mask, or an empty one),
        ``covered`` (smaller masks hide all of it) and ``crowds`` (painted void).

    Raises:
        ValueError: see :func:`check_voc_png`, before anything is written; two images share a name but for its
            extension; a mask cannot be read.
    """
    check_voc_png(data, out_dir)
    names, class_of = category_tables(data, out_dir)
    images = list(_images(data))
    counts = {"files": 0, "objects": 0, "without_mask": 0, "covered": 0, "crowds": 0}
    for (image, annotations), stem in images:
        objects = [annotation for annotation in annotations if not annotation.get("iscrowd")]
        crowds = [annotation for annotation in annotations if annotation.get("iscrowd")]
        ids, empty = _instance_map(objects, crowds, image["height"], image["width"])
        # Instance id -> value in the class map, background and void included.
        table = np.zeros(256, np.uint8)
        table[1 : len(objects) + 1] = [class_of[annotation["category_id"]] + 1 for annotation in objects]
        table[IGNORE_LABEL] = IGNORE_LABEL
        for folder, labels in (("SegmentationObject", ids), ("SegmentationClass", table[ids])):
            write_file(os.path.join(out_dir, folder, f"{stem}.png"), encode_label_map(labels))
        visible = len(np.setdiff1d(ids, (0, IGNORE_LABEL)))
        counts["files"] += 2
        counts["objects"] += visible
        counts["without_mask"] += empty
        counts["covered"] += len(objects) - empty - visible
        counts["crowds"] += len(crowds)
    write_file(os.path.join(out_dir, "class_names.txt"), "".join(f"{name}\n" for name in names))
    return counts


def check_voc_png(data: dict[str, Any], out_dir: str) -> None:
    """
    Raises:
        ValueError: there are more classes, or objects in an image, than 8 bits can number (254).
    """
    number = len(category_tables(data, out_dir)[0])
    if number > MAX_CLASSES:
        raise ValueError(f"VOC's class maps have room for {MAX_CLASSES} classes, and there are {number}.")
    for image, annotations in by_image(data):
        objects = sum(not annotation.get("iscrowd") for annotation in annotations)
        if objects > MAX_CLASSES:
            raise ValueError(
                f"VOC's instance maps have room for {MAX_CLASSES} objects, and '{image['file_name']}' has {objects}. "
                "Use another format, such as a PNG per mask (--png)."
            )


def write_mask_pngs(data: dict[str, Any], out_dir: str) -> dict[str, int]:
    """Write ``<image>/<annotation id>.png`` per object, grey: 255 where its mask is, else 0.

    Returns:
        ``files``, ``objects``, ``without_mask`` (left out: no mask, or an empty one) and ``crowds`` (left out).

    Raises:
        ValueError: two images share a name but for its extension, or a mask cannot be read.
    """
    counts = {"files": 0, "objects": 0, "without_mask": 0, "crowds": 0}
    for (image, annotations), stem in _images(data):
        for annotation in annotations:
            if annotation.get("iscrowd"):
                counts["crowds"] += 1
                continue
            mask = decode_mask(annotation, image["height"], image["width"])
            if not mask.any():
                counts["without_mask"] += 1
                continue
            name = quote(str(annotation["id"]), safe="")
            _, png = cv2.imencode(".png", mask.astype(np.uint8) * 255)
            write_file(os.path.join(out_dir, stem, f"{name}.png"), png.tobytes())
            counts["files"] += 1
            counts["objects"] += 1
    return counts


def _images(data: dict[str, Any]) -> Iterator[tuple[tuple[dict[str, Any], list[dict[str, Any]]], str]]:
    """Each image with its annotations, and the path for its files."""
    return zip(by_image(data), output_stems(data["images"]), strict=True)


def _instance_map(
    objects: list[dict[str, Any]], crowds: list[dict[str, Any]], height: int, width: int
) -> tuple[np.ndarray, int]:
    """H×W uint8, the 1-based position of the topmost object of each pixel, and the number of objects without one."""
    # Decoded twice rather than held: 254 masks of a large photograph are gigabytes.
    areas = [int(np.count_nonzero(decode_mask(annotation, height, width))) for annotation in objects]
    labels = np.zeros((height, width), np.uint8)
    for index in sorted(range(len(objects)), key=lambda i: (-areas[i], -i)):
        labels[decode_mask(objects[index], height, width)] = index + 1
    for crowd in crowds:
        labels[decode_mask(crowd, height, width) & (labels == 0)] = IGNORE_LABEL
    return labels, areas.count(0)
