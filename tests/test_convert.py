"""``boxsup convert``: checkpoints of others become ours, whole, safe and never over something else."""

import errno
import importlib
import pickle
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

import boxsup_d2
from boxsup_cli import main
from boxsup_d2.checkpoint import BoxSupCheckpointer, convert
from boxsup_d2.checkpoint.reading import read_checkpoint
from boxsup_d2.modeling.boxcaseg.checkpoint import PIXEL_MEAN, PIXEL_STD, PUBLISHED

# Prefixes of names: ours, theirs.
PUBLISHED_NAMES = {"backbone.net.": "", "box_head.": "last_layer.", "salient_head.": ""}


def run(source, target, *options):
    """The exit code of the command."""
    return main(["convert", str(source), "--out", str(target), *options])


@pytest.fixture(scope="module")
def boxcaseg():
    """A narrow BoxCaseg on a small HRNet, every parameter and statistic random."""
    cfg = get_cfg()
    boxsup_d2.add_boxsup_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "BoxCaseg"
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.TIMM.NAME = "hrnet_w18_small"
    model = build_model(cfg).eval()
    generator = torch.Generator().manual_seed(0)
    state = model.state_dict()
    for value in state.values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator))
    return model


def published_state(model):
    """State dict in the published names."""
    published = {}
    for name, value in model.state_dict().items():
        ours = next(prefix for prefix in PUBLISHED_NAMES if name.startswith(prefix))
        published["model." + PUBLISHED_NAMES[ours] + name.removeprefix(ours)] = value.clone()
    assert {name.split(".")[1] for name in published} >= {"last_layer", "fcn", "transfer1", "transfer_bn", "conv1"}
    return published


def write(path, content):
    """``torch.save`` or, for .pkl, ``pickle.dump``."""
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    return path


def as_arrays(state):
    return {name: value.numpy() for name, value in state.items()}


def check_loads(model, path):
    """The file puts exactly the model's parameters back, after they were lost."""
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for value in model.state_dict().values():
            value.zero_()
    BoxSupCheckpointer(model).load(str(path))
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


class Average:
    """What training scripts pickle beside their parameters."""


def test_safetensors_are_written_read_and_recognised(boxcaseg, tmp_path):
    source, target = write(tmp_path / "published.pth", published_state(boxcaseg)), tmp_path / "ours.safetensors"
    assert run(source, target) == 0
    assert convert.checkpoint_format(read_checkpoint(target)) is PUBLISHED
    check_loads(boxcaseg, target)
    assert run(target, tmp_path / "again.pth") == 0
    check_loads(boxcaseg, tmp_path / "again.pth")


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_published_boxcaseg_comes_back_as_ours(boxcaseg, tmp_path, capsys, suffix, wrapped):
    state = published_state(boxcaseg)
    if suffix == ".pkl":
        state = as_arrays(state)
    content = {"epoch": 39, "state_dict": state, "optimizer": {"state": {}}} if wrapped else state
    source, target = write(tmp_path / f"published{suffix}", content), tmp_path / "new" / "ours.pth"
    assert run(source, target) == 0
    out = capsys.readouterr().out
    numbers = sum(p.numel() for p in boxcaseg.parameters())
    assert f"{len(state)} tensors, {numbers / 1e6:.2f} M parameters" in out
    assert "102.9801" in out
    assert "255.0" in out
    assert "INPUT.FORMAT RGB" in out
    written = torch.load(target, weights_only=True)
    assert set(written) == {"model", "__author__"}
    assert set(written["model"]) == set(boxcaseg.state_dict())
    assert list(target.parent.iterdir()) == [target], "no temporary file is left"
    check_loads(boxcaseg, target)


def test_published_generator_comes_back_as_ours(tmp_path, capsys):
    names = [
        "pre.0.conv.weight",
        "pre.1.bn1.weight",
        "kps.0.low2.up1.0.conv1.weight",
        "fm.0.0.conv.bias",
        "fm.0.1.weight",
    ]
    torch.save({name: torch.rand(2) for name in names}, tmp_path / "published.pth")
    assert run(tmp_path / "published.pth", tmp_path / "ours.pth") == 0
    assert "INPUT.FORMAT BGR" in capsys.readouterr().out
    written = torch.load(tmp_path / "ours.pth", weights_only=True)["model"]
    assert set(written) == {
        "backbone.stem.conv.weight",
        "backbone.down.bn1.weight",
        "backbone.hourglass.low2.up1.0.conv1.weight",
        "head.0.bias",
        "head.2.weight",
    }


def test_printed_overrides_are_a_config():
    cfg = get_cfg()
    boxsup_d2.add_boxsup_config(cfg)
    cfg.merge_from_list(shlex.split(PUBLISHED.help.splitlines()[1]))
    assert cfg.MODEL.PIXEL_MEAN == PIXEL_MEAN
    assert cfg.MODEL.PIXEL_STD == PIXEL_STD


