"""The confidence-governed mask head against Detectron2's own and against a slow reference."""

import copy

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead, mask_rcnn_loss
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from boxsup_d2.modeling.roi_heads.mask_head import (
    ConfidenceMaskRCNNConvUpsampleHead,
    confidence_weights,
    weighted_mask_loss,
)

NUM_CLASSES, CHANNELS, POOLED = 3, 6, 5


def make_heads(num_classes=NUM_CLASSES, threshold=0.0, weighting=False, **kwargs):
    """Detectron2's head and ours with the same weights."""
    shape = ShapeSpec(channels=CHANNELS, height=POOLED, width=POOLED)
    stock = MaskRCNNConvUpsampleHead(shape, num_classes=num_classes, conv_dims=[4, 4], **kwargs)
    ours = ConfidenceMaskRCNNConvUpsampleHead(
        shape,
        num_classes=num_classes,
        conv_dims=[4, 4],
        confidence_threshold=threshold,
        confidence_weighting=weighting,
        **kwargs,
    )
    # Larger than the initialisation, or all losses would be log 2.
    torch.nn.init.normal_(stock.predictor.weight, std=1.0)
    ours.load_state_dict(stock.state_dict())
    return stock, ours


def make_instances(counts, confidence=None, size=(40, 50)):
    """Foreground proposals with masks, ``counts`` per image."""
    result, start = [], 0
    for count in counts:
        instances = Instances(size)
        corner = torch.rand(count, 2) * 20
        instances.proposal_boxes = Boxes(torch.cat([corner, corner + 2 + torch.rand(count, 2) * 18], dim=1))
        instances.gt_classes = torch.randint(NUM_CLASSES, (count,))
        instances.gt_masks = BitMasks(torch.rand(count, *size) > 0.5)
        if confidence is not None:
            instances.gt_mask_confidence = torch.as_tensor(confidence[start : start + count])
        result.append(instances)
        start += count
    return result


def run(head, features, instances):
    """Loss, gradients (features first) and logged scalars of one step."""
    features = features.clone().requires_grad_()
    head.zero_grad()
    with EventStorage(0) as storage:
        loss = head.train()(features, instances)["loss_mask"]
        loss.backward()
        scalars = {name: value for name, (value, _) in storage.latest().items()}
    return loss.detach(), [features.grad] + [p.grad for p in head.parameters()], scalars


@pytest.mark.parametrize("num_classes", [NUM_CLASSES, 1])
@pytest.mark.parametrize("weighting", [False, True])
@pytest.mark.parametrize("field", [True, False])
def test_equals_stock_when_all_are_certain(num_classes, weighting, field):
    stock, ours = make_heads(num_classes, threshold=0.9, weighting=weighting, loss_weight=0.7)
    instances = make_instances([3, 0, 4], np.ones(7, np.float32) if field else None)
    features = torch.randn(7, CHANNELS, POOLED, POOLED)
    loss, grads, scalars = run(ours, features, instances)
    stock_loss, stock_grads, stock_scalars = run(stock, features, instances)
    torch.testing.assert_close(loss, stock_loss, rtol=1e-6, atol=0)
    for grad, stock_grad in zip(grads, stock_grads, strict=True):
        torch.testing.assert_close(grad, stock_grad, rtol=1e-5, atol=1e-7)
    assert scalars == pytest.approx(stock_scalars)
    assert "mask_rcnn/accuracy" in scalars


def test_dropping_equals_stock_on_the_rest():
    confidence = torch.tensor([0.9, 0.2, 0.5, 0.0, 1.0, 0.49999, 0.7])
    kept = confidence >= 0.5
    stock, ours = make_heads(threshold=0.5)
    first, second = make_instances([3, 4], confidence)
    features = torch.randn(7, CHANNELS, POOLED, POOLED)
    loss, grads, scalars = run(ours, features, [first, second])
    subset = [first[kept[:3]], second[kept[3:]]]
    stock_loss, stock_grads, stock_scalars = run(stock, features[kept], subset)
    torch.testing.assert_close(loss, stock_loss)
    torch.testing.assert_close(grads[0][kept], stock_grads[0], rtol=1e-5, atol=1e-7)
    assert not grads[0][~kept].any()
    for grad, stock_grad in zip(grads[1:], stock_grads[1:], strict=True):
        torch.testing.assert_close(grad, stock_grad, rtol=1e-5, atol=1e-7)
    assert scalars == pytest.approx(stock_scalars)


