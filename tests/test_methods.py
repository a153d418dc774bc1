"""Methods by name, their configs and weights, and the two methods whose networks are other libraries'."""

import re
import sys

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch.nn import functional as F

from boxsup_d2.checkpoint import convert
from boxsup_d2.config import add_boxsup_config
from boxsup_d2.labelling.driver import build_provenance
from boxsup_d2.masks.box_masks import BoxMasks
from boxsup_d2.methods import file_config, load_model, method_config, methods
from boxsup_d2.model_zoo import get_config_file
from boxsup_d2.modeling.box_to_mask import MethodInfo, fill_boxes
from boxsup_d2.modeling.boxcaseg import checkpoint as boxcaseg_checkpoint
from boxsup_d2.modeling.lpg import checkpoint as lpg_checkpoint
from boxsup_d2.modeling.sam.meta_arch import load_network
from boxsup_d2.rounds.inputs import input_files
from boxsup_d2.same_work import split_settings, weights_path, weights_sha256

# Narrow networks of the two methods that are trained.
TINY_BOXCASEG = ["MODEL.TIMM.NAME", "hrnet_w18_small", "MODEL.BOXCASEG.HEAD_CHANNELS", 8]
TINY_LPG = ["MODEL.HOURGLASS.STEM_CHANNELS", 8, "MODEL.HOURGLASS.WIDTHS", [8, 12], "MODEL.HOURGLASS.MODULES", [1, 1]]
TINY_LPG += ["MODEL.HOURGLASS.OUT_CHANNELS", 8, "MODEL.LPG.HEAD_CHANNELS", 8]


def prompt(image, boxes):
    """An evaluation input: 3×H×W uint8 and boxes."""
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    size = tuple(image.shape[1:])
    instances = Instances(size, gt_boxes=Boxes(boxes), gt_classes=torch.arange(len(boxes)))
    return {"image": image, "height": size[0], "width": size[1], "instances": instances}


def predict(model, image, boxes):
    found = model([prompt(image, boxes)])[0]["instances"]
    assert isinstance(found.pred_masks, BoxMasks), "not in frames of the image"
    return found


