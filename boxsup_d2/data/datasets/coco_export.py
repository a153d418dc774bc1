"""Any registered detection set as a COCO json: what the pseudo-mask writer and COCO tools start from."""

import os
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

from boxsup_d2.data.datasets.coco import coco_subset
from boxsup_d2.data.formats.coco import read_coco_json

# Keys that are COCO's own or are converted; every other one that json can hold is passed on.
_CONVERTED = ("id", "bbox", "bbox_mode", "category_id", "iscrowd", "segmentation", "area")


def dataset_to_coco(name: str) -> dict[str, Any]:
    """A data set as a COCO json.

    A set that was loaded from a json gives that json, unknown fields and crowd regions included; of a box-only set
    all but the crowd regions come without ``segmentation`` and with w·h as ``area``, as if the file had never held a
    mask. A set of some of a json's classes gives what the json has of these.

    Any other set is converted: the ids of images and annotations stay (unlike in Detectron2's
    ``convert_to_coco_dict``), file names are relative to the metadata's ``image_root``, boxes become x, y, w, h, and
    ``area`` is that of the mask, or of the box where there is none.

    Args:
        name: of a registered data set with boxes.

    Raises:
        KeyError: no such data set is registered.
        FileNotFoundError: its files are missing.
        ValueError: its images have no annotations or no size.
    """
    if name not in DatasetCatalog:
        raise KeyError(f"Data set '{name}' is not registered.")
    metadata = MetadataCatalog.get(name)
    json_file = metadata.get("json_file")
    if json_file is not None:
        return read_coco_json(json_file, name)
    json_file = metadata.get("box_json_file")
    if json_file is not None:
        data = _without_masks(read_coco_json(json_file, name))
        # All classes of the set, also those that this json leaves out, or they would be numbered otherwise in the file
        # that is made of it.
        present = {category["id"] for category in data["categories"]}
        ids = metadata.get("thing_dataset_id_to_contiguous_id") or {}
        data["categories"] += [
            {"id": key, "name": metadata.thing_classes[index]} for key, index in ids.items() if key not in present
        ]
        return data
    json_file = metadata.get("subset_json_file")
    if json_file is not None:
        data = coco_subset(read_coco_json(json_file, name), metadata.thing_dataset_id_to_contiguous_id)
        return data if metadata.has_masks else _without_masks(data)
    if metadata.get("thing_classes") is None:
        raise ValueError(f"Data set '{name}' has no boxes: it cannot be written as a COCO json.")
    contiguous = metadata.get("thing_dataset_id_to_contiguous_id") or {
        index + 1: index for index in range(len(metadata.thing_classes))
    }
    category_ids = {index: key for key, index in contiguous.items()}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record in DatasetCatalog.get(name):
        if not {"annotations", "height", "width"} <= record.keys():
            raise ValueError(f"Data set '{name}' has no boxes or no image sizes: '{record['file_name']}'.")
        images.append(
            {
                "id": record["image_id"],
                "file_name": _relative(record["file_name"], metadata.get("image_root")),
                "height": record["height"],
                "width": record["width"],
            }
        )
        for obj in record["annotations"]:
            annotation = _annotation(obj, record["image_id"], category_ids)
            annotation.setdefault("id", len(annotations) + 1)
            annotations.append(annotation)
    return {
        "info": {"description": f"{name}, converted from its own format"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": category_ids[index], "name": class_name} for index, class_name in enumerate(metadata.thing_classes)
        ],
    }


def _without_masks(data: dict[str, Any]) -> dict[str, Any]:
    # Crowd regions keep theirs: they are no object's mask, box-only sets drop them, and files copy them untouched.
    for annotation in data["annotations"]:
        if not annotation.get("iscrowd"):
            annotation.pop("segmentation", None)
            box = annotation.get("bbox")
            if isinstance(box, list) and len(box) == 4:
                annotation["area"] = box[2] * box[3]
    return data


def _relative(file_name: str, image_root: str | None) -> str:
    if image_root is None:
        return file_name
    return os.path.relpath(file_name, image_root).replace(os.sep, "/")


def _annotation(obj: dict[str, Any], image_id: int, category_ids: dict[int, int]) -> dict[str, Any]:
    x, y, width, height = BoxMode.convert([float(v) for v in obj["bbox"]], obj["bbox_mode"], BoxMode.XYWH_ABS)
    annotation = {
        **({"id": obj["id"]} if "id" in obj else {}),
        "image_id": image_id,
        "category_id": category_ids[obj["category_id"]],
        "bbox": [x, y, width, height],
        "area": width * height,
        "iscrowd": int(obj.get("iscrowd", 0)),
        **{key: value for key, value in obj.items() if key not in _CONVERTED},
    }
    segmentation = obj.get("segmentation")
    if segmentation is not None:
        annotation["segmentation"] = segmentation
        if isinstance(segmentation, dict):
            annotation["area"] = float(mask_util.area(segmentation))
    return annotation
