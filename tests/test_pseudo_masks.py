"""Pasting, merging, confidence, CRF and the file format of pseudo masks."""

import errno
import json
import os
import signal
import sys
import time
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_util
from torch.nn import functional as F

from boxsup_d2.crf import refine
from boxsup_d2.crf.refine import (
    CRF_RESNET101,
    CRF_VGG16,
    CRFRefinedModel,
    dense_crf,
)
from boxsup_d2.data.formats import pseudo_masks as file_format
from boxsup_d2.labelling.shards import MaskShardIndex, ShardWriter, mask_record
from boxsup_d2.masks.box_masks import BoxMasks
from boxsup_d2.masks.confidence import box_iou_exact, mask_confidence, published_confidence
from boxsup_d2.masks.label_map import rasterize_boxes
from boxsup_d2.masks.merge import merge_image
from boxsup_d2.masks.paste import MaskPatch, min_max_normalize, paste_masks, paste_patches
from boxsup_d2.masks.rle import (
    decode,
    edges_area,
    edges_box,
    edges_window,
    empty_rle,
    encode_window,
    has_mask,
    mask_edges,
)


def iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a & b).flatten(1).sum(1) / (a | b).flatten(1).sum(1)


# ------------------------------------------------------------------------------------------------ pasting


def test_paste_reproduces_the_published_masks(shared):
    golden = np.load(shared / "golden" / "seed_ops.npz")
    normalized = min_max_normalize(torch.from_numpy(golden["paste.prob"]))
    torch.testing.assert_close(normalized, torch.from_numpy(golden["paste.norm"]))
    masks = paste_masks(normalized, torch.from_numpy(golden["paste.boxes_xyxy"]), 120, 160).full()
    assert iou(masks, torch.from_numpy(golden["paste.masks"])).min() >= 0.99


def test_min_max_normalize_per_map():
    prob = torch.stack([torch.full((4, 5), 0.3), torch.linspace(0.2, 0.4, 20).view(4, 5), torch.full((4, 5), np.nan)])
    normalized = min_max_normalize(prob)
    assert (normalized[0] == 1).all(), "a constant map is the filled box"
    assert normalized[1].min() == 0
    assert normalized[1].max() == 1
    masks = paste_masks(normalized, torch.tensor([[2, 1, 7, 5]] * 3), 6, 8).full()
    assert masks[0].sum() == 20
    assert masks[0, 1:5, 2:7].all()
    assert not masks[2].any(), "NaN must not look like a filled box"
    assert min_max_normalize(torch.zeros(0, 4, 4)).shape == (0, 4, 4)


def test_paste_matches_resize_of_the_whole_box_then_crop():
    """Boxes inside, across and beyond the border; larger and smaller than the map; fractional corners."""
    height, width = 40, 60
    boxes = torch.stack([torch.rand(60) * 80 - 15, torch.rand(60) * 60 - 15], dim=1)
    boxes = torch.cat([boxes, boxes + torch.rand(60, 2) * 50], dim=1)
    # Smooth maps: at a threshold that a value meets exactly, two right ways of resizing may differ.
    probs = F.interpolate(torch.rand(60, 1, 3, 3), size=(16, 12), mode="bicubic")[:, 0].clamp(0, 1)
    masks = paste_masks(probs, boxes, height, width)
    for mask, prob, box in zip(masks, probs, boxes, strict=True):
        x0, y0, x1, y1 = (int(v) for v in box)
        x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
        whole = F.interpolate(prob[None, None], size=(y1 - y0, x1 - x0), mode="bilinear", antialias=True)[0, 0] > 0.5
        canvas = torch.zeros(height + 200, width + 200, dtype=torch.bool)
        canvas[y0 + 50 : y1 + 50, x0 + 50 : x1 + 50] = whole
        assert (canvas[50 : 50 + height, 50 : 50 + width] != mask).sum() <= 1


