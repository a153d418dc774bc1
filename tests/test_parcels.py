"""Batches that travel in one piece."""

from __future__ import annotations

import io
import itertools
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from boxsup_d2.data.parcels import pack, unpack
from boxsup_d2.data.train_loader import ShuffledOrder, TrainLoader


def sample(seed: int) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(seed)
    instances = Instances((8, 6))
    instances.gt_boxes = Boxes(torch.rand(seed, 4, generator=rng))
    instances.gt_masks = BitMasks(torch.rand(seed, 8, 6, generator=rng) > 0.5)
    image = torch.randint(0, 256, (3, 8 + seed, 6), generator=rng, dtype=torch.uint8)
    arrays = {"array": np.arange(seed), "column": torch.arange(24).view(4, 6)[:, 1]}  # not contiguous
    return {
        "file_name": f"{seed}.jpg",
        "image": image,
        "scale": torch.tensor(0.5 * seed),
        "instances": instances,
        **arrays,
    }


def test_a_batch_comes_out_as_it_went_in() -> None:
    batch = [sample(seed) for seed in (0, 1, 3)]
    content, tensors = pack(batch)
    assert tensors.keys() == {torch.uint8, torch.float32, torch.bool, torch.int64}
    # What torch makes of them when it pins memory.
    found = unpack([content, dict(tensors)])  # type: ignore[arg-type]
    for before, after in zip(batch, found, strict=True):
        assert list(before) == list(after)
        assert after["file_name"] == before["file_name"]
        for key in ("image", "scale", "column"):
            assert torch.equal(after[key], before[key])
            assert after[key].dtype == before[key].dtype
        assert (after["array"] == before["array"]).all()
        assert after["instances"].image_size == (8, 6)
        assert torch.equal(after["instances"].gt_boxes.tensor, before["instances"].gt_boxes.tensor)
        assert torch.equal(after["instances"].gt_masks.tensor, before["instances"].gt_masks.tensor)
        assert after["scale"].data_ptr() % 16 == 0
    found[1]["image"].zero_()
    assert found[2]["image"].any(), "samples share no pixel"


def test_a_tensor_that_is_there_twice_travels_once() -> None:
    shared = torch.zeros(1000)
    content, tensors = pack([{"a": shared}, {"b": shared}])
    assert tensors[torch.float32].numel() < 1100
    first, second = unpack((content, tensors))
    first["a"][0] = 1
    assert second["b"][0] == 1


def test_loaders_with_workers_send_parcels() -> None:
    order = ShuffledOrder(lambda seed: itertools.count(), batch_size=3)
    mapper = {k: {"image": torch.full((2, 2), k)} for k in range(100)}.__getitem__
    batches = [next(iter(TrainLoader(range(100), mapper, order, seed=0, num_workers=n))) for n in (0, 1)]
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(*batches, strict=True))
    memories = [len({s["image"].untyped_storage().data_ptr() for s in batch}) for batch in batches]
    assert memories == [3, 1]


@pytest.mark.parametrize("batch", [[], [{"file_name": "a.jpg"}], [{"image": torch.zeros(3, 0, 5)}]])
def test_nothing_to_pack(batch: list[dict[str, Any]]) -> None:
    found = unpack(pack(batch))
    assert len(found) == len(batch)
    for before, after in zip(batch, found, strict=True):
        assert {k: getattr(v, "shape", v) for k, v in after.items()} == {
            k: getattr(v, "shape", v) for k, v in before.items()
        }


def test_few_tensors_are_sent_however_many_samples() -> None:
    batch = [sample(2) for _ in range(24)]
    sent: list[torch.Tensor] = []

    class Counter(ForkingPickler):
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, torch.Tensor):
                sent.append(obj)
                return (list, ())
            return NotImplemented

    Counter(io.BytesIO()).dump(pack(batch))
    assert len(sent) == 4
