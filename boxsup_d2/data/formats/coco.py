"""COCO-format jsons: reading and checking the file and its categories, and jsons made of others.

Its images and annotations are read by :mod:`.coco_dicts`. Works for any json in this format: category ids with gaps, no
``iscrowd``, unknown fields.
"""

import json
import os
from collections import defaultdict
from collections.abc import Collection
from functools import lru_cache
from typing import Any

from boxsup_d2.data.formats.coco_checks import (
    Fault,
    box_fault,
    category_fault,
    size_fault,
)
from boxsup_d2.data.formats.coco_dialects import tidy_coco
from boxsup_d2.data.formats.problems import Problems
from boxsup_d2.data.paths import require_path
from boxsup_d2.masks.rle import tight_box
from boxsup_d2.masks.segmentation import segmentation_fault, to_rle, usable_polygon

#: Where a box is kept that a tight one replaced.
LOOSE_BOX = "loose_bbox"


def read_coco_json(path: str, dataset: str, fix: str = "") -> dict[str, Any]:
    """Read a json, see :func:`read_json`, check that it has COCO's outer form, see :func:`check_coco_form`, and bring
    it under COCO's rules, see :func:`boxsup_d2.data.formats.coco_dialects.tidy_coco`."""
    data = read_json(path, dataset, fix)
    check_coco_form(data, path)
    return tidy_coco(data)


def read_json(path: str, dataset: str, fix: str = "", damaged: str = "Get it again.") -> Any:
    """Read any json.

    Args:
        path: of the file.
        dataset: name, for messages.
        fix, damaged: what to do where it is missing or damaged, for messages.

    Raises:
        FileNotFoundError: there is no such file, or it cannot be read.
        ValueError: it is no json.
    """
    try:
        with open(require_path(path, dataset, fix), "rb") as file:
            content = file.read()
        if not content.strip():
            raise ValueError("it is empty")
        try:
            # Of bytes, json finds out itself whether they are UTF-8, 16 or 32, with a byte order mark or without.
            return json.loads(content)
        except UnicodeDecodeError:  # as Windows writes it
            return json.loads(content.decode("cp1252"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"'{path}' is no valid json ({error}): it may have been cut off while downloading or copying. {damaged}"
        ) from error
    except OSError as error:
        raise FileNotFoundError(f"'{path}' cannot be read ({error.strerror or error}). {fix}".rstrip()) from error


def check_coco_form(data: Any, path: str) -> None:
    """
    Raises:
        ValueError: a json has not the outer form of COCO's: an object with lists of objects.
    """
    if isinstance(data, list):
        looks_like = all(isinstance(item, dict) and "image_id" in item for item in data[:1])
        what = "detection results, without their images and classes" if data and looks_like else "no COCO json"
        whole = f"{os.path.splitext(path)[0]}.coco.json"
        if looks_like and os.path.isfile(whole):  # an empty list as well: nothing was found
            raise ValueError(f"'{path}' holds a bare list: {what}. 'boxsup predict' wrote these as well: '{whole}'.")
        raise ValueError(
            f"'{path}' holds a bare list: {what}. Export it as a COCO instances json: an object with 'images', "
            "'annotations' and 'categories'."
        )
    if not isinstance(data, dict):
        raise ValueError(f"'{path}' holds a {type(data).__name__}, not a COCO json. Export it in COCO's format.")
    for key in ("images", "annotations", "categories"):
        entries = data.get(key)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"'{path}' has no list of objects '{key}'. Export it as a COCO instances json.")


def category_tables(
    data: dict[str, Any], path: str, expected: dict[int, str] | None = None
) -> tuple[list[str], dict[int, int]]:
    """Class names in ascending order of the category ids, and the map from these ids to 0, 1, 2 ...

    Args:
        data: as :func:`read_coco_json` returned it.
        path: where it came from, for messages.
        expected: category id → name of a well-known set, of which the json may hold a part; the result is then
            that of the whole set.

    Raises:
        ValueError: categories lack an id or a name, share an id, or are not among the expected ones.
    """
    problems = Problems()
    names: dict[int, str] = {}
    for category in data["categories"]:
        fault = category_fault(category, names)
        if fault is None and expected is not None and expected.get(category["id"]) != category["name"]:
            fault = Fault("unknown categories", f"{category['id']} '{category['name']}'")
        if fault is not None:
            problems.add(*fault)
        else:
            names[category["id"]] = category["name"]
    problems.raise_if_any(
        path, "Correct the categories" + (", or register the file by register_coco_boxes." if expected else ".")
    )
    names = names if expected is None else expected
    ids = sorted(names)
    return [names[key] for key in ids], {key: index for index, key in enumerate(ids)}


def usable_images(entries: list[Any], problems: Problems) -> list[dict[str, Any]]:
    """Images of a json that have an id, a number or a text, and a file name; ``problems`` gains the others."""
    usable = []
    for image in entries:
        named = isinstance(image, dict) and isinstance(image.get("file_name"), str) and image["file_name"]
        if named and _is_key(image.get("id")):
            usable.append(image)
        else:
            problems.add("images without an id or a file_name", image)
    return usable


def usable_objects(entries: list[dict[str, Any]], problems: Problems) -> dict[int | str, list[dict[str, Any]]]:
    """Annotations of a json by image id, whatever else is wrong with it: the lenient reading, for reports.

    Left out are crowd regions, and what has no box or no usable image, category or own id; ``problems`` gains the
    latter. Unlike in :mod:`.coco_dicts`, ids may be texts and need not be there in the other lists.
    """
    usable: dict[int | str, list[dict[str, Any]]] = defaultdict(list)
    for annotation in entries:
        if annotation.get("iscrowd"):
            continue
        fault = box_fault(annotation)
        if fault is None and annotation.get("id") is not None and not _is_key(annotation["id"]):
            fault = Fault("annotations whose id is neither a number nor a text", annotation)
        for key, what in (("image_id", "images"), ("category_id", "categories")):
            if fault is None and not _is_key(annotation.get(key)):
                fault = Fault(f"annotations of unknown {what}", annotation.get("id"))
        if fault is None:
            usable[annotation["image_id"]].append(annotation)
        else:
            problems.add(*fault)
    return usable


