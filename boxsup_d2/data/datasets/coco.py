"""COCO-format jsons as data sets: boxes alone, with the masks that they have, or some of their classes.

COCO-60 is COCO without the classes of Pascal VOC.
"""

import logging
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

from boxsup_d2.data.datasets.catalog import register_dataset
from boxsup_d2.data.formats.coco import (
    build_dicts,
    category_tables,
    coco_header,
    coco_segmentation,
    load_coco_boxes,
    read_coco_json,
)
from boxsup_d2.data.paths import require_path
from boxsup_d2.masks.rle import has_mask

logger = logging.getLogger(__name__)

#: VOC's 20 classes by the names that COCO gives them.
VOC_CLASSES_IN_COCO = frozenset(
    {
        "airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
        "dining table", "dog", "horse", "motorcycle", "person", "potted plant", "sheep", "couch", "train", "tv",
    }
)  # fmt: skip


def register_coco_boxes(name: str, json_file: str, image_root: str) -> None:
    """Register any COCO json as a box-only data set; nothing is opened before it is used.

    Class names and ids come from the json. Masks and areas in it are never read.

    Args:
        name: to register it under; a former data set of that name is replaced.
        json_file: path of the json.
        image_root: folder that the json's file names are relative to.
    """
    json_file, image_root = (os.path.abspath(os.path.expanduser(path)) for path in (json_file, image_root))
    register_coco_boxes_lazily(name, lambda: json_file, lambda: image_root)


def register_coco_boxes_lazily(
    name: str,
    json_file: Callable[[], str],
    image_root: Callable[[], str],
    expected: dict[int, str] | None = None,
) -> None:
    """As :func:`register_coco_boxes`, with paths that are looked up when used.

    Args:
        name: to register it under.
        json_file: returns the path of the json.
        image_root: returns the folder of the images.
        expected: see :func:`category_tables`; class names are then known without opening the json.
    """
    tables = None if expected is None else category_tables({"categories": []}, name, expected)

    def classes() -> list[str]:
        return tables[0] if tables else coco_header(json_file(), name)["thing_classes"]

    def ids() -> dict[int, int]:
        return tables[1] if tables else coco_header(json_file(), name)["thing_dataset_id_to_contiguous_id"]

    register_dataset(
        name,
        lambda: load_coco_boxes(json_file(), require_path(image_root(), name), name, expected),
        lazy={
            # Not "json_file": Detectron2's evaluators, or a writer, would take the masks in there for the data set's.
            "box_json_file": json_file,
            "image_root": image_root,
            "thing_classes": classes,
            "thing_dataset_id_to_contiguous_id": ids,
        },
        evaluator_type="box",
    )


def load_coco_masks(path: str, image_root: str, dataset: str) -> list[dict[str, Any]]:
    """Load a COCO json with the masks that it has; annotations without one keep their box.

    Args:
        path: of the json.
        image_root: folder that its file names are relative to.
        dataset: name, for messages.

    Returns:
        As :func:`boxsup_d2.data.datasets.load_coco_boxes`, and ``segmentation`` (polygons or compressed RLE) in the
        annotations that have a mask. Crowd regions are there, with ``iscrowd`` 1. Every dict says
        ``fully_supervised``: its masks were drawn, and a network may learn from them.

    Raises:
        FileNotFoundError: the json or images are missing.
        ValueError: the json is damaged, or a mask has another size than its image.
    """

    def mask_key(source: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
        segmentation = coco_segmentation(source.get("segmentation"), image, f"'{path}', annotation {source['id']}")
        return {"segmentation": segmentation} if has_mask(segmentation) else {}

    data = read_coco_json(path, dataset)
    records = build_dicts(data, path, image_root, dataset, keep_crowds=True, extra_keys=mask_key)
    return [{**record, "fully_supervised": True} for record in records]


def register_coco_masks(name: str, json_file: str, image_root: str) -> None:
    """Register a COCO json with the masks that some or all of its annotations have; nothing is opened before use.

    Labelling it keeps these masks and gives the other boxes one; ``BoxCropDatasetMapper`` learns from boxes where
    there is no mask, and from masks where there is one.

    Args:
        name: to register it under; a former data set of that name is replaced.
        json_file: path of the json.
        image_root: folder that the json's file names are relative to.
    """
    json_file, image_root = (os.path.abspath(os.path.expanduser(path)) for path in (json_file, image_root))
    keys = ("thing_classes", "thing_dataset_id_to_contiguous_id")
    register_dataset(
        name,
        lambda: load_coco_masks(json_file, require_path(image_root, name), name),
        lazy={key: lambda key=key: coco_header(json_file, name)[key] for key in keys},  # type: ignore[misc]
        json_file=json_file,
        image_root=image_root,
        evaluator_type="coco",
    )


def load_coco_subset(
    path: str, image_root: str, dataset: str, classes: Mapping[int, str], *, masks: bool = False
) -> list[dict[str, Any]]:
    """Load the objects of some classes of a COCO json.

    Args:
        path: of the json.
        image_root: folder that its file names are relative to.
        dataset: name, for messages.
        classes: category id → name of the classes.
        masks: load the masks too; without, nothing that comes from a mask is in the result.

    Returns:
        As :func:`boxsup_d2.data.datasets.load_coco_boxes`. With masks, annotations also have ``segmentation``
        (polygons, or compressed RLE with str counts), and crowd regions are there with ``iscrowd`` 1. An object
        without a usable polygon is left out, as Detectron2 does.

    Raises:
        FileNotFoundError: the json or images are missing.
        ValueError: the json is damaged or holds invalid entries: all kinds, with counts and first examples.
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


def register_coco_subset(
    name: str,
    json_file: Callable[[], str],
    image_root: Callable[[], str],
    classes: Mapping[int, str],
    *,
    masks: bool = False,
) -> None:
    """Register some classes of a COCO json; nothing is opened before it is used.

    Args:
        name: to register it under; a former data set of that name is replaced.
        json_file: returns the path of the json.
        image_root: returns the folder of the images.
        classes: see :func:`load_coco_subset`.
        masks: see there.
    """
    names, ids = category_tables({"categories": []}, name, dict(classes))
    register_dataset(
        name,
        lambda: load_coco_subset(json_file(), require_path(image_root(), name), name, classes, masks=masks),
        # Neither "json_file" nor "box_json_file": their readers would take all classes of the json for the data set's.
        lazy={"subset_json_file": json_file, "image_root": image_root},
        thing_classes=names,
        thing_dataset_id_to_contiguous_id=ids,
        has_masks=masks,
        evaluator_type="coco" if masks else "box",
    )


def coco_subset(data: dict[str, Any], category_ids: Collection[int]) -> dict[str, Any]:
    """A COCO json of some of its classes.

    Args:
        data: a COCO json, which is not changed.
        category_ids: of the classes to keep.

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


def _id(entry: dict[str, Any], key: str) -> int | None:
    # Damaged ones are for the reader of the subset to complain about.
    value = entry.get(key)
    return value if isinstance(value, int) else None
