"""Dataset dicts out of COCO-format jsons: the boxes only, or with the masks that there are.

Box-only dicts are built from a *list of allowed keys*: masks, and COCO's ``area``, which is the mask's, cannot leak
into them whatever the json holds.
"""

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from detectron2.structures import BoxMode

from boxsup_d2.data.formats.coco import category_tables, coco_segmentation, coco_subset, read_coco_json
from boxsup_d2.data.formats.coco_checks import (
    Fault,
    box_fault,
    crowd_fault,
    id_fault,
    image_fault,
    reference_fault,
    size_fault,
)
from boxsup_d2.data.formats.problems import Problems
from boxsup_d2.data.formats.rotated_boxes import ROTATED_BOX, rotated_box_of
from boxsup_d2.data.paths import require_images
from boxsup_d2.masks.rle import has_mask

logger = logging.getLogger(__name__)

# Takes an annotation of the json and its image's entry, returns the keys to add to the box-only annotation, or None to
# leave it out.
ExtraKeys = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any] | None]


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
        ``bbox`` (x, y, w, h), ``bbox_mode`` (XYWH_ABS), ``category_id`` (contiguous, 0-based), ``iscrowd`` 0, and of a
        rotated box ``rotated_box``, see :mod:`.rotated_boxes`.
        Images without boxes are kept, with an empty list.

    Raises:
        FileNotFoundError: the json or images are missing.
        ValueError: the json is damaged or holds invalid entries: all kinds, with counts and first examples.
    """
    return build_dicts(read_coco_json(path, dataset), path, image_root, dataset, expected=expected)


def load_coco_masks(path: str, image_root: str, dataset: str) -> list[dict[str, Any]]:
    """As :func:`load_coco_boxes`, with the masks that there are; annotations without one keep their box.

    Returns:
        Annotations that have a mask also have ``segmentation`` (polygons or compressed RLE). Crowd regions are there,
        with ``iscrowd`` 1. Every dict says ``fully_supervised``: its masks were drawn, and a network may learn from
        them.

    Raises:
        FileNotFoundError, ValueError: see there; a mask has another size than its image.
    """

    def mask_key(source: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
        segmentation = coco_segmentation(source.get("segmentation"), image, f"'{path}', annotation {source['id']}")
        return {"segmentation": segmentation} if has_mask(segmentation) else {}

    data = read_coco_json(path, dataset)
    records = build_dicts(data, path, image_root, dataset, keep_crowds=True, extra_keys=mask_key)
    return [{**record, "fully_supervised": True} for record in records]


def load_coco_subset(
    path: str, image_root: str, dataset: str, classes: Mapping[int, str], *, masks: bool = False
) -> list[dict[str, Any]]:
    """As :func:`load_coco_boxes`, of some classes of a COCO json alone.

    Args:
        path, image_root, dataset: see there.
        classes: category id → name of the classes.
        masks: load the masks too; without, nothing that comes from a mask is in the result.

    Returns:
        With masks, annotations also have ``segmentation`` (polygons, or compressed RLE with str counts), and crowd
        regions are there with ``iscrowd`` 1. An object without a usable polygon is left out, as Detectron2 does.

    Raises:
        FileNotFoundError, ValueError: see there; a mask is damaged.
    """
    data = coco_subset(read_coco_json(path, dataset), classes)
    without_mask = []

    def mask_keys(source: dict[str, Any], image: dict[str, Any]) -> dict[str, Any] | None:
        segmentation = coco_segmentation(source.get("segmentation"), image, f"'{path}', annotation {source['id']}")
        if segmentation is None:
            without_mask.append(source["id"])
            return None
        return {"segmentation": segmentation}

    dicts = build_dicts(
        data,
        path,
        image_root,
        dataset,
        expected=dict(classes),
        keep_crowds=masks,
        extra_keys=mask_keys if masks else None,
    )
    if without_mask:
        logger.warning("%s: %d objects without a polygon are left out", dataset, len(without_mask))
    return dicts


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
        image_root, dataset, expected: see :func:`load_coco_boxes`.
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
        rotated = rotated_box_of(source)
        if rotated is not None:
            target[ROTATED_BOX] = rotated
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