def tiny_cfg(name):
    cfg = get_cfg()
    add_boxsup_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    own = ["MODEL.META_ARCHITECTURE", methods()[name].__name__]
    own += [part for pair in methods()[name].info.config.items() for part in pair]
    cfg.merge_from_list([*own, *(TINY_BOXCASEG if name == "boxcaseg" else TINY_LPG)])
    return cfg


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders as training leaves them: a checkpoint and its resolved config, of each method that is trained."""
    folders = {}
    for name in ("boxcaseg", "lpg"):
        folders[name] = tmp_path_factory.mktemp(name)
        cfg = tiny_cfg(name)
        cfg.DATASETS.TRAIN, cfg.PSEUDO_MASKS.DATASETS = ("voc_2012_train_box",), ("voc_2012_train_box",)
        cfg.PSEUDO_MASKS.FORMAT = "sem_seg"
        cfg.MODEL.WEIGHTS = "where/its/training/started.pth"
        # Another normalisation than the published one: the file's must be used.
        cfg.MODEL.PIXEL_MEAN = [1.0, 2.0, 3.0]
        torch.manual_seed(1)
        state = build_model(cfg).state_dict()
        (folders[name] / "config.yaml").write_text(cfg.dump())
        torch.save({"model": state, "iteration": 5}, folders[name] / "model_final.pth")
    return folders


# ------------------------------------------------------------------------------------------------ the registry
def test_registry_is_complete():
    assert {"box", "grabcut", "boxcaseg", "boxmask", "lpg", "salient-onnx", "sam"} <= set(methods())
    for name, method in methods().items():
        assert method.info.name == name
        assert method.info.summary
    assert {name for name, method in methods().items() if method.info.extra} == {"salient-onnx", "sam"}


def test_methods_without_weights_are_complete_configs():
    for name in ("box", "grabcut"):
        cfg = method_config(name, device="cpu", opts=["MODEL.GRABCUT.ITERATIONS", "2"])
        assert cfg.DATASETS.TRAIN == cfg.DATASETS.TEST == cfg.PSEUDO_MASKS.DATASETS == ()
        assert cfg.PSEUDO_MASKS.FORMAT == "instances"
        assert cfg.INPUT.FORMAT == "RGB"
        assert cfg.MODEL.GRABCUT.ITERATIONS == 2
        model = load_model(cfg)
        assert not model.training
        assert len(predict(model, torch.zeros(3, 9, 9, dtype=torch.uint8), [[1, 1, 5, 5]])) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "grabcat"}, r"no method 'grabcat'.*boxcaseg.*Did you mean 'grabcut'\?"),
        ({"name": "grabcut", "weights": "w.pth"}, r"'grabcut' has no weights.*'w\.pth'"),
        ({"name": "salient-onnx"}, r"needs weights.*\.onnx"),
        ({"name": "sam"}, r"needs weights.*hub name"),
        (
            {"name": "boxmask", "config_file": get_config_file("zoo/boxmask-finetune.yaml")},
            r"needs weights.*those that ship: leave it out",
        ),
        ({"name": "box", "device": "tpu9x"}, r"no device 'tpu9x'"),
        ({"name": "box", "opts": ["MODEL.GRABCUT.ITERATION", 3]}, r"Did you mean MODEL\.GRABCUT\.ITERATIONS"),
    ],
)
def test_wrong_arguments_are_one_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        method_config(**arguments)


def test_device_is_what_there_is():
    assert ("cuda" if torch.cuda.is_available() else "cpu") == method_config("box").MODEL.DEVICE
    assert method_config("box", opts=["MODEL.DEVICE", "cpu"]).MODEL.DEVICE == "cpu"
    with pytest.raises(ValueError, match=r"cuda:77.*not available"):
        method_config("box", device="cuda:77")


# ------------------------------------------------------------------------------------------------ trained weights
@pytest.mark.parametrize("name", ["boxcaseg", "lpg"])
def test_weights_alone_are_enough_where_training_left_them(trained, name):
    weights = trained[name] / "model_final.pth"
    cfg = method_config(name, str(weights), device="cpu")
    assert cfg.MODEL.PIXEL_MEAN == [1.0, 2.0, 3.0]
    assert str(weights) == cfg.MODEL.WEIGHTS
    assert cfg.DATASETS.TRAIN == cfg.PSEUDO_MASKS.DATASETS == ()
    assert cfg.PSEUDO_MASKS.FORMAT == "instances"
    model = load_model(cfg)
    expected = torch.load(weights, weights_only=True)["model"]
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    assert predict(model, image, [[5, 5, 30, 30], [0, 0, 50, 40]]).pred_masks.shape == (2, 40, 50)


def test_config_file_stands_in_for_one_beside_the_weights(trained, tmp_path):
    moved = tmp_path / "moved.pth"
    moved.write_bytes((trained["boxcaseg"] / "model_final.pth").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"moved\.pth.*config\.yaml.*not there"):
        method_config("boxcaseg", str(moved))
    config = str(trained["boxcaseg"] / "config.yaml")
    for cfg in (method_config("boxcaseg", str(moved), config), file_config(config, str(moved))):
        assert cfg.MODEL.TIMM.NAME == "hrnet_w18_small"
        assert str(moved) == cfg.MODEL.WEIGHTS


def test_weights_of_another_network_are_named(trained, tmp_path):
    lpg = trained["lpg"] / "model_final.pth"
    with pytest.raises(ValueError, match=r"config\.yaml' is the config of a LPG.*use the method 'lpg'"):
        method_config("boxcaseg", str(lpg))
    # The right config, but a checkpoint of another network: every parameter is missing.
    cfg = method_config("boxcaseg", str(lpg), str(trained["boxcaseg"] / "config.yaml"), device="cpu")
    with pytest.raises(
        RuntimeError, match=r"MODEL\.WEIGHTS '.*model_final\.pth' lacks .*it has others.*Give the config"
    ):
        load_model(cfg)


def test_missing_parameters_are_an_error_and_not_random(trained, tmp_path):
    state = torch.load(trained["boxcaseg"] / "model_final.pth", weights_only=True)["model"]
    lost = next(key for key in state if key.endswith("weight"))
    weights = tmp_path / "model_final.pth"
    torch.save({"model": {key: value for key, value in state.items() if key != lost}}, weights)
    (tmp_path / "config.yaml").write_text((trained["boxcaseg"] / "config.yaml").read_text())
    with pytest.raises(RuntimeError, match=rf"{re.escape(str(weights))}' lacks 1 parameters.*{re.escape(lost)}"):
        load_model(method_config("boxcaseg", str(weights), device="cpu"))


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_files_that_are_no_checkpoint_are_named(tmp_path, content):
    weights = tmp_path / "weights.pth"
    with pytest.raises(FileNotFoundError, match=r"'boxcaseg'.*weights\.pth"):
        method_config("boxcaseg", str(weights))
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.pth"):
        method_config("boxcaseg", str(weights))
    torch.save({}, weights)
    with pytest.raises(ValueError, match=r"weights\.pth' is no checkpoint"):
        method_config("boxcaseg", str(weights))


def test_rounds_config_is_refused(tmp_path):
    path = tmp_path / "rounds.yaml"
    path.write_text("ROUNDS:\n  - NAME: '1'\n    STEPS: []\n")
    with pytest.raises(ValueError, match=r"rounds\.yaml' is a rounds config"):
        method_config("grabcut", config_file=str(path))
    with pytest.raises(ValueError, match=r"rounds\.yaml' is a rounds config"):
        file_config(str(path), "weights.pth")
    path.write_text("MODEL:\n  META_ARCHITECTURE: PromptableRCNN\n")
    with pytest.raises(ValueError, match=r"PromptableRCNN: give its trained weights"):
        file_config(str(path))


# ------------------------------------------------------------------------------------------------ published weights
def published_boxcaseg(model):
    """A BoxCaseg's parameters in the published names."""
    names = {"backbone.net.": "", "box_head.": "last_layer.", "salient_head.": ""}
    state = {}
    for name, value in model.state_dict().items():
        ours = next(prefix for prefix in names if name.startswith(prefix))
        state["model." + names[ours] + name.removeprefix(ours)] = value
    return state


