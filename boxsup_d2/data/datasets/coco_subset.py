"""Some of a COCO json's classes as a data set of their own: COCO-60 is COCO without the classes of Pascal VOC.

The images of a set are those that hold one of its classes; its class ids are contiguous in the order of COCO's.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

from boxsup_d2.data.datasets.catalog import register_dataset, require_path
from boxsup_d2.data.datasets.coco_format import build_dicts, category_tables, coco_segmentation, read_coco_json

logger = logging.getLogger(__name__)

#: VOC's 20 classes by the names that COCO gives them.
VOC_CLASSES_IN_COCO = frozenset(
    {
        "airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
        "dining table", "dog", "horse", "motorcycle", "person", "potted plant", "sheep", "couch", "train", "tv",
    }
)  # fmt: skip


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
