"""Pictures of training samples in Detectron2's event storage, as TensorBoard gets them."""

from __future__ import annotations

import numpy as np
import pytest
import test_boxcaseg
import test_lpg
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from test_segmenters import published_cfg

from boxsup_d2.modeling.visualization import overlay_labels, overlay_mask, put_picture, to_rgb


def boxcaseg(period: int):
    cfg = test_boxcaseg.small_cfg()
    cfg.VIS_PERIOD = period
    return build_model(cfg).train(), test_boxcaseg.training_batch([False, True, False]), (128, 256)


def lpg(period: int):
    cfg = test_lpg.small_cfg()
    cfg.VIS_PERIOD = period
    return build_model(cfg).train(), test_lpg.training_batch(2), (64, 256)


def segmenter(period: int):
    cfg = published_cfg("vgg16", 4)
    cfg.VIS_PERIOD = period
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 8
    batch = [
        {
            "image": torch.randint(0, 256, (3, 57, 49), dtype=torch.uint8),
            "sem_seg": torch.randint(0, 4, (57, 49)),
        }
    ]
    return build_model(cfg).train(), batch, (57, 147)


@pytest.mark.parametrize("build", [boxcaseg, lpg, segmenter], ids=lambda build: build.__name__)
def test_picture_lands_in_the_storage_every_so_often(build):
    model, batch, size = build(3)
    found = {}
    with EventStorage(0) as storage:
        for iteration in range(5):
            storage.iter = iteration
            losses = model(batch)
            sum(losses.values()).backward()
            for name, picture, when in storage._vis_data:
                found[when] = (name, picture)
            storage.clear_images()
    assert sorted(found) == [0, 3]
    name, picture = found[3]
    assert name.startswith("Left to right")
    assert (picture.shape, picture.dtype) == ((3, *size), np.uint8)
    if batch[0].get("is_salient") is not True and build is not boxcaseg:
        rgb = batch[0]["image"].flip(0).numpy()  # INPUT.FORMAT is BGR
        assert np.array_equal(picture[:, :, : rgb.shape[2]], rgb)


@pytest.mark.parametrize("build", [boxcaseg, lpg, segmenter], ids=lambda build: build.__name__)
def test_nothing_is_asked_of_the_storage_without_a_period(build):
    model, batch, _ = build(0)
    model(batch)  # outside of a storage Detectron2 raises


def test_only_rank_zero_keeps_pictures(monkeypatch):
    from boxsup_d2.modeling import visualization

    monkeypatch.setattr(visualization.comm, "is_main_process", lambda: False)
    with EventStorage(0):
        assert not visualization.is_picture_due(1)


def test_overlays_change_what_they_mark():
    image = torch.randint(0, 200, (3, 16, 20), dtype=torch.uint8)
    assert torch.equal(overlay_mask(image, torch.zeros(4, 5)), image)
    mask = torch.zeros(16, 20)
    mask[2:9, 3:11] = 1
    changed = (overlay_mask(image, mask) != image).any(dim=0)
    assert torch.equal(changed, mask > 0)
    labels = torch.zeros(8, 10, dtype=torch.long)
    labels[:4] = 255
    marked = overlay_labels(image, labels)
    assert torch.equal(marked[:, 8:], image[:, 8:])
    assert (marked[:, :8] != image[:, :8]).any(dim=0).all()
    assert torch.equal(to_rgb(image, "BGR").flip(0), image)
    with EventStorage(0) as storage:
        put_picture("nothing", [])
        put_picture("two", [[image, image], [image, image]])
        assert [(name, x.shape) for name, x, _ in storage._vis_data] == [("two", (3, 32, 40))]