def published_hourglass(model):
    """An hourglass generator's parameters in the published names."""
    names = {"backbone.stem.": "pre.0.", "backbone.down.": "pre.1.", "backbone.hourglass.": "kps.0."}
    names |= {"backbone.out.": "cnvs.0.", "head.0.": "fm.0.0.conv.", "head.2.": "fm.0.1."}
    state = {}
    for name, value in model.state_dict().items():
        ours = next(prefix for prefix in names if name.startswith(prefix))
        state[names[ours] + name.removeprefix(ours)] = value
    return state


@pytest.mark.parametrize("name", ["boxcaseg", "lpg"])
def test_published_weights_select_the_published_config(tmp_path, name):
    model = build_model(tiny_cfg(name))
    state = published_boxcaseg(model) if name == "boxcaseg" else published_hourglass(model)
    weights, converted = tmp_path / "published.pth", tmp_path / "converted.pth"
    torch.save({"state_dict": state} if name == "boxcaseg" else state, weights)
    convert.convert_checkpoint(weights, converted)
    # A config that happens to lie beside it is not its own.
    (tmp_path / "config.yaml").write_text("MODEL:\n  PIXEL_MEAN: [1.0, 2.0, 3.0]\n")
    tiny = TINY_BOXCASEG if name == "boxcaseg" else TINY_LPG
    for path in (weights, converted):
        cfg = method_config(name, str(path), opts=tiny, device="cpu")
        published = boxcaseg_checkpoint if name == "boxcaseg" else lpg_checkpoint
        assert published.PIXEL_MEAN == cfg.MODEL.PIXEL_MEAN
        assert published.PIXEL_STD == cfg.MODEL.PIXEL_STD
        assert ("RGB" if name == "boxcaseg" else "BGR") == cfg.INPUT.FORMAT
        loaded = load_model(cfg)
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())
    full = method_config(name, str(weights), device="cpu")
    assert full.MODEL.TIMM.NAME == "hrnet_w48"
    assert full.MODEL.HOURGLASS.WIDTHS == [96, 96, 128, 128, 128, 192]
    other = "lpg" if name == "boxcaseg" else "boxcaseg"
    with pytest.raises(ValueError, match=rf"published\.pth' is a published .*method '{name}', not '{other}'"):
        method_config(other, str(weights))


