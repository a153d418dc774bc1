"""Training samples of BoxCaseg: crops, masks, salient images, and the loader that serves them."""

from itertools import islice

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode

import boxsup_d2.data.images as images
from boxsup_d2.data.dataset_mappers.box_crop import BoxCropDatasetMapper, box_samples, clip_box
from boxsup_d2.data.dataset_mappers.joint import JointOrder
from boxsup_d2.data.train_loader import TrainLoader


@pytest.fixture
def image_file(tmp_path):
    """A 60x80 image whose pixels tell where they are: blue is x, green is y."""
    ys, xs = np.mgrid[:60, :80]
    file = tmp_path / "image.png"
    cv2.imwrite(str(file), np.stack([xs * 3, ys * 4, np.zeros_like(xs)], axis=2).astype(np.uint8))
    return str(file)


def mapper(**kwargs):
    return BoxCropDatasetMapper(image_format="BGR", **{"size": 32, "salient_size": 36, **kwargs})


def test_without_jitter_the_crop_is_the_box(image_file):
    sample = mapper(center_jitter=0, scale_jitter=0, size=20)({"file_name": image_file, "box": (10, 20, 30, 40)})
    assert sample["image"].dtype == torch.uint8
    assert sample["image"].shape == (3, 20, 20)
    assert torch.equal(sample["image"][0, 0], torch.arange(10, 30, dtype=torch.uint8) * 3)
    assert torch.equal(sample["image"][1, :, 0], torch.arange(20, 40, dtype=torch.uint8) * 4)
    assert sample["mask"].all()
    assert not sample["is_salient"]


def test_mask_marks_the_box_inside_the_jittered_crop(image_file):
    box = (20, 15, 50, 45)
    for _ in range(50):
        sample = mapper()({"file_name": image_file, "box": box})
        inside = sample["mask"].bool()
        assert inside.any()
        xs, ys = sample["image"][0].float() / 3, sample["image"][1].float() / 4
        truth = (xs >= box[0]) & (xs < box[2]) & (ys >= box[1]) & (ys < box[3])
        # Interpolated coordinates and the nearest mask may disagree along the box's edges only.
        assert (inside == truth).float().mean() > 0.85


def test_jitter_stays_in_the_published_range_and_in_the_image():
    m = mapper()
    box = (20.0, 10.0, 60.0, 40.0)
    for _ in range(300):
        left, top, right, bottom = m.jitter(box, 1000, 1000)
        assert right - left + 1 >= 10 - 1
        assert right - left <= 61
        assert bottom - top <= 46
        assert abs((left + right) / 2 - 40) <= 5 + 1
        assert abs((top + bottom) / 2 - 25) <= 3.75 + 1
        left, top, right, bottom = m.jitter(box, 50, 62)
        assert 0 <= left < right <= 62
        assert 0 <= top < bottom <= 50


@pytest.mark.parametrize("box", [(5, 5, 5.4, 5.2), (-10, -10, -3, -2), (79.9, 59.9, 200, 300), (0, 0, 80, 60)])
def test_degenerate_boxes_give_at_least_a_pixel(image_file, box):
    x0, y0, x1, y1 = clip_box(box, 60, 80)
    assert 0 <= x0 < x1 <= 80
    assert 0 <= y0 < y1 <= 60
    assert mapper()({"file_name": image_file, "box": box})["image"].shape == (3, 32, 32)


@pytest.fixture
def salient_sample(tmp_path, image_file):
    mask = np.zeros((60, 80), np.uint8)
    mask[:, :40] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    return {"file_name": image_file, "mask_file_name": str(tmp_path / "mask.png")}


@pytest.mark.parametrize("flip", ["none", "horizontal", "vertical"])
def test_salient_image_and_mask_are_flipped_together(salient_sample, flip):
    left_first = set()
    for _ in range(30):
        sample = mapper(salient_flip=flip)(salient_sample)
        assert sample["is_salient"]
        assert set(sample["mask"].unique().tolist()) <= {0, 1}
        truth = sample["image"][0].float() / 3 < 40
        assert (sample["mask"].bool() == truth).float().mean() > 0.95
        left_first.add(bool(sample["mask"][0, 0]))
    assert left_first == ({True, False} if flip == "horizontal" else {True})