def test_paste_edge_cases():
    ones = torch.ones(1, 8, 8)
    assert paste_masks(ones, torch.tensor([[3.9, 2.2, 3.1, 2.9]]), 5, 5).full().nonzero().tolist() == [[0, 2, 3]]
    assert not paste_masks(ones, torch.tensor([[50.0, 50, 60, 60]]), 5, 5).full().any()
    # Only what is inside the image is computed: this box would need terabytes.
    assert paste_masks(ones, torch.tensor([[-1e6, -1e6, 1e6, 1e6]]), 5, 5).full().all()
    assert paste_masks(torch.zeros(0, 8, 8), torch.zeros(0, 4), 5, 7).shape == (0, 5, 7)
    assert paste_masks(ones.half(), torch.tensor([[0, 0, 5, 5]]), 5, 5).full().all()
    with pytest.raises(ValueError, match="2 probability maps for 1 boxes"):
        paste_masks(torch.ones(2, 8, 8), torch.zeros(1, 4), 5, 5)


# ------------------------------------------------------------------------------------------------ in their boxes


def test_masks_in_their_boxes_are_the_same_masks():
    frames = torch.rand(6, 20, 30) > 0.7
    frames[:, :4], frames[2], frames[5, 5:] = False, False, False
    masks = BoxMasks.of(frames).tight()
    assert masks.tight_boxes()[2] is None
    assert masks.windows == [box or (0, 0, 0, 0) for box in BoxMasks.of(frames).tight_boxes()]
    assert sum(part.numel() for part in masks.parts) < frames.numel()
    assert torch.equal(masks.full(), frames)
    assert np.array_equal(np.asarray(masks), frames.numpy())
    assert all(torch.equal(one, other) for one, other in zip(masks, frames, strict=True))
    assert masks.areas() == frames.sum((1, 2)).tolist()
    assert masks.shape == masks.to("cpu").shape == frames.shape
    for chosen in (slice(1, 5, 2), [3, 0, 3], torch.tensor([5, -1]), frames[:, 10, 10]):
        assert torch.equal(masks[chosen].full(), frames[chosen])
    assert torch.equal(masks[-1], frames[-1])
    instances = Instances((20, 30), pred_masks=masks)
    joined = Instances.cat([instances[0], instances[torch.tensor([4, 1])]]).pred_masks
    assert torch.equal(joined.full(), frames[[0, 4, 1]])

    windows = [(0, 0, 30, 20), (5, 6, 9, 7), (0, 0, 3, 3), (29, 19, 30, 20), (7, 7, 7, 12), (2, 2, 28, 18)]
    for part, frame, (x0, y0, x1, y1) in zip(masks.crop(windows).parts, frames, windows, strict=True):
        assert torch.equal(part, frame[y0:y1, x0:x1])
    with pytest.raises(IndexError):
        masks[6]
    with pytest.raises(IndexError, match="2 choices among 6"):
        masks[torch.tensor([True, False])]
    with pytest.raises(ValueError, match="not inside its image"):
        BoxMasks([frames[0]], [(1, 0)], (20, 30))
    with pytest.raises(ValueError, match=r"torch\.float32"):
        BoxMasks([frames[0].float()], [(0, 0)], (20, 30))
    with pytest.raises(ValueError, match="different sizes"):
        BoxMasks.cat([masks, BoxMasks([], [], (20, 31))])


# ------------------------------------------------------------------------------------------------ merging