def test_weighting_against_slow_reference():
    confidence = torch.tensor([0.9, 0.2, 0.5, 0.0, 1.0])
    stock, ours = make_heads(threshold=0.3, weighting=True)
    instances = make_instances([2, 3], confidence)
    features = torch.randn(5, CHANNELS, POOLED, POOLED)
    loss, _, _ = run(ours, features, instances)

    total = norm = 0.0
    single = [x[i : i + 1] for x in instances for i in range(len(x))]
    for i, value in enumerate(confidence.tolist()):
        if value >= 0.3:
            with EventStorage(0), torch.no_grad():
                total += value * mask_rcnn_loss(stock.layers(features[i : i + 1]), [single[i]]).item()
            norm += value
    assert loss.item() == pytest.approx(total / norm, rel=1e-5)


def test_void_counts_for_neither_side():
    """Whatever the masks say in void pixels changes nothing; an image without any counts whole."""
    _, head = make_heads()
    instances = make_instances([2, 3])
    instances[0].proposal_boxes = Boxes(torch.tensor([[5.0, 5, 35, 30], [10, 4, 36, 20]]))
    features = torch.randn(5, CHANNELS, POOLED, POOLED)
    whole = run(head, features, instances)[0]
    void = torch.zeros(2, 40, 50, dtype=torch.bool)
    void[:, :, 20:] = True
    instances[0].gt_void = BitMasks(void)
    loss = run(head, features, instances)[0]
    # Not the void's first columns, which samples beside it reach into.
    instances[0].gt_masks.tensor[:, :, 23:] ^= True
    torch.testing.assert_close(run(head, features, instances)[0], loss)
    assert abs(whole - loss) > 1e-4
    instances[0].gt_void = BitMasks(torch.ones_like(void))
    only_second = run(head, features[2:], instances[1:])[0]
    torch.testing.assert_close(run(head, features, instances)[0], only_second)


@pytest.mark.parametrize("weighting", [False, True])
def test_nothing_trusted_is_zero_and_connected(weighting):
    _, ours = make_heads(threshold=0.0, weighting=weighting)
    instances = make_instances([2, 1], np.zeros(3, np.float32))
    loss, grads, scalars = run(ours, torch.randn(3, CHANNELS, POOLED, POOLED), instances)
    assert loss == 0
    for grad in grads:
        assert grad is not None
        assert not grad.any()  # NaN would be true
    assert all(np.isfinite(value) for value in scalars.values())


@pytest.mark.parametrize("counts", [[0, 0], [0]])
def test_no_proposals(counts):
    _, ours = make_heads()
    instances = make_instances(counts)
    for x in instances:  # what Detectron2 hands over for images without ground truth: no gt_* but the classes
        x.remove("gt_masks")
    loss, grads, _ = run(ours, torch.zeros(0, CHANNELS, POOLED, POOLED), instances)
    assert loss == 0
    assert all(grad is not None and not grad.any() for grad in grads[1:])


def test_image_without_ground_truth_between_others():
    _, ours = make_heads(threshold=0.5)
    instances = make_instances([2, 0, 1], torch.tensor([1.0, 0.6, 0.1]))
    instances[1] = Instances((40, 50), proposal_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0).long())
    loss, _, _ = run(ours, torch.randn(3, CHANNELS, POOLED, POOLED), instances)
    assert loss > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits(dtype):
    """Losses of half-precision logits are summed in float32: 4096 RoIs would overflow float16."""
    logits = torch.full((4096, 28, 28), 30.0, dtype=dtype, requires_grad=True)
    targets = torch.zeros(4096, 28, 28, dtype=torch.bool)
    loss = weighted_mask_loss(logits, targets, torch.ones(4096))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(30.0, rel=1e-3)
    assert torch.isfinite(logits.grad).all()


