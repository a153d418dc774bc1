"""Order of training samples: complete, shared out without overlap, reproducible, close together by image."""

from itertools import islice

import numpy as np
import pytest

from boxsup_d2.data.samplers import LANES, ImageWindowSampler, overlapping

IMAGES = np.repeat(np.arange(40), np.arange(40) % 5 + 1)


def epoch(sampler, number=0, rank=0, world_size=1, seed=0):
    """The samples of a rank's epoch."""
    return [i for window in sampler._epoch(number, seed, rank, world_size) for i in window]


@pytest.mark.parametrize("window", [0, 1, 7, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_epoch_shows_every_sample_once_over_all_ranks(window, world_size):
    sampler = ImageWindowSampler(IMAGES, window=window)
    for number in range(3):
        seen = [i for rank in range(world_size) for i in epoch(sampler, number, rank, world_size)]
        assert sorted(seen) == list(range(len(IMAGES)))


@pytest.mark.parametrize("window", [0, 5])
def test_order_depends_on_the_seed_alone_and_changes_with_the_epoch(window):
    sampler = ImageWindowSampler(IMAGES, window=window)
    assert epoch(sampler, seed=1) == epoch(ImageWindowSampler(IMAGES, window=window), seed=1)
    assert epoch(sampler, seed=1) != epoch(sampler, seed=2)
    assert epoch(sampler, 0) != epoch(sampler, 1)


@pytest.mark.parametrize("window", [0, 2, 64])
def test_batches_are_whole_epochs_with_few_samples_out_of_turn(window):
    sampler = ImageWindowSampler(IMAGES, window=window)
    seen = [i for batch in islice(sampler.batches(5, 3), 10 * len(IMAGES) // 5) for i in batch]
    counts = np.bincount(seen, minlength=len(IMAGES))
    assert counts.min() >= 9
    assert counts.max() <= 11
    assert (counts == 10).mean() > 0.5


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_open_windows_are_enough_to_decode_each_image_once(workers):
    """Workers take turns; each keeps the images of its share of the open windows."""
    window = 3
    images = np.repeat(np.arange(60), 8)
    batches = list(islice(ImageWindowSampler(images, window=window).batches(4, 0), 3 * len(images) // 4))
    decoded = 0
    for worker in range(workers):
        cache = []
        for batch in batches[worker::workers]:
            for image in images[batch]:
                decoded += image not in cache
                cache = [*[other for other in cache if other != image], image][-window * LANES // workers :]
    assert decoded == pytest.approx(3 * 60, rel=0.1)


def test_boxes_within_a_window_are_shuffled():
    order = np.array(epoch(ImageWindowSampler(np.repeat(np.arange(10), 10), window=10))) // 10
    assert (np.diff(order) == 0).mean() < 0.3


def test_dropped_samples_are_missing_as_often_as_asked():
    drop = np.where(np.arange(len(IMAGES)) % 2 == 0, 0.75, 0.0)
    sampler = ImageWindowSampler(IMAGES, window=4, drop_probs=drop)
    counts = np.zeros(len(IMAGES))
    for number in range(400):
        for rank in range(2):
            np.add.at(counts, epoch(sampler, number, rank, 2), 1)
    assert (counts[1::2] == 400).all()
    assert abs(counts[::2].mean() / 400 - 0.25) < 0.02


def test_more_ranks_than_images_still_give_everyone_samples():
    sampler = ImageWindowSampler(np.array([5, 5, 9]), window=2)
    for rank in range(8):
        assert len(next(sampler.batches(10, 0, rank, 8))) == 10


def test_no_samples_and_certain_dropping_are_errors():
    with pytest.raises(ValueError, match=r"DATASETS.TRAIN"):
        ImageWindowSampler(np.array([], dtype=np.int64), window=2)
    with pytest.raises(ValueError, match="below 1"):
        ImageWindowSampler(IMAGES, window=2, drop_probs=np.ones(len(IMAGES)))


def test_overlapping_against_a_loop_over_pairs():
    rng = np.random.default_rng(0)
    corner, size = rng.integers(0, 30, (60, 2)), rng.integers(1, 30, (60, 2))
    boxes, images = np.concatenate([corner, corner + size], axis=1).astype(float), rng.integers(0, 8, 60)

    def iou(a, b):
        w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        inter = max(w, 0) * max(h, 0)
        return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)

    expected = [
        any(j != i and images[i] == images[j] and iou(boxes[i], boxes[j]) > 0.3 for j in range(60)) for i in range(60)
    ]
    found = overlapping(boxes, images, 0.3)
    assert found.tolist() == expected
    assert 0 < found.sum() < 60
