"""BoxCaseg's network, losses and inference against the published numbers, and its contracts."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn

import boxsup_d2.modeling.backbone
import boxsup_d2.modeling.boxcaseg.meta_arch  # noqa: F401
from boxsup_d2.checkpoint import BoxSupCheckpointer
from boxsup_d2.config import add_boxsup_config
from boxsup_d2.masks.paste import min_max_normalize, paste_masks
from boxsup_d2.modeling.box_to_mask import truncate_boxes
from boxsup_d2.modeling.boxcaseg.checkpoint import convert_published_boxcaseg


def _relative_error(ours, reference):
    return ((ours - reference).norm() / reference.norm()).item()


def small_cfg(backbone="build_timm_fpn_backbone"):
    """An EfficientNet-lite0 BoxCaseg on the CPU, small enough for unit tests."""
    cfg = get_cfg()
    add_boxsup_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "BoxCaseg"
    cfg.MODEL.BACKBONE.NAME = backbone
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.MODEL.BOXCASEG.IN_FEATURES = ["p2", "p3", "p4", "p5"] if "fpn" in backbone else ["res2", "res3", "res4", "res5"]
    cfg.INPUT.BOX_CROP.TEST_SIZE = 64
    return cfg


def training_batch(salient, size=64):
    """Crops of noise with a box in the middle, one per entry of `salient`."""
    mask = torch.zeros(size, size, dtype=torch.uint8)
    mask[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 1
    return [
        {"image": torch.randint(0, 256, (3, size, size), dtype=torch.uint8), "mask": mask, "is_salient": is_salient}
        for is_salient in salient
    ]


@pytest.fixture(scope="module")
def published(shared):
    """The published-size network with the deterministic parameters of the reference numbers, and these numbers."""
    folder = shared / "golden"
    spec = importlib.util.spec_from_file_location("fill", folder / "fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    shapes = json.loads((folder / "boxcaseg_hrnet_w48_shapes.json").read_text())
    cfg = get_cfg()
    add_boxsup_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "BoxCaseg"
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.TIMM.BN_MOMENTUM = 0.01
    model = build_model(cfg)
    state = {"model." + name: value for name, value in fill.fill_state(shapes).items()}
    return model, state, np.load(folder / "boxcaseg_hrnet_w48.npz")


def test_published_checkpoint_loads_through_the_checkpointer(published, tmp_path):
    model, state, _ = published
    assert len(state) == 1865
    file = tmp_path / "published.pth"
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {}}, file)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    extra = BoxSupCheckpointer(model).load(str(file))
    assert "optimizer" not in extra
    converted = convert_published_boxcaseg(state)
    assert set(converted) == set(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(value, converted[name]), name


def test_number_of_parameters_is_the_published_one(published):
    model, _, _ = published
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(74.67, abs=0.005)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_network_reproduces_the_published_outputs(published, mode):
    model, state, golden = published
    model.load_state_dict(convert_published_boxcaseg(state))
    model.train(mode == "train")
    with torch.no_grad():
        features = model.features(torch.from_numpy(golden["input"]))
        weak = model.box_head(features)
        if mode == "eval":
            pairs = [
                (weak, "weak"),
                (model.salient_head(features, model.box_head), "full"),
                (model.salient_head(features[1:], model.box_head), "full_mask01"),
            ]
        else:
            pairs = [(weak, "train_weak"), (model.salient_head(features[:1], model.box_head), "train_full_mask10")]
    for ours, name in pairs:
        assert _relative_error(ours, torch.from_numpy(golden[name])) <= 1e-4, name


@pytest.mark.parametrize("backbone", ["build_timm_fpn_backbone", "build_timm_backbone"])
@pytest.mark.parametrize("salient", [[True, False, True], [False, False], [True, True]])
def test_losses_are_finite_and_reach_every_parameter(backbone, salient):
    torch.manual_seed(0)
    model = build_model(small_cfg(backbone)).train()
    losses = model(training_batch(salient))
    assert set(losses) == {"loss_mil", "loss_pairwise", "loss_salient"}
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert (losses["loss_salient"].item() == 0) == (not any(salient))
    sum(losses.values()).backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, "parameters that DDP would wait for"


def test_salient_head_sees_salient_images_only():
    torch.manual_seed(0)
    model = build_model(small_cfg()).train()
    before = model.salient_head.transfer_bn.running_mean.clone(), model.salient_head.fcn[1].running_mean.clone()
    model(training_batch([False, False]))
    assert torch.equal(before[0], model.salient_head.transfer_bn.running_mean)
    assert torch.equal(before[1], model.salient_head.fcn[1].running_mean)
    model(training_batch([False, True]))
    assert not torch.equal(before[0], model.salient_head.transfer_bn.running_mean)


def test_box_head_gets_no_gradient_through_the_transfer():
    torch.manual_seed(0)
    model = build_model(small_cfg()).train()
    model(training_batch([True, True]))["loss_salient"].backward()
    assert all(p.grad is None for p in model.box_head.parameters())
    assert model.salient_head.transfer1.fc1.weight.grad.abs().sum() > 0


def test_loss_does_not_depend_on_the_order_of_the_batch():
    torch.manual_seed(0)
    model = build_model(small_cfg()).train()
    batch = training_batch([True, False, False, True])
    first = model(batch)
    second = model(batch[::-1])
    for key in first:
        assert first[key].item() == pytest.approx(second[key].item(), rel=1e-4)


def test_pseudo_label_loss_is_a_switch():
    torch.manual_seed(0)
    cfg = small_cfg()
    cfg.MODEL.BOXCASEG.PSEUDO_LABEL_WEIGHT = 1.0
    losses = build_model(cfg).train()(training_batch([True, False]))
    assert torch.isfinite(losses["loss_pseudo_label"])


def prompts(boxes, height, width):
    """One evaluation input: a noise image and its box prompts."""
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.arange(len(boxes))
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return {"image": image, "height": height, "width": width, "instances": instances}


@pytest.mark.parametrize("head", ["salient", "box"])
@pytest.mark.parametrize("flip", [True, False])
def test_inference_predicts_every_box_in_order(head, flip):
    torch.manual_seed(0)
    cfg = small_cfg()
    cfg.MODEL.BOXCASEG.TEST_HEAD = head
    cfg.MODEL.BOXCASEG.TEST_FLIP = flip
    model = build_model(cfg).eval()
    boxes = [[3.7, 2.2, 40.9, 50.1], [10, 10, 10.4, 10.2], [0, 0, 70, 60]]
    inputs = [prompts(boxes, 60, 70), prompts([], 40, 40), prompts([[5, 5, 20, 30]], 40, 40)]
    outputs = model(inputs)
    assert [len(o["instances"]) for o in outputs] == [3, 0, 1]
    masks = outputs[0]["instances"].pred_masks
    assert masks.shape == (3, 60, 70)
    assert masks.dtype == torch.bool
    assert outputs[1]["instances"].pred_masks.shape == (0, 40, 40)
    assert torch.equal(outputs[0]["instances"].pred_classes, torch.arange(3))
    outside = masks[0].clone()
    outside[2:50, 3:40] = False
    assert not outside.any(), "a mask leaves its truncated box"
    assert masks[1].sum() <= 1
    assert ((outputs[0]["instances"].scores >= 0) & (outputs[0]["instances"].scores <= 1)).all()


@pytest.mark.parametrize("threshold", [0.5, 0.3, 0.8])
def test_patches_decide_at_one_half_whatever_the_threshold(threshold):
    torch.manual_seed(0)
    model = build_model(small_cfg()).eval()
    model.test_threshold = threshold
    item = prompts([[3, 2, 40, 50], [10, 10, 60, 31]], 60, 70)
    (output,) = model([item])
    with torch.no_grad():
        corners = truncate_boxes(item["instances"].gt_boxes.tensor, (60, 70))
        values = min_max_normalize(model.predict_crops(model.crop_boxes(item["image"], corners)))
    for mask, patch, box, value in zip(
        output["instances"].pred_masks, output["patches"], corners.tolist(), values, strict=True
    ):
        assert (patch.left, patch.top, *reversed(patch.prob.shape)) == (*box[:2], box[2] - box[0], box[3] - box[1])
        assert torch.equal(mask[patch.window], patch.prob > 0.5)
        assert mask.sum() == (patch.prob > 0.5).sum()
        expected = paste_masks(value[None], torch.tensor([box]), 60, 70, threshold)[0]
        assert (mask == expected).float().mean() > 0.999
        assert mask.any()


def test_inference_does_not_depend_on_how_crops_are_grouped():
    torch.manual_seed(0)
    model = build_model(small_cfg()).eval()
    inputs = [prompts([[0, 0, 30, 30], [5, 8, 40, 44]], 50, 50), prompts([[2, 2, 33, 20]], 40, 40)]
    together = model(inputs)
    model.test_crops_per_forward = 1
    for one, many in zip(model(inputs), together, strict=True):
        assert (one["instances"].pred_masks.full() == many["instances"].pred_masks.full()).float().mean() > 0.999


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")],
        ),
    ],
)
def test_crops_are_the_resized_boxes(antialias, device):
    cfg = small_cfg()
    cfg.INPUT.BOX_CROP.ANTIALIAS = antialias
    cfg.MODEL.DEVICE = device
    model = build_model(cfg).eval()
    image = torch.randint(0, 256, (3, 150, 160), dtype=torch.uint8)
    boxes = truncate_boxes(torch.tensor([[4.9, 3.2, 36.8, 35.7], [-5, 20, 170, 149], [200, 10, 300, 20]]), (150, 160))
    crops = model.crop_boxes(image, boxes).cpu()
    floats = model.crop_boxes(image.float(), boxes).cpu()  # what a GPU computes with
    assert torch.equal(floats, floats.round()), "the network has learnt from whole grey levels"
    assert (crops.float() - floats).abs().max() <= 1
    for crop, (x0, y0, x1, y1) in zip(crops, [(4, 3, 36, 35), (0, 20, 160, 149), (159, 10, 160, 20)], strict=True):
        exact = nn.functional.interpolate(
            image[None, :, y0:y1, x0:x1].float(), size=64, mode="bilinear", antialias=antialias
        )
        assert (crop.float() - exact).abs().max() <= 1.5, "more than rounding to grey levels"
