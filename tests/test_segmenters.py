"""Semantic segmentation networks: the published ones to the number, and what holds for all."""

import importlib.util
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from boxsup_d2.checkpoint import BoxSupCheckpointer
from boxsup_d2.checkpoint.checkpointer import recognise
from boxsup_d2.config import add_boxsup_config
from boxsup_d2.modeling.backbone import DilatedResNet, VGG16LargeFOV
from boxsup_d2.modeling.deeplab import DeepLabSegmenter, SemanticSegmenterWithTTA
from boxsup_d2.modeling.deeplab.checkpoints import convert_torchvision_vgg16, is_torchvision_vgg16
from boxsup_d2.modeling.deeplab.meta_arch import reduce_labels
from boxsup_d2.modeling.sem_seg_heads import ASPPSumHead, LargeFOVHead

BGR_MEAN = [104.008, 116.669, 122.675]


def published_cfg(kind: str, num_classes: int = 21):
    cfg = get_cfg()
    add_boxsup_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "DeepLabSegmenter"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = BGR_MEAN, [1.0, 1.0, 1.0]
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NUM_CLASSES = num_classes
    if kind == "vgg16":
        cfg.MODEL.BACKBONE.NAME = "build_vgg16_largefov_backbone"
        head.NAME, head.IN_FEATURES, head.CONVS_DIM = "LargeFOVHead", ["conv5"], 1024
    else:
        cfg.MODEL.BACKBONE.NAME = "build_resnet_deeplab_backbone"
        cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.STEM_MAX_POOL = 101, False
        head.NAME, head.IN_FEATURES, head.MSC_SCALES = "ASPPSumHead", ["res5"], (0.5, 0.75)
    return cfg


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden"
    spec = importlib.util.spec_from_file_location("fill", folder / "fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    shapes = json.loads((folder / "lpg_models_shapes.json").read_text())
    return fill.fill_state, shapes, np.load(folder / "lpg_models.npz")


def load_published(cfg, state, tmp_path):
    file = tmp_path / "published.pth"
    torch.save(state, file)
    model = build_model(cfg)
    BoxSupCheckpointer(model).load(str(file))
    return model


def close(ours: torch.Tensor, reference: np.ndarray) -> bool:
    reference = torch.from_numpy(reference)
    return ours.shape == reference.shape and ((ours - reference).norm() / reference.norm()).item() <= 1e-4


@pytest.mark.parametrize(("name", "classes"), [("deeplab_largefov_vgg16", 21), ("deeplab_largefov_vgg16_61", 61)])
def test_published_largefov_checkpoint_gives_the_published_logits(golden, tmp_path, name, classes):
    fill_state, shapes, numbers = golden
    model = load_published(published_cfg("vgg16", classes), fill_state(shapes[name]), tmp_path).eval()
    inputs = torch.from_numpy(numbers[f"{name}.input"])
    with torch.no_grad():
        assert close(model.scale_logits(inputs)[-1], numbers[f"{name}.out0"])
        # The golden input is normalised; the same through the public way in.
        images = inputs + model.pixel_mean
        assert torch.allclose(model.class_logits(images), model.scale_logits(inputs)[-1], rtol=1e-3, atol=1e-3)


def test_published_multi_scale_checkpoint_gives_the_published_logits(golden, tmp_path):
    fill_state, shapes, numbers = golden
    name = "deeplabv2_r101_msc_eval"
    model = load_published(published_cfg("resnet"), fill_state(shapes[name]), tmp_path).train()
    with torch.no_grad():
        logits = model.scale_logits(torch.from_numpy(numbers[f"{name}.input"]))
    assert len(logits) == 4
    for i, ours in enumerate(logits):
        assert close(ours, numbers[f"deeplabv2_r101_msc_train_frozenbn.out{i}"]), i
    # Frozen statistics are the same in evaluation; the maximum is the result.
    assert close(logits[-1], numbers[f"{name}.out0"])


def test_published_parameters_all_find_their_place(golden, tmp_path):
    fill_state, shapes, _ = golden
    for name, cfg in [
        ("deeplab_largefov_vgg16", published_cfg("vgg16")),
        ("deeplabv2_r101_msc_eval", published_cfg("resnet")),
    ]:
        state = fill_state(shapes[name])
        converted = recognise({"model": state})["model"]
        assert len(converted) == len(state)
        model = build_model(cfg).state_dict()
        assert {key for key in converted if not key.endswith("num_batches_tracked")} == set(model)
        single = {key.removeprefix("base."): value for key, value in state.items()}
        assert set(recognise({"model": single})["model"]) == set(converted), "the same without the prefix"


# ------------------------------------------------------------------------------------------------- ImageNet weights
def test_torchvision_vgg16_becomes_the_trunk_and_fc6_and_fc7():
    names = VGG16LargeFOV().features.state_dict()
    state = {f"features.{name}": torch.rand(value.shape) for name, value in names.items()}
    assert is_torchvision_vgg16(state)
    assert set(convert_torchvision_vgg16(state)) == {f"backbone.{name}" for name in state}
    # Expanded views instead of half a gigabyte.
    state["classifier.0.weight"] = torch.arange(512 * 49.0).expand(4096, -1)
    state["classifier.0.bias"] = torch.arange(4096.0)
    state["classifier.3.weight"] = torch.arange(4096.0).expand(4096, -1)
    state["classifier.3.bias"] = torch.arange(4096.0) + 1
    state["classifier.6.weight"] = torch.zeros(1000, 1)
    converted = recognise({"model": state})["model"]
    fc6, fc7 = converted["sem_seg_head.fc6.weight"], converted["sem_seg_head.fc7.weight"]
    assert fc6.shape == (1024, 512, 3, 3)
    assert fc6[5, 7, 1, 2] == 7 * 49 + 3 * 7 + 6
    assert converted["sem_seg_head.fc6.bias"][3] == 12
    assert fc7.shape == (1024, 1024, 1, 1)
    assert fc7[9, 3] == 12
    assert converted["sem_seg_head.fc7.bias"][1] == 5
    assert not any("fc8" in name or "classifier" in name for name in converted)


def test_torchvision_vgg16_names_are_ours():
    with torch.device("meta"):
        theirs = torchvision.models.vgg16()
    assert is_torchvision_vgg16(theirs.state_dict())
    assert {k: v.shape for k, v in theirs.features.state_dict().items()} == {
        k: v.shape for k, v in VGG16LargeFOV().features.state_dict().items()
    }
    with torch.device("meta"):
        assert not is_torchvision_vgg16(torchvision.models.vgg16_bn().state_dict())
        assert not is_torchvision_vgg16(torchvision.models.vgg19().state_dict())


def test_torchvision_resnet_loads_and_computes_the_same_up_to_the_holes(tmp_path):
    theirs = ResNet(Bottleneck, [1, 1, 1, 1])
    for name, buffer in theirs.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    file = tmp_path / "resnet.pth"
    torch.save(theirs.state_dict(), file)
    model = nn.Module()
    model.backbone = DilatedResNet(blocks=[1, 1, 1, 1], norm="BN")
    BoxSupCheckpointer(model).load(str(file))
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name
    theirs.eval()
    ours = model.backbone.eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        stem = theirs.layer2(theirs.layer1(theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))))
        expected = ours.layer4(ours.layer3(stem))
        assert torch.allclose(ours(x)["res5"], expected, atol=1e-5)
        # Without stride and with dilation 2, the first block's output at even positions is that of torchvision's
        # strided block with the same dilation.
        theirs.layer3[0].conv2.dilation = theirs.layer3[0].conv2.padding = (2, 2)
        assert torch.allclose(ours.layer3(stem)[..., ::2, ::2], theirs.layer3(stem), atol=1e-5)


