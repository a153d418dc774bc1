"""The parameter-free box-to-mask methods and the contract that they share with the learned ones."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from boxsup_d2.config import add_boxsup_config
from boxsup_d2.masks.label_map import label_map
from boxsup_d2.masks.merge import merge_image
from boxsup_d2.modeling.baselines.meta_arch import BoxFill, GrabCut, grabcut
from boxsup_d2.modeling.box_to_mask import box_to_mask_instances, fill_boxes, predicted_quality, truncate_boxes

SIZE = (30, 40)


def config(name):
    cfg = get_cfg()
    add_boxsup_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = name
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    return cfg


def prompt(image, boxes):
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    size = tuple(image.shape[1:])
    instances = Instances(size, gt_boxes=Boxes(boxes), gt_classes=torch.arange(len(boxes)))
    return {"image": image, "height": size[0], "width": size[1], "instances": instances}


def slow_fill(box, size):
    """Pixel by pixel: the truncated corners, moved into the image, at least one pixel."""
    height, width = size
    x0, y0, x1, y1 = (int(v) for v in box)
    x0, y0 = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
    x1, y1 = max(min(x1, width), x0 + 1), max(min(y1, height), y0 + 1)
    return torch.tensor([[x0 <= x < x1 and y0 <= y < y1 for x in range(width)] for y in range(height)])


def random_boxes(count):
    corner = torch.rand(count, 2) * torch.tensor([60.0, 50.0]) - 10
    return torch.cat([corner, corner + torch.rand(count, 2) * 30 - 2], dim=1)


def test_fill_is_exactly_the_truncated_box():
    boxes = torch.cat([random_boxes(40), torch.tensor([[0.0, 0, 40, 30], [3.9, 4.9, 3.9, 4.9], [39.5, 29.5, 40, 30]])])
    masks = fill_boxes(boxes, SIZE)
    for mask, box in zip(masks, boxes, strict=True):
        assert torch.equal(mask, slow_fill(box.tolist(), SIZE))
    corners = truncate_boxes(boxes, SIZE)
    assert torch.equal(masks.sum((1, 2)), (corners[:, 2:] - corners[:, :2]).prod(dim=1))


def test_prediction_must_fit_the_prompts():
    boxes, classes, scores = torch.zeros(2, 4), torch.zeros(2).long(), torch.ones(2)
    with pytest.raises(ValueError, match="expected"):
        box_to_mask_instances(torch.zeros(1, *SIZE, dtype=torch.bool), boxes, classes, scores, SIZE)
    with pytest.raises(ValueError, match=r"torch\.bool"):
        box_to_mask_instances(torch.zeros(2, *SIZE), boxes, classes, scores, SIZE)


@pytest.mark.parametrize("name", ["BoxFill", "GrabCut"])
def test_contract(name):
    cfg = config(name)
    model = build_model(cfg)
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    assert model.device == torch.device("cpu")
    assert not list(model.parameters())
    assert not model.state_dict()

    image = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8)
    boxes = random_boxes(5)
    inputs = [prompt(image, boxes), prompt(image, [])]
    before = image.clone()
    predictions = [x["instances"] for x in model.eval()(inputs)]
    assert torch.equal(image, before)
    assert [len(x) for x in predictions] == [5, 0]
    for prediction, item in zip(predictions, inputs, strict=True):
        assert prediction.image_size == SIZE
        assert prediction.pred_masks.shape == (len(prediction), *SIZE)
        assert prediction.pred_masks.dtype == torch.bool
        assert torch.equal(prediction.pred_boxes.tensor, item["instances"].gt_boxes.tensor)
        assert torch.equal(prediction.pred_classes, item["instances"].gt_classes)
        assert (prediction.scores == 1).all()
        assert prediction.quality.shape == (len(prediction),)
        assert ((prediction.quality > 0) & (prediction.quality <= 1)).all()
    with pytest.raises(RuntimeError, match="--eval-only"):
        model.train()(inputs)


def two_colours(box, size=(60, 80)):
    """A red disc in ``box`` on noisy green; returns the image (H×W×3 uint8) and the disc's mask."""
    rng = np.random.default_rng(0)
    height, width = size
    x0, y0, x1, y1 = box
    y, x = np.mgrid[:height, :width] + 0.5
    disc = ((x - (x0 + x1) / 2) / (x1 - x0)) ** 2 + ((y - (y0 + y1) / 2) / (y1 - y0)) ** 2 < 0.25
    image = np.where(disc[..., None], [200, 40, 40], [40, 180, 60]) + rng.integers(-20, 20, (height, width, 3))
    return image.astype(np.uint8), disc


@pytest.mark.parametrize("context", [-1.0, 0.5])
def test_grabcut_finds_a_disc(context):
    boxes = [[20, 10, 60, 50], [40, 20, 75, 55]]
    for box in boxes:
        image, disc = two_colours(box)
        x0, y0, x1, y1 = box
        mask = np.zeros_like(disc)
        mask[y0:y1, x0:x1] = grabcut(image, box, iterations=3, context=context).mask
        assert (mask & disc).sum() / (mask | disc).sum() > 0.95


def test_grabcut_does_not_depend_on_the_other_boxes():
    image, _ = two_colours([20, 10, 60, 50])
    image = torch.from_numpy(image).permute(2, 0, 1)
    boxes = torch.tensor([[20.0, 10, 60, 50], [10, 5, 50, 40], [0, 0, 80, 60], [5, 5, 6, 6], [30, 20, 79, 59]])
    model = GrabCut(iterations=2, context=0.5).eval()
    together = model([prompt(image, boxes)])[0]["instances"].pred_masks.full()
    alone = [model([prompt(image, box)])[0]["instances"].pred_masks[0] for box in boxes.flip(0)]
    assert torch.equal(together, torch.stack(alone).flip(0))


