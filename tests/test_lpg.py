"""LPG's generator: the published numbers, growth of its input, its loss, its segmenter, and labelling from boxes."""

import importlib.util
import json
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.structures import Boxes, Instances
from torch import nn
from torch.nn import functional as F

from boxsup_d2.checkpoint import BoxSupCheckpointer, grow_input_channels
from boxsup_d2.config import add_boxsup_config
from boxsup_d2.masks.label_map import covering_boxes, rasterize_boxes
from boxsup_d2.modeling.backbone import TimmBackbone
from boxsup_d2.modeling.box_to_mask import fill_boxes
from boxsup_d2.modeling.losses import pixel_cross_entropy
from boxsup_d2.modeling.lpg import LPG, HourglassBackbone
from boxsup_d2.modeling.lpg.checkpoint import convert_published_hourglass
from boxsup_d2.modeling.lpg.class_prompts import ClassPrompts, first_claim_labels
from boxsup_d2.modeling.lpg.frozen_segmenter import FrozenSegmenter
from boxsup_d2.modeling.lpg.windows import Window

MEAN = [104.008, 116.669, 122.675]
NAMES = ["background", "cat", "dog", "cow"]


@META_ARCH_REGISTRY.register()
class ToySegmenter(nn.Module):
    """Follows the contract of a segmenter: one convolution of stride 8, and a batch norm that must not learn."""

    def __init__(self, cfg=None):
        super().__init__()
        self.conv = nn.Conv2d(3, len(NAMES), 9, stride=8, padding=4)
        self.bn = nn.BatchNorm2d(len(NAMES))
        self.images = 0

    def class_logits(self, images):
        assert images.dtype == torch.float32
        self.images += len(images)
        return 4 * self.bn(self.conv(images / 64))


def toy_segmenter(image_format="BGR", names=NAMES):
    torch.manual_seed(7)
    return FrozenSegmenter(ToySegmenter(), names, image_format)


def small_cfg(backbone="build_hourglass_backbone"):
    """A narrow generator on the CPU."""
    cfg = get_cfg()
    add_boxsup_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "LPG"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = MEAN, [57.0, 57.0, 58.0]
    cfg.MODEL.BACKBONE.NAME = backbone
    cfg.MODEL.HOURGLASS.STEM_CHANNELS = 8
    cfg.MODEL.HOURGLASS.WIDTHS = [8, 8, 12]
    cfg.MODEL.HOURGLASS.MODULES = [1, 2, 2]
    cfg.MODEL.HOURGLASS.OUT_CHANNELS = 8
    cfg.MODEL.LPG.HEAD_CHANNELS = 8
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    if "fpn" in backbone:
        cfg.MODEL.LPG.IN_FEATURES = ["p2"]
    return cfg


def small_generator(segmenter=None, **changes):
    """A narrow generator whose predictions vary from pixel to pixel, in evaluation mode."""
    channels = 4 if segmenter is None else 5
    torch.manual_seed(3)
    backbone = HourglassBackbone(
        in_channels=channels, stem_channels=8, widths=[8, 8, 12], modules=[1, 2, 2], out_channels=8
    )
    settings = {"in_features": ["res2"], "head_channels": 8, "pixel_mean": MEAN, "pixel_std": [57.0, 57.0, 58.0]}
    model = LPG(backbone=backbone, segmenter=segmenter, **{**settings, **changes}).eval()
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.mul_(4)
        # Centred on the predictions to noise, so that both predictions occur.
        margin = model.logits(torch.randn(2, channels, 64, 64))
        model.head[2].bias -= margin.mean(dim=(0, 2, 3))
    return model


