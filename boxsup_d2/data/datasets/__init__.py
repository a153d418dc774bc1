"""Data sets: importing this package registers the well-known ones under ``DETECTRON2_DATASETS``, opening no file."""

from detectron2.config import CfgNode

from boxsup_d2.data.datasets.builtin import register_builtin_datasets
from boxsup_d2.data.datasets.catalog import register_dataset
from boxsup_d2.data.datasets.coco import (
    VOC_CLASSES_IN_COCO,
    register_coco_boxes,
    register_coco_masks,
    register_coco_subset,
)
from boxsup_d2.data.datasets.pascal_voc import (
    VOC_CLASSES,
    apply_dataset_switches,
    register_voc_boxes,
    register_voc_sem_seg,
)
from boxsup_d2.data.datasets.pseudo_masks import register_pseudo_masks, register_pseudo_masks_from_cfg
from boxsup_d2.data.datasets.salient import register_salient
from boxsup_d2.data.datasets.source import dataset_source, dataset_to_coco, require_data_set
from boxsup_d2.data.datasets.user_data import register_listed
from boxsup_d2.data.formats.coco_dicts import load_coco_boxes, load_coco_masks
from boxsup_d2.data.formats.voc_layout import filter_difficult
from boxsup_d2.data.paths import datasets_root

register_builtin_datasets()


def register_from_cfg(cfg: CfgNode) -> None:
    """Register what a config names, and make the data sets follow its switches.

    Raises:
        ValueError: as :func:`register_listed` and :func:`register_pseudo_masks_from_cfg`.
    """
    apply_dataset_switches(cfg)
    register_listed(cfg.DATASETS.REGISTER)
    register_pseudo_masks_from_cfg(cfg)


__all__ = [
    "VOC_CLASSES",
    "VOC_CLASSES_IN_COCO",
    "apply_dataset_switches",
    "dataset_source",
    "dataset_to_coco",
    "datasets_root",
    "filter_difficult",
    "load_coco_boxes",
    "load_coco_masks",
    "register_builtin_datasets",
    "register_coco_boxes",
    "register_coco_masks",
    "register_coco_subset",
    "register_dataset",
    "register_from_cfg",
    "register_listed",
    "register_pseudo_masks",
    "register_pseudo_masks_from_cfg",
    "register_salient",
    "register_voc_boxes",
    "register_voc_sem_seg",
    "require_data_set",
]
