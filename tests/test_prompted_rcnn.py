"""Box prompts to a tiny Mask R-CNN; detection and training stay Detectron2's."""

import pytest
import torch
from detectron2 import model_zoo
from detectron2.data import transforms as T
from detectron2.layers import paste_masks_in_image
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from boxsup_d2 import modeling  # noqa: F401  (registers)
from boxsup_d2.config import add_boxsup_config

SIZES = [(48, 64), (50, 36)]


def tiny_config(architecture="PromptableRCNN", **keys):
    """Mask R-CNN R-50-FPN with few channels, for images of 64 px."""
    cfg = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    add_boxsup_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.ROI_MASK_HEAD.NAME = "ConfidenceMaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.INPUT.MAX_SIZE_TEST = 96
    for key, value in keys.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def build(cfg):
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    if cfg.MODEL.MASK_ON:  # so that probabilities are neither all 1/2 nor all 0 or 1: frozen norms leave large features
        torch.nn.init.normal_(model.roi_heads.mask_head.predictor.weight, std=3e-4)
    return model


@pytest.fixture(scope="module")
def model():
    return build(tiny_config())


def prompt(image, boxes, classes):
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    size = tuple(image.shape[1:])
    instances = Instances(size, gt_boxes=Boxes(boxes), gt_classes=torch.as_tensor(classes, dtype=torch.int64))
    return {"image": image, "height": size[0], "width": size[1], "instances": instances}


def random_image(size):
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8)


BOXES = [[[5, 6, 30.5, 40], [20, 2, 60, 45.2], [0, 0, 64, 48]], [[3, 4, 30, 44], [10, 10, 14, 15]]]
CLASSES = [[2, 0, 1], [1, 1]]


def test_predicts_in_prompt_order(model):
    inputs = [prompt(random_image(s), b, c) for s, b, c in zip(SIZES, BOXES, CLASSES, strict=True)]
    before = [x["instances"].gt_boxes.tensor.clone() for x in inputs]
    with torch.no_grad():
        predictions = [x["instances"] for x in model(inputs)]
        for prediction, item, boxes in zip(predictions, inputs, before, strict=True):
            size = tuple(item["image"].shape[1:])
            assert prediction.image_size == size
            assert prediction.pred_masks.shape == (len(boxes), *size)
            assert prediction.pred_masks.dtype == torch.bool
            assert len(set(prediction.scores.tolist())) == len(prediction)  # there is something to confuse
            assert torch.equal(prediction.pred_boxes.tensor, boxes)
            assert torch.equal(item["instances"].gt_boxes.tensor, boxes)
            assert torch.equal(prediction.pred_classes, item["instances"].gt_classes)
            assert ((prediction.scores > 0.5) & (prediction.scores < 1)).all()

        backwards = [
            prompt(x["image"], x["instances"].gt_boxes.tensor.flip(0), x["instances"].gt_classes.flip(0))
            for x in inputs
        ]
        for prediction, reverse in zip(predictions, model(backwards), strict=True):
            assert torch.equal(prediction.pred_masks.full().flip(0), reverse["instances"].pred_masks.full())
            torch.testing.assert_close(prediction.scores.flip(0), reverse["instances"].scores)


def test_equals_detectron2_with_given_boxes(model):
    """What one would write by hand: Pillow resize, boxes scaled, stock inference, pasted by Detectron2."""
    image, boxes = random_image((48, 64)), torch.tensor(BOXES[0], dtype=torch.float32)
    classes = torch.tensor(CLASSES[0])
    transform = T.ResizeShortestEdge([64, 64], 96).get_transform(image.permute(1, 2, 0).numpy())
    resized = torch.from_numpy(transform.apply_image(image.permute(1, 2, 0).numpy()).copy()).permute(2, 0, 1)
    assert resized.shape[1:] == (64, 85)
    scaled = Boxes(boxes * torch.tensor([85 / 64, 64 / 48] * 2))
    given = Instances((64, 85), pred_boxes=scaled, pred_classes=classes)
    with torch.no_grad():
        inputs = [{"image": resized, "height": 48, "width": 64}]
        raw = GeneralizedRCNN.inference(model, inputs, [given], do_postprocess=False)[0]
        expected = paste_masks_in_image(raw.pred_masks[:, 0], Boxes(boxes), (48, 64))
        prediction = model([prompt(image, boxes, classes)])[0]["instances"]
    # The two resizes differ by at most one grey level in single pixels.
    assert (prediction.pred_masks.full() != expected).float().mean() < 0.01
    inside = raw.pred_masks[:, 0] >= 0.5
    for i in range(3):
        assert prediction.scores[i].item() == pytest.approx(raw.pred_masks[i, 0][inside[i]].mean().item(), abs=0.01)


def test_resize_is_that_of_the_training_images(model):
    image = random_image((100, 150))
    item, boxes = model._resized(prompt(image, [[10, 20, 100, 90]], [0]))
    expected = T.ResizeShortestEdge([64, 64], 96).get_transform(image.permute(1, 2, 0).numpy())
    assert item["image"].shape == (3, expected.new_h, expected.new_w) == (3, 64, 96)
    pillow = torch.from_numpy(expected.apply_image(image.permute(1, 2, 0).numpy()).astype("float32"))
    difference = item["image"].permute(1, 2, 0) - pillow
    assert difference.abs().max() <= 1
    torch.testing.assert_close(boxes.pred_boxes.tensor, torch.tensor([[6.4, 12.8, 64, 57.6]]))