def test_old_torch_files_are_read(tmp_path):
    source = tmp_path / "old.pth"
    torch.save({"model": {"a": torch.arange(3.0)}}, source, _use_new_zipfile_serialization=False)
    form, content = convert.convert(read_checkpoint(source))
    assert form == "Detectron2's form"
    assert torch.equal(content["model"]["a"], torch.arange(3.0))


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_more_than_tensors_needs_leave_to_run_code(boxcaseg, tmp_path, capsys, suffix):
    state = published_state(boxcaseg)
    content = {"state_dict": as_arrays(state) if suffix == ".pkl" else state, "meter": Average()}
    source, target = write(tmp_path / f"source{suffix}", content), tmp_path / "ours.pth"
    assert run(source, target) == 2
    error = capsys.readouterr().err
    assert str(source) in error
    assert "--allow-code" in error
    assert "Average" in error
    assert not target.exists()
    assert run(source, target, "--allow-code") == 0
    check_loads(boxcaseg, target)


def test_refused_code_does_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    for suffix in (".pth", ".pkl"):
        source = write(tmp_path / f"evil{suffix}", {"model": {"a": Evil()}})
        with pytest.raises(ValueError, match="--allow-code"):
            read_checkpoint(source)
    assert not (tmp_path / "ran").exists()


def test_detectron2s_form_keeps_names_and_loses_the_rest(tmp_path):
    weights = {"stem.conv1.weight": np.ones((2, 3), np.float32), "step": 3}
    content = {"model": weights, "__author__": "MSRA", "matching_heuristics": True, "optimizer": {"lr": 1}}
    source, target = write(tmp_path / "R-0.pkl", content), tmp_path / "r.pth"
    assert run(source, target) == 0
    written = torch.load(target, weights_only=True)
    assert torch.equal(written["model"].pop("stem.conv1.weight"), torch.ones(2, 3))
    assert written.pop("model") == {}
    assert written.pop("__author__")
    assert written == {"matching_heuristics": True}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"layer1.weight": torch.zeros(2), "layer1.bias": torch.zeros(2)}, "layer1.weight, layer1.bias"),
        ({f"layer{i}": torch.zeros(1) for i in range(9)}, "layer4 and 4 more"),
        ({"epoch": 3, "weights": {}}, "'epoch' is no parameter but a int; it holds epoch, weights"),
        ({"model": {"a": [1, 2]}}, "'a' is no parameter but a list"),
        ({"model": {"a": 1}}, "unknown form"),
        ([torch.zeros(1)], "a list"),
        ({}, "nothing"),
    ],
)
def test_unknown_forms_are_named(tmp_path, capsys, content, message):
    source, target = write(tmp_path / "other.pth", content), tmp_path / "ours.pth"
    assert run(source, target) == 2
    error = capsys.readouterr().err
    assert "other.pth" in error
    assert message in error
    assert len(error.splitlines()) == 1
    assert not target.exists()


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
@pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut"])
def test_missing_and_damaged_files_are_named(tmp_path, capsys, suffix, damage):
    source = tmp_path / f"source{suffix}"
    if damage == "cut":
        value = torch.rand(1000)
        write(source, {"model": {"a": value.numpy() if suffix == ".pkl" else value}})
        source.write_bytes(source.read_bytes()[:-500])
    elif damage != "missing":
        source.write_bytes(b"" if damage == "empty" else b"<html>not found</html>")
    for leave in ([], ["--allow-code"]):
        assert run(source, tmp_path / "ours.pth", *leave) == 2
        error = capsys.readouterr().err
        assert source.name in error
        assert len(error.splitlines()) == 1


def test_class_of_another_project_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "their_project.py").write_text("class Meter: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    meter = importlib.import_module("their_project").Meter()
    source = write(tmp_path / "source.pth", {"state_dict": {}, "meter": meter})
    monkeypatch.delitem(sys.modules, "their_project")
    (tmp_path / "their_project.py").unlink()
    importlib.invalidate_caches()
    assert run(source, tmp_path / "ours.pth", "--allow-code") == 2
    assert "their_project" in (error := capsys.readouterr().err)
    assert "PYTHONPATH" in error


def test_nothing_is_overwritten_unasked_or_halfway(tmp_path, monkeypatch, capsys):
    source = write(tmp_path / "source.pth", {"model": {"a": torch.zeros(2)}})
    target = tmp_path / "ours.pth"
    target.write_bytes(b"precious")
    assert run(source, target) == 2
    assert "--force" in capsys.readouterr().err
    assert run(source, tmp_path / "ours.pkl") == 2
    assert ".pth" in capsys.readouterr().err

    def full(content, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        assert run(source, target, "--force") == 1
    assert "disk is full" in capsys.readouterr().err
    assert target.read_bytes() == b"precious"
    assert run(source, target, "--force") == 0
    assert "a" in torch.load(target, weights_only=True)["model"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours.pth", "source.pth"]
