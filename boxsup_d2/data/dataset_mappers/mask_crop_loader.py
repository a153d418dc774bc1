"""Loader of BoxMask's training samples: several data sets, mixed at set shares, with donors for copy-paste.

What a data set gives follows from what its dicts hold: salient images and objects with masks teach by masks, boxes
without a mask by their boxes. A box-only data set cannot leak a mask, its dicts hold none.
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.structures import BoxMode
from detectron2.utils import comm

from boxsup_d2.data.dataset_mappers.build import build_ordered_loader, rank_batch_size
from boxsup_d2.data.dataset_mappers.pseudo_mask import mask_confidence
from boxsup_d2.data.train_loader import TrainLoader

logger = logging.getLogger(__name__)


def build_mask_crop_train_loader(cfg: CfgNode, mapper: Callable[..., dict[str, Any]], seed: int) -> TrainLoader:
    """Endless loader of lists of this rank's share of ``SOLVER.IMS_PER_BATCH`` samples of ``DATASETS.TRAIN``.

    Raises:
        ValueError: the batch does not divide over the ranks, a data set holds nothing to learn from, or there is not
            one weight per data set.
    """
    batch_size = rank_batch_size(cfg)
    names, weights = tuple(cfg.DATASETS.TRAIN), tuple(cfg.DATALOADER.SOURCE_WEIGHTS)
    if weights and len(weights) != len(names):
        raise ValueError(f"DATALOADER.SOURCE_WEIGHTS has {len(weights)} weights for {len(names)} of DATASETS.TRAIN")
    sources = []
    for name in names:
        dicts = get_detection_dataset_dicts((name,), filter_empty=False, check_consistency=False)
        node = cfg.INPUT.MASK_CROP
        union = node.UNION_PROB if name in node.UNION_DATASETS else 0.0
        samples, shares = mask_samples(dicts, node.MIN_SIDE, union, node.MIN_QUALITY)
        if not samples:
            raise ValueError(f"DATASETS.TRAIN: '{name}' holds no box that could be learnt from")
        masks = sum("segmentations" in sample or "mask_file_name" in sample for sample in samples)
        logger.info(
            "%s: %d samples of %d images, %d of them with a mask to learn", name, len(samples), len(dicts), masks
        )
        sources.append((samples, shares, len(dicts)))
    order = MaskCropOrder(
        [shares for _, shares, _ in sources],
        [float(w) for w in weights] or [float(images) for *_, images in sources],
        batch_size=batch_size,
        rank=comm.get_rank(),
    )
    return build_ordered_loader(cfg, mapper, [s for samples, *_ in sources for s in samples], order, seed)


def mask_samples(
    dataset_dicts: Sequence[dict[str, Any]], min_side: float, union_prob: float = 0.0, min_quality: float = 0.0
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """One sample per object, or per salient image, and how often each is drawn.

    Args:
        dataset_dicts: Detectron2's, with or without masks, or of salient images.
        min_side: boxes with a smaller side, in pixels, are left out, and crowd regions.
        union_prob: share of an image's draws in which all its true masks together are one sample.
        min_quality: predicted masks of a lower quality are left out, and only their boxes teach.

    Returns:
        Dicts of ``file_name`` and ``mask_file_name``, or ``box`` (x0, y0, x1, y1 in pixels) and maybe
        ``segmentations`` (a list: together they are the mask) with ``void`` (the image's, an RLE) and, if it was
        predicted, its ``confidence`` (the file's quality, 0..1); and their shares, which sum to 1. An image's share
        grows with the square root of its samples: a crowd is not fifty portraits.
    """
    samples: list[dict[str, Any]] = []
    shares: list[float] = []
    for record in dataset_dicts:
        if "mask_file_name" in record:
            samples.append({key: record[key] for key in ("file_name", "mask_file_name")})
            shares.append(1.0)
            continue
        found = [s for a in record["annotations"] if (s := _object_sample(record, a, min_side, min_quality))]
        if not found:
            continue
        masks = [s["segmentations"][0] for s in found if "segmentations" in s and s.get("confidence", 1) >= 1]
        joint = union_prob if len(masks) > 1 else 0.0
        share = float(np.sqrt(len(found)))
        samples += found
        shares += [share * (1 - joint) / len(found)] * len(found)
        if joint:
            samples.append({"file_name": record["file_name"], "segmentations": masks, **_void(record)})
            shares.append(share * joint)
    total = np.array(shares, dtype=np.float64)
    return samples, total / total.sum() if samples else total


def _void(record: dict[str, Any]) -> dict[str, Any]:
    return {"void": record["void_mask"]} if "void_mask" in record else {}


def _object_sample(
    record: dict[str, Any], annotation: dict[str, Any], min_side: float, min_quality: float
) -> dict[str, Any] | None:
    if annotation.get("iscrowd", 0):
        return None
    box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
    if min(box[2] - box[0], box[3] - box[1]) < min_side:
        return None
    sample = {"file_name": record["file_name"], "box": tuple(float(v) for v in box)}
    confidence = mask_confidence(annotation, "quality", record["file_name"])
    # The confidence of files of before, which have no quality, says nothing of it: a filled box has 1.
    good = annotation.get("quality") is None or annotation["quality"] >= min_quality
    if annotation.get("segmentation") and good and confidence != 0:
        sample |= {"segmentations": [annotation["segmentation"]], **_void(record)}
        if confidence is not None:
            sample["confidence"] = confidence
    return sample


class MaskCropOrder:
    """Samples and donors, each drawn by itself: every batch has random numbers of its own."""

    def __init__(
        self, shares: Sequence[np.ndarray], weights: Sequence[float], *, batch_size: int, rank: int = 0
    ) -> None:
        """
        Args:
            shares: of each source how often its samples are drawn, see :func:`mask_samples`.
            weights: how often each source is drawn, relative to the others.
            batch_size: samples per batch of a rank.
            rank: of this process.
        """
        self._cumulative = np.cumsum(np.concatenate([w * part for part, w in zip(shares, weights, strict=True)]))
        self._cumulative /= self._cumulative[-1]
        self._batch_size, self._rank = batch_size, rank

    def batches(self, seed: int) -> Iterator[list[tuple[int, ...]]]:
        """See :class:`~boxsup_d2.data.train_loader.SampleOrder`; the second position is a donor's."""
        for number in itertools.count():
            drawn = np.random.default_rng((seed, self._rank, number)).random((self._batch_size, 2))
            yield [tuple(pair) for pair in np.searchsorted(self._cumulative, drawn).tolist()]