@pytest.mark.parametrize("name", ["boxcaseg_proxy_merge.json", "boxcaseg_proxy_merge_edge.json"])
def test_merge_reproduces_the_published_file(shared, name):
    golden = json.loads((shared / "golden" / name).read_text())
    annotations, expected = golden["ground_truth"]["annotations"], golden["expected"]["annotations"]
    for image in golden["ground_truth"]["images"]:
        rows = [i for i, annotation in enumerate(annotations) if annotation["image_id"] == image["id"]]
        height, width = image["height"], image["width"]
        predicted = [golden["predictions"][i]["segmentation"] for i in rows]
        boxes = [annotations[i]["bbox"] for i in rows]
        merged = merge_image(predicted, boxes, height=height, width=width)
        for row, result in zip(rows, merged, strict=True):
            assert result.segmentation == expected[row]["segmentation"]
            assert result.confidence == pytest.approx(expected[row]["confidence"], abs=1e-6)
        masks = torch.from_numpy(np.stack([mask_util.decode(rle).astype(bool) for rle in predicted]))
        assert merge_image(masks, boxes) == merged
        assert merge_image(BoxMasks.of(masks).tight(), boxes) == merged
        tensors = torch.from_numpy(np.stack([decode(m.segmentation, height, width).T for m in merged]))
        assert mask_confidence(tensors, boxes).tolist() == [m.confidence for m in merged]
        assert box_iou_exact(tensors, boxes).tolist() == [m.confidence_exact for m in merged]


def slow_merge(masks: np.ndarray, boxes: list[list[float]], kept: np.ndarray) -> np.ndarray:
    """Pixel by pixel: the claimant with the smallest box wins, the earlier one on a tie; a kept mask does, but of those
    of which it covers more than half."""
    merged = np.zeros_like(masks)
    for y in range(masks.shape[1]):
        for x in range(masks.shape[2]):
            claimants = [i for i in range(len(masks)) if masks[i, y, x]]
            if claimants:
                merged[min(claimants, key=lambda i: (boxes[i][2] * boxes[i][3], i)), y, x] = True
    taken = np.zeros_like(merged)
    for mask, lost in zip(merged, taken, strict=True):
        for taker in kept:
            if (mask & taker).sum() <= mask.sum() / 2:
                lost |= taker
    return merged & ~taken


@pytest.mark.parametrize("seed", range(8))
def test_merge_matches_slow_reference(seed):
    rng = np.random.default_rng(seed)
    height, width, count = rng.integers(1, 14), rng.integers(1, 14), rng.integers(0, 7)
    masks = rng.random((count, height, width)) < rng.random((count, 1, 1))  # not only inside their boxes
    boxes = [[float(v) for v in (*rng.integers(0, 6, 2), *rng.integers(1, 4, 2))] for _ in range(count)]  # many ties
    kept = rng.random((2, height, width)) < [[[0.2]], [[0.2 + 0.3 * (seed % 3)]]]
    expected = slow_merge(masks, boxes, kept)
    kept_rles = [mask_util.encode(np.asfortranarray(mask)) for mask in kept]
    merged = merge_image(torch.from_numpy(masks), boxes, kept=kept_rles)
    assert len(merged) == count
    rles = [mask_util.encode(np.asfortranarray(mask)) for mask in masks]
    assert merge_image(rles, boxes, height=int(height), width=int(width), kept=kept_rles) == merged
    for index, result in enumerate(merged):
        truth = mask_util.encode(np.asfortranarray(expected[index]))
        assert result.segmentation["counts"] == truth["counts"].decode(), "byte for byte as pycocotools"
        assert result.area == expected[index].sum()
    tensors = torch.from_numpy(expected)
    assert mask_confidence(tensors, boxes).tolist() == [m.confidence for m in merged]
    for result, mask in zip(
        merge_image(torch.from_numpy(masks), boxes), slow_merge(masks, boxes, kept[:0]), strict=True
    ):
        assert (decode(result.segmentation, *mask.shape) == mask.T).all()