def test_every_3x3_convolution_of_res4_and_res5_is_dilated_and_none_strides():
    net = DilatedResNet(blocks=[1, 1, 3, 2])
    for stage, dilation in ((net.layer3, 2), (net.layer4, 4)):
        for block in stage:
            assert block.conv2.dilation == block.conv2.padding == (dilation, dilation)
            assert block.conv2.stride == block.conv1.stride == (1, 1)
        assert stage[0].downsample[0].stride == (1, 1)


@pytest.mark.parametrize(("pool", "stride"), [(True, 8), (False, 4)])
def test_stem_pool_decides_the_stride(pool, stride):
    net = DilatedResNet(blocks=[1, 1, 1, 1], stem_max_pool=pool)
    assert net.output_shape()["res5"].stride == stride
    with torch.no_grad():
        assert net(torch.rand(1, 3, 33, 49))["res5"].shape == (1, 2048, 32 // stride + 1, 48 // stride + 1)


def test_batch_norms_of_the_resnet_are_frozen_unless_asked_for():
    assert not any(isinstance(m, nn.BatchNorm2d) for m in DilatedResNet(blocks=[1, 1, 1, 1]).modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in DilatedResNet(blocks=[1, 1, 1, 1], norm="BN").modules())


# ------------------------------------------------------------------------------------------------- heads
def test_aspp_is_the_sum_of_its_convolutions():
    head = ASPPSumHead(in_feature="x", in_channels=3, num_classes=4)
    assert [conv.dilation[0] for conv in head.convs] == [6, 12, 18, 24]
    assert all((conv.bias == 0).all() for conv in head.convs)
    x = torch.rand(2, 3, 9, 7)
    assert torch.allclose(head.layers({"x": x}), sum(conv(x) for conv in head.convs))


def test_largefov_head_drops_whole_channels_in_training_only():
    torch.manual_seed(0)
    head = LargeFOVHead(in_feature="x", in_channels=3, num_classes=4, hidden_channels=64)
    x = {"x": torch.rand(1, 3, 5, 5)}
    assert torch.equal(head.eval().layers(x), head.layers(x))
    head.train()
    with torch.no_grad():
        nn.init.zeros_(head.fc6.weight)
        head.fc6.bias.fill_(1)
        head.fc7.weight.copy_(torch.eye(64)[:, :, None, None])
        nn.init.ones_(head.fc8.weight)
        outs = [head.layers(x) for _ in range(5)]
    assert all((out == out[..., :1, :1]).all() for out in outs), "a channel is dropped at all pixels or at none"
    assert len({out[0, 0, 0, 0].item() for out in outs}) > 1


def test_heads_of_one_map_refuse_several_and_unknown_ones():
    cfg = published_cfg("vgg16")
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["p2", "p3"]
    with pytest.raises(ValueError, match=r"IN_FEATURES.*p2.*conv5"):
        build_model(cfg)
    cfg = published_cfg("resnet")
    cfg.MODEL.RESNETS.DEPTH = 18
    with pytest.raises(ValueError, match=r"MODEL.RESNETS.DEPTH 18.*101"):
        build_model(cfg)


# ------------------------------------------------------------------------------------------------- meta-architecture
class EveryPixel(nn.Module):
    """A backbone that picks every ``stride``-th pixel, so that what a network makes of an image is known."""

    def __init__(self, stride: int = 4, size_divisibility: int = 0):
        super().__init__()
        self.stride, self.size_divisibility = stride, size_divisibility
        self.seen = []

    def output_shape(self):
        return {"x": ShapeSpec(channels=3, stride=self.stride)}

    def forward(self, x):
        self.seen.append(tuple(x.shape[-2:]))
        assert self.size_divisibility < 2 or not any(side % self.size_divisibility for side in x.shape[-2:])
        return {"x": x[..., :: self.stride, :: self.stride]}


class Pass(nn.Module):
    """A head whose logits are a 1×1 convolution, at first the identity."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        nn.init.dirac_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def layers(self, features):
        return self.conv(features["x"])


def toy_segmenter(backbone=None, **kwargs) -> DeepLabSegmenter:
    return DeepLabSegmenter(
        backbone=backbone or EveryPixel(),
        sem_seg_head=Pass(),
        pixel_mean=[0.0, 0.0, 0.0],
        pixel_std=[1.0, 1.0, 1.0],
        num_classes=3,
        **kwargs,
    )


def samples(count=2, side=33, classes=3):
    return [
        {
            "image": torch.randint(0, 256, (3, side, side), dtype=torch.uint8),
            "sem_seg": torch.randint(0, classes, (side, side)),
        }
        for _ in range(count)
    ]


def slow_loss(logits, labels, ignore, scale=1.0, stride=4):
    """Pixel by pixel."""
    logits = logits.detach()
    n, _, h, w = logits.shape
    total, count = 0.0, 0
    for i in range(n):
        for y in range(h):
            for x in range(w):
                row, column = (
                    min(round((stride * at + 0.5) / scale - 0.5), side - 1)
                    for at, side in zip((y, x), labels.shape[1:], strict=True)
                )
                label = int(labels[i, row, column])
                if label != ignore:
                    total -= float(logits[i, :, y, x].log_softmax(0)[label])
                    count += 1
    return total / max(count, 1)


@pytest.mark.parametrize("size", [(33, 64), (65, 16), (321, 70)])
def test_labels_are_those_of_the_pixels_that_logits_stand_for(size):
    """A network that finds the label in every eighth pixel makes no mistake, also far from the first."""
    model = toy_segmenter(EveryPixel(stride=8)).train()
    labels = torch.randint(0, 3, size)
    image = 255 * F.one_hot(labels, 3).permute(2, 0, 1)
    assert model([{"image": image, "sem_seg": labels}])["loss_sem_seg"].item() < 1e-6


def test_labels_of_scaled_images_are_those_under_their_pixels():
    """Of an image of half the size, pixel (y, x) lies between 2y and 2y + 1."""
    labels = torch.arange(32).expand(1, 32, 32)
    assert reduce_labels(labels, (16, 16), 0.5)[0, 0].tolist() == [round(2 * x + 0.5) for x in range(16)]
    assert reduce_labels(labels, (4, 4), 0.5)[0, 0].tolist() == [round(8 * x + 0.5) for x in range(4)]
    assert reduce_labels(labels, (8, 4))[0, 0].tolist() == [0, 8, 16, 24]


@pytest.mark.parametrize("scales", [(), (0.5, 0.75)])
def test_losses_have_the_same_keys_and_reach_every_parameter(scales):
    model = toy_segmenter(msc_scales=scales).train()
    batch = samples()
    losses = model(batch)
    expected = {"loss_sem_seg"}
    if scales:
        expected |= {"loss_sem_seg_x0.5", "loss_sem_seg_x0.75", "loss_sem_seg_max"}
    assert set(losses) == expected
    sum(losses.values()).backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    for sample in batch:
        sample["sem_seg"] = torch.full_like(sample["sem_seg"], 255)
    model.zero_grad()
    empty = model(batch)
    assert set(empty) == expected
    sum(empty.values()).backward()
    assert all(value.item() == 0 for value in empty.values())
    assert all((p.grad == 0).all() for p in model.parameters())


def test_losses_of_several_scales_are_each_at_its_own_size():
    model = toy_segmenter(msc_scales=(0.5, 0.75)).train()
    batch = samples(side=65)
    losses = model(batch)
    labels = torch.stack([x["sem_seg"] for x in batch])
    logits = model.scale_logits(model.normalize(torch.stack([x["image"] for x in batch])))
    assert [tuple(x.shape[-2:]) for x in logits] == [(17, 17), (8, 8), (12, 12), (17, 17)]
    for own, name, scale in zip(logits, ["", "_x0.5", "_x0.75", "_max"], [1, 0.5, 0.75, 1], strict=True):
        assert losses[f"loss_sem_seg{name}"].item() == pytest.approx(slow_loss(own, labels, 255, scale), rel=1e-4)
    resized = [F.interpolate(x, (17, 17), mode="bilinear", align_corners=False) for x in logits[:3]]
    assert torch.allclose(logits[3], torch.stack(resized).amax(0))


def test_padding_to_the_backbones_need_brings_no_labels_and_is_cut_off_again():
    model = toy_segmenter(EveryPixel(stride=4, size_divisibility=32))
    batch = samples(side=50)
    loss = model.train()(batch)["loss_sem_seg"]
    plain = toy_segmenter(EveryPixel(stride=4)).train()
    for sample in batch:  # the same padding by hand
        sample["image"] = F.pad(sample["image"], (0, 14, 0, 14))
        sample["sem_seg"] = F.pad(sample["sem_seg"], (0, 14, 0, 14), value=255)
    assert loss.item() == pytest.approx(plain(batch)["loss_sem_seg"].item(), rel=1e-5)
    images = torch.rand(2, 3, 50, 70) * 255
    assert torch.equal(model.eval().class_logits(images), toy_segmenter().eval().class_logits(images))


@pytest.mark.parametrize(("pad", "divisibility", "seen"), [(0, 0, (33, 53)), (65, 0, (65, 65)), (40, 32, (64, 64))])
def test_inference_puts_pixels_where_they_were(pad, divisibility, seen):
    """The network picks every fourth pixel of a ramp; upsampling gives the ramp back, whatever the padding."""
    model = toy_segmenter(EveryPixel(4, divisibility), test_pad=pad).eval()
    y, x = torch.meshgrid(torch.arange(33.0), torch.arange(50.0), indexing="ij")
    image = torch.stack([y / 20, x / 20, torch.ones_like(x)])
    (out,) = model([{"image": image, "height": 33, "width": 50}])
    expected = image.softmax(dim=0)
    assert model.backbone.seen == [seen]
    inner = out["sem_seg"][:, :29, :45]  # beyond, the mean that the padding consists of mixes in
    assert torch.allclose(inner, expected[:, :29, :45], atol=1e-5)


def test_inference_gives_probabilities_in_the_wanted_frame_image_by_image():
    model = toy_segmenter(test_pad=65).eval()
    batch = [
        {"image": torch.randint(0, 256, (3, 40, 50)), "height": 80, "width": 100},
        {"image": torch.randint(0, 256, (3, 64, 30))},
        {"image": torch.randint(0, 256, (3, 20, 65)), "height": 20, "width": 65},
    ]
    outputs = model(batch)
    assert [tuple(x["sem_seg"].shape) for x in outputs] == [(3, 80, 100), (3, 64, 30), (3, 20, 65)]
    for sample, out in zip(batch, outputs, strict=True):
        assert torch.allclose(out["sem_seg"].sum(0), torch.ones(out["sem_seg"].shape[1:]), atol=1e-5)
        assert torch.allclose(out["sem_seg"], model([sample])[0]["sem_seg"], atol=1e-6)


def test_images_larger_than_the_padding_are_taken_whole():
    model = toy_segmenter(test_pad=33).eval()
    (out,) = model([{"image": torch.randint(0, 256, (3, 70, 20))}])
    assert out["sem_seg"].shape == (3, 70, 20)
    assert model.backbone.seen == [(73, 33)]


def test_detectron2s_fpn_head_on_a_timm_network_serves_as_a_small_segmenter():
    cfg = published_cfg("vgg16", num_classes=4)
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS = ["res2", "res3", "res4", "res5"], 8
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NAME, head.IN_FEATURES, head.CONVS_DIM = "SemSegFPNHead", ["p2", "p3", "p4", "p5"], 32
    head.TEST_PAD = 0
    model = build_model(cfg).train()
    losses = model(samples(2, side=81, classes=4))
    sum(losses.values()).backward()
    assert torch.isfinite(losses["loss_sem_seg"])
    model.eval()
    with torch.no_grad():
        assert model.class_logits(torch.rand(1, 3, 81, 100) * 255).shape == (1, 4, 21, 25)
    assert model(samples(1, side=81))[0]["sem_seg"].shape == (4, 81, 81)


# ------------------------------------------------------------------------------------------------- several scales
def test_one_scale_without_flip_is_the_model_itself():
    model = toy_segmenter().eval()
    (sample,) = samples(1)
    assert torch.equal(SemanticSegmenterWithTTA(model)([sample])[0]["sem_seg"], model([sample])[0]["sem_seg"])


def test_flipping_gives_the_mirrored_output_for_the_mirrored_image():
    model = toy_segmenter().eval()  # which picks columns 0, 4, 8 ...: not symmetric by itself in 32 columns
    image = torch.rand(3, 32, 32) * 4

    def ask(x, flip):
        return SemanticSegmenterWithTTA(model, (1.0, 0.75), flip)([{"image": x}])[0]["sem_seg"]

    assert torch.allclose(ask(image.flip(-1), True).flip(-1), ask(image, True), atol=1e-5)
    assert not torch.allclose(ask(image.flip(-1), False).flip(-1), ask(image, False), atol=1e-2)


def test_scales_are_averaged_in_the_original_frame():
    model = toy_segmenter(EveryPixel(stride=1)).eval()
    image = torch.randint(0, 3, (3, 24, 30)).float()
    both = SemanticSegmenterWithTTA(model, (0.5, 1.5))([{"image": image, "height": 48, "width": 60}])[0]["sem_seg"]
    assert model.backbone.seen == [(12, 15), (36, 45)]
    alone = [
        SemanticSegmenterWithTTA(model, (s,))([{"image": image, "height": 48, "width": 60}])[0]["sem_seg"]
        for s in (0.5, 1.5)
    ]
    assert both.shape == (3, 48, 60)
    assert torch.allclose(both, (alone[0] + alone[1]) / 2, atol=1e-6)
    with pytest.raises(ValueError, match="SEM_SEG_SCALES"):
        SemanticSegmenterWithTTA(model, ())
