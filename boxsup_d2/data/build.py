"""Training loaders: Detectron2's own for detectors, and those of box crops, of class masks and of label maps."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch.utils.data
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    MapDataset,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.build import worker_init_reset_seed
from detectron2.data.samplers import InferenceSampler, TrainingSampler
from detectron2.structures import BoxMode
from detectron2.utils import comm

from boxsup_d2.data.dataset_mappers import (
    BoxCropDatasetMapper,
    ClassMaskDatasetMapper,
    MaskCropDatasetMapper,
    SemSegDatasetMapper,
    build_dataset_mapper,
)
from boxsup_d2.data.mask_crops import build_mask_crop_train_loader
from boxsup_d2.data.samplers import ImageWindowSampler, mix_at_ratio, overlapping

logger = logging.getLogger(__name__)


def build_train_loader(cfg: CfgNode, start_iter: int = 0) -> Any:
    """Endless loader of ``DATASETS.TRAIN`` for the mapper that ``INPUT.TRAIN_MAPPER`` names.

    Args:
        cfg: the config.
        start_iter: iteration that training (re)starts from. It goes into the seed, so that a resumed run sees other
            samples than the run before it did at its start.
    """
    mapper = build_dataset_mapper(cfg, cfg.INPUT.TRAIN_MAPPER, is_train=True)
    seed = comm.shared_random_seed() if cfg.SEED < 0 else cfg.SEED + start_iter
    if isinstance(mapper, BoxCropDatasetMapper):
        return build_joint_train_loader(cfg, mapper, seed)
    if isinstance(mapper, MaskCropDatasetMapper):
        return build_mask_crop_train_loader(cfg, mapper, seed)
    crops_are_square = True
    if isinstance(mapper, ClassMaskDatasetMapper):
        dataset = class_samples(get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False))
    elif isinstance(mapper, SemSegDatasetMapper):
        dataset = sem_seg_dicts(cfg.DATASETS.TRAIN, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    else:
        dataset = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
        crops_are_square = False
    return build_detection_train_loader(
        dataset,
        mapper=mapper,
        sampler=TrainingSampler(len(dataset), seed=seed),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING and not crops_are_square,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


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
        dataset_name: a registered data set.
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
        collate_fn=_as_list,
    )


def build_prompt_mapper(cfg: CfgNode, dataset_name: str) -> Callable[[dict[str, Any]], Any]:
    """``BoxPromptDatasetMapper`` for one data set, whose classes it tells the model."""
    class_names = MetadataCatalog.get(dataset_name).get("thing_classes")
    return build_dataset_mapper(cfg, "BoxPromptDatasetMapper", is_train=False, class_names=class_names)


def class_samples(dataset_dicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One sample per image and class that it holds, out of Detectron2 dataset dicts with masks.

    Returns:
        Dicts of ``file_name``, ``height``, ``width``, ``image_id``, ``class_id`` and the ``annotations`` of that class,
        crowd regions included; a crowd region alone makes no sample. Classes of an image are in order of appearance.

    Raises:
        ValueError: an object has no mask, or there is no object at all.
    """
    samples = []
    for record in dataset_dicts:
        by_class: dict[int, list[dict[str, Any]]] = {}
        for annotation in record.get("annotations", ()):
            by_class.setdefault(annotation["category_id"], []).append(annotation)
        for class_id, annotations in by_class.items():
            objects = [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]
            if not all(annotation.get("segmentation") for annotation in objects):
                raise ValueError(
                    f"An object of '{record['file_name']}' has no mask, but ClassMaskDatasetMapper learns from masks. "
                    "Name data sets with masks in DATASETS.TRAIN, e.g. coco60_2017_train and not coco60_2017_train_box."
                )
            if objects:
                keys = ("file_name", "height", "width", "image_id")
                samples.append({**{key: record[key] for key in keys}, "class_id": class_id, "annotations": annotations})
    if not samples:
        raise ValueError("The training data sets hold no object with a mask: check DATASETS.TRAIN.")
    logger.info("Training on %d pairs of an image and a class of %d images", len(samples), len(dataset_dicts))
    return samples