@pytest.mark.parametrize("seed", range(4))
def test_quality_falls_with_the_pixels_that_a_mask_loses(seed):
    rng = np.random.default_rng(seed)
    masks = torch.from_numpy(rng.random((6, 12, 10)) < 0.4)
    masks[2] = False
    boxes = [[0.0, 0.0, float(side), float(side)] for side in rng.permutation(6) + 2]
    quality = rng.random(6).tolist()
    kept = [mask_util.encode(np.asfortranarray((rng.random((12, 10)) < 0.2).astype(np.uint8)))]
    merged = merge_image(masks, boxes, kept=kept, quality=quality)
    for before, after, mask in zip(quality, merged, masks, strict=True):
        share = after.area / max(int(mask.sum()), 1)
        assert after.quality == pytest.approx(before * share, abs=1e-4)
        assert 0 <= after.quality <= 1
    assert merged[2].quality == 0, "an empty mask"
    # What is measured of the masks does not depend on it, nor its order on that of the boxes.
    plain = merge_image(masks, boxes, kept=kept)
    assert [m._replace(quality=0) for m in plain] == [m._replace(quality=0) for m in merged]
    backwards = merge_image(masks.flip(0), boxes[::-1], kept=kept, quality=quality[::-1])
    assert backwards[::-1] == merged
    alone = merge_image(masks[:1], boxes[:1], quality=[0.87654])
    assert alone[0].quality == 0.8765


def test_what_others_leave_of_a_mask_may_lose_its_specks():
    masks = torch.zeros(3, 30, 30, dtype=torch.bool)
    masks[0, 5:25, 5:20] = True
    masks[1, 10:25, 18:22] = True  # leaves of the first all but two pixels at its far side
    masks[0, 12:14, 20:23] = masks[0, 12:14, 22] = True
    masks[2, 0, 0] = masks[2, 27:29, 27:29] = True  # in two pieces from the beginning
    boxes = [[5, 5, 18, 20], [18, 10, 4, 15], [0, 0, 1, 1]]
    published = merge_image(masks, boxes)
    assert published[0].area == 20 * 15 - 15 * 2 + 2
    first, *others = merge_image(masks, boxes, specks=0.02)
    assert first.area == 20 * 15 - 15 * 2
    kept = masks[0] & ~masks[1]
    kept[12:14, 22] = False
    assert (decode(first.segmentation, 30, 30) == kept.numpy().T).all()
    assert first.quality == pytest.approx(first.area / (20 * 15 + 6), abs=1e-4)
    assert first.confidence_exact == pytest.approx(15 * 20 / (18 * 20))
    assert others == published[1:], "masks that lost nothing are left alone"
    assert merge_image(masks, boxes, specks=1e-6) == published


def test_merge_rejects_what_does_not_fit():
    with pytest.raises(ValueError, match="2 qualities for 1 boxes"):
        merge_image(torch.zeros(1, 4, 4, dtype=torch.bool), [[0, 0, 1, 1]], quality=[0.5, 0.5])
    with pytest.raises(ValueError, match="2 masks for 1 boxes"):
        merge_image(torch.zeros(2, 4, 4, dtype=torch.bool), [[0, 0, 1, 1]])
    with pytest.raises(ValueError, match="needs height and width"):
        merge_image([empty_rle(4, 4)], [[0, 0, 1, 1]])
    with pytest.raises(ValueError, match=r"size \[5, 4\], its image \[4, 4\]"):
        merge_image([empty_rle(5, 4)], [[0, 0, 1, 1]], height=4, width=4)
    assert merge_image(torch.zeros(0, 4, 4, dtype=torch.bool), torch.zeros(0, 4)) == []


def test_window_encoding_equals_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = rng.integers(1, 9, 2)
        x0, y0 = rng.integers(0, width), rng.integers(0, height)
        x1, y1 = rng.integers(x0, width + 1), rng.integers(y0, height + 1)
        mask = np.zeros((height, width), bool)
        mask[y0:y1, x0:x1] = rng.random((y1 - y0, x1 - x0)) < rng.choice([0.0, 0.5, 0.9, 1.0])
        rle = encode_window(mask[y0:y1, x0:x1].T, x0, y0, height, width)
        assert rle["counts"] == mask_util.encode(np.asfortranarray(mask))["counts"].decode()
        assert (mask == decode(rle, height, width).T).all()
        assert has_mask(rle) == mask.any()
        edges = mask_edges(rle, height, width)
        assert edges_area(edges) == mask.sum()
        assert edges_box(edges, height) == BoxMasks.of(torch.from_numpy(mask)[None]).tight_boxes()[0]
        window, left, top = edges_window(edges, height)
        assert window.sum() == mask.sum()
        assert np.array_equal(mask[top : top + window.shape[1], left : left + window.shape[0]], window.T)
    # Runs without a pixel, which other tools write.
    assert mask_edges({"size": [2, 3], "counts": [1, 0, 1, 2, 0, 0, 2]}, 2, 3).tolist() == [2, 4]
    assert not has_mask([])
    assert not has_mask(None)
    assert has_mask([[0, 0, 3, 0, 3, 3]])
    assert decode([[0, 0, 3, 0, 3, 3, 0, 3]], 4, 4).sum() == 9
    assert has_mask({"size": [2, 2], "counts": [1, 3]})
    assert decode({"size": [2, 2], "counts": [1, 3]}, 2, 2).sum() == 3
    with pytest.raises(ValueError, match="cannot be read"):
        decode({"size": [2, 2], "counts": ["a"]}, 2, 2)


