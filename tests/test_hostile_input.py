"""Mutated inputs: every one ends in a clear message that names the file, or in a correct result.

Here the results are checked entry by entry, and a slice of what ``tools/hostile_campaign.py`` gives the commands.
Seeded: a case is repeated by its number.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from pycocotools import mask as mask_util
from test_tools import load_tool

from boxsup_cli import main
from boxsup_d2.config import add_boxsup_config
from boxsup_d2.data.datasets import register_coco_boxes, register_coco_masks
from boxsup_d2.data.formats.coco import read_coco_json
from boxsup_d2.data.formats.export import write_voc_png, write_yolo_seg
from boxsup_d2.data.formats.inspection import inspect_coco
from boxsup_d2.data.formats.polygons import to_polygons
from boxsup_d2.data.images import read_image
from boxsup_d2.evaluation.mask_files import compare_mask_files
from boxsup_d2.labelling.driver import label_datasets, pseudo_mask_path
from boxsup_d2.masks.rle import union
from boxsup_d2.masks.segmentation import to_rle
from boxsup_d2.report.mask_sets import MaskSet, load_collection
from boxsup_d2.utils.files import strict_json

campaign = load_tool("hostile_campaign")
inputs = load_tool("_hostile_inputs")
good_json, mutated_json, damage_image, write_good = (
    getattr(inputs, name) for name in ("good_json", "mutated_json", "damage_image", "write_good")
)

Json = dict[str, Any]
H, W = inputs.H, inputs.W
NAME = "hostile_boxes"
# What a person can act on; anything else is a traceback.
CLEAR = (ValueError, FileNotFoundError)

# ------------------------------------------------------------------------------------------------- the run


def config(output: Path) -> CfgNode:
    cfg = get_cfg()
    add_boxsup_config(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "BoxFill", "cpu", ""
    cfg.PSEUDO_MASKS.DATASETS, cfg.DATASETS.TEST = (NAME,), ()
    cfg.DATALOADER.NUM_WORKERS, cfg.OUTPUT_DIR = 0, str(output)
    return cfg


def label(usable: Json, folder: Path) -> Json:
    """Write, register and label the usable part; the file that comes out."""
    boxes = folder / "usable.json"
    boxes.write_text(json.dumps(usable))
    register_coco_boxes(NAME, str(boxes), str(folder))
    cfg = config(folder / "out")
    label_datasets(cfg, build_model(cfg))
    return read_coco_json(pseudo_mask_path(cfg.OUTPUT_DIR, NAME), NAME)


def clear(function: Callable[[], Json], files: list[Path]) -> Json | None:
    """Result of a function; None where it ended in a clear message that names one of some files."""
    try:
        return function()
    except CLEAR as error:
        if any(str(file) in str(error) for file in files):
            return None
        raise


def strict(value: Any) -> Any:
    """A value as a strict json gives it back: without NaN."""
    return json.loads(strict_json(value))


def check_result(result: Json, usable: Json, folder: Path) -> None:
    """The usable part, entry by entry and field by field, with masks that fill the boxes."""
    assert [key for key in result if key != "info"] == [key for key in usable if key != "info"]
    for key in usable:
        if key not in ("info", "annotations"):
            assert result[key] == strict(usable[key])
    sizes = {image["id"]: read_image(str(folder / image["file_name"])).shape[:2] for image in usable["images"]}
    covered: dict[Any, int] = {}
    for new, old in zip(result["annotations"], usable["annotations"], strict=True):
        if old.get("iscrowd"):
            assert new == strict(old)
            continue
        ours = {"segmentation", "area", "confidence", "confidence_exact", "quality"}
        assert {k: v for k, v in new.items() if k not in ours} == strict(
            {k: v for k, v in old.items() if k not in ours}
        )
        mask = mask_util.decode(new["segmentation"])
        assert mask.shape == sizes[new["image_id"]]
        assert 0 <= new["confidence"] <= 1
        y, x = np.nonzero(mask)
        x0, y0, w, h = new["bbox"]
        if len(x):
            assert x0 - 1 <= x.min() <= x.max() <= x0 + w
            assert y0 - 1 <= y.min() <= y.max() <= y0 + h
        covered[new["image_id"]] = covered.get(new["image_id"], 0) + int(mask.sum())
    for image_id, number in covered.items():
        assert number <= sizes[image_id][0] * sizes[image_id][1], "masks of an image do not overlap"


def run_case(path: Path, folder: Path) -> str:
    """Read, inspect, label and export; says how it ended: "refused" or "labelled".

    Raises:
        Exception: any that is no clear message; the case has then found a bug.
    """
    data = clear(lambda: read_coco_json(str(path), NAME), [path])
    if data is None:
        return "refused"
    inspection = inspect_coco(data, str(folder), path=str(path))
    summary = str(inspection.problems) + str(inspection.notes)
    assert summary.isprintable()
    assert len(summary) < 20_000
    usable = inspection.usable
    # What may still be wrong is the body of an image, which no inspection decodes.
    result = clear(lambda: label(usable, folder), [folder / image["file_name"] for image in usable["images"]])
    if result is None:
        return "refused"
    check_result(result, usable, folder)
    to_polygons(result)
    write_yolo_seg(result, str(folder / "yolo"))
    write_voc_png(result, str(folder / "voc"))
    file = str(folder / "out" / "pseudo_masks" / f"{NAME}_pseudo.json")
    if any(not annotation.get("iscrowd") for annotation in result["annotations"]):
        assert compare_mask_files(file, file).summary.counts.sum() > 0
    return "labelled"


def run_seed(seed: int, folder: Path) -> str:
    rng = random.Random(seed)
    path = write_good(folder, rng)
    if seed % 3:
        path.write_bytes(mutated_json(rng))
    else:
        for image in rng.sample(good_json()["images"], rng.choice([1, 1, 2, 5])):
            damage_image(folder / image["file_name"], rng)
    return run_case(path, folder)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("detectron2").setLevel(logging.ERROR)
    logging.getLogger("boxsup_d2").setLevel(logging.ERROR)


def test_good_input_is_labelled(tmp_path: Path) -> None:
    """Without this, a run in which everything is refused would pass for a success."""
    path = write_good(tmp_path, random.Random(0))
    data = read_coco_json(str(path), NAME)
    inspection = inspect_coco(data, str(tmp_path), path=str(path))
    assert not inspection.problems
    assert inspection.usable == data
    assert run_case(path, tmp_path) == "labelled"


def run_seeds(seeds: range, tmp_path: Path) -> dict[str, int]:
    endings = {"refused": 0, "labelled": 0}
    for seed in seeds:
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            endings[run_seed(seed, folder)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    return endings


def test_mutations(tmp_path: Path) -> None:
    endings = run_seeds(range(40), tmp_path)
    assert min(endings.values()) >= 5, endings


def test_commands_answer_or_say_in_a_line_what_is_wrong(tmp_path: Path) -> None:
    """Of every command many cases; those that train or load a network take too long here."""
    endings: dict[str, set[int]] = {}
    for seed in range(160):
        (folder := tmp_path / str(seed)).mkdir()
        kinds = ["label"] if seed % 16 == 0 else ["eval", "report", "convert"]
        command, code, told = campaign.run_case(seed, folder, kinds)
        fault = campaign.fault_of(folder, code, told)
        assert fault is None, f"seed {seed}, {command}: {fault}\n{told}"
        endings.setdefault(command, set()).add(code)
    assert endings == {"label": {0, 2}, "eval": {0, 2}, "report": {0, 2}, "convert": {0, 2}}


def masks_of(value: Any, rng: random.Random) -> Any:
    """A mask that is no mask, of the kinds that pycocotools crashes on, or takes all memory for."""
    polygon = [2.0, 2.0, 8.0, 2.0, 8.0, 8.0]
    polygon[rng.randrange(6)] = value
    counts = mask_util.encode(np.asfortranarray(np.eye(H, W, dtype=np.uint8)))["counts"].decode()
    cut = counts[: rng.randrange(1, len(counts) - 1)]
    kinds = [[polygon], {"size": [H, W], "counts": [value, 5]}, {"size": [H, W], "counts": cut}]
    return rng.choice(kinds[value in (0.5, -1) :])  # which are good coordinates


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), 1e9, -1e9, 1e300, None, "1", 2**33, 0.5, -1, [1], True]
)
def test_no_reader_takes_a_mask_that_is_none(value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(0)
    for _ in range(10):
        with pytest.raises(ValueError, match="Segmentation"):
            to_rle(masks_of(value, rng), H, W)
    path = write_good(tmp_path, rng)
    data = good_json()
    data["annotations"][2]["segmentation"] = damaged = masks_of(value, rng)
    path.write_text(json.dumps(data))
    where = ["--images", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["label", "--json", str(path), *where, "--method", "box", "--num-gpus", "0"]) == 2
    assert "damaged masks" in capsys.readouterr().err
    assert main(["eval", str(path), str(path)]) == 2
    assert "annotation 12: its segmentation is damaged" in capsys.readouterr().err.replace("\n", " ")
    assert main(["report", str(path), *where]) == 0
    assert "masks that cannot be read (e.g. annotation 12 of" in (tmp_path / "out.html").read_text()
    register_coco_masks(NAME, str(path), str(tmp_path))
    with pytest.raises(ValueError, match="annotation 12: its segmentation is damaged"):
        DatasetCatalog.get(NAME)
    with pytest.raises(ValueError, match="Segmentation"):
        union([damaged], H, W)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_many_mutations(tmp_path: Path) -> None:
    endings = run_seeds(range(60, 560), tmp_path)
    assert min(endings.values()) >= 50, endings


@pytest.mark.parametrize("value", [[1], {"a": 1}, None, True, "text", 1.5, -3, [[]], [1, 2, 3, 4]])
def test_reports_show_what_is_left_of_a_damaged_file(value, tmp_path):
    """Any entry of any list replaced: the reading of reports leaves it out, or shows it, and never fails."""
    (tmp_path / "truth.json").write_text(json.dumps(good_json()))
    for key in ("images", "annotations", "categories"):
        for field in good_json()[key][0]:
            data = good_json()
            data[key][0][field] = value
            (tmp_path / "masks.json").write_text(json.dumps(data))
            shown = load_collection([MaskSet("masks", str(tmp_path / "masks.json"))], str(tmp_path / "truth.json"))
            assert len(shown.scenes) >= len(data["images"]) - 1
