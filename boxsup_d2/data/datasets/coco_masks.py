"""COCO jsons whose masks count: data sets that keep the masks that their annotations have, be it all or some.

Beside :func:`boxsup_d2.data.datasets.register_coco_boxes`, whose data sets have no masks whatever the json holds.
"""

import os
from typing import Any

from boxsup_d2.data.datasets.catalog import register_dataset, require_path
from boxsup_d2.data.datasets.coco_format import build_dicts, coco_header, coco_segmentation, read_coco_json
from boxsup_d2.pseudo_masks.rle import has_mask


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