def test_merging_25000_instances_takes_less_than_a_minute():
    """A fortieth of it in a fortieth of the time: 500×375, RLE in and out."""
    rng = np.random.default_rng(0)
    height, width = 375, 500
    yy, xx = np.mgrid[:height, :width]
    images = []
    for _ in range(25):
        boxes = [[*rng.integers(0, 150, 2).tolist(), *rng.integers(20, 225, 2).tolist()] for _ in range(5)]
        masks = [((xx - x - w / 2) * 2 / w) ** 2 + ((yy - y - h / 2) * 2 / h) ** 2 < 1 for x, y, w, h in boxes]
        images.append(([mask_util.encode(np.asfortranarray(mask)) for mask in masks], boxes))
    start = time.process_time()
    for _ in range(5):
        for rles, boxes in images:
            merge_image(rles, boxes, height=height, width=width)
    assert (time.process_time() - start) * 40 < 60


# ------------------------------------------------------------------------------------------------ confidence


def test_confidence_of_perfect_masks():
    for side, published in ((4, 0.64), (32, 32**2 / 33**2)):
        masks = torch.zeros(1, 50, 50, dtype=torch.bool)
        masks[0, 5 : 5 + side, 7 : 7 + side] = True
        box = torch.tensor([[7, 5, side, side]])
        assert mask_confidence(masks, box).item() == pytest.approx(published)
        assert box_iou_exact(masks, box).item() == 1


def test_confidence_of_empty_masks():
    empty = torch.zeros(2, 50, 50, dtype=torch.bool)
    boxes = [[10, 10, 5, 5], [0, 0, 4, 9]]
    # Published: an empty mask counts as the pixel (0, 0), so a box in the corner gets a little.
    assert mask_confidence(empty, boxes).tolist() == [0, pytest.approx(1 / 50)]
    assert box_iou_exact(empty, boxes).tolist() == [0, 0]
    assert mask_confidence(empty[:0], torch.zeros(0, 4)).shape == (0,)


def test_confidence_truncates_position_and_size():
    assert published_confidence((10, 12, 51, 43), [10.6, 12.4, 40.7, 30.9]) == 1.0


# ------------------------------------------------------------------------------------------------ DenseCRF


@pytest.mark.parametrize(("name", "params"), [("vgg16", CRF_VGG16), ("resnet101", CRF_RESNET101)])
def test_crf_reproduces_the_published_labels(shared, name, params):
    pytest.importorskip("pydensecrf", reason="pydensecrf2 is optional")
    golden = np.load(shared / "golden" / "seed_ops.npz")
    result = dense_crf(golden["crf.image"], golden["crf.prob"], params)
    agreement = (result.argmax(0).numpy() == golden[f"crf.{name}"].argmax(0)).mean()
    assert agreement >= 0.995
    torch.testing.assert_close(result.sum(0), torch.ones(result.shape[1:]))