def test_lpg_with_other_input_channels_says_what_is_missing(tmp_path):
    """A generator of a later round sees one channel more, for which it needs its segmenter."""
    model = build_model(tiny_cfg("lpg"))
    state = published_hourglass(model)
    stem = next(key for key in state if key.startswith("pre.0.") and state[key].ndim == 4)
    state[stem] = torch.cat([state[stem][:, :1], state[stem]], dim=1)
    weights = tmp_path / "round2.pth"
    torch.save(state, weights)
    cfg = method_config("lpg", str(weights), opts=TINY_LPG, device="cpu")
    with pytest.raises(RuntimeError, match=r"round2\.pth.*not \(8, 5, 7, 7\).*needs MODEL\.LPG\.SEGMENTER_CONFIG"):
        load_model(cfg)


# ------------------------------------------------------------------------------------------------ salient networks
def make_onnx(path, shape=(1, 3, 32, 32), outputs=1, double=False):
    """A graph without parameters: the mean of the channels is the foreground's probability."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.DOUBLE if double else onnx.TensorProto.FLOAT
    axes = helper.make_tensor("axes", onnx.TensorProto.INT64, [1], [1])
    nodes = [helper.make_node("ReduceMean", ["image", "axes"], ["grey"], keepdims=1)]
    nodes += [helper.make_node("Sigmoid", ["grey"], ["one"]), helper.make_node("Concat", ["one"] * 2, ["two"], axis=1)]
    name = "one" if outputs == 1 else "two"
    graph = helper.make_graph(
        nodes,
        "salient",
        [helper.make_tensor_value_info("image", kind, shape)],
        [helper.make_tensor_value_info(name, kind, [shape[0], outputs, *shape[2:]])],
        [axes],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(path))
    return str(path)


def bright_disc(size=(90, 120), centre=(60, 40), radius=20):
    """A bright disc on dark noise: image (3×H×W uint8) and mask (H×W bool)."""
    y, x = np.mgrid[: size[0], : size[1]]
    disc = (x + 0.5 - centre[0]) ** 2 + (y + 0.5 - centre[1]) ** 2 < radius**2
    image = np.random.default_rng(0).integers(0, 30, (3, *size)) + np.where(disc, 200, 0)
    return torch.from_numpy(image.astype(np.uint8)), torch.from_numpy(disc)


def iou(a, b):
    return ((a & b).sum() / (a | b).sum()).item()


DISC_BOXES = [[40, 20, 80, 60], [35.5, 12.2, 85.9, 70.1], [40, 20, 60, 60], [-30, 10, 70, 300]]


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), ("n", 3, "h", "w"), (3, 3, 32, 48), (None, 3, 32, 32)])
def test_salient_object_of_each_box(tmp_path, shape):
    pytest.importorskip("onnxruntime")
    path = make_onnx(tmp_path / "net.onnx", shape)
    cfg = method_config("salient-onnx", path, opts=["MODEL.SALIENT_ONNX.SIZE", 64], device="cpu")
    model = load_model(cfg)
    side = (64, 64) if isinstance(shape[2], str) else shape[2:]
    assert model.network.size == side
    image, disc = bright_disc()
    result = predict(model, image, DISC_BOXES)
    for mask, box in zip(result.pred_masks, torch.tensor(DISC_BOXES), strict=True):
        inside = fill_boxes(box[None], tuple(disc.shape))[0]
        assert not (mask & ~inside).any(), "masks are cut to their boxes"
        assert iou(mask, disc & inside) > 0.85
    assert ((result.scores > 0.5) & (result.scores <= 1)).all()
    # Boxes share forward passes, and nothing else.
    alone = [predict(model, image, [box]) for box in DISC_BOXES]
    assert torch.equal(result.pred_masks.full(), torch.stack([one.pred_masks[0] for one in alone]))
    assert torch.allclose(result.scores, torch.cat([one.scores for one in alone]))
    assert len(predict(model, image, [])) == 0
    with pytest.raises(RuntimeError, match="--eval-only"):
        model.train()([prompt(image, DISC_BOXES)])


def test_salient_crop_and_score_by_a_slow_reference(tmp_path):
    """The window is the box and a tenth of its sides around it; the score is the mean probability over the mask."""
    pytest.importorskip("onnxruntime")
    model = load_model(method_config("salient-onnx", make_onnx(tmp_path / "net.onnx"), device="cpu"))
    image, _ = bright_disc()
    corners = torch.tensor([[40, 20, 80, 60], [0, 0, 30, 90]])
    windows = model.windows(corners, tuple(image.shape[1:]))
    assert windows.tolist() == [[36, 16, 84, 64], [0, 0, 33, 90]]
    mean, std = (torch.tensor(values)[:, None, None] for values in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))
    crop = F.interpolate(image[None, :, 16:64, 36:84].float(), (32, 32), mode="bilinear", antialias=True)[0]
    crop = (crop - mean) / std
    assert torch.allclose(model.crops(image, windows[:1])[0], crop, atol=1e-5)
    probs = crop.mean(dim=0).sigmoid()
    inside = (probs - probs.min()) / (probs.max() - probs.min()) > 0.5
    result = predict(model, image, [[40, 20, 80, 60]])
    assert result.scores[0].item() == pytest.approx(probs[inside].mean().item(), rel=1e-4)


def test_one_colour_is_the_filled_box(tmp_path):
    pytest.importorskip("onnxruntime")
    model = load_model(method_config("salient-onnx", make_onnx(tmp_path / "net.onnx"), device="cpu"))
    for size, box in [((20, 30), [3, 4, 20, 15]), ((1, 1), [0, 0, 1, 1]), ((2, 9), [0, 0, 9, 2])]:
        masks = predict(model, torch.full((3, *size), 90, dtype=torch.uint8), [box]).pred_masks.full()
        assert torch.equal(masks, fill_boxes(torch.tensor([box]), size))


def test_salient_files_that_do_not_fit_are_named(tmp_path):
    pytest.importorskip("onnxruntime")

    def load(path, *opts):
        return load_model(method_config("salient-onnx", str(path), opts=opts, device="cpu"))

    with pytest.raises(FileNotFoundError, match=r"nowhere\.onnx"):
        load(tmp_path / "nowhere.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"broken\.onnx' cannot be read as an ONNX network") as caught:
        load(tmp_path / "broken.onnx")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"grey\.onnx' is no network of N×3"):
        load(make_onnx(tmp_path / "grey.onnx", (1, 1, 32, 32)))
    with pytest.raises(ValueError, match=r"double\.onnx' takes tensor\(double\)"):
        load(make_onnx(tmp_path / "double.onnx", double=True))
    two = load(make_onnx(tmp_path / "two.onnx", outputs=2))
    with pytest.raises(ValueError, match=r"two\.onnx' gives \[1, 2, 32, 32\]"):
        predict(two, bright_disc()[0], DISC_BOXES)
    good = make_onnx(tmp_path / "good.onnx")
    with pytest.raises(ValueError, match=r"SALIENT_ONNX\.CONTEXT"):
        load(good, "MODEL.SALIENT_ONNX.CONTEXT", -0.1)
    with pytest.raises(ValueError, match=r"CROPS_PER_FORWARD"):
        load(good, "MODEL.SALIENT_ONNX.CROPS_PER_FORWARD", 0)


def test_onnx_file_is_part_of_a_labellings_identity(tmp_path, monkeypatch):
    """Its weights are in no state_dict: without the file's hash, other weights would look like the same labelling."""
    pytest.importorskip("onnxruntime")

    def provenance(path):
        cfg = method_config("salient-onnx", path, device="cpu")
        return build_provenance(cfg, load_model(cfg), "voc_2012_val_box", [], weights_path(cfg))

    first, second = make_onnx(tmp_path / "a.onnx"), make_onnx(tmp_path / "b.onnx")
    other = make_onnx(tmp_path / "c.onnx", (1, 3, 64, 64))
    hashes = [provenance(path)["checkpoint_sha256"] for path in (first, second, other)]
    assert hashes[0] == hashes[1] != hashes[2]
    configs = {provenance(path)["config_sha256"] for path in (first, second, other)}
    assert len(configs) == 1, "where the file lies does not count"
    assert provenance(first)["checkpoint"] == first
    cfg = method_config("salient-onnx", first, device="cpu")
    files = input_files(cfg, trains=False, from_steps=(), made=())
    assert [file.path for file in files.values()] == [first]