def sem_seg_dicts(names: tuple[str, ...], num_classes: int) -> list[dict[str, Any]]:
    """Dicts of data sets with label maps: those of the data sets, without annotations.

    Args:
        names: of registered data sets.
        num_classes: outputs of the network.

    Raises:
        ValueError: one of them has no label maps, or they do not have the same classes, as many as the network.
    """
    if not names:
        raise ValueError("DATASETS.TRAIN is empty: name at least one data set.")
    classes = {name: MetadataCatalog.get(name).get("stuff_classes") for name in names}
    records = []
    for name in names:
        dicts = get_detection_dataset_dicts(name, filter_empty=False, check_consistency=False)
        if classes[name] is None or not all("sem_seg_file_name" in record for record in dicts):
            raise ValueError(
                f"Data set '{name}' of DATASETS.TRAIN has no label maps, which SemSegDatasetMapper learns from: use a "
                "..._sem_seg set, such as voc_2012_train_aug_sem_seg."
            )
        if list(classes[name]) != list(classes[names[0]]):
            raise ValueError(
                f"DATASETS.TRAIN: '{name}' and '{names[0]}' have different classes ({len(classes[name])} and "
                f"{len(classes[names[0]])}, background included): their label maps do not fit together."
            )
        if len(classes[name]) != num_classes:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}, but '{name}' of DATASETS.TRAIN has "
                f"{len(classes[name])} classes, background included: set it to that."
            )
        records += [{key: value for key, value in record.items() if key != "annotations"} for record in dicts]
    return records


def build_joint_train_loader(cfg: CfgNode, mapper: BoxCropDatasetMapper, seed: int) -> torch.utils.data.DataLoader:
    """Batches of box crops and salient images (BoxCaseg, section 3.1).

    Returns:
        Endless loader of lists of this rank's share of ``SOLVER.IMS_PER_BATCH`` samples.

    Raises:
        ValueError: the batch does not divide over the ranks, or a kind of sample that BOX_RATIO wants is missing.
    """
    world_size = comm.get_world_size()
    batch_size, remainder = divmod(cfg.SOLVER.IMS_PER_BATCH, world_size)
    if remainder or batch_size == 0:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH ({cfg.SOLVER.IMS_PER_BATCH}) does not divide over {world_size} processes"
        )
    dicts = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False, check_consistency=False)
    dataset = JointDataset(
        box_samples(dicts),
        mapper,
        batch_size=batch_size,
        box_ratio=cfg.DATALOADER.BOX_RATIO,
        overlap_iou=cfg.DATALOADER.OVERLAP_IOU,
        overlap_drop_prob=cfg.DATALOADER.OVERLAP_DROP_PROB,
        window=cfg.DATALOADER.IMAGE_WINDOW,
        seed=seed,
        rank=comm.get_rank(),
        world_size=world_size,
    )
    return torch.utils.data.DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=_as_list,
        worker_init_fn=worker_init_reset_seed,
        pin_memory=cfg.MODEL.DEVICE != "cpu",
    )