class Given(torch.nn.Module):
    """A box-to-mask method with these masks, and patches if there are any."""

    def __init__(self, masks: torch.Tensor, patches: list[MaskPatch] | None = None) -> None:
        super().__init__()
        self.masks, self.patches = masks, patches

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        instances = Instances(tuple(self.masks.shape[1:]), pred_masks=self.masks)
        return [{"instances": instances} | ({} if self.patches is None else {"patches": self.patches})]


def refined_masks(image: torch.Tensor, boxes: torch.Tensor, *given: Any) -> torch.Tensor:
    """Masks of the method :class:`Given`, refined; the image is H×W×3."""
    item = {"image": image.permute(2, 0, 1), "instances": Instances(tuple(image.shape[:2]), gt_boxes=Boxes(boxes))}
    (output,) = CRFRefinedModel(Given(*given)).eval()([item])
    return output["instances"].pred_masks.full()


def test_crf_moves_masks_to_edges():
    pytest.importorskip("pydensecrf", reason="pydensecrf2 is optional")
    image = torch.full((60, 80, 3), 40, dtype=torch.uint8)
    image[20:40, 30:50] = 220
    truth = torch.zeros(2, 60, 80, dtype=torch.bool)
    truth[0, 20:40, 30:50] = True
    rough = torch.zeros_like(truth)
    rough[0, 22:42, 28:47] = True
    boxes = torch.tensor([[26.0, 18, 54, 44], [0, 0, 10, 10]])
    refined = refined_masks(image, boxes, rough)
    assert iou(refined[:1], truth[:1]) > 0.95 > iou(rough[:1], truth[:1])
    assert not refined[1].any(), "an empty mask stays empty"
    patches = [MaskPatch(26, 18, rough[0, 18:44, 26:54] * 0.8 + 0.1), MaskPatch(0, 0, torch.full((10, 10), 0.1))]
    assert torch.equal(refined_masks(image, boxes, rough, patches), refined)
    assert refined_masks(image, boxes[:0], rough[:0]).shape == (0, 60, 80)
    with pytest.raises(ValueError, match="1 masks for 2 windows"):
        refined_masks(image, boxes, rough[:1])
    with pytest.raises(ValueError, match="expected H×W×3"):
        dense_crf(image, torch.rand(2, 5, 5))


class Rough(torch.nn.Module):
    """A box-to-mask method whose masks are noise in the boxes."""

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        outputs = []
        for item in batched_inputs:
            boxes = item["instances"].gt_boxes.tensor
            height, width = item["instances"].image_size
            inside = torch.stack([rasterize_boxes(box[None], (height, width)) for box in boxes])
            noise = torch.rand(height, width, generator=torch.Generator().manual_seed(height)) > 0.4
            outputs.append({"instances": Instances((height, width), pred_masks=inside & noise)})
        return outputs


def crf_batch(count: int) -> list[dict[str, Any]]:
    rng = torch.Generator().manual_seed(1)
    batch = []
    for number in range(count):
        size = (30 + number, 40)
        image = (torch.rand(3, *size, generator=rng) * 90).to(torch.uint8)
        image[:, 8:22, 10:30] += 120
        prompts = Instances(size, gt_boxes=Boxes(torch.tensor([[8.0, 5, 33, 25], [1, 1, 1, 9], [20, 10, 39, 29]])))
        batch.append({"image": image, "instances": prompts})
    return batch


def test_crf_refines_wherever_the_method_predicts():
    pytest.importorskip("pydensecrf", reason="pydensecrf2 is optional")
    assert not CRFRefinedModel(Rough().eval()).training
    model = Rough()
    model.frozen = torch.nn.BatchNorm2d(1).eval()
    assert CRFRefinedModel(model).training
    assert not model.frozen.training


