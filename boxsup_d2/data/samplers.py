"""Infinite, seeded, sharded order of box and salient training samples.

A sample is one box of one image, or one salient image. These classes only deal in positions of a list of samples;
files and pixels are the mapper's.
"""

from collections.abc import Iterator

import numpy as np


class ImageWindowSampler:
    """Endless epochs over samples, shuffled so that those of one image stay near each other.

    In every epoch the images are shuffled and dealt to the shards; each shard walks over its images in windows and
    shuffles the samples within a window. A reader that keeps one window of decoded images then decodes each image
    once per epoch, however many boxes it has. All shards together see every kept sample once per epoch.
    """

    def __init__(
        self,
        image_ids: np.ndarray,
        *,
        window: int,
        seed: int,
        drop_probs: np.ndarray | None = None,
    ) -> None:
        """
        Args:
            image_ids: for each of the n samples, which image it belongs to; any integers.
            window: images per window; 0 shuffles all samples of an epoch together.
            seed: of the order.
            drop_probs: for each sample the probability, in [0, 1), of being left out of an epoch; None keeps all.

        Raises:
            ValueError: there are no samples, or a sample would never be kept.
        """
        if len(image_ids) == 0:
            raise ValueError("the training data sets hold no box and no salient image: check DATASETS.TRAIN")
        if drop_probs is not None and drop_probs.max() >= 1:
            raise ValueError("DATALOADER.OVERLAP_DROP_PROB must be below 1, or overlapping boxes are never seen")
        self.image_ids = np.unique(image_ids, return_inverse=True)[1]
        by_image = np.argsort(self.image_ids, kind="stable")
        self._samples_of_image = np.split(by_image, np.cumsum(np.bincount(self.image_ids))[:-1])
        self.window = window
        self.seed = seed
        self.drop_probs = drop_probs

    def shard(self, index: int, num_shards: int) -> Iterator[int]:
        """Positions for shard ``index`` of ``num_shards`` (loader workers of all ranks), forever."""
        epoch = 0
        while True:
            yield from self._epoch(epoch, index, num_shards)
            epoch += 1

    def _epoch(self, epoch: int, index: int, num_shards: int) -> Iterator[int]:
        # Every shard draws the same numbers from this generator, so they agree on who gets what.
        rng = np.random.default_rng((self.seed, epoch))
        kept = np.ones(len(self.image_ids), bool)
        if self.drop_probs is not None:
            kept = rng.random(len(kept)) >= self.drop_probs
        if self.window == 0:
            order = rng.permutation(np.flatnonzero(kept))
            yield from self._deal(order, index, num_shards).tolist()
            return
        images = self._deal(rng.permutation(len(self._samples_of_image)), index, num_shards)
        own_rng = np.random.default_rng((self.seed, epoch, index))
        for start in range(0, len(images), self.window):
            samples = np.concatenate([self._samples_of_image[i] for i in images[start : start + self.window]])
            yield from own_rng.permutation(samples[kept[samples]]).tolist()

    @staticmethod
    def _deal(items: np.ndarray, index: int, num_shards: int) -> np.ndarray:
        # With fewer items than shards a shard would get none and wait forever: then all take everything, each from
        # another place on.
        return items[index::num_shards] if len(items) >= num_shards else np.roll(items, index)


def mix_at_ratio(boxes: Iterator[int], salient: Iterator[int], num_boxes: int, num_salient: int) -> Iterator[int]:
    """Endlessly ``num_boxes`` of one stream, then ``num_salient`` of the other: one batch after another."""
    while True:
        for _ in range(num_boxes):
            yield next(boxes)
        for _ in range(num_salient):
            yield next(salient)


def overlapping(boxes: np.ndarray, image_ids: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Which boxes overlap another one of the same image by more than a threshold (BoxCaseg, COCO recipe).

    Args:
        boxes: n x 4 (x0, y0, x1, y1).
        image_ids: n, the image of each box.
        iou_threshold: in 0..1.

    Returns:
        n bools.
    """
    result = np.zeros(len(boxes), bool)
    order = np.argsort(image_ids, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(image_ids[order])) + 1):
        if len(group) < 2:
            continue
        b = boxes[group]
        size = np.maximum(np.minimum(b[:, None, 2:], b[None, :, 2:]) - np.maximum(b[:, None, :2], b[None, :, :2]), 0)
        inter = size[..., 0] * size[..., 1]
        area = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
        iou = inter / np.maximum(area[:, None] + area[None] - inter, 1e-9)
        np.fill_diagonal(iou, 0)
        result[group] = iou.max(axis=1) > iou_threshold
    return result