def test_autocast_equals_stock():
    stock, ours = make_heads()
    instances = make_instances([4])
    features = torch.randn(4, CHANNELS, POOLED, POOLED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _, _ = run(ours, features, instances)
        stock_loss, _, _ = run(stock, features, instances)
    assert loss.dtype == torch.float32
    # Autocast leaves stock's loss in the logits' bfloat16 on the CPU, where the two differ by its rounding.
    torch.testing.assert_close(loss, stock_loss.float(), rtol=1e-2, atol=0)


@pytest.mark.parametrize("scale", [1e-3, 1e-30])
def test_weighted_mean_does_not_depend_on_the_scale_of_the_weights(scale):
    logits, targets = torch.randn(4, 5, 5), torch.rand(4, 5, 5) > 0.5
    weights = torch.tensor([0.3, 0.0, 1.0, 0.5])
    expected = weighted_mask_loss(logits, targets, weights)
    torch.testing.assert_close(weighted_mask_loss(logits, targets, weights * scale), expected)


def test_confidence_weights():
    confidence = torch.tensor([0.0, 0.29, 0.3, 1.0])
    assert confidence_weights(confidence, 0.3, False).tolist() == [0, 0, 1, 1]
    assert confidence_weights(confidence, 0.0, False).tolist() == [0, 1, 1, 1]
    torch.testing.assert_close(confidence_weights(confidence, 0.3, True), torch.tensor([0, 0, 0.3, 1.0]))


def test_gradient_of_the_loss():
    logits = torch.randn(3, 4, 4, dtype=torch.float64, requires_grad=True)
    targets, weights = torch.rand(3, 4, 4) > 0.5, torch.tensor([0.4, 0.0, 1.0])
    (grad,) = torch.autograd.grad(weighted_mask_loss(logits, targets, weights), logits)
    reference = weights[:, None, None] / weights.sum() * (logits.sigmoid() - targets.float()) / 16
    torch.testing.assert_close(grad, reference.detach(), rtol=1e-5, atol=1e-7)


def test_pictures_do_not_change_the_loss():
    _, ours = make_heads(threshold=0.5)
    seen = copy.deepcopy(ours)
    seen.vis_period = 1
    instances = make_instances([3], torch.tensor([1.0, 0.2, 0.8]))
    features = torch.randn(3, CHANNELS, POOLED, POOLED)
    loss, _, scalars = run(ours, features, instances)
    seen_loss, _, seen_scalars = run(seen, features, instances)
    assert loss == seen_loss
    assert scalars == seen_scalars


def test_inference_is_stock():
    stock, ours = make_heads()
    features = torch.randn(3, CHANNELS, POOLED, POOLED)
    boxes = Boxes(torch.tensor([[0.0, 0, 9, 9]] * 3))
    predictions = []
    for head in (stock, ours):
        instances = Instances((40, 50), pred_boxes=boxes, pred_classes=torch.tensor([0, 2, 1]))
        with torch.no_grad():
            predictions.append(head.eval()(features, [instances])[0].pred_masks)
    assert torch.equal(*predictions)


def test_reads_the_config():
    from detectron2.config import get_cfg
    from detectron2.modeling import build_mask_head

    from boxsup_d2.config import add_boxsup_config

    cfg = get_cfg()
    add_boxsup_config(cfg)
    cfg.MODEL.ROI_MASK_HEAD.NAME = "ConfidenceMaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.CONFIDENCE_THRESHOLD = 0.25
    cfg.MODEL.ROI_MASK_HEAD.CONFIDENCE_WEIGHTING = True
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 4
    head = build_mask_head(cfg, ShapeSpec(channels=CHANNELS, height=POOLED, width=POOLED))
    assert (head.confidence_threshold, head.confidence_weighting) == (0.25, True)
    logits = head.layers(torch.zeros(2, CHANNELS, POOLED, POOLED))
    assert F.sigmoid(logits).shape == (2, 80, 10, 10)
