"""Batches of box crops and salient images (BoxCaseg, section 3.1): the order of samples of both kinds."""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils import comm

from boxsup_d2.data.dataset_mappers.build import SampleMapper, build_ordered_loader, rank_batch_size
from boxsup_d2.data.samplers import ImageWindowSampler, overlapping
from boxsup_d2.data.train_loader import TrainLoader

logger = logging.getLogger(__name__)


def build_joint_train_loader(cfg: CfgNode, mapper: SampleMapper, seed: int) -> TrainLoader:
    """Endless loader of the mapper's training samples in a :class:`JointOrder`.

    Raises:
        ValueError: the batch does not divide over the ranks, or a kind of sample that BOX_RATIO wants is missing.
    """
    samples = mapper.training_samples(cfg)
    order = JointOrder(
        samples,
        batch_size=rank_batch_size(cfg),
        box_ratio=cfg.DATALOADER.BOX_RATIO,
        overlap_iou=cfg.DATALOADER.OVERLAP_IOU,
        overlap_drop_prob=cfg.DATALOADER.OVERLAP_DROP_PROB,
        window=cfg.DATALOADER.IMAGE_WINDOW,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
    )
    return build_ordered_loader(cfg, mapper, samples, order, seed, samples_per_epoch=order.samples_per_epoch)


class JointOrder:
    """Boxes and salient images, mixed at random or at a set ratio in every batch."""

    def __init__(
        self,
        samples: list[dict[str, Any]],
        *,
        batch_size: int,
        box_ratio: float,
        overlap_iou: float,
        overlap_drop_prob: float,
        window: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """
        Args:
            samples: as :func:`boxsup_d2.data.dataset_mappers.box_crop.box_samples` makes them.
            batch_size: samples per batch of a rank.
            box_ratio: share of crops without a mask in every batch; negative: shuffle the union of both kinds.
            overlap_iou, overlap_drop_prob: leave a box that overlaps another one so much out of an epoch, so often.
            window: see :class:`ImageWindowSampler`.
            rank, world_size: of this process.
        """
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
            ImageWindowSampler(image_ids[k], window=window, drop_probs=None if drop_probs is None else drop_probs[k])
            for k in kinds
        ]
        #: Over all ranks; with a ratio, until each sample with a mask was seen once.
        self.samples_per_epoch = len(samples)
        if box_ratio >= 0:
            self.samples_per_epoch = round((~is_box).sum() / (1 - self.num_boxes / batch_size))
        self._rank, self._world_size = rank, world_size

    def batches(self, seed: int) -> Iterator[list[tuple[int, ...]]]:
        """See :class:`~boxsup_d2.data.train_loader.SampleOrder`."""
        sizes = [self.num_boxes, self.batch_size - self.num_boxes] if len(self._samplers) == 2 else [self.batch_size]
        streams = [
            sampler.batches(size, seed, self._rank, self._world_size)
            for sampler, size in zip(self._samplers, sizes, strict=True)
        ]
        for parts in zip(*streams, strict=True):
            yield [(int(positions[i]),) for positions, part in zip(self._positions, parts, strict=True) for i in part]