@pytest.mark.parametrize("shape", [(60, 600), (600, 60), (600, 600), (60, 60)])
def test_antialiased_crops_are_those_of_inference(shape):
    """Whichever axes shrink, training crops and the crops at inference are filtered alike."""
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    exact = torch.nn.functional.interpolate(tensor, (112, 112), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    ours = mapper(size=112, salient_size=112, antialias=True)._resize(image, 112)
    plain = mapper(size=112, salient_size=112, antialias=False)._resize(image, 112)
    error, without = (np.abs(crop - exact.numpy()).mean() for crop in (ours, plain))
    # A box filter is not quite the triangle filter, on noise least of all; no filter at all is far off.
    assert error < 12
    assert max(shape) < 112 or error < 0.4 * without


def test_salient_box_crop_frames_the_object(salient_sample):
    still = mapper(salient_crop="box", center_jitter=0, scale_jitter=0, salient_flip="none")
    sample = still(salient_sample)
    assert sample["mask"].all(), "the object fills its tight box"
    assert sample["image"][0].max() < 40 * 3
    shares = [mapper(salient_crop="box")(salient_sample)["mask"].float().mean().item() for _ in range(30)]
    assert min(shares) < 0.95
    assert min(shares) > 0.3
    cv2.imwrite(salient_sample["mask_file_name"], np.zeros((60, 80), np.uint8))
    empty = still(salient_sample)
    assert not empty["mask"].any()
    assert empty["image"][0].max() > 200


def test_mask_of_another_size_is_named(salient_sample):
    cv2.imwrite(salient_sample["mask_file_name"], np.zeros((10, 10), np.uint8))
    with pytest.raises(ValueError, match=r"mask\.png.*10x10.*image\.png"):
        mapper()(salient_sample)


def test_wrong_switches_are_named():
    with pytest.raises(ValueError, match=r"SALIENT_FLIP.*diagonal"):
        mapper(salient_flip="diagonal")
    with pytest.raises(ValueError, match="SALIENT_SIZE"):
        mapper(salient_size=8)


def test_boxes_of_one_image_decode_it_once(image_file, monkeypatch):
    reads = []
    monkeypatch.setattr(images, "read_image", lambda name, fmt: reads.append(name) or cv2.imread(name))
    m = mapper(cached_images=2)
    for x in range(10):
        m({"file_name": image_file, "box": (x, 5, x + 20, 25)})
    assert len(reads) == 1


def test_cache_is_bounded_by_images_and_by_bytes(monkeypatch):
    reads = []
    monkeypatch.setattr(images, "read_image", lambda name, fmt: reads.append(name) or np.zeros((10, 10, 3), np.uint8))
    cache = images.ImageCache("RGB", max_images=2)
    for name in "abab":
        cache(name)
    assert reads == ["a", "b"]
    for name in "ca":
        cache(name)
    assert reads == ["a", "b", "c", "a"]
    small = images.ImageCache("RGB", max_images=64, max_bytes=299)
    for _ in range(3):
        small("d")
    assert reads[4:] == ["d", "d", "d"]
    assert not small._images
    assert small._bytes == 0


def dataset_dicts(image_file, salient_sample):
    boxes = [[1, 2, 20, 30], [30, 10, 20, 20], [0, 0, 10, 10]]
    annotations = [
        {"bbox": b, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": int(i == 2)}
        for i, b in enumerate(boxes)
    ]
    return [{"file_name": image_file, "annotations": annotations}] * 6 + [salient_sample] * 4


def test_samples_are_boxes_and_salient_images_without_crowds(image_file, salient_sample):
    samples = box_samples(dataset_dicts(image_file, salient_sample))
    assert len(samples) == 6 * 2 + 4
    assert samples[0]["box"] == (1, 2, 21, 32)
    assert sum("mask_file_name" in s for s in samples) == 4


@pytest.mark.parametrize(("ratio", "num_boxes"), [(-1.0, None), (0.75, 6)])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_gives_whole_batches(image_file, salient_sample, ratio, num_boxes, num_workers):
    samples = box_samples(dataset_dicts(image_file, salient_sample))
    order = JointOrder(samples, batch_size=8, box_ratio=ratio, overlap_iou=0.5, overlap_drop_prob=0.75, window=4)
    loader = TrainLoader(samples, mapper(), order, seed=0, num_workers=num_workers)
    batches = list(islice(loader, 6))
    assert all(len(batch) == 8 for batch in batches)
    share = [sum(not s["is_salient"] for s in batch) for batch in batches]
    if num_boxes is None:
        assert 0 < sum(share) < 48
    else:
        assert share == [num_boxes] * 6


def test_a_ratio_needs_both_kinds(image_file):
    with pytest.raises(ValueError, match="BOX_RATIO"):
        JointOrder(
            [{"file_name": image_file, "image": 0, "box": (0, 0, 5, 5)}],
            batch_size=8,
            box_ratio=0.5,
            overlap_iou=0.5,
            overlap_drop_prob=0,
            window=4,
        )
