"""Data sets in Pascal VOC's own layout; :mod:`boxsup_d2.data.formats.voc_layout` reads it."""

import logging
from collections.abc import Iterator, Sequence
from functools import partial

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from boxsup_d2.data.datasets.catalog import register_dataset
from boxsup_d2.data.datasets.source import DatasetSource
from boxsup_d2.data.formats.voc_layout import (
    VOC_CLASSES,
    load_voc_boxes,
    load_voc_instances,
    load_voc_sem_seg,
    split_file,
)
from boxsup_d2.data.paths import under_root
from boxsup_d2.masks.label_map import IGNORE_LABEL

logger = logging.getLogger(__name__)


class VocSource(DatasetSource):
    """A split of a folder in VOC's layout.

    Attributes:
        use_difficult: whether the next load has the objects marked difficult, see :func:`apply_dataset_switches`.
    """

    def __init__(self, name: str, dirname: str, split: str):
        super().__init__(name, lambda: [split_file(under_root(dirname), split)])
        # A set that is registered late, or anew, follows those that are there.
        self.use_difficult: bool = next((source.use_difficult for source in _voc_sources()), True)


def apply_dataset_switches(cfg: CfgNode) -> None:
    """Make every later load of a VOC set honour ``DATASETS.VOC_USE_DIFFICULT``.

    With False, objects marked difficult appear in none of them: neither trained on, nor labelled, nor prompted for; in
    sets with masks their pixels become void, so that no evaluator holds them against a method. The ids of the other
    annotations stay the same.
    """
    use_difficult = bool(cfg.DATASETS.VOC_USE_DIFFICULT)
    changed = [source for source in _voc_sources() if source.use_difficult != use_difficult]
    for source in changed:
        source.use_difficult = use_difficult
    if changed:
        logger.info("VOC objects marked difficult are %s", "used" if use_difficult else "left out")


def _voc_sources() -> Iterator[VocSource]:
    for name in DatasetCatalog:
        source = MetadataCatalog.get(name).get("source")
        if isinstance(source, VocSource):
            yield source


def register_voc_boxes(
    name: str, dirname: str, split: str, classes: Sequence[str] = VOC_CLASSES, *, masks: bool = False
) -> None:
    """Register a split of a folder in VOC's layout; nothing is opened before it is used.

    Args:
        name: to register it under.
        dirname: a relative path is looked up in ``DETECTRON2_DATASETS`` when used.
        split: see :func:`load_voc_boxes`, as of the other arguments.
        classes: names in the order of ``category_id``.
        masks: with the instance masks, see :func:`load_voc_instances`.
    """
    loader = load_voc_instances if masks else load_voc_boxes
    source = VocSource(name, dirname, split)
    register_dataset(
        name,
        lambda: loader(under_root(dirname), split, name, classes, use_difficult=source.use_difficult),
        lazy={"dirname": partial(under_root, dirname), "image_root": partial(under_root, f"{dirname}/JPEGImages")},
        thing_classes=list(classes),
        # Category ids of the json that dataset_to_coco writes: 1-based, as every COCO json of VOC has them.
        thing_dataset_id_to_contiguous_id={index + 1: index for index in range(len(classes))},
        split=split,
        source=source,
        evaluator_type="voc_instance" if masks else "box",
    )


def register_voc_sem_seg(name: str, dirname: str, split: str, classes: Sequence[str] = VOC_CLASSES) -> None:
    """As :func:`register_voc_boxes`, for semantic segmentation: with the class masks, see :func:`load_voc_sem_seg`."""
    source = VocSource(name, dirname, split)
    register_dataset(
        name,
        lambda: load_voc_sem_seg(under_root(dirname), split, name, classes, use_difficult=source.use_difficult),
        lazy={"dirname": partial(under_root, dirname), "image_root": partial(under_root, f"{dirname}/JPEGImages")},
        stuff_classes=["background", *classes],
        ignore_label=IGNORE_LABEL,
        # Of the boxes, which prompt box-to-mask methods.
        thing_classes=list(classes),
        thing_dataset_id_to_contiguous_id={index + 1: index for index in range(len(classes))},
        split=split,
        source=source,
        evaluator_type="sem_seg",
    )
