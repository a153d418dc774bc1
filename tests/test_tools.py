"""Tools of a user: the benchmarks (that they run, not how fast)."""

import importlib
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from boxsup_d2.data.dataset_mappers import BoxCropDatasetMapper

TOOLS = Path(__file__).resolve().parents[1] / "tools"


def load_tool(name):
    """A script as a module; scripts import their parts from their own folder."""
    sys.path.insert(0, str(TOOLS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(TOOLS))


def numbers_in(value):
    """All numbers in a json value."""
    if isinstance(value, dict):
        return [n for v in value.values() for n in numbers_in(v)]
    if isinstance(value, list):
        return [n for v in value for n in numbers_in(v)]
    return [value] if isinstance(value, int | float) else []


def test_all_benchmarks_print_tables_and_write_json(tmp_path, capsys, monkeypatch):
    pytest.importorskip("skimage", reason="the plain loader is scikit-image's")
    file = tmp_path / "figures.json"
    tiny = ["--repeats", "1", "--images", "2", "--boxes", "2", "--instances", "20", "--side", "64", "--batch", "1"]
    tiny += ["--crf-images", "2", "--classes", "2", "--workers", "2", "--labelled", "2", "--label-side", "64"]
    tool = load_tool("benchmark")
    monkeypatch.setitem(tool.BENCHMARKS, "start", lambda args: {"rows": [{"slow": 0}], "remarks": ["tested below"]})
    assert tool.main(["all", *tiny, "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    names = set(tool.BENCHMARKS)
    assert set(figures) == {"environment", *names}
    assert len(names) == 10
    assert figures["environment"]["threads"] == 1
    for name in names:
        assert figures[name]["rows"]
        assert figures[name]["remarks"]
        assert all(row.keys() == figures[name]["rows"][0].keys() for row in figures[name]["rows"])
    assert all(np.isfinite(number) for number in numbers_in(figures))
    assert {row["at most"] for row in figures["commands"]["rows"]} == {1.3, 2.0, 1.0, None}
    out = capsys.readouterr().out
    assert "threads 1" in out
    assert "training crop, ours" in out
    assert "from RLE, all" in out
    assert "whole step" in out
    fifth, full = figures["merge"]["rows"][:2]
    assert full["images"] == 8
    assert full["instances"] == 20
    assert fifth["images"] == 1
    assert figures["crf"]["equal"]
    for row in figures["labels"]["rows"]:
        assert row["equal pixels %"] > 99.9, "times of different results cannot be compared"


@pytest.mark.slow
def test_the_start_of_processes_is_timed(tmp_path):
    pytest.importorskip("skimage", reason="the image is one of scikit-image's")
    file = tmp_path / "figures.json"
    assert load_tool("benchmark").main(["start", "--repeats", "1", "--json", str(file)]) == 0
    imports, package, command = json.loads(file.read_text())["start"]["rows"]
    assert imports["times the imports"] == 1
    assert 0.3 < imports["CPU s"] < package["CPU s"] < command["CPU s"]


def test_one_benchmark_alone(tmp_path, capsys):
    file = tmp_path / "figures.json"
    assert load_tool("benchmark").main(["merge", "--instances", "20", "--repeats", "1", "--json", str(file)]) == 0
    assert set(json.loads(file.read_text())) == {"environment", "merge"}
    assert "crop" not in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["merge", "--instances", "0"], ["loader", "--device", "tpu"]])
def test_wrong_arguments_are_refused(capsys, arguments):
    with pytest.raises(SystemExit) as exit_info:
        load_tool("benchmark").main(arguments)
    assert exit_info.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_plain_loader_gives_the_same_crop_as_ours(tmp_path):
    """Else their times could not be compared."""
    pytest.importorskip("skimage", reason="the plain loader is scikit-image's")
    tool = load_tool("_benchmark_loader")
    (record,) = tool.write_images(tmp_path, 1, 1)
    (sample,) = tool.box_samples([record])
    ours = BoxCropDatasetMapper(image_format="RGB", center_jitter=0, scale_jitter=0)(sample)
    box = tool.clip_box(sample["box"], tool.HEIGHT, tool.WIDTH)
    image, mask = tool.plain_crop(sample["file_name"], box, box, tool.TRAIN_SIZE)
    assert (image - ours["image"] / 255).abs().mean() < 0.01
    assert torch.equal(mask, ours["mask"].float())


def test_merged_instances_are_drawn_inside_their_boxes():
    tool = load_tool("_benchmark_merge")
    for boxes, rles in tool.instance_pool(8):
        assert 1 <= len(boxes) == len(rles) <= 4
        for merged in tool.merge_image(rles, boxes, height=tool.HEIGHT, width=tool.WIDTH):
            assert merged.segmentation["size"] == [tool.HEIGHT, tool.WIDTH]


# ------------------------------------------------------------------------------------------------- export_weights
def test_several_networks_become_their_mean():
    tool = load_tool("export_weights")
    states = [{"weight": torch.tensor([1.0, value]), "count": torch.tensor(value)} for value in (2, 4, 9)]
    mean = tool.mean_state(states)
    assert mean["weight"].tolist() == [1, 5]
    assert mean["count"] == 2
    assert torch.equal(tool.mean_state(states[:1])["weight"], states[0]["weight"])


# ------------------------------------------------------------------------------------------------- gpu_check
def write_wheel(path):
    """A wheel of one module, which says that it needs a package that is nowhere."""
    name = "brought_along-1.0"
    with zipfile.ZipFile(path / f"{name}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("brought_along.py", "")
        needs = "Name: brought-along\nVersion: 1.0\nRequires-Dist: torch-of-another-kind\n"
        wheel.writestr(f"{name}.dist-info/METADATA", f"Metadata-Version: 2.1\n{needs}")
        wheel.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{name}.dist-info/RECORD", "")


def test_wheels_are_unpacked_without_a_network(tmp_path, capsys):
    tool = load_tool("gpu_check")
    for name in ("wheels", "none"):
        (tmp_path / name).mkdir()
    write_wheel(tmp_path / "wheels")
    assert (tool.unpack_wheels(tmp_path / "wheels", tmp_path / "out") / "brought_along.py").is_file()
    assert tool.main(["--wheels", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 1
    assert "there is no wheel" in capsys.readouterr().err


def test_a_part_that_fails_or_hangs_is_a_line_of_the_table(tmp_path, monkeypatch, capsys):
    tool = load_tool("gpu_check")
    row = json.dumps({"what": "one", "result": "fine | so far", "GiB": 1.25, "seconds": None})
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{row}' > $9/$5.jsonl\necho broken\n[ $5 = loader ] && sleep 60\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(tool.sys, "executable", str(python))
    monkeypatch.setattr(tool, "PARTS", {"labels": 6, "loader": 1})
    monkeypatch.setattr(tool, "LEAST_SECONDS", 2.0)
    words = ["--device", "cpu", "--only", "labels", "loader", "--minutes", "0.01", "--out", str(tmp_path)]
    assert tool.main(words) == 1
    lines = (tmp_path / "gpu_check.md").read_text().splitlines()
    assert lines[2] == lines[4].replace("loader", "labels") == "| labels | one | fine \\| so far | 1.2 |  |"
    assert "FAILED: ended with status 3; labels.log ends in: broken" in lines[3]
    assert "stopped after" in lines[5]
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_all_of_the_gpu_check_runs_on_a_cpu(tmp_path):
    pytest.importorskip("skimage", reason="the scenes are cut out of scikit-image's photographs")
    tool = load_tool("gpu_check")
    words = ["--device", "cpu", "--quick", "--minutes", "20", "--out", str(tmp_path)]
    assert tool.main(words) == 0, (tmp_path / "gpu_check.md").read_text()
    table = (tmp_path / "gpu_check.md").read_text()
    for name in (
        "passed",
        "BoxMask",
        "BoxCaseg",
        "LPG",
        "DeepLab",
        "PromptableRCNN",
        "BoxInst",
        "CondInst",
        "boxes/s",
        "waits",
    ):
        assert name in table
    assert "left out" not in table
