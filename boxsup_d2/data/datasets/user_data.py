"""Data sets of the user: COCO jsons that hold some masks, and the list ``DATASETS.REGISTER`` of a config.

A config that says where its data are can be run by any command, in any number of processes; nothing has to be
registered in Python. The formats themselves are read by :mod:`.coco_format` and :mod:`.salient`.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from boxsup_d2.data.datasets.catalog import register_dataset, require_path
from boxsup_d2.data.datasets.coco_format import (
    build_dicts,
    coco_header,
    coco_segmentation,
    read_coco_json,
    register_coco_boxes,
)
from boxsup_d2.data.datasets.salient import register_salient
from boxsup_d2.pseudo_masks.rle import has_mask

# Fields of an entry of DATASETS.REGISTER that hold paths: where data lie does not decide what comes out of them.
PATH_FIELDS = ("JSON", "IMAGES", "SALIENT_MASKS")
_FIELDS = ("NAME", "MASKS", *PATH_FIELDS)
_MASKS = ("none", "kept")


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


def register_listed(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Register what ``DATASETS.REGISTER`` lists; nothing is opened. Registering the same again changes nothing.

    Args:
        entries: ``{NAME, JSON, IMAGES, MASKS: none|kept}`` or ``{NAME, IMAGES, SALIENT_MASKS}`` each, see
            ``boxsup_d2/config.py``.

    Returns:
        The names.

    Raises:
        ValueError: an entry lacks a field, has one that there is not, or takes the name of another data set.
    """
    names: list[str] = []
    for entry in entries:
        _check(entry)
        name = entry["NAME"]
        if name in names:
            raise ValueError(f"DATASETS.REGISTER has two entries called {name}.")
        if name in DatasetCatalog and not MetadataCatalog.get(name).get("listed_in_config", False):
            raise ValueError(f"DATASETS.REGISTER: there is a data set '{name}' already; choose another NAME.")
        if "SALIENT_MASKS" in entry:
            # Here a relative path counts from the working folder, as all others of a config do.
            folders = (os.path.abspath(os.path.expanduser(entry[key])) for key in ("IMAGES", "SALIENT_MASKS"))
            register_salient(name, *folders)
        else:
            register = register_coco_masks if entry.get("MASKS", "none") == "kept" else register_coco_boxes
            register(name, entry["JSON"], entry["IMAGES"])
        MetadataCatalog.get(name).set(listed_in_config=True)
        names.append(name)
    return names


def _check(entry: Any) -> None:
    where = f"DATASETS.REGISTER, entry {entry!r}"
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where}: an entry has the fields {', '.join(_FIELDS)}.")
    for key, value in entry.items():
        if key not in _FIELDS:
            raise ValueError(f"{where}: there is no field {key}, but {', '.join(_FIELDS)}.")
        if not isinstance(value, str) or not value:
            raise ValueError(f"{where}: {key} must be a text, not {value!r}.")
    if "NAME" not in entry or "IMAGES" not in entry or ("JSON" in entry) == ("SALIENT_MASKS" in entry):
        raise ValueError(
            f"{where}: it needs NAME, IMAGES, and either JSON (boxes, with or without masks) or SALIENT_MASKS (the "
            "folder of the masks of salient images)."
        )
    if "MASKS" in entry and ("SALIENT_MASKS" in entry or entry["MASKS"] not in _MASKS):
        raise ValueError(f"{where}: MASKS says whether masks of a JSON are used: {' or '.join(_MASKS)}.")
