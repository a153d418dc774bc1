"""COCO jsons whose masks count: data sets that keep what masks their annotations have, and are labelled for the rest.

Beside :func:`boxsup_d2.data.datasets.register_coco_boxes`, whose data sets have no masks whatever the json holds.
"""

import os
from typing import Any

from boxsup_d2.data.datasets.catalog import register_dataset, require_path
from boxsup_d2.data.datasets.coco_format import build_dicts, coco_header, coco_segmentation, read_coco_json


def register_coco_masks(name: str, json_file: str, image_root: str) -> None:
    """Register a COCO json with the masks that it has; nothing is opened before it is used.

    Labelling keeps these masks with a confidence of 1, unless ``PSEUDO_MASKS.OVERWRITE``, and gives the other boxes a
    mask. Class names and ids come from the json.

    Args:
        name: to register it under; a former data set of that name is replaced.
        json_file: path of the json.
        image_root: folder that the json's file names are relative to.
    """
    json_file, image_root = (os.path.abspath(os.path.expanduser(path)) for path in (json_file, image_root))
    register_dataset(
        name,
        lambda: load_coco_masks(json_file, require_path(image_root, name), name),
        lazy={
            "thing_classes": lambda: coco_header(json_file, name)["thing_classes"],
            "thing_dataset_id_to_contiguous_id": lambda: coco_header(json_file, name)[
                "thing_dataset_id_to_contiguous_id"
            ],
        },
        json_file=json_file,
        image_root=image_root,
        evaluator_type="coco",
    )


def load_coco_masks(path: str, image_root: str, dataset: str) -> list[dict[str, Any]]:
    """Load the boxes of a COCO json, and the masks of those that have one.

    Args:
        path: of the json.
        image_root: folder that its file names are relative to.
        dataset: name, for messages.

    Returns:
        As :func:`boxsup_d2.data.datasets.load_coco_boxes`, with crowd regions (``iscrowd`` 1), and with
        ``segmentation`` (polygons or compressed RLE) where the annotation has one.

    Raises:
        FileNotFoundError: the json or images are missing.
        ValueError: the json is damaged or holds invalid entries, or a mask of another image size.
    """

    def mask_key(source: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
        mask = coco_segmentation(source.get("segmentation"), image, f"'{path}', annotation {source['id']}")
        return {} if mask is None else {"segmentation": mask}

    return build_dicts(read_coco_json(path, dataset), path, image_root, dataset, keep_crowds=True, extra_keys=mask_key)
