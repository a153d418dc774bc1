"""Loaders of training, evaluation and labelling; what a training sample is, its mapper says."""

from collections.abc import Callable
from typing import Any

import torch.utils.data
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    MapDataset,
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm

from boxsup_d2.data.dataset_mappers.build import build_dataset_mapper, build_shuffled_loader, detection_samples


def build_train_loader(cfg: CfgNode) -> Any:
    """Endless loader of ``DATASETS.TRAIN`` for the mapper that ``INPUT.TRAIN_MAPPER`` names.

    ``SEED`` decides the order of the samples; negative: at random, the same on all ranks.
    """
    mapper = build_dataset_mapper(cfg, cfg.INPUT.TRAIN_MAPPER, is_train=True)
    seed = comm.shared_random_seed() if cfg.SEED < 0 else cfg.SEED
    build = getattr(mapper, "build_train_loader", None)
    if build is not None:
        return build(cfg, seed)
    # A plain mapper, as Detectron2's own are.
    return build_shuffled_loader(cfg, mapper, detection_samples(cfg), seed)


def build_test_loader(cfg: CfgNode, dataset_name: str, *, box_prompts: bool) -> Any:
    """Loader over a whole data set, sharded over ranks, one image a batch.

    Args:
        cfg: the config.
        dataset_name: a registered data set.
        box_prompts: give the images in their original frame with their boxes as prompts, instead of Detectron2's
            resized images without annotations.
    """
    if not box_prompts:
        return build_detection_test_loader(cfg, dataset_name)
    dataset = get_detection_dataset_dicts(dataset_name, filter_empty=False)
    mapper = build_prompt_mapper(cfg, dataset_name)
    return build_detection_test_loader(dataset=dataset, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS)


def build_label_loader(cfg: CfgNode, dataset_name: str, dataset_dicts: list[dict[str, Any]]) -> Any:
    """Loader over the images of a data set that are to be labelled, sharded over ranks, several images a batch.

    Detectron2's loader for tests always takes one image at a time (0.6), as papers report inference times.

    Args:
        cfg: the config.
        dataset_name: of the data set.
        dataset_dicts: those of its dicts that are to be labelled.

    Raises:
        ValueError: ``PSEUDO_MASKS.IMS_PER_BATCH`` is not positive.
    """
    if cfg.PSEUDO_MASKS.IMS_PER_BATCH < 1:
        raise ValueError(f"PSEUDO_MASKS.IMS_PER_BATCH is {cfg.PSEUDO_MASKS.IMS_PER_BATCH}: at least 1 is needed")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TEST.BOX_PROMPT = "xml"  # labels come from the given boxes, whatever the evaluation is prompted with
    dataset = MapDataset(DatasetFromList(dataset_dicts, copy=False), build_prompt_mapper(cfg, dataset_name))
    return torch.utils.data.DataLoader(
        dataset,
        batch_size=cfg.PSEUDO_MASKS.IMS_PER_BATCH,
        sampler=InferenceSampler(len(dataset)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
    )


def build_prompt_mapper(cfg: CfgNode, dataset_name: str) -> Callable[[dict[str, Any]], Any]:
    """``BoxPromptDatasetMapper`` for one data set, whose classes it tells the model."""
    class_names = MetadataCatalog.get(dataset_name).get("thing_classes")
    return build_dataset_mapper(cfg, "BoxPromptDatasetMapper", is_train=False, class_names=class_names)
