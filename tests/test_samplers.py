"""Order of training samples: complete, shared out without overlap, reproducible, close together by image."""

from itertools import islice

import numpy as np
import pytest

from boxsup_d2.data.samplers import ImageWindowSampler, mix_at_ratio, overlapping

IMAGES = np.repeat(np.arange(40), np.arange(40) % 5 + 1)


@pytest.mark.parametrize("window", [0, 1, 7, 100])
@pytest.mark.parametrize("num_shards", [1, 2, 3])
def test_every_epoch_shows_every_sample_once_over_all_shards(window, num_shards):
    sampler = ImageWindowSampler(IMAGES, window=window, seed=3)
    for epoch in range(3):
        seen = [i for shard in range(num_shards) for i in sampler._epoch(epoch, shard, num_shards)]
        assert sorted(seen) == list(range(len(IMAGES)))


@pytest.mark.parametrize("window", [0, 5])
def test_order_depends_on_the_seed_alone_and_changes_with_the_epoch(window):
    first, again, other = (ImageWindowSampler(IMAGES, window=window, seed=s) for s in (1, 1, 2))
    n = len(IMAGES)
    stream = list(islice(first.shard(0, 1), 2 * n))
    assert stream == list(islice(again.shard(0, 1), 2 * n))
    assert stream != list(islice(other.shard(0, 1), 2 * n))
    assert stream[:n] != stream[n:]


def test_one_window_of_images_is_enough_to_decode_each_image_once():
    window = 6
    sampler = ImageWindowSampler(IMAGES, window=window, seed=0)
    decoded, cache = 0, []
    for i in sampler._epoch(0, 0, 1):
        if IMAGES[i] not in cache:
            decoded += 1
            cache = ([*cache, IMAGES[i]])[-window:]
    assert decoded == len(np.unique(IMAGES))


def test_boxes_within_a_window_are_shuffled():
    sampler = ImageWindowSampler(np.repeat(np.arange(10), 10), window=10, seed=0)
    order = np.array(list(sampler._epoch(0, 0, 1))) // 10
    assert (np.diff(order) == 0).mean() < 0.3


def test_dropped_samples_are_missing_as_often_as_asked():
    drop = np.where(np.arange(len(IMAGES)) % 2 == 0, 0.75, 0.0)
    sampler = ImageWindowSampler(IMAGES, window=4, seed=0, drop_probs=drop)
    counts = np.zeros(len(IMAGES))
    for epoch in range(400):
        for shard in range(2):
            np.add.at(counts, list(sampler._epoch(epoch, shard, 2)), 1)
    assert (counts[1::2] == 400).all()
    assert abs(counts[::2].mean() / 400 - 0.25) < 0.02


def test_more_shards_than_images_still_gives_everyone_samples():
    sampler = ImageWindowSampler(np.array([5, 5, 9]), window=2, seed=0)
    for shard in range(8):
        assert len(list(islice(sampler.shard(shard, 8), 10))) == 10


def test_no_samples_and_certain_dropping_are_errors():
    with pytest.raises(ValueError, match=r"DATASETS.TRAIN"):
        ImageWindowSampler(np.array([], dtype=np.int64), window=2, seed=0)
    with pytest.raises(ValueError, match="below 1"):
        ImageWindowSampler(IMAGES, window=2, seed=0, drop_probs=np.ones(len(IMAGES)))


def test_mixing_keeps_the_ratio_in_every_batch():
    stream = mix_at_ratio(iter(range(1000)), iter(range(1000, 2000)), 22, 10)
    for _ in range(5):
        batch = list(islice(stream, 32))
        assert sum(i < 1000 for i in batch) == 22


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