def test_settings_of_these_methods_decide_labels_only():
    split = split_settings({"MODEL.SALIENT_ONNX.CONTEXT": 0.2, "MODEL.SAM.CUT_TO_BOX": False, "MODEL.FPN.NORM": "GN"})
    assert set(split.labelling) == {"MODEL.SALIENT_ONNX.CONTEXT", "MODEL.SAM.CUT_TO_BOX"}
    assert set(split.training) == {"MODEL.FPN.NORM"}


def test_declarations_reach_no_further_than_they_say(monkeypatch):
    """A key that begins like a declared one is another key, and a method speaks for its own sections only."""
    greedy = MethodInfo(inference_keys=("MODEL.SAM.CUT",), neutral_keys=("INPUT.MAX_SIZE_TEST",))
    monkeypatch.setattr(methods()["sam"], "info", greedy)
    split = split_settings({"MODEL.SAM.CUT_TO_BOX": False, "MODEL.SAM.CUT": 1, "INPUT.MAX_SIZE_TEST": 5})
    assert set(split.training) == {"MODEL.SAM.CUT_TO_BOX"}
    assert set(split.labelling) == {"MODEL.SAM.CUT", "INPUT.MAX_SIZE_TEST"}


def test_two_methods_of_one_name_are_refused(monkeypatch):
    monkeypatch.setattr(methods()["sam"], "info", MethodInfo(name="lpg"))
    with pytest.raises(ValueError, match=r"Two methods are called 'lpg': .*LPG and .*SAM"):
        methods()