def test_crf_workers_give_every_image_its_own_masks(monkeypatch):
    pytest.importorskip("pydensecrf", reason="pydensecrf2 is optional")
    monkeypatch.setattr(refine, "_BEFORE_WORKERS", 5)
    alone, shared = CRFRefinedModel(Rough()).eval(), CRFRefinedModel(Rough(), workers=2).eval()
    batches = [crf_batch(2), crf_batch(3), crf_batch(1)]
    for number, batch in enumerate(batches):
        for item, one, two in zip(batch, alone(batch), shared(batch), strict=True):
            rough = Rough()([item])[0]["instances"].pred_masks
            image, boxes = item["image"].permute(1, 2, 0), item["instances"].gt_boxes.tensor
            expected = refined_masks(image, boxes, rough)
            assert not torch.equal(expected, rough)
            assert torch.equal(one["instances"].pred_masks.full(), expected)
            assert torch.equal(two["instances"].pred_masks.full(), expected)
        assert (shared._executor is None) == (number == 0), "workers start when it is worth it"
    assert alone._executor is None
    os.kill(next(iter(shared._executor._processes)), signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"worker process died.*leave PSEUDO_MASKS\.CRF off"):
        list(map(shared, batches * 50))
    with pytest.raises(ValueError, match=r"PSEUDO_MASKS\.CRF_WORKERS is -1"):
        CRFRefinedModel(Rough(), workers=-1)


