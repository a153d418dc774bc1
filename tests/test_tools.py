"""Tools of a user: the benchmarks (that they run, not how fast)."""

import importlib
import json
import sys
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


def test_all_benchmarks_print_tables_and_write_json(tmp_path, capsys):
    pytest.importorskip("skimage", reason="the plain loader is scikit-image's")
    file = tmp_path / "figures.json"
    tiny = ["--repeats", "1", "--images", "2", "--boxes", "2", "--instances", "20", "--side", "64", "--batch", "1"]
    tiny += ["--crf-images", "2", "--classes", "2", "--workers", "2", "--labelled", "2", "--label-side", "64"]
    assert load_tool("benchmark").main(["all", *tiny, "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    names = {"loader", "semantic-loader", "merge", "mask-head", "crf", "labels"}
    assert set(figures) == {"environment", *names}
    assert figures["environment"]["threads"] == 1
    for name in names:
        assert figures[name]["rows"]
        assert figures[name]["remarks"]
        assert all(row.keys() == figures[name]["rows"][0].keys() for row in figures[name]["rows"])
    assert all(np.isfinite(number) for number in numbers_in(figures))
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