def prompts(boxes, classes, height, width, **extra):
    """One evaluation input: a noise image of patches, and its box prompts."""
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    patches = torch.randint(0, 256, (1, 3, -(-height // 7), -(-width // 7))).float()
    image = F.interpolate(patches, scale_factor=7.0)[0, :, :height, :width].to(torch.uint8)
    known = {"num_classes": 3, "class_names": NAMES[1:]}
    return {"image": image, "height": height, "width": width, "instances": instances, **known, **extra}


def mixed_prompts():
    """Images of several sizes: classes that return, overlap and lie outside, one image without prompts."""
    return [
        prompts([[3.7, 2.2, 40.9, 50.1], [10, 10, 60, 55], [30, 0, 62, 30]], [2, 0, 2], 60, 70),
        prompts([], [], 40, 40),
        prompts([[5, 5, 33, 30]], [1], 40, 45),
        prompts([[0, 0, 70, 60], [-20, -9, 30.5, 20], [200, 10, 300, 20]], [1, 0, 2], 58, 66),
    ]


def training_batch(count=3, size=64, ignored=False):
    box = torch.zeros(size, size, dtype=torch.bool)
    box[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = True
    target = torch.randint(0, 2, (count, size // 4, size // 4), dtype=torch.uint8)
    target[:, :2] = 255
    if ignored:
        target[:] = 255
    return [
        {
            "image": torch.randint(0, 256, (3, size, size), dtype=torch.uint8),
            "box_mask": box,
            "target": t,
            "class_id": index % 3,
        }
        for index, t in enumerate(target)
    ]


@pytest.fixture
def animals():
    """A registered data set with the segmenter's classes in another order."""
    name = "lpg_test_animals"
    MetadataCatalog.get(name).thing_classes = ["cow", "cat", "dog"]
    yield name
    MetadataCatalog.remove(name)


# ------------------------------------------------------------------------------------------- published numbers
@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden"
    spec = importlib.util.spec_from_file_location("fill", folder / "fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    shapes = json.loads((folder / "lpg_models_shapes.json").read_text())
    states = {r: fill.fill_state(shapes[f"lpg_hourglass_round{r}"]) for r in (1, 2)}
    return states, np.load(folder / "lpg_models.npz")


def published_model(rounds):
    cfg = get_cfg()
    add_boxsup_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_hourglass_backbone"
    arguments = LPG.from_config(cfg)
    if rounds == 2:
        arguments |= {"segmenter": toy_segmenter(), "backbone": HourglassBackbone(in_channels=5)}
    return LPG(**arguments).eval()


@pytest.mark.parametrize("rounds", [1, 2])
def test_published_generator_is_reproduced_through_the_checkpointer(golden, tmp_path, rounds):
    states, numbers = golden
    model = published_model(rounds)
    file = tmp_path / "published.pth"
    torch.save(states[rounds], file)
    BoxSupCheckpointer(model).load(str(file))
    converted = convert_published_hourglass(states[rounds])
    assert set(converted) == set(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(value, converted[name]), name
    with torch.no_grad():
        ours = model.logits(torch.from_numpy(numbers[f"lpg_hourglass_round{rounds}.input"]))
    reference = torch.from_numpy(numbers[f"lpg_hourglass_round{rounds}.out0"])
    assert ours.shape == reference.shape
    assert (ours - reference).norm() / reference.norm() <= 1e-4
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(12.12, abs=0.005)


def test_published_round_one_continues_as_round_two(golden, tmp_path):
    """The network starts as the round-1 network, whatever the new channel holds."""
    states, numbers = golden
    torch.save(states[1], tmp_path / "published.pth")
    model = published_model(2)
    BoxSupCheckpointer(model).load(str(tmp_path / "published.pth"))
    known = torch.from_numpy(numbers["lpg_hourglass_round1.input"])
    with torch.no_grad():
        ours = model.logits(torch.cat([torch.rand(len(known), 1, *known.shape[2:]), known], dim=1))
    reference = torch.from_numpy(numbers["lpg_hourglass_round1.out0"])
    assert (ours - reference).norm() / reference.norm() <= 1e-4


def test_stranger_among_published_parameters_is_named():
    with pytest.raises(ValueError, match=r"kps\.1\.up1"):
        convert_published_hourglass({"pre.0.conv.weight": torch.zeros(1), "kps.1.up1.0.conv1.weight": torch.zeros(1)})


# ------------------------------------------------------------------------------------------- growth
def test_grown_channels_are_zero_and_in_front():
    weight = torch.randn(5, 3, 2, 2)
    grown = grow_input_channels(weight, 5)
    assert torch.equal(grown[:, 2:], weight)
    assert not grown[:, :2].any()
    assert torch.equal(grow_input_channels(weight, 3), weight)
    with pytest.raises(ValueError, match=r"3 input channels.*2"):
        grow_input_channels(weight, 2)


@pytest.mark.parametrize("heuristics", [False, True])
def test_image_network_grows_through_the_checkpointer(tmp_path, heuristics):
    cfg = small_cfg("build_timm_fpn_backbone")
    model = build_model(cfg)
    assert model.input_convolution == "backbone.bottom_up.net.conv_stem.weight"
    prefix = "" if heuristics else "backbone.bottom_up.net."
    donor = TimmBackbone(name="tf_efficientnet_lite0")
    state = {prefix + name: value for name, value in donor.net.state_dict().items()}
    file = tmp_path / "image_network.pth"
    torch.save({"model": state, "matching_heuristics": heuristics}, file)
    BoxSupCheckpointer(model).load(str(file))
    ours = model.backbone.bottom_up.net.state_dict()
    for name, value in donor.net.state_dict().items():
        expected = grow_input_channels(value, 4) if name == "conv_stem.weight" else value
        assert torch.equal(ours[name], expected), name


def test_generator_that_sees_more_is_refused(tmp_path):
    torch.save({"model": small_generator(toy_segmenter()).state_dict()}, tmp_path / "round2.pth")
    with pytest.raises(RuntimeError, match=r"SEGMENTER_CONFIG"):
        BoxSupCheckpointer(small_generator()).load(str(tmp_path / "round2.pth"))


def test_timms_own_weights_grow_too(monkeypatch):
    original, donors = timm.create_model, []

    def offline(name, pretrained=False, **kwargs):
        net = original(name, **kwargs)
        if pretrained:
            assert kwargs.get("in_chans", 3) == 3, "timm would spread the image's weights over the other channels"
            donors.append(net)
        return net

    monkeypatch.setattr(timm, "create_model", offline)
    net = TimmBackbone(name="tf_efficientnet_lite0", pretrained=True, in_channels=5).net
    (donor,) = donors
    assert torch.equal(net.conv_stem.weight, grow_input_channels(donor.conv_stem.weight, 5))
    assert torch.equal(net.blocks[3][0].conv_pw.weight, donor.blocks[3][0].conv_pw.weight)


# ------------------------------------------------------------------------------------------- the network
def test_hourglass_says_what_it_gives():
    net = HourglassBackbone(in_channels=5, stem_channels=8, widths=[8, 8, 12], modules=[1, 2, 2], out_channels=6).eval()
    assert net.size_divisibility == 16
    (shape,) = net.output_shape().values()
    maps = net(torch.zeros(2, 5, 32, 48))
    assert maps["res2"].shape == (2, shape.channels, 32 // shape.stride, 48 // shape.stride)
    with pytest.raises(ValueError, match=r"multiples of 16.*32×40"):
        net(torch.zeros(1, 5, 32, 40))
    assert HourglassBackbone(in_channels=4).size_divisibility == 128


@pytest.mark.parametrize(("widths", "modules"), [([8], [2]), ([8, 8], [2]), ([8, 8], [0, 2]), ([8, 7], [1, 1])])
def test_impossible_hourglass_is_refused(widths, modules):
    with pytest.raises(ValueError, match=r"HOURGLASS.*WIDTHS"):
        HourglassBackbone(in_channels=4, widths=widths, modules=modules)


def test_features_of_another_stride_and_no_samples_are_refused():
    cfg = small_cfg("build_timm_fpn_backbone")
    cfg.MODEL.LPG.IN_FEATURES = ["p3", "p2"]
    with pytest.raises(ValueError, match="'p3' of stride 8"):
        build_model(cfg)
    cfg.MODEL.LPG.IN_FEATURES = ["res2"]
    with pytest.raises(ValueError, match=r"IN_FEATURES is \['res2'\], the backbone gives \['p2', "):
        build_model(cfg)
    cfg = small_cfg()
    cfg.MODEL.LPG.TEST_SAMPLES_PER_FORWARD = 0
    with pytest.raises(ValueError, match="TEST_SAMPLES_PER_FORWARD"):
        build_model(cfg)


def test_fewer_large_samples_go_through_the_network_at_once():
    model = small_generator(test_samples_per_forward=8)
    assert [model.samples_at_once(size) for size in [(64, 64), (512, 512), (512, 640), (4096, 6144)]] == [8, 8, 6, 1]


def test_batch_norms_are_folded_into_convolutions_where_nothing_is_learned():
    net = small_generator().backbone
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    used = []
    for norm in norms:
        norm.register_forward_hook(lambda *_: used.append(1))
        for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            nn.init.uniform_(values, 0.5, 1.5)
    image = torch.randn(2, 4, 64, 96)
    whole = net(image)["res2"]
    whole.sum().backward()  # also in evaluation, whoever wants gradients gets them
    assert all(parameter.grad is not None for parameter in net.parameters())
    used.clear()
    with torch.no_grad():
        folded = net(image)["res2"]
    assert not used
    assert (folded - whole).abs().max() <= 1e-5 * whole.abs().max()
    with torch.no_grad():
        net.train()(image)
    assert len(used) == len(norms), "in training the statistics of the batch count"


def test_autocast_does_not_gather_folded_weights(monkeypatch):
    net, plain, kept = small_generator().backbone, F.conv2d, []

    def convolve(x: torch.Tensor, weight: torch.Tensor, *args: Any) -> torch.Tensor:
        # Of such weights autocast keeps copies until its context ends, which may be that of a whole labelling.
        kept.append(weight.requires_grad and weight.is_leaf)
        return plain(x, weight, *args)

    monkeypatch.setattr(F, "conv2d", convolve)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        net(torch.randn(1, 4, 64, 64))
    assert kept
    assert not any(kept)


def test_windows_of_the_hourglass_are_parts_of_the_whole():
    net = small_generator().backbone
    image = torch.randn(5, 4, 96, 64)
    windows = [
        Window(0, 0, 1, 1),
        Window(3, 5, 4, 8),
        Window(7, 0, 24, 9),
        Window(0, 0, 24, 16),
        Window(21, 13, 24, 16),
    ]
    whole = net(image)["res2"]
    scale = whole.abs().max()
    for n, (part, window) in enumerate(zip(net.in_windows(image, windows), windows, strict=True)):
        assert part.shape == (1, 8, window.bottom - window.top, window.right - window.left)
        assert (part[0] - window.of(whole[n])).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize("size", [(128, 384), (64, 16)])
def test_windows_hold_all_that_decides_inside_the_boxes(size):
    """Changing the map outside its window changes no pixel inside the boxes."""
    for _ in range(30):
        corner = torch.rand(2) * torch.tensor([size[1], size[0]])
        box = torch.cat([corner, corner + torch.rand(2) * torch.tensor([size[1], size[0]]) / 2]).tolist()
        prompt = ClassPrompts.of(prompts([box], [0], *size))
        (window,) = prompt.windows(size)
        full, part = torch.rand(1, 1, size[0] // 4, size[1] // 4), torch.full((1, 1, size[0] // 4, size[1] // 4), 99.0)
        window.of(part).copy_(window.of(full))
        inside = prompt.unions(size, full.device)[0]
        a, b = (F.interpolate(m, size=size, mode="bilinear", align_corners=True)[0, 0, inside] for m in (full, part))
        assert len(a)
        assert torch.allclose(a, b, atol=1e-4)
        assert window.bottom - window.top <= (prompt.corners[0][3] - prompt.corners[0][1]) / 4 + 3


def test_input_channels_stand_in_the_published_order():
    model = small_generator(toy_segmenter())
    images, masks, probs = torch.rand(2, 3, 16, 16) * 255, torch.rand(2, 16, 16) > 0.5, torch.rand(2, 16, 16)
    x = model.network_input(images, masks, probs)
    assert torch.equal(x[:, 0], probs)
    assert torch.equal(x[:, 1], masks.float())
    assert torch.allclose(x[:, 2:], (images - model.pixel_mean) / model.pixel_std)
    assert torch.equal(small_generator().network_input(images, masks, None), x[:, 1:])


# ------------------------------------------------------------------------------------------- training
@pytest.mark.parametrize("backbone", ["build_hourglass_backbone", "build_timm_fpn_backbone"])
@pytest.mark.parametrize("ignored", [False, True])
def test_loss_reaches_every_parameter(backbone, ignored):
    model = build_model(small_cfg(backbone)).train()
    losses = model(training_batch(ignored=ignored))
    assert set(losses) == {"loss_mask"}
    assert torch.isfinite(losses["loss_mask"])
    assert (losses["loss_mask"].item() == 0) == ignored
    losses["loss_mask"].backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None], "parameters that DDP would wait for"
    gradients = [p.grad for p in model.backbone.parameters()]
    assert all(torch.isfinite(g).all() for g in gradients)
    assert any(g.any() for g in gradients) != ignored


def test_levels_are_joined_at_the_size_of_the_first():
    cfg = small_cfg("build_timm_fpn_backbone")
    cfg.MODEL.LPG.IN_FEATURES = ["p2", "p4"]
    model = build_model(cfg).train()
    assert model.logits(torch.randn(2, 4, 64, 96)).shape == (2, 2, 16, 24)


def test_pixel_cross_entropy_counts_labelled_pixels_only():
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    labels = torch.randint(0, 3, (2, 4, 5), dtype=torch.uint8)
    labels[0, 1:3] = 255
    total, count = 0.0, 0
    for n, y, x in np.ndindex(*labels.shape):
        if labels[n, y, x] != 255:
            total -= logits[n, :, y, x].log_softmax(0)[int(labels[n, y, x])].item()
            count += 1
    loss = pixel_cross_entropy(logits, labels)
    assert loss.item() == pytest.approx(total / count, rel=1e-5)
    loss.backward()
    assert not logits.grad[0, :, 1:3].any()
    for empty in (
        pixel_cross_entropy(logits, torch.full_like(labels, 255)),
        pixel_cross_entropy(logits[:0], labels[:0]),
    ):
        assert empty.item() == 0
        assert empty.requires_grad
    assert pixel_cross_entropy(logits.half() * 1000, labels).dtype == torch.float32


def test_training_under_autocast_gives_about_the_same_loss():
    model = build_model(small_cfg()).train()
    batch = training_batch()
    expected = model(batch)["loss_mask"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(batch)["loss_mask"]
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=0.05)


@pytest.mark.parametrize(("size", "divisor"), [(40, 4), (64, 8)])
def test_samples_that_do_not_fit_are_refused(size, divisor):
    model = build_model(small_cfg()).train()
    batch = training_batch(size=size)
    for sample in batch:
        sample["target"] = torch.zeros(size // divisor, size // divisor, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"INPUT.CLASS_CROP.SIZE"):
        model(batch)


# ------------------------------------------------------------------------------------------- the segmenter
def test_segmenter_is_no_part_of_the_generator():
    segmenter = toy_segmenter()
    model = small_generator(segmenter)
    own = {id(p) for p in model.parameters()} | {id(m) for m in model.modules()}
    assert not own & {id(x) for x in (segmenter.network, *segmenter.network.parameters())}
    assert set(model.state_dict()) == set(small_generator().state_dict())
    model.train()
    assert not segmenter.network.training
    assert not any(p.requires_grad for p in segmenter.network.parameters())


@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
def test_class_probabilities_are_the_softmax_of_upsampled_logits(image_format):
    segmenter = toy_segmenter(image_format)
    images = torch.rand(3, 3, 32, 48) * 255
    owners, channels = [0, 0, 2], [3, 1, 2]
    found = segmenter.class_probabilities(images, "BGR", owners, channels, batch=2)
    assert segmenter.network.images == 3
    for owner, channel, ours in zip(owners, channels, found, strict=True):
        image = images[owner : owner + 1]
        logits = segmenter.network.class_logits(image if image_format == "BGR" else image[:, [2, 1, 0]])
        reference = F.interpolate(logits, size=(32, 48), mode="bilinear", align_corners=True).softmax(dim=1)[0, channel]
        assert torch.allclose(ours, reference, atol=1e-6)
    assert found.requires_grad is False
    assert segmenter.class_probabilities(images, "BGR", [], [], batch=2).shape == (0, 32, 48)
    segmenter.class_names.append("sheep")
    with pytest.raises(ValueError, match=r"4 outputs.*CLASSES_OF.*5 classes"):
        segmenter.class_probabilities(images, "BGR", [0], [1], batch=2)


def test_training_shows_each_sample_the_probability_of_its_class(animals, monkeypatch):
    """Class ids count the data set's classes (cow, cat, dog), channels the segmenter's (cat, dog, cow)."""
    model = small_generator(toy_segmenter(), train_dataset=animals).train()
    batch, seen = training_batch(), []
    original = model.network_input
    monkeypatch.setattr(model, "network_input", lambda *a: seen.append(a) or original(*a))
    model(batch)["loss_mask"].backward()
    images, _, probabilities = seen[0]
    assert torch.equal(probabilities, model.segmenter.class_probabilities(images, "BGR", [0, 1, 2], [3, 1, 2], 8))
    assert model.backbone.stem.conv.weight.grad[:, 0].any()


def test_unknown_classes_are_one_clear_error(animals):
    segmenter = toy_segmenter(names=["background", "cat", "dog", "horse"])
    model = small_generator(segmenter, train_dataset=animals)
    with pytest.raises(ValueError, match=rf"{animals}.*1 classes.*cow.*knows cat, dog, horse"):
        model.train()(training_batch())
    with pytest.raises(ValueError, match=r"x.jpg.*cow"):
        model.eval()([prompts([[1, 1, 9, 9]], [0], 30, 30, file_name="x.jpg")])
    assert segmenter.network.images == 0
    with pytest.raises(ValueError, match=r"'x.jpg' comes without class_names"):
        model([prompts([[1, 1, 9, 9]], [0], 30, 30, file_name="x.jpg", class_names=None)])
    with pytest.raises(ValueError, match=r"DATASETS.TRAIN names 'nowhere'"):
        small_generator(segmenter, train_dataset="nowhere").train()(training_batch())


@pytest.fixture
def segmenter_files(tmp_path, animals):
    """Config and weights of a toy segmenter."""
    MetadataCatalog.get(animals).stuff_classes = NAMES
    content = {
        "MODEL": {
            "META_ARCHITECTURE": "ToySegmenter",
            "WEIGHTS": "detectron2://where/its/training/started.pkl",
            "SEM_SEG_HEAD": {"CLASSES_OF": animals},
        },
        "INPUT": {"FORMAT": "RGB"},
    }
    config, weights = tmp_path / "segmenter.yaml", tmp_path / "segmenter.pth"
    config.write_text(yaml.safe_dump(content))
    torch.save({"model": ToySegmenter().state_dict()}, weights)
    return config, weights


def test_segmenter_is_loaded_from_its_config(segmenter_files):
    config, weights = segmenter_files
    cfg = small_cfg()
    cfg.MODEL.LPG.SEGMENTER_CONFIG, cfg.MODEL.LPG.SEGMENTER_WEIGHTS = str(config), str(weights)
    model = build_model(cfg)
    assert model.in_channels == model.backbone.stem.conv.in_channels == 5
    assert model.segmenter.class_names == NAMES
    assert model.segmenter.image_format == "RGB"
    expected = torch.load(weights, weights_only=True)["model"]
    assert all(torch.equal(v, expected[k]) for k, v in model.segmenter.network.state_dict().items())


def test_segmenter_without_weights_is_built_but_not_used(segmenter_files):
    segmenter = FrozenSegmenter.load(str(segmenter_files[0]), "")
    with pytest.raises(RuntimeError, match=r"SEGMENTER_WEIGHTS"):
        segmenter.class_probabilities(torch.zeros(1, 3, 8, 8), "BGR", [0], [1], batch=1)


def test_files_that_are_no_trained_segmenter_are_named(segmenter_files, tmp_path):
    config, weights = segmenter_files
    with pytest.raises(FileNotFoundError, match=r"SEGMENTER_CONFIG.*nowhere.yaml"):
        FrozenSegmenter.load(str(tmp_path / "nowhere.yaml"), str(weights))
    with pytest.raises(FileNotFoundError, match=r"SEGMENTER_WEIGHTS.*nowhere.pth"):
        FrozenSegmenter.load(str(config), str(tmp_path / "nowhere.pth"))
    state = ToySegmenter().state_dict()
    for damage, message in [
        ({k: v for k, v in state.items() if k != "conv.bias"}, r"lacks 1 parameters.*conv.bias"),
        ({**state, "conv.bias": torch.zeros(21)}, r"conv.bias \(of shape \(4,\), not \(21,\)\)"),
    ]:
        torch.save({"model": damage}, weights)
        with pytest.raises(RuntimeError, match=message):
            FrozenSegmenter.load(str(config), str(weights))
    text = config.read_text()
    cfg = small_cfg()
    cfg.MODEL.LPG.SEGMENTER_WEIGHTS = str(weights)
    with pytest.raises(ValueError, match=r"SEGMENTER_WEIGHTS is set without MODEL.LPG.SEGMENTER_CONFIG"):
        build_model(cfg)
    for content, error, message in [
        (f"SOLVR: {{}}\n{text}", ValueError, r"segmenter.yaml: there is no config key SOLVR"),
        ("[not, yaml", ValueError, r"segmenter.yaml is not valid yaml"),
        (f"_BASE_: gone.yaml\n{text}", FileNotFoundError, r"segmenter.yaml has a _BASE_.*gone.yaml"),
    ]:
        config.write_text(content)
        with pytest.raises(error, match=message):
            FrozenSegmenter.load(str(config), "")
    config.write_text(text.replace("ToySegmenter", "BoxFill"))
    with pytest.raises(ValueError, match=r"BoxFill is no segmenter.*SEGMENTER_CONFIG"):
        FrozenSegmenter.load(str(config), "")
    config.write_text(text.replace("lpg_test_animals", "unheard_of"))
    with pytest.raises(ValueError, match=r"segmenter.yaml.*CLASSES_OF is 'unheard_of'"):
        FrozenSegmenter.load(str(config), "")
    with pytest.raises(ValueError, match=r"YUV"):
        toy_segmenter("YUV-BT.601")


# ------------------------------------------------------------------------------------------- boxes and labels
def test_boxes_cover_every_pixel_they_touch():
    boxes = torch.tensor(
        [
            [3.7, 2.2, 40.9, 50.1],
            [3, 2, 40, 50],
            [-5, -5, 4.5, 3],
            [7, 7, 7, 7],
            [60, 5, 99, 9],
            [-9, 1, -2, 5],
            [0, 0, 1e12, 1],
        ]
    )
    expected = [[3, 2, 41, 51], [3, 2, 40, 50], [0, 0, 5, 3], [7, 7, 8, 8]]
    corners = covering_boxes(boxes, (55, 60))
    assert corners[:4].tolist() == expected
    assert corners[6].tolist() == [0, 0, 60, 1]
    assert all((c[2] - c[0]) * (c[3] - c[1]) == 0 for c in corners[4:6])
    assert covering_boxes(boxes[:0], (5, 5)).shape == (0, 4)
    union = rasterize_boxes(boxes[:4], (55, 60))
    assert torch.equal(union, fill_boxes(torch.tensor(expected), (55, 60)).any(dim=0))
    assert not rasterize_boxes(boxes[4:6], (55, 60)).any()


def test_published_rule_of_truncated_inclusive_corners():
    """COCO boxes x, y, w, h: columns int(x) to int(x + w), the last included; those that end on a whole pixel apart."""
    for x, y, w, h in [(10.3, 5.5, 20.5, 7.25), (0.0, 0.4, 3.7, 9.9), (12.9, 3.1, 0.2, 0.3)]:
        published = torch.zeros(40, 50, dtype=torch.bool)
        published[int(y) : int(y + h) + 1, int(x) : int(x + w) + 1] = True
        assert torch.equal(rasterize_boxes(torch.tensor([[x, y, x + w, y + h]]), (40, 50)), published)


def test_first_class_keeps_its_pixels():
    masks = torch.rand(3, 9, 11) > 0.5
    classes = [4, 0, 2]
    labels = first_claim_labels(masks, classes)
    assert (labels.shape, labels.dtype) == ((9, 11), torch.int32)
    for y, x in np.ndindex(9, 11):
        first = next((k for k in range(3) if masks[k, y, x]), None)
        assert labels[y, x] == (0 if first is None else classes[first] + 1)
    assert not first_claim_labels(masks[:0], []).any()


# ------------------------------------------------------------------------------------------- labelling
def labels_step_by_step(model, item):
    """Section B3 as it is written: one image and one class at a time."""
    height, width = item["image"].shape[1:]
    side = model.backbone.size_divisibility
    padded = [-(-n // side) * side for n in (height, width)]
    image = model.pixel_mean.expand(3, *padded).clone()
    image[:, :height, :width] = item["image"]
    labels = torch.zeros(height, width, dtype=torch.int64)
    class_masks = {}
    for label in dict.fromkeys(item["instances"].gt_classes.tolist()):
        own = item["instances"].gt_boxes.tensor[item["instances"].gt_classes == label]
        union = torch.zeros(padded, dtype=torch.bool)
        union[:height, :width] = rasterize_boxes(own, (height, width))
        layers = [union[None].float(), (image - model.pixel_mean) / model.pixel_std]
        if model.segmenter is not None:
            logits = model.segmenter.network.class_logits(image[None])
            probability = F.interpolate(logits, size=padded, mode="bilinear", align_corners=True).softmax(dim=1)
            layers.insert(0, probability[:, NAMES.index(item["class_names"][label])])
        logits = model.logits(torch.cat(layers)[None])
        inside = F.interpolate(logits, size=padded, mode="bilinear", align_corners=True).argmax(dim=1)[0].bool() & union
        class_masks[label] = inside[:height, :width]
        labels[class_masks[label] & (labels == 0)] = label + 1
    return labels, class_masks


@pytest.mark.parametrize("samples", [1, 2, 8])
@pytest.mark.parametrize("with_segmenter", [False, True])
def test_inference_is_the_published_labelling(with_segmenter, samples):
    segmenter = toy_segmenter() if with_segmenter else None
    model = small_generator(segmenter, test_samples_per_forward=samples)
    inputs = mixed_prompts()
    outputs = model(inputs)
    if segmenter is not None:
        assert segmenter.network.images == 3, "an image goes through the segmenter once, and only where it has prompts"
    for item, output in zip(inputs, outputs, strict=True):
        with torch.no_grad():
            labels, class_masks = labels_step_by_step(model, item)
        assert output["label_map"].shape == (item["height"], item["width"])
        assert (output["label_map"] == labels).float().mean() > 0.999
        prediction = output["instances"]
        assert len(prediction) == len(item["instances"])
        assert torch.equal(prediction.pred_classes, item["instances"].gt_classes)
        assert torch.equal(prediction.pred_boxes.tensor, item["instances"].gt_boxes.tensor)
        for mask, box, label, score in zip(
            prediction.pred_masks, prediction.pred_boxes.tensor, prediction.pred_classes, prediction.scores, strict=True
        ):
            inside = rasterize_boxes(box[None], prediction.image_size)
            assert (mask == (class_masks[int(label)] & inside)).float().mean() > 0.999
            assert not (mask & ~inside).any()
            assert (0.5 < score <= 1) if mask.any() else score == 0
    labels = outputs[0]["label_map"]
    boxes = rasterize_boxes(inputs[0]["instances"].gt_boxes.tensor, (60, 70))
    assert 0.05 < (labels[boxes] > 0).float().mean() < 0.95, "a network that predictions alike everywhere tests nothing"


def test_images_without_prompts_and_boxes_outside_are_background():
    model = small_generator()
    inputs = [prompts([], [], 30, 40), prompts([[99, 3, 120, 9], [-9, -9, 0, 0]], [2, 1], 30, 40)]
    for output, count in zip(model(inputs), (0, 2), strict=True):
        assert output["instances"].pred_masks.shape == (count, 30, 40)
        assert not any(output["instances"].pred_masks.areas())
        assert not output["instances"].scores.any()
        assert output["label_map"].shape == (30, 40)
        assert not output["label_map"].any()
    assert model([]) == []


def test_classes_that_the_data_set_lacks_are_refused():
    model = small_generator()
    item = prompts([[1, 1, 20, 20], [5, 5, 30, 30]], [0, 2], 40, 40)
    with pytest.raises(ValueError, match=r"a.jpg.*\[0, 2\].*2 classes"):
        model([{**item, "num_classes": 2, "file_name": "a.jpg"}])
    del item["num_classes"], item["class_names"]
    assert len(model([item])[0]["instances"]) == 2


def test_flip_makes_the_prediction_symmetric():
    """Only of images that fill their padded size, others being padded on one side."""
    model = small_generator(toy_segmenter(), test_flip=True)
    item = prompts([[3, 2, 40, 50], [10, 10, 60, 55]], [2, 0], 64, 64)
    mirrored = dict(item, image=item["image"].flip(-1), instances=Instances((64, 64)))
    boxes = item["instances"].gt_boxes.tensor.clone()
    boxes[:, [0, 2]] = 64 - boxes[:, [2, 0]]
    mirrored["instances"].gt_boxes, mirrored["instances"].gt_classes = Boxes(boxes), item["instances"].gt_classes
    # The segmenter is asked once per image, so it has to be symmetric itself.
    with torch.no_grad():
        weight = model.segmenter.network.conv.weight
        weight.zero_()[..., 4, 4] = 1

    def prediction(x):
        return model([x])[0]["instances"].pred_masks.full()

    agreement = (prediction(item) == prediction(mirrored).flip(-1)).float().mean()
    model.test_flip = False
    assert (prediction(item) == prediction(mirrored).flip(-1)).float().mean() < agreement
    assert agreement > 0.9