# ------------------------------------------------------------------------------------------------ Segment Anything
def save(network, processor, folder):
    """Save both, with qualities of the three proposals whose best is not the same for all of SAM_BOXES.

    Random networks prefer one proposal for every box; centred on their means over the boxes, none can always be best.
    """
    head, seen = network.mask_decoder.iou_prediction_head.proj_out, []
    with torch.no_grad():
        head.weight.mul_(100)
        handle = head.register_forward_hook(lambda module, inputs, output: seen.append(output.reshape(-1, 4)))
        proposals(network.eval(), processor, noise(), SAM_BOXES)
        handle.remove()
        head.bias.sub_(torch.cat(seen).mean(dim=0))
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def noise():
    """An image for SAM_BOXES: 3×40×100 uint8."""
    return torch.randint(0, 256, (3, 40, 100), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def save_sam(folder):
    """A SAM of 22,000 random parameters that sees 64 pixels, as transformers saves it."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.sam.configuration_sam import SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig

    vision = SamVisionConfig(
        hidden_size=16, output_channels=16, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=8,
        mlp_ratio=2.0, window_size=4, global_attn_indexes=[1], num_pos_feats=8, mlp_dim=32,
    )  # fmt: skip
    prompts = SamPromptEncoderConfig(hidden_size=16, image_size=64, patch_size=8, mask_input_channels=4)
    decoder = SamMaskDecoderConfig(
        hidden_size=16, mlp_dim=32, num_hidden_layers=2, num_attention_heads=2, iou_head_hidden_dim=16
    )
    parts = {"vision_config": vision, "prompt_encoder_config": prompts, "mask_decoder_config": decoder}
    config = transformers.SamConfig(**{key: part.to_dict() for key, part in parts.items()})
    torch.manual_seed(0)
    network = transformers.SamModel(config)
    sizes = {"size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 64}}
    masks = {"mask_size": {"longest_edge": 16}, "mask_pad_size": {"height": 16, "width": 16}}
    return save(network, transformers.SamProcessor(transformers.SamImageProcessor(**sizes, **masks)), folder)


def save_sam2(folder):
    """The same of SAM 2."""
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "Sam2Model"):
        pytest.skip("this transformers has no SAM 2")
    image_processor = getattr(transformers, "Sam2ImageProcessor", None) or transformers.Sam2ImageProcessorFast
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=8, num_attention_heads=1, image_size=[64, 64], patch_kernel_size=[7, 7], patch_stride=[4, 4],
        patch_padding=[3, 3], blocks_per_stage=[1, 1, 2, 1], embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2], window_size_per_stage=[4, 4, 4, 4],
        window_positional_embedding_background_size=[4, 4], global_attention_blocks=[3],
    )  # fmt: skip
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=[64, 32, 16, 8], fpn_hidden_size=16, num_feature_levels=3,
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
    )  # fmt: skip
    prompts = transformers.Sam2PromptEncoderConfig(hidden_size=16, image_size=64, patch_size=16, mask_input_channels=4)
    decoder = transformers.Sam2MaskDecoderConfig(
        hidden_size=16, mlp_dim=32, num_hidden_layers=2, num_attention_heads=2, iou_head_hidden_dim=16
    )
    torch.manual_seed(0)
    network = transformers.Sam2Model(
        transformers.Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    )
    processor = transformers.Sam2Processor(image_processor(size={"height": 64, "width": 64}))
    return save(network, processor, folder)


SAM_BOXES = [[5.0, 5, 30, 30], [50.4, 10.2, 90, 38.8], [0, 0, 100, 40], [-20, 30, 60, 90], [7, 3, 9, 4]]


@pytest.fixture(scope="module")
def sam_folder(tmp_path_factory):
    return save_sam(tmp_path_factory.mktemp("sam"))


def proposals(network, processor, image, boxes):
    """All three masks of every box by transformers alone (B×3×H×W bool), and the IoUs that it expects of them."""
    inputs = processor(images=image.permute(1, 2, 0).numpy(), input_boxes=[boxes], return_tensors="pt")
    frame = {key: inputs[key] for key in ("original_sizes", "reshaped_input_sizes") if key in inputs}
    with torch.no_grad():
        output = network(pixel_values=inputs["pixel_values"].float(), input_boxes=inputs["input_boxes"].float())
    return processor.post_process_masks(output.pred_masks, **frame)[0], output.iou_scores[0]


@pytest.mark.parametrize("save_network", [save_sam, save_sam2])
def test_best_proposal_of_each_box(tmp_path, save_network):
    folder = save_network(tmp_path / "network")
    cut, whole = (
        load_model(method_config("sam", folder, opts=["MODEL.SAM.CUT_TO_BOX", flag], device="cpu"))
        for flag in (True, False)
    )
    image = noise()
    masks, qualities = proposals(whole.network, whole.processor, image, SAM_BOXES)
    best = qualities.argmax(dim=1)
    result = predict(whole, image, SAM_BOXES)
    found = result.pred_masks.full()
    assert torch.equal(found, torch.stack([mask[index] for mask, index in zip(masks, best, strict=True)]))
    assert torch.allclose(result.scores, qualities.max(dim=1).values.clamp(0, 1), atol=1e-5)
    assert len(set(best.tolist())) > 1
    assert ((found.float().mean(dim=(1, 2)) - 0.5).abs() < 0.5).all(), "no mask is empty or full"
    inside = predict(cut, image, SAM_BOXES)
    assert torch.equal(inside.pred_masks.full(), found & fill_boxes(torch.tensor(SAM_BOXES), (40, 100)))
    assert not torch.equal(inside.pred_masks.full(), found)
    assert torch.equal(inside.scores, result.scores)
    whole.boxes_per_forward = 2
    assert torch.equal(predict(whole, image, SAM_BOXES).pred_masks.full(), found)
    whole.image_format = "BGR"
    assert torch.equal(predict(whole, image.flip(0), SAM_BOXES).pred_masks.full(), found)
    assert len(predict(cut, image, [])) == 0


def test_sam_is_not_trained_and_hashed_with_its_weights(sam_folder):
    cfg = method_config("sam", sam_folder, device="cpu")
    model = load_model(cfg)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    found = build_provenance(cfg, model, "voc_2012_val_box", [], weights_path(cfg))
    assert found["checkpoint"] == sam_folder
    assert found["checkpoint_sha256"] == weights_sha256(sam_folder), "by its files, which need not be loaded"
    name = "facebook/sam2.1-hiera-tiny"  # the dot is no file's
    hub = [weights_sha256(name, model, on_hub=True)]
    with torch.no_grad():
        next(model.parameters()).add_(1)
    hub.append(weights_sha256(name, model, on_hub=True))
    assert hub[0] != hub[1], "of a name on a hub, by what was loaded"
    with pytest.raises(RuntimeError, match="--eval-only"):
        model.train()([prompt(torch.zeros(3, 9, 9, dtype=torch.uint8), [[0, 0, 5, 5]])])


def test_sam_folders_that_do_not_fit_are_named(sam_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    with pytest.raises(FileNotFoundError, match=r"nowhere': there is no such folder"):
        load_network(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises((FileNotFoundError, ValueError), match="empty"):
        load_network(str(tmp_path / "empty"))
    part = tmp_path / "part"
    part.mkdir()
    for file in ("config.json", "preprocessor_config.json", "processor_config.json"):
        source = f"{sam_folder}/{file}"
        try:
            (part / file).write_bytes(open(source, "rb").read())  # noqa: SIM115
        except FileNotFoundError:
            continue
    with pytest.raises(FileNotFoundError, match=r"part' is not complete"):
        load_network(str(part))
    state = load_file(f"{sam_folder}/model.safetensors")
    lost = next(key for key in state if "mask_decoder" in key and key.endswith("weight"))
    save_file({k: v for k, v in state.items() if k != lost}, part / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"part' lacks 1 parameters, first {re.escape(lost)}"):
        load_network(str(part))
    (part / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"part' is a 'bert' network"):
        load_network(str(part))
    for opts, message in [(["MODEL.SAM.BOXES_PER_FORWARD", 0], "BOXES_PER_FORWARD"), (["INPUT.FORMAT", "L"], "FORMAT")]:
        with pytest.raises(ValueError, match=message):
            load_model(method_config("sam", sam_folder, opts=opts, device="cpu"))


@pytest.mark.parametrize(("package", "extra"), [("onnxruntime", "onnx"), ("transformers", "sam")])
def test_missing_package_names_the_extra(monkeypatch, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    name = next(name for name, method in methods().items() if method.info.extra == extra)
    with pytest.raises(ImportError, match=rf"pip install 'boxsup_d2\[{extra}\]'"):
        load_model(method_config(name, "some/weights", device="cpu"))
