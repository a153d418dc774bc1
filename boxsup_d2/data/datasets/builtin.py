"""The data sets that importing :mod:`boxsup_d2.data.datasets` registers; ``datasets/README.md`` shows their folders.

``coco_2017_{train,val}``, with masks, are Detectron2's own registrations and stay as they are.
"""

from collections.abc import Mapping
from functools import partial

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from boxsup_d2.data.datasets.coco import VOC_CLASSES_IN_COCO, register_coco_boxes_lazily, register_coco_subset
from boxsup_d2.data.datasets.pascal_voc import register_voc_boxes, register_voc_sem_seg
from boxsup_d2.data.datasets.salient import register_salient
from boxsup_d2.data.paths import under_root

_COCO_NAMES = {category["id"]: category["name"] for category in COCO_CATEGORIES if category["isthing"]}
_COCO60_NAMES: Mapping[int, str] = {key: name for key, name in _COCO_NAMES.items() if name not in VOC_CLASSES_IN_COCO}


def register_builtin_datasets() -> None:
    """Register all of them; may be called again."""
    for split in ("train", "val", "trainval", "train_aug"):
        register_voc_boxes(f"voc_2012_{split}_box", "VOC2012", split)
    for split in ("train", "val", "train_aug"):
        register_voc_sem_seg(f"voc_2012_{split}_sem_seg", "VOC2012", split)
    for split in ("train", "val"):
        register_voc_boxes(f"voc_2012_{split}_instance", "VOC2012", split, masks=True)
        json_file = partial(under_root, f"coco/annotations/instances_{split}2017.json")
        image_root = partial(under_root, f"coco/{split}2017")
        register_coco_boxes_lazily(f"coco_2017_{split}_box", json_file, image_root, _COCO_NAMES)
        for suffix, masks in (("", True), ("_box", False)):
            register_coco_subset(f"coco60_2017_{split}{suffix}", json_file, image_root, _COCO60_NAMES, masks=masks)
    # The jsons that the authors of BoxCaseg published, beside VOC or in the folder tree of their release.
    for split in ("train_aug", "val"):
        json_name = f"voc_2012_{split}_cocostyle.json"
        register_coco_boxes_lazily(
            f"voc_2012_{split}_cocostyle_box",
            partial(under_root, f"VOC2012/annotations/{json_name}", f"VOC2012/{json_name}", f"VOCSBD/{json_name}"),
            partial(under_root, "VOC2012/JPEGImages", "VOCSBD/VOC2012/JPEGImages"),
        )
    for name, suffix in (("dut_tr_single", ""), ("dut_tr_single_new", "-new")):
        register_salient(name, f"DUTS/DUTS-TR-Image-single{suffix}", f"DUTS/DUTS-TR-Mask-single{suffix}")
