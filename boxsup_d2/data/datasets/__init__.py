"""Data sets: importing this package registers the well-known ones under ``DETECTRON2_DATASETS``, opening no file."""

from boxsup_d2.data.datasets.builtin import register_builtin_datasets
from boxsup_d2.data.datasets.catalog import register_dataset
from boxsup_d2.data.datasets.coco import (
    VOC_CLASSES_IN_COCO,
    load_coco_masks,
    register_coco_boxes,
    register_coco_masks,
    register_coco_subset,
)
from boxsup_d2.data.datasets.coco_export import dataset_to_coco
from boxsup_d2.data.datasets.pascal_voc import (
    VOC_CLASSES,
    apply_dataset_switches,
    encode_masks,
    filter_difficult,
    register_voc_boxes,
    register_voc_sem_seg,
)
from boxsup_d2.data.datasets.pseudo_masks import register_pseudo_masks, register_pseudo_masks_from_cfg
from boxsup_d2.data.datasets.salient import register_salient
from boxsup_d2.data.datasets.user_data import register_listed
from boxsup_d2.data.formats.coco import load_coco_boxes
from boxsup_d2.data.paths import datasets_root

register_builtin_datasets()

__all__ = [
    "VOC_CLASSES",
    "VOC_CLASSES_IN_COCO",
    "apply_dataset_switches",
    "dataset_to_coco",
    "datasets_root",
    "encode_masks",
    "filter_difficult",
    "load_coco_boxes",
    "load_coco_masks",
    "register_builtin_datasets",
    "register_coco_boxes",
    "register_coco_masks",
    "register_coco_subset",
    "register_dataset",
    "register_listed",
    "register_pseudo_masks",
    "register_pseudo_masks_from_cfg",
    "register_salient",
    "register_voc_boxes",
    "register_voc_sem_seg",
]
