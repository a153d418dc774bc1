"""Data sets of pseudo masks: the self-describing COCO json of ``docs/architecture.md``, registered by its path."""

import logging
import os
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools import mask as mask_util

from boxsup_d2.data.datasets.catalog import register_dataset
from boxsup_d2.data.datasets.provenance import find_image_root
from boxsup_d2.data.datasets.pseudo_sem_seg import SEM_SEG_SUFFIX, register_pseudo_sem_seg
from boxsup_d2.data.formats.coco import build_dicts, coco_header, coco_segmentation, read_coco_json

logger = logging.getLogger(__name__)

_FIX = "Run the labelling step that writes it, or correct DATASETS.PSEUDO_MASKS."


def register_pseudo_masks(json_path: str) -> str:
    """Register a pseudo-mask file under its stem; nothing is opened before it is used.

    A file whose stem ends in ``_pseudo_sem_seg`` is the manifest of semantic labels, see
    :func:`boxsup_d2.data.datasets.pseudo_sem_seg.register_pseudo_sem_seg`.

    Registering another file of the same stem replaces the former one: the steps of a round may run in one process.

    The images are looked for where the data set that was labelled has them on *this* machine, then where the file says
    that they were.

    Args:
        json_path: ``.../<name>.json``.

    Returns:
        The name. Its dicts are as :func:`load_pseudo_masks` says.

    Raises:
        ValueError: another data set, not of pseudo masks, already has that name.
    """
    path = os.path.abspath(os.path.expanduser(json_path))
    name = os.path.splitext(os.path.basename(path))[0]
    if name in DatasetCatalog and not MetadataCatalog.get(name).get("pseudo_masks", False):
        raise ValueError(f"Pseudo-mask file '{path}' has the name of the data set '{name}'. Rename the file.")

    if name.endswith(SEM_SEG_SUFFIX):
        register_pseudo_sem_seg(path, name)
        return name

    def header(key: str) -> Any:
        return coco_header(path, name, _FIX)[key]

    register_dataset(
        name,
        lambda: load_pseudo_masks(path, name),
        lazy={
            "image_root": lambda: find_image_root(header("info"), path),
            "thing_classes": lambda: header("thing_classes"),
            "thing_dataset_id_to_contiguous_id": lambda: header("thing_dataset_id_to_contiguous_id"),
        },
        json_file=path,
        pseudo_masks=True,
        evaluator_type="coco",
    )
    return name


def register_pseudo_masks_from_cfg(cfg: CfgNode) -> list[str]:
    """Register every file of ``DATASETS.PSEUDO_MASKS``.

    Returns:
        Their names.

    Raises:
        ValueError: two different files share a stem, so that one would hide the other.
    """
    paths: dict[str, str] = {}
    for path in cfg.DATASETS.PSEUDO_MASKS:
        former = paths.setdefault(os.path.splitext(os.path.basename(path))[0], path)
        if os.path.abspath(former) != os.path.abspath(path):
            raise ValueError(
                f"DATASETS.PSEUDO_MASKS: '{former}' and '{path}' would register under the same name. Rename one file."
            )
    return [register_pseudo_masks(path) for path in paths.values()]


def load_pseudo_masks(path: str, name: str) -> list[dict[str, Any]]:
    """Load a pseudo-mask file.

    Returns:
        As :func:`boxsup_d2.data.datasets.load_coco_boxes`, and per annotation ``segmentation`` (compressed RLE with
        str counts, or the polygons of an annotation that kept its own mask), ``confidence`` and ``confidence_exact``
        (0..1). An annotation without a mask keeps its box and class: its ``segmentation`` is an empty RLE and its
        confidence 0. Crowd regions are there with ``iscrowd`` 1, which Detectron2's mappers leave out.

    Raises:
        FileNotFoundError: the file or images are missing.
        ValueError: the file is damaged.
    """
    data = read_coco_json(path, name, _FIX)
    info = data.get("info")
    image_root = find_image_root(info if isinstance(info, dict) else {}, path)

    def mask_keys(source: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
        segmentation = coco_segmentation(source.get("segmentation"), image, f"'{path}', annotation {source['id']}")
        if segmentation is None:
            return {"segmentation": _empty_mask(image), "confidence": 0.0, "confidence_exact": 0.0}
        # A mask without a confidence is one that was drawn, not predicted.
        confidence = _confidence(source, "confidence", 1.0, path)
        exact = _confidence(source, "confidence_exact", confidence, path)
        return {"segmentation": segmentation, "confidence": confidence, "confidence_exact": exact}

    return build_dicts(data, path, image_root, name, keep_crowds=True, extra_keys=mask_keys)


def _confidence(source: dict[str, Any], key: str, default: float, path: str) -> float:
    value = source.get(key, default)
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"'{path}', annotation {source['id']}: {key} is {value!r}, not in 0..1. Write the file again.")
    return float(value)


def _empty_mask(image: dict[str, Any]) -> dict[str, Any]:
    size = [image["height"], image["width"]]
    rle = mask_util.frPyObjects({"size": size, "counts": [size[0] * size[1]]}, *size)
    return {"size": size, "counts": rle["counts"].decode("ascii")}
