"""Data sets of pseudo masks: the self-describing COCO json of ``docs/architecture.md``, registered by its path."""

import os
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from boxsup_d2.data.datasets.catalog import register_dataset
from boxsup_d2.data.datasets.provenance import find_image_root
from boxsup_d2.data.datasets.pseudo_sem_seg import register_pseudo_sem_seg
from boxsup_d2.data.datasets.source import CocoSource
from boxsup_d2.data.formats.coco import coco_header, coco_segmentation, read_coco_json
from boxsup_d2.data.formats.coco_dicts import build_dicts
from boxsup_d2.data.formats.pseudo_masks import MISSING_FIX, is_manifest
from boxsup_d2.masks.rle import empty_rle


def register_pseudo_masks(json_path: str) -> str:
    """Register a pseudo-mask file under its stem, which is returned; nothing is opened before it is used.

    A file whose stem ends in ``_pseudo_sem_seg`` is the manifest of semantic labels, see
    :func:`boxsup_d2.data.datasets.pseudo_sem_seg.register_pseudo_sem_seg`.

    Registering another file of the same stem replaces the former one: the steps of a round may run in one process.
    The images are looked for where the data set that was labelled has them on *this* machine, then where the file says
    that they were.

    Raises:
        ValueError: another data set, not of pseudo masks, already has that name.
    """
    path = os.path.abspath(os.path.expanduser(json_path))
    name = os.path.splitext(os.path.basename(path))[0]
    if name in DatasetCatalog and not MetadataCatalog.get(name).get("pseudo_masks", False):
        raise ValueError(f"Pseudo-mask file '{path}' has the name of the data set '{name}'. Rename the file.")

    if is_manifest(path):
        register_pseudo_sem_seg(path, name)
        return name

    def header(key: str) -> Any:
        return coco_header(path, name, MISSING_FIX)[key]

    register_dataset(
        name,
        lambda: load_pseudo_masks(path, name),
        lazy={
            "image_root": lambda: find_image_root({"info": header("info")}, path),
            "thing_classes": lambda: header("thing_classes"),
            "thing_dataset_id_to_contiguous_id": lambda: header("thing_dataset_id_to_contiguous_id"),
        },
        source=CocoSource(name, lambda: path, masks=True),
        json_file=path,
        pseudo_masks=True,
        evaluator_type="coco",
    )
    return name


def register_pseudo_masks_from_cfg(cfg: CfgNode) -> list[str]:
    """Register every file of ``DATASETS.PSEUDO_MASKS`` and return their names.

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
        str counts, or the polygons of an annotation that kept its own mask), ``confidence``, ``confidence_exact`` and
        ``quality`` (0..1; in files without qualities it is the confidence). An annotation without a mask keeps its box
        and class: its ``segmentation`` is an empty RLE, and the three are 0. Crowd regions are there with ``iscrowd``
        1, which Detectron2's mappers leave out.

    Raises:
        FileNotFoundError: the file or images are missing.
        ValueError: the file is damaged.
    """
    data = read_coco_json(path, name, MISSING_FIX)
    image_root = find_image_root(data, path)

    def mask_keys(source: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
        segmentation = coco_segmentation(source.get("segmentation"), image, f"'{path}', annotation {source['id']}")
        if segmentation is None:
            return {
                "segmentation": empty_rle(image["height"], image["width"]),
                "confidence": 0.0,
                "confidence_exact": 0.0,
                "quality": 0.0,
            }
        # A mask without a confidence is one that was drawn, not predicted.
        confidence = _confidence(source, "confidence", 1.0, path)
        exact = _confidence(source, "confidence_exact", confidence, path)
        # Files of before have no quality, and annotations that kept their mask may have another thing of that name.
        quality = source.get("quality")
        if not isinstance(quality, int | float) or not 0 <= quality <= 1:
            quality = confidence
        return {
            "segmentation": segmentation,
            "confidence": confidence,
            "confidence_exact": exact,
            "quality": float(quality),
        }

    return build_dicts(data, path, image_root, name, keep_crowds=True, extra_keys=mask_keys)


def _confidence(source: dict[str, Any], key: str, default: float, path: str) -> float:
    value = source.get(key, default)
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"'{path}', annotation {source['id']}: {key} is {value!r}, not in 0..1. Write the file again.")
    return float(value)