@pytest.mark.parametrize(
    "box",
    [[0, 0, 40, 30], [5, 5, 6, 6], [5, 5, 7, 7], [0, 0, 40, 29.5], [39, 29, 40, 30], [-5, -5, -1, -1], [0, 5, 40, 6]],
)
@pytest.mark.parametrize("context", [-1.0, 0.0, 0.5])
def test_grabcut_without_an_prediction_is_the_filled_box(box, context):
    image = torch.full((3, *SIZE), 128, dtype=torch.uint8)  # one colour: nothing tells object and background apart
    masks = GrabCut(iterations=1, context=context).eval()([prompt(image, [box])])[0]["instances"].pred_masks.full()
    assert masks.any()
    assert not (masks[0] & ~slow_fill(box, SIZE)).any()
    if box in ([0, 0, 40, 30], [5, 5, 6, 6], [5, 5, 7, 7]):
        assert torch.equal(masks[0], slow_fill(box, SIZE))


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 3)])
def test_tiny_images(size):
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    for model in (BoxFill(), GrabCut(iterations=1, context=0.5)):
        masks = model.eval()([prompt(image, [[0, 0, size[1], size[0]], [0, 0, 1, 1]])])[0]["instances"].pred_masks
        assert masks.shape == (2, *size)
        assert all(masks.areas())


def peak_memory():
    """Bytes that this process has had at most since the counter was reset."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is counted by Linux")
def test_memory_goes_by_the_boxes_and_not_by_the_image():
    image = torch.randint(0, 256, (3, 2000, 3000), dtype=torch.uint8)
    corners = (torch.rand(200, 2) * torch.tensor([2980, 1980])).floor()
    item = prompt(image, torch.cat([corners, corners + 12], dim=1))
    boxes = [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in item["instances"].gt_boxes.tensor.tolist()]
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory()
    for model in (BoxFill(), GrabCut(iterations=1, context=0.5)):
        (output,) = model.eval()([item])
        merged = merge_image(output["instances"].pred_masks, boxes)
        assert np.mean([instance.confidence_exact for instance in merged]) > 0.7
        labels = label_map(output, item["instances"].gt_boxes.tensor, torch.zeros(200))
        assert np.count_nonzero(labels) == sum(instance.area for instance in merged)
    assert peak_memory() - before < 0.1 * 200 * 2000 * 3000, "a tenth of what the masks take as frames"


def test_grabcut_needs_an_iteration():
    with pytest.raises(ValueError, match="ITERATIONS"):
        GrabCut(iterations=0, context=0.5)


def test_grabcut_leaves_opencv_usable():
    """A failing cut must not be hidden: only the cases that GrabCut cannot prediction are predicted for it."""
    with pytest.raises(cv2.error):
        grabcut(np.zeros((30, 40), np.uint8), [5, 5, 20, 20], 1, 0.5)  # no colour image


def test_failed_cuts_are_filled_boxes_and_their_quality_says_so():
    disc_box, loose = [20, 10, 60, 50], [5, 2, 79, 58]
    image, disc = two_colours(disc_box)
    item = prompt(torch.from_numpy(image).permute(2, 0, 1), [disc_box, loose])
    tight, wide = GrabCut(iterations=3, context=0.5).eval()([item])[0]["instances"].quality.tolist()
    masks = GrabCut(iterations=3, context=0.5).eval()([item])[0]["instances"].pred_masks
    filled = BoxFill().eval()([item])[0]["instances"]
    assert torch.equal(masks[1], filled.pred_masks[1])
    assert (masks[0].numpy() & disc).sum() / (masks[0].numpy() | disc).sum() > 0.95
    assert tight > 0.9 > wide == filled.quality[1]
    # Without the rule the cut stays, and its box IoU keeps its quality low.
    kept = GrabCut(iterations=3, context=0.5, min_box_iou=0.0).eval()([item])[0]["instances"]
    assert not torch.equal(kept.pred_masks[1], filled.pred_masks[1])
    assert kept.quality[1] < 0.5
    with pytest.raises(ValueError, match="MIN_BOX_IOU"):
        GrabCut(iterations=1, context=0.5, min_box_iou=1.5)


def test_predicted_quality_is_a_methods_own_or_its_score():
    boxes, classes = torch.tensor([[0.0, 0, 4, 4]] * 3), torch.zeros(3, dtype=torch.int64)
    masks, scores = torch.ones(3, 5, 5, dtype=torch.bool), torch.tensor([0.25, 0.5, 1.0])
    plain = box_to_mask_instances(masks, boxes, classes, scores, (5, 5))
    assert predicted_quality(plain) == [0.25, 0.5, 1.0]
    own = box_to_mask_instances(masks, boxes, classes, scores, (5, 5), torch.tensor([-0.5, float("nan"), 1.5]))
    assert predicted_quality(own) == [0, 0, 1]
    plain.remove("scores")
    assert predicted_quality(plain) == [1, 1, 1]
    assert predicted_quality(own[:0]) == []


def test_an_image_without_boxes_is_told_from_a_prompt():
    """As Detectron2's predictor gives it, which knows of no boxes."""
    with pytest.raises(ValueError, match=r"BoxFill needs box prompts.*boxsup_d2\.load"):
        DefaultPredictor(config("BoxFill"))(np.zeros((8, 9, 3), np.uint8))