def usable_names(entries: list[dict[str, Any]]) -> dict[int | str, str]:
    """Class names by category id; a category without a name is called by its id, one without an id is left out."""
    return {c["id"]: str(c.get("name", c["id"])) for c in entries if _is_key(c.get("id"))}


def coco_segmentation(value: Any, image: dict[str, Any], where: str) -> list[Any] | dict[str, Any] | None:
    """What COCO allows as ``segmentation``, in one of the two forms that Detectron2 reads.

    Args:
        value: polygons, RLE with a list of counts, or compressed RLE with str counts.
        image: entry of its image, with ``height`` and ``width``.
        where: file and annotation, for messages.

    Returns:
        Polygons or a compressed RLE with str counts; None where there is no mask.

    Raises:
        ValueError: it is an RLE of another image size, or damaged.
    """
    if not value:
        return None
    size = [image["height"], image["width"]]
    if isinstance(value, list):
        # As Detectron2: fewer than three points are no polygon.
        value = [points for points in value if usable_polygon(points)]
    fault = segmentation_fault(value, *size)
    if fault is not None:
        raise ValueError(f"{where}: its segmentation is damaged, {fault}. Remove it, or write the file again.")
    if isinstance(value, list):
        return value or None
    return to_rle(value, *size)


def coco_header(path: str, dataset: str, fix: str = "") -> dict[str, Any]:
    """``info``, ``thing_classes`` and ``thing_dataset_id_to_contiguous_id`` of a json; read once per file version."""
    stat = os.stat(require_path(path, dataset, fix))
    return _read_header(path, dataset, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _read_header(path: str, dataset: str, mtime_ns: int, size: int) -> dict[str, Any]:
    del mtime_ns, size  # part of the cache's key
    data = read_coco_json(path, dataset)
    classes, ids = category_tables(data, path)
    info = data.get("info")
    return {
        "info": info if isinstance(info, dict) else {},
        "thing_classes": classes,
        "thing_dataset_id_to_contiguous_id": ids,
    }


def coco_subset(data: dict[str, Any], category_ids: Collection[int]) -> dict[str, Any]:
    """What a COCO json, which is not changed, has of some categories.

    Returns:
        The json with these categories, their annotations (crowd regions too) and the images that hold an object of
        one of them; a crowd region alone is none. Order and unknown fields stay.
    """
    annotations = [obj for obj in data["annotations"] if _id(obj, "category_id") in category_ids]
    with_objects = {_id(obj, "image_id") for obj in annotations if not obj.get("iscrowd")}
    return {
        **data,
        "images": [image for image in data["images"] if _id(image, "id") in with_objects],
        "annotations": [obj for obj in annotations if _id(obj, "image_id") in with_objects],
        "categories": [category for category in data["categories"] if _id(category, "id") in category_ids],
    }


def without_masks(data: dict[str, Any]) -> dict[str, Any]:
    """A COCO json, which is not changed, as if it had never held an object's mask: w·h is their ``area``.

    Crowd regions keep theirs: they are no object's mask, box-only sets drop them, and files copy them untouched.
    """
    return {**data, "annotations": [obj if obj.get("iscrowd") else _box_only(obj) for obj in data["annotations"]]}


def with_tight_boxes(data: dict[str, Any], path: str) -> tuple[dict[str, Any], int]:
    """A COCO json, which is not changed, with the tight boxes of the masks in the place of others, and how many.

    The former box stays as ``loose_bbox``. Crowd regions and annotations without a pixel keep theirs.

    Raises:
        ValueError: an image has no size, or a mask cannot be read; names the file.
    """
    images = {image["id"]: image for image in usable_images(data["images"], Problems())}
    annotations, changed = [], 0
    for annotation in data["annotations"]:
        if not annotation.get("iscrowd") and annotation.get("segmentation"):
            key, where = annotation.get("image_id"), f"'{path}', annotation {annotation.get('id')}"
            image = images.get(key, {}) if _is_key(key) else {}
            if size_fault(image) is not None:
                raise ValueError(f"{where}: its image has no height and width in the json. Write them into it.")
            mask = coco_segmentation(annotation["segmentation"], image, where)
            box = annotation.get("bbox")
            corners = tight_box(mask, image["height"], image["width"])
            if corners:
                x0, y0, x1, y1 = corners
                box = [x0, y0, x1 - x0, y1 - y0]
            if box != annotation.get("bbox"):
                changed += 1
                annotation = {**annotation, LOOSE_BOX: annotation.get(LOOSE_BOX, annotation.get("bbox")), "bbox": box}
        annotations.append(annotation)
    return {**data, "annotations": annotations}, changed


def _is_key(value: Any) -> bool:
    return isinstance(value, int | str)


def _id(entry: dict[str, Any], key: str) -> int | None:
    # Damaged ones are for the reader of the subset to complain about.
    value = entry.get(key)
    return value if isinstance(value, int) else None


def _box_only(annotation: dict[str, Any]) -> dict[str, Any]:
    bare = {key: value for key, value in annotation.items() if key != "segmentation"}
    box = annotation.get("bbox")
    if isinstance(box, list) and len(box) == 4:
        bare["area"] = box[2] * box[3]
    return bare