def test_crf_starts_from_probabilities_where_a_method_gives_them():
    pytest.importorskip("pydensecrf", reason="pydensecrf2 is optional")
    (item,) = crf_batch(1)
    image, boxes = item["image"].permute(1, 2, 0), item["instances"].gt_boxes.tensor
    maps = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(2))

    masks, patches = paste_masks(maps, boxes, 30, 40).full(), paste_patches(maps, boxes, 30, 40)
    refined = refined_masks(image, boxes, masks, patches)
    for row, (patch, mask) in enumerate(zip(patches, refined, strict=True)):
        # The same by hand: the patch, and a quarter of its sides around it that is background.
        window = [
            slice(max(side.start - (side.stop - side.start) // 4 - 1, 0), side.stop + (side.stop - side.start) // 4 + 1)
            for side in patch.window
        ]
        prob = torch.zeros(30, 40)
        prob[patch.window] = patch.prob
        own = prob[window[0], window[1]]
        expected = torch.zeros(30, 40, dtype=torch.bool)
        found = dense_crf(image[window[0], window[1]], torch.stack([1 - own, own]), CRF_RESNET101).argmax(0).bool()
        expected[window[0], window[1]] = found
        outside = torch.ones(30, 40, dtype=torch.bool)
        outside[patch.window] = False
        expected[outside] = False
        assert torch.equal(mask, expected if expected.any() else masks[row])
    assert not torch.equal(refined, refined_masks(image, boxes, masks))
    broken = [MaskPatch(left, top, prob.clone()) for left, top, prob in patches]
    for left, _, prob in broken:
        prob[:, max(20 - left, 0) :] = float("nan")
    known = [MaskPatch(left, top, prob.nan_to_num(0)) for left, top, prob in broken]
    expected = refined_masks(image, boxes, masks, known)
    assert torch.equal(refined_masks(image, boxes, masks, broken), expected), "NaN is background"
    with pytest.raises(ValueError, match="Given: 0 patches for 3 masks"):
        refined_masks(image, boxes, masks, [])


def test_missing_pydensecrf_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)  # as if it were not installed
    with pytest.raises(ImportError, match="pip install pydensecrf2"):
        CRFRefinedModel(torch.nn.Identity())


# ------------------------------------------------------------------------------------------------ the file

SOURCE = {
    "licenses": [{"id": 1}],
    "info": {"year": 2012},
    "images": [{"id": 2, "height": 4, "width": 4, "file_name": "b.jpg", "flickr": "x"}],
    "annotations": [{"id": 9, "image_id": 2, "bbox": [0, 0, 2, 2], "extra": {"a": [1]}}, {"id": 3, "image_id": 2}],
    "categories": [{"id": 1, "name": "é"}],
    "own key": None,
}


def test_file_keeps_the_source_and_says_where_it_comes_from(tmp_path):
    path = str(tmp_path / "new folder" / "x_pseudo.json")
    provenance = {"step": "a", "date": "now"}
    file_format.write_pseudo_masks(path, SOURCE, provenance, lambda annotation: annotation)
    read = file_format.read_pseudo_masks(path)
    assert read == {**SOURCE, "info": {"year": 2012, "boxsup_d2": provenance}}
    assert file_format.read_provenance(path) == provenance
    assert os.listdir(tmp_path / "new folder") == ["x_pseudo.json"]
    digest = file_format.provenance_digest(provenance)
    later = {**provenance, "step": "another name", "date": "later", "summary": {"images": 1}}
    assert digest == file_format.provenance_digest(later)
    assert digest != file_format.provenance_digest({**provenance, "method": "Another"})


def test_reading_other_files_fails_clearly(tmp_path):
    path = tmp_path / "x_pseudo.json"
    with pytest.raises(FileNotFoundError, match=r"x_pseudo\.json.*Run the labelling step"):
        file_format.read_pseudo_masks(str(path))
    assert file_format.read_provenance(str(path)) is None
    file_format.write_pseudo_masks(str(path), SOURCE, {"step": "a"}, lambda annotation: annotation)
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ValueError, match=r"x_pseudo\.json.*no valid json"):
        file_format.read_pseudo_masks(str(path))
    for text, message in (('{"images": []}', "COCO instances json"), (json.dumps(SOURCE), "does not say where")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            file_format.read_pseudo_masks(str(path))
        assert file_format.read_provenance(str(path)) is None
    path.write_text('{"info": {"cut of')
    assert file_format.read_provenance(str(path)) is None


def test_long_info_is_read_whole(tmp_path):
    path = str(tmp_path / "x_pseudo.json")
    source = {**SOURCE, "info": {"text": "x" * 200_000}}
    file_format.write_pseudo_masks(path, source, {"step": "a"}, lambda annotation: annotation)
    assert file_format.read_provenance(path) == {"step": "a"}


def fail_with_full_disk(annotation: dict[str, Any]) -> dict[str, Any]:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_leaves_the_old_file_and_no_temporary_one(tmp_path):
    path = tmp_path / "x_pseudo.json"
    path.write_text("old")
    with pytest.raises(OSError, match=r"x_pseudo\.json.*disk is full.*MB free.*kept") as caught:
        file_format.write_pseudo_masks(str(path), SOURCE, {}, fail_with_full_disk, hint="Results are kept.")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x_pseudo.json"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_while_appending_results(tmp_path):
    os.symlink("/dev/full", tmp_path / "full")
    writer = ShardWriter(str(tmp_path), "0001-rank0000")
    writer._file.close()
    writer._file = open(tmp_path / "full", "wb", buffering=0)  # noqa: SIM115
    with pytest.raises(OSError, match="disk is full"):
        writer.append(1, {})


def test_shards_survive_torn_lines_and_hold_few_results(tmp_path):
    masks = torch.ones(1, 4, 4, dtype=torch.bool)
    merged = merge_image(masks, [[0, 0, 4, 4]])
    for run in range(2):
        writer = ShardWriter(str(tmp_path), f"{run}")
        for image_id in range(run * 10, run * 10 + 10):
            writer.append(image_id, mask_record(["own id", image_id][run : run + 1], merged))
        writer.close()
        writer.close()
    with pytest.raises(FileExistsError):
        ShardWriter(str(tmp_path), "0")
    data = (tmp_path / "0.jsonl").read_bytes()
    (tmp_path / "0.jsonl").write_bytes(data[:-5])
    index = MaskShardIndex(str(tmp_path), cache_size=3)
    assert index.image_ids == set(range(19)) - {9} | {19}
    assert index.get(0) == {"own id": merged[0]}
    assert index.get(12) == {12: merged[0]}
    assert index.get(9) == {}
    for image_id in range(20):
        index.get(image_id)
    assert len(index._cache) <= 3
    assert index.empty == 0
    assert list(index.confidences) == [merged[0].confidence] * 19
    assert list(index.qualities) == [1.0] * 19
    assert MaskShardIndex(str(tmp_path / "absent")).image_ids == set()
