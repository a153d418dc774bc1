"""Infinite, seeded order of box and salient training samples, shared out over ranks.

A sample is one box of one image, or one salient image. These classes only deal in positions of a list of samples;
files and pixels are the mapper's.
"""

import itertools
from collections import deque
from collections.abc import Iterator

import numpy as np

#: Windows of images that are read in turns. Batch b comes out of window b modulo this many, so that each of 1, 2 or 4
#: loader workers, which take turns too, meets the images of its windows alone.
LANES = 4


class ImageWindowSampler:
    """Endless epochs over samples, shuffled so that those of one image stay near each other.

    In every epoch the images are shuffled and dealt to the ranks; each rank walks over its images in windows and
    shuffles the samples within a window. A reader that keeps the open windows' decoded images then decodes each image
    once per epoch, however many boxes it has. All ranks together see every kept sample once per epoch.
    """

    def __init__(self, image_ids: np.ndarray, *, window: int, drop_probs: np.ndarray | None = None) -> None:
        """
        Args:
            image_ids: for each of the n samples, which image it belongs to; any integers.
            window: images per window; 0 shuffles all samples of an epoch together.
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
        self.drop_probs = drop_probs

    def batches(self, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> Iterator[list[int]]:
        """Batches of positions for a rank, forever; batch b comes out of one of ``LANES`` windows, in turns.

        Windows of fewer images than they could hold are read one after the other.
        """
        lanes = 1
        if self.window:
            lanes = min(max(len(self._samples_of_image) // (world_size * self.window), 1), LANES)
        windows = itertools.chain.from_iterable(
            self._epoch(epoch, seed, rank, world_size) for epoch in itertools.count()
        )
        waiting: list[deque[int]] = [deque() for _ in range(lanes)]
        for lane in itertools.cycle(waiting):
            while len(lane) < batch_size:
                lane.extend(next(windows))
            yield [lane.popleft() for _ in range(batch_size)]

    def _epoch(self, epoch: int, seed: int, rank: int, world_size: int) -> Iterator[list[int]]:
        """The windows of a rank."""
        # Every rank draws the same numbers from this generator, so they agree on who gets what.
        rng = np.random.default_rng((seed, epoch))
        kept = np.ones(len(self.image_ids), bool)
        if self.drop_probs is not None:
            kept = rng.random(len(kept)) >= self.drop_probs
        if self.window == 0:
            order = rng.permutation(np.flatnonzero(kept))
            yield self._deal(order, rank, world_size).tolist()
            return
        images = self._deal(rng.permutation(len(self._samples_of_image)), rank, world_size)
        own_rng = np.random.default_rng((seed, epoch, rank))
        for start in range(0, len(images), self.window):
            samples = np.concatenate([self._samples_of_image[i] for i in images[start : start + self.window]])
            yield own_rng.permutation(samples[kept[samples]]).tolist()

    @staticmethod
    def _deal(items: np.ndarray, rank: int, world_size: int) -> np.ndarray:
        # With fewer items than ranks a rank would get none and wait forever: then all take everything, each from
        # another place on.
        return items[rank::world_size] if len(items) >= world_size else np.roll(items, rank)


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
