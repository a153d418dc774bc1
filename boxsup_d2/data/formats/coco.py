"""COCO-format jsons: reading them strictly, and data sets that keep the boxes only.

Box-only dicts are built from a *list of allowed keys*: masks, and COCO's ``area``, which is the mask's, cannot leak
into them whatever the json holds. Works for any json in this format: category ids with gaps, no ``iscrowd``, unknown
fields.
"""

import json
import logging
import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

from boxsup_d2.data.formats.coco_checks import (
    Fault,
    box_fault,
    category_fault,
    crowd_fault,
    id_fault,
    image_fault,
    reference_fault,
    segmentation_fault,
    size_fault,
    usable_polygon,
)
from boxsup_d2.data.formats.problems import Problems
from boxsup_d2.data.paths import require_images, require_path

logger = logging.getLogger(__name__)

# Takes an annotation of the json and its image's entry, returns the keys to add to the box-only annotation, or None to
# leave it out.
ExtraKeys = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any] | None]


def read_coco_json(path: str, dataset: str, fix: str = "") -> dict[str, Any]:
    """Read a json and check its outer form.

    Args:
        path: of the json.
        dataset: name for messages.
        fix: what to do where it is missing.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no json, or not COCO's form.
    """
    try:
        with open(require_path(path, dataset, fix), "rb") as file:
            # Of bytes, json finds out itself whether they are UTF-8, 16 or 32, with a byte order mark or without.
            data = json.loads(file.read())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"'{path}' is no valid json ({error}): it may have been cut off while downloading or copying. Get it again."
        ) from error
    except OSError as error:
        raise FileNotFoundError(f"'{path}' cannot be read ({error.strerror}). {fix}".rstrip()) from error
    check_coco_form(data, path)
    return data


def check_coco_form(data: Any, path: str) -> None:
    """Check that a json has the outer form of COCO's: an object with lists of objects.

    Raises:
        ValueError: it has not.
    """
    if isinstance(data, list):
        looks_like = data and all(isinstance(item, dict) and "image_id" in item for item in data[:1])
        what = "detection results, without their images and classes" if looks_like else "no COCO json"
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


def load_coco_boxes(
    path: str, image_root: str, dataset: str, expected: dict[int, str] | None = None
) -> list[dict[str, Any]]:
    """Load the boxes of a COCO json and nothing else; crowd regions are dropped.

    Args:
        path: of the json.
        image_root: folder that its file names are relative to.
        dataset: name, for messages.
        expected: see :func:`category_tables`.

    Returns:
        Per image ``file_name``, ``height``, ``width``, ``image_id`` and ``annotations`` in the json's order: ``id``,
        ``bbox`` (x, y, w, h), ``bbox_mode`` (XYWH_ABS), ``category_id`` (contiguous, 0-based), ``iscrowd`` 0.
        Images without boxes are kept, with an empty list.

    Raises:
        FileNotFoundError: the json or images are missing.
        ValueError: the json is damaged or holds invalid entries: all kinds, with counts and first examples.
    """
    return build_dicts(read_coco_json(path, dataset), path, image_root, dataset, expected=expected)


def build_dicts(
    data: dict[str, Any],
    path: str,
    image_root: str,
    dataset: str,
    *,
    expected: dict[int, str] | None = None,
    keep_crowds: bool = False,
    extra_keys: ExtraKeys | None = None,
    look_up_images: bool = True,
) -> list[dict[str, Any]]:
    """Dataset dicts of a COCO json that was read, see :func:`load_coco_boxes`.

    Args:
        data: as :func:`read_coco_json` returned it.
        path: where it came from, for messages.
        image_root: folder that its file names are relative to.
        dataset: name, for messages.
        expected: see :func:`category_tables`.
        keep_crowds: keep crowd regions, with ``iscrowd`` 1.
        extra_keys: returns what an annotation has beyond its box; box-only sets have no such function.
        look_up_images: check that they exist.
    """
    _, contiguous = category_tables(data, path, expected)
    problems = Problems()
    records, entries = _image_records(data["images"], image_root, problems)
    seen: set[Any] = set()
    empty_boxes = 0
    for source in data["annotations"]:
        fault = crowd_fault(source)
        iscrowd = 0 if fault else int(source.get("iscrowd") or 0)
        if iscrowd and not keep_crowds:
            continue
        fault = fault or id_fault(source, seen) or reference_fault(source, records, contiguous) or box_fault(source)
        if fault is not None:
            problems.add(*fault)
            continue
        seen.add(source["id"])
        box = [float(value) for value in source["bbox"]]
        if min(box[2:]) <= 0:
            empty_boxes += 1
            continue
        target = {
            "id": source["id"],
            "bbox": box,
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": contiguous[source["category_id"]],
            "iscrowd": iscrowd,
        }
        if extra_keys is not None:
            extra = extra_keys(source, entries[source["image_id"]])
            if extra is None:
                continue
            target.update(extra)
        records[source["image_id"]]["annotations"].append(target)
    problems.raise_if_any(path, "Correct or remove these entries.")
    if empty_boxes:
        logger.warning("%s: %d boxes of zero width or height are left out", dataset, empty_boxes)
    if look_up_images:
        require_images((record["file_name"] for record in records.values()), dataset)
    return list(records.values())


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
    if isinstance(value["counts"], list):
        rle = mask_util.frPyObjects(value, *size)
        return {"size": size, "counts": rle["counts"].decode("ascii")}
    return {"size": size, "counts": value["counts"]}


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


def _image_records(
    images: list[dict[str, Any]], image_root: str, problems: Problems
) -> tuple[dict[Any, dict[str, Any]], dict[Any, dict[str, Any]]]:
    """Records without annotations, and the json's own entries, both by image id."""
    records: dict[Any, dict[str, Any]] = {}
    entries: dict[Any, dict[str, Any]] = {}
    for image in images:
        fault = image_fault(image) or size_fault(image)
        if fault is None and image["id"] in records:
            fault = Fault("repeated image ids", image["id"])
        if fault is not None:
            problems.add(*fault)
            continue
        key = image["id"]
        entries[key] = image
        records[key] = {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": key,
            "annotations": [],
        }
    return records, entries