def box_samples(dataset_dicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One sample per box and one per salient image, out of Detectron2 dataset dicts.

    Masks are read off dicts that are ``fully_supervised`` (:func:`boxsup_d2.data.datasets.register_coco_masks`) and off
    no others: a data set with masks in its dicts still counts as boxes, unless it was registered for its masks.

    Returns:
        Dicts of ``file_name``, ``image`` (position of the dict, the same for all boxes of an image), and either
        ``box`` (x0, y0, x1, y1 in pixels) or ``mask_file_name``. A box whose mask may be learned from also has
        ``segmentation`` (polygons or RLE). Crowd regions are left out.
    """
    samples = []
    for image, d in enumerate(dataset_dicts):
        if "mask_file_name" in d:
            samples.append({"file_name": d["file_name"], "image": image, "mask_file_name": d["mask_file_name"]})
            continue
        for annotation in d["annotations"]:
            if annotation.get("iscrowd", 0):
                continue
            box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
            sample = {"file_name": d["file_name"], "image": image, "box": tuple(box)}
            if d.get("fully_supervised", False) and annotation.get("segmentation"):
                sample["segmentation"] = annotation["segmentation"]
            samples.append(sample)
    return samples


class JointDataset(torch.utils.data.IterableDataset):
    """Endless stream of mapped samples; each loader worker of each rank reads its own shard of the images."""

    def __init__(
        self,
        samples: list[dict[str, Any]],
        mapper: BoxCropDatasetMapper,
        *,
        batch_size: int,
        box_ratio: float,
        overlap_iou: float,
        overlap_drop_prob: float,
        window: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """
        Args:
            samples: of :func:`box_samples`.
            mapper: one sample to one training input.
            batch_size: samples per batch of a rank.
            box_ratio: share of crops without a mask in every batch; negative: shuffle the union of both kinds.
            overlap_iou, overlap_drop_prob: leave a box that overlaps another one so much out of an epoch, so often.
            window, seed: see :class:`ImageWindowSampler`.
            rank, world_size: of this process.
        """
        super().__init__()
        image_ids = np.array([s["image"] for s in samples], dtype=np.int64)
        # A box with its mask is of the same kind as a salient image: both teach the salient head.
        is_box = np.array(["box" in s and "segmentation" not in s for s in samples], dtype=bool)
        if box_ratio >= 0 and not (box_ratio < 1 and is_box.any() and (~is_box).any()):
            raise ValueError(
                f"DATALOADER.BOX_RATIO ({box_ratio}) mixes boxes with samples that have masks: it must be below 1, and "
                "DATASETS.TRAIN must hold both; -1 takes what there is"
            )
        masked = sum("segmentation" in s for s in samples)
        logger.info(
            "Training on %d boxes, %d boxes with masks and %d salient images",
            is_box.sum(),
            masked,
            len(samples) - is_box.sum() - masked,
        )
        drop_probs = None
        if overlap_drop_prob > 0 and is_box.any():
            drop_probs = np.zeros(len(samples))
            boxes = np.array([s["box"] for s, kept in zip(samples, is_box, strict=True) if kept], dtype=np.float64)
            drop_probs[is_box] = overlap_drop_prob * overlapping(boxes, image_ids[is_box], overlap_iou)
        self.batch_size = batch_size
        self.num_boxes = round(batch_size * box_ratio) if box_ratio >= 0 else -1
        if box_ratio >= 0 and not 0 < self.num_boxes < batch_size:
            raise ValueError(
                f"DATALOADER.BOX_RATIO ({box_ratio}) leaves no sample of one kind in a batch of {batch_size}: "
                "raise SOLVER.IMS_PER_BATCH (the batch is that of one process)"
            )
        kinds = [np.flatnonzero(is_box), np.flatnonzero(~is_box)] if box_ratio >= 0 else [np.arange(len(samples))]
        self._positions = kinds
        self._samplers = [
            ImageWindowSampler(
                image_ids[kind], window=window, seed=seed, drop_probs=None if drop_probs is None else drop_probs[kind]
            )
            for kind in kinds
        ]
        # In samples of this data set's kind mix, over all ranks.
        salient_share = 1 - self.num_boxes / batch_size
        self.samples_per_epoch = len(samples) if box_ratio < 0 else round((~is_box).sum() / salient_share)
        # Serialised once: worker processes then share the memory instead of copying millions of Python objects.
        self._samples = DatasetFromList(samples, copy=False, serialize=True)
        self._mapper = mapper
        self._rank, self._world_size = rank, world_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        num_workers, worker_id = (worker.num_workers, worker.id) if worker else (1, 0)
        shard, num_shards = self._rank * num_workers + worker_id, self._world_size * num_workers
        streams = [
            map(positions.__getitem__, sampler.shard(shard, num_shards))
            for positions, sampler in zip(self._positions, self._samplers, strict=True)
        ]
        stream: Iterator[int] = streams[0]
        if len(streams) == 2:
            stream = mix_at_ratio(streams[0], streams[1], self.num_boxes, self.batch_size - self.num_boxes)
        for position in stream:
            yield self._mapper(self._samples[position])


def _as_list(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return batch