def test_images_and_boxes_do_not_influence_each_other(model):
    inputs = [prompt(random_image((48, 64)), BOXES[0], CLASSES[0]) for _ in range(2)]
    with torch.no_grad():
        together = model(inputs)
        for item, prediction in zip(inputs, together, strict=True):
            alone = model([item])[0]["instances"].pred_masks
            assert torch.equal(alone.full(), prediction["instances"].pred_masks.full())


def test_no_boxes(model):
    empty = prompt(random_image((48, 64)), [], [])
    some = prompt(random_image((50, 36)), [[3, 4, 30, 44]], [1])
    with torch.no_grad():
        assert [len(x["instances"]) for x in model([empty, empty])] == [0, 0]
        predictions = [x["instances"] for x in model([empty, some, empty])]
    assert [tuple(x.pred_masks.shape) for x in predictions] == [(0, 48, 64), (1, 50, 36), (0, 48, 64)]
    assert predictions[0].pred_masks.dtype == torch.bool


def test_degenerate_boxes_have_masks_too(model):
    boxes = [
        [5, 5, 5, 5],
        [10, 10, 30, 30],
        [-20, -20, -5, -5],
        [63.9, 47.9, 64, 48],
        [30, 20, 30.2, 40],
        [70, 60, 90, 90],
    ]
    with torch.no_grad():
        prediction = model([prompt(random_image((48, 64)), boxes, [0, 1, 2, 0, 1, 2])])[0]["instances"]
    assert prediction.pred_masks.shape == (6, 48, 64)
    assert torch.isfinite(prediction.scores).all()
    assert torch.equal(prediction.pred_boxes.tensor, torch.tensor(boxes, dtype=torch.float32))
    assert prediction.pred_masks[0].sum() <= 1
    assert not any(prediction.pred_masks[[2, 5]].areas())


def test_without_resizing():
    model = build(tiny_config(INPUT__MIN_SIZE_TEST=0))
    image = random_image((48, 64))
    item, boxes = model._resized(prompt(image, [[1, 2, 30, 40]], [0]))
    assert torch.equal(item["image"], image)
    assert boxes.pred_boxes.tensor.tolist() == [[1, 2, 30, 40]]


def test_detection_and_training_are_stock(model):
    stock = build(tiny_config("GeneralizedRCNN"))
    stock.load_state_dict(model.state_dict())
    image = random_image((64, 80))
    inputs = [{"image": image, "height": 48, "width": 60}]
    with torch.no_grad():
        first, second = model(inputs)[0]["instances"], stock(inputs)[0]["instances"]
    assert torch.equal(first.pred_boxes.tensor, second.pred_boxes.tensor)
    assert torch.equal(first.scores, second.scores)
    assert torch.equal(first.pred_masks, second.pred_masks)

    target = Instances((64, 80), gt_boxes=Boxes(torch.tensor([[5.0, 5, 40, 50]])), gt_classes=torch.tensor([1]))
    target.gt_masks = BitMasks(torch.rand(1, 64, 80) > 0.5)
    losses = []
    for network in (model, stock):
        torch.manual_seed(1)
        with EventStorage(0):
            losses.append(network.train()([{"image": image, "instances": target}]))
        network.eval()
    assert losses[0].keys() == losses[1].keys()
    for key, value in losses[0].items():
        torch.testing.assert_close(value, losses[1][key])


def test_box_only_and_empty_images_train():
    """No mask anywhere, or no box anywhere: finite losses, and a gradient for every trained parameter."""
    model = build(tiny_config()).train()
    image = random_image((64, 80))
    boxes = Boxes(torch.tensor([[5.0, 5, 40, 50]]))
    box_only = Instances((64, 80), gt_boxes=boxes, gt_classes=torch.tensor([1]))
    box_only.gt_masks = BitMasks(torch.zeros(1, 64, 80))
    box_only.gt_mask_confidence = torch.zeros(1)
    empty = Instances((64, 80), gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0).long())
    empty.gt_mask_confidence = torch.zeros(0)
    for targets in ([box_only], [empty], [empty, box_only]):
        model.zero_grad()
        with EventStorage(0):
            losses = model([{"image": image, "instances": x} for x in targets])
        assert losses["loss_mask"] == 0
        sum(losses.values()).backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                assert torch.isfinite(parameter.grad).all(), name
        assert not any(p.grad.any() for p in model.roi_heads.mask_head.parameters())


def test_clear_errors(model):
    with pytest.raises(ValueError, match=r"knows 3 classes.*NUM_CLASSES"):
        model([prompt(random_image((48, 64)), [[1, 1, 9, 9]], [3])])
    boxes_only = build(tiny_config(MODEL__MASK_ON=False))
    with pytest.raises(RuntimeError, match="MASK_ON"):
        boxes_only([prompt(random_image((48, 64)), [[1, 1, 9, 9]], [0])])
