"""Batches of box crops and salient images (BoxCaseg, section 3.1): an endless stream of samples of both kinds."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch.utils.data
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.data.build import trivial_batch_collator, worker_init_reset_seed
from detectron2.utils import comm

from boxsup_d2.data.dataset_mappers.build import SampleMapper, rank_batch_size
from boxsup_d2.data.samplers import ImageWindowSampler, mix_at_ratio, overlapping

logger = logging.getLogger(__name__)


def build_joint_train_loader(cfg: CfgNode, mapper: SampleMapper, seed: int) -> torch.utils.data.DataLoader:
    """Loader of a :class:`JointDataset` of the mapper's training samples.

    Returns:
        Endless loader of lists of this rank's share of ``SOLVER.IMS_PER_BATCH`` samples.

    Raises:
        ValueError: the batch does not divide over the ranks, or a kind of sample that BOX_RATIO wants is missing.
    """
    batch_size = rank_batch_size(cfg)
    dataset = JointDataset(
        mapper.training_samples(cfg),
        mapper,
        batch_size=batch_size,
        box_ratio=cfg.DATALOADER.BOX_RATIO,
        overlap_iou=cfg.DATALOADER.OVERLAP_IOU,
        overlap_drop_prob=cfg.DATALOADER.OVERLAP_DROP_PROB,
        window=cfg.DATALOADER.IMAGE_WINDOW,
        seed=seed,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
    )
    return torch.utils.data.DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
        worker_init_fn=worker_init_reset_seed,
        pin_memory=cfg.MODEL.DEVICE != "cpu",
    )


class JointDataset(torch.utils.data.IterableDataset):
    """Endless stream of mapped samples; each loader worker of each rank reads its own shard of the images."""

    def __init__(
        self,
        samples: list[dict[str, Any]],
        mapper: Callable[[dict[str, Any]], Any],
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
            samples: as :func:`boxsup_d2.data.dataset_mappers.box_crop.box_samples` makes them.
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
