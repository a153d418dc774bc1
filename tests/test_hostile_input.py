"""Mutated jsons and images: every one ends in a clear message that names the file, or in a correct result.

Each case is written to a fresh folder, read, inspected, registered and labelled with filled boxes, as the command line
does it. Seeded: a case is repeated by its number.
"""

from __future__ import annotations

import copy
import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from PIL import Image
from pycocotools import mask as mask_util

from boxsup_d2.config import add_boxsup_config
from boxsup_d2.data.datasets import register_coco_boxes
from boxsup_d2.data.formats.coco import read_coco_json
from boxsup_d2.data.formats.export import write_voc_png, write_yolo_seg
from boxsup_d2.data.formats.inspection import inspect_coco
from boxsup_d2.data.formats.polygons import to_polygons
from boxsup_d2.data.images import read_image
from boxsup_d2.evaluation.mask_files import compare_mask_files
from boxsup_d2.labelling.driver import label_datasets, pseudo_mask_path
from boxsup_d2.report.mask_sets import MaskSet, load_collection

H, W = 24, 32
NAME = "hostile_boxes"
# What a person can act on; anything else is a traceback.
CLEAR = (ValueError, FileNotFoundError)

Json = dict[str, Any]
Rng = random.Random


# ------------------------------------------------------------------------------------------------- good input


def good_json() -> Json:
    polygon = [[2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]]
    run_length = {"size": [H, W], "counts": [100, 40, H * W - 140]}
    return {
        "info": {"description": "five images", "nested": {"list": [1, 2, {"a": None}]}},
        "licenses": [],
        "images": [
            {"id": 3 * key, "file_name": f"{key}.{ext}", "height": H, "width": W, "date": "today"}
            for key, ext in enumerate(("jpg", "png", "jpg", "png", "jpg"), start=1)
        ],
        "annotations": [
            {
                "id": 10 + key,
                "image_id": 3 * (1 + key % 5),
                "category_id": (1, 90)[key % 2],
                "bbox": [1.5 + key, 2, 12, 9.25],
                "area": 100.0,
                "iscrowd": int(key == 4),
                **({"segmentation": polygon} if key == 2 else {"segmentation": run_length} if key in (4, 7) else {}),
                "note": f"note {key}",
            }
            for key in range(10)
        ],
        "categories": [{"id": 90, "name": "broom", "supercategory": "x"}, {"id": 1, "name": "person"}],
    }


def pixels(rng: Rng, *shape: int) -> np.ndarray:
    return np.random.default_rng(rng.randrange(2**32)).integers(0, 255, shape, dtype=np.uint8)


# ------------------------------------------------------------------------------------------------- mutations of jsons


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


STRANGE: list[Callable[[Rng], Any]] = [
    lambda rng: None,
    lambda rng: rng.choice([True, False]),
    lambda rng: rng.choice([0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 10**400]),
    lambda rng: rng.choice([0.0, -0.0, 1e-300, 1e300, float("nan"), float("inf"), -float("inf"), 0.5]),
    lambda rng: rng.choice(["", "x", "1", "../../1.jpg", "\x00", "\ud800", "é" * 300, "a/b\\c", "\x1b[31m", "/"]),
    lambda rng: rng.choice([[], [None], [[]], [1, 2, 3, 4], [float("nan")] * 4, ["1", "2", "3", "4"], nested(60)]),
    lambda rng: rng.choice([{}, {"id": 1}, {"size": [H, W], "counts": "0"}, {"a": nested(60)}]),
    lambda rng: [rng.uniform(-50, 50) for _ in range(rng.choice([1, 4, 5, 6, 8]))],
    lambda rng: {"size": [H, W], "counts": "".join(chr(rng.randrange(1, 127)) for _ in range(rng.randrange(30)))},
    lambda rng: {"size": [H, W], "counts": [rng.randrange(-5, H * W) for _ in range(rng.randrange(6))]},
    lambda rng: [[rng.choice([rng.uniform(-9, 40), 1e9, 1e300, float("inf")]) for _ in range(rng.choice([6, 8, 7]))]],
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything inside a json."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in items for found in [(*path, key), *places(item, (*path, key))]]


def container(data: Json, path: tuple[Any, ...]) -> Any:
    value: Any = data
    for key in path[:-1]:
        value = value[key]
    return value


def replace(data: Json, rng: Rng) -> None:
    path = rng.choice(places(data))
    container(data, path)[path[-1]] = rng.choice(STRANGE)(rng)


def drop(data: Json, rng: Rng) -> None:
    path = rng.choice(places(data))
    del container(data, path)[path[-1]]


def swap(data: Json, rng: Rng) -> None:
    """Exchange two values, of any kind and depth, or put a part into itself, copied."""
    first, second = rng.choice(places(data)), rng.choice(places(data))
    a, b = container(data, first), container(data, second)
    a_value, b_value = copy.deepcopy(a[first[-1]]), copy.deepcopy(b[second[-1]])
    b[second[-1]] = a_value
    if first[: len(second)] != second:
        a[first[-1]] = b_value


def repeat(data: Json, rng: Rng) -> None:
    """An entry twice, or with the id of another one."""
    entries = data.get(rng.choice(["images", "annotations", "categories"]))
    if not isinstance(entries, list) or not entries:
        return
    entry = copy.deepcopy(rng.choice(entries))
    if isinstance(entry, dict) and rng.random() < 0.7:
        entry[rng.choice(sorted(entry) or ["id"])] = rng.choice(STRANGE)(rng)
    entries.insert(rng.randrange(len(entries) + 1), entry)


def plausible(data: Json, rng: Rng) -> None:
    """What exporters get wrong: corners, shares or floats for boxes, sizes swapped, no sizes or ids, string ids."""
    kind = rng.randrange(7)
    for annotation in data.get("annotations", ()):
        x, y, w, h = annotation["bbox"]
        if kind == 0:
            annotation["bbox"] = [x, y, x + w, y + h]
        elif kind == 1:
            annotation["bbox"] = [x / W, y / H, w / W, h / H]
        elif kind == 2:
            annotation["bbox"] = [x + w, y + h, -w, -h]
        elif kind == 3:
            annotation.pop("id")
        elif kind == 4:
            annotation["id"] = 1
    for image in data.get("images", ()):
        if kind == 5:
            image["height"], image["width"] = image["width"], image["height"]
        elif kind == 6:
            image.pop(rng.choice(["height", "width"]))


def dump(data: Any, rng: Rng) -> bytes:
    """As text, now and then in an odd encoding, cut off, or with bytes changed."""
    text = json.dumps(data, ensure_ascii=rng.random() < 0.7)
    encoding = rng.choice(["utf-8"] * 8 + ["utf-8-sig", "utf-16", "utf-32", "latin-1"])
    content = text.encode(encoding, "replace")
    kind = rng.randrange(12)
    if kind == 0:
        content = content[: rng.randrange(len(content))]
    elif kind == 1:
        position = rng.randrange(len(content))
        content = content[:position] + bytes(rng.randrange(256) for _ in range(4)) + content[position + 4 :]
    elif kind == 2:
        deep = rng.choice([50, 900, 100_000])
        content = content[:-1] + b', "deep": ' + b"[" * deep + b"]" * deep + content[-1:]
    return content


def mutated_json(rng: Rng) -> bytes:
    data = good_json()
    if rng.random() < 0.15:
        plausible(data, rng)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        try:
            rng.choice([replace, replace, drop, swap, repeat])(data, rng)
        except (IndexError, KeyError, TypeError):
            continue  # an earlier mutation has taken what this one wanted to change
    return dump([data] if rng.random() < 0.02 else data, rng)


# ------------------------------------------------------------------------------------------------- mutations of images


def damage_image(path: Path, rng: Rng) -> None:
    """Replace an image by something else of its name."""
    rgb = Image.fromarray(pixels(rng, H, W, 3))
    format = "JPEG" if path.suffix == ".jpg" else "PNG"
    kind = rng.randrange(14)
    content = path.read_bytes()
    if kind == 0:
        path.write_bytes(content[: rng.randrange(len(content))])
    elif kind == 1:
        path.write_bytes(b"")
    elif kind == 2:
        position = rng.randrange(len(content))
        path.write_bytes(content[:position] + bytes(rng.randrange(256) for _ in range(3)) + content[position + 3 :])
    elif kind == 3:
        path.write_text("<html>404 Not Found</html>")
    elif kind == 4:
        rgb.save(path, format=rng.choice(["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"]))
    elif kind == 5:
        Image.fromarray(pixels(rng, H, W).astype(np.uint16) * 200).save(path, format="PNG")
    elif kind == 6:
        rgb.convert("CMYK").save(path, format="JPEG")
    elif kind == 7:
        rgb.convert("P").save(path, format="PNG")
    elif kind == 8:
        Image.fromarray(pixels(rng, H, W, 2), "LA").save(path, format="PNG")
    elif kind == 9:
        rgb.convert("1").save(path, format="PNG")
    elif kind == 10:
        exif = Image.Exif()
        exif[0x0112] = rng.choice([0, 3, 6, 8, 99])
        rgb.save(path, format=format, exif=exif)
    elif kind == 11:
        rgb.resize((1, 1)).save(path, format=format)
    elif kind == 12:
        # A header that promises 3.6 billion pixels.
        path.write_bytes(content[:16] + (60_000).to_bytes(4, "big") * 2 + content[24:])
    else:
        path.unlink()
        if rng.random() < 0.5:
            path.mkdir()


# ------------------------------------------------------------------------------------------------- the run


def config(output: Path) -> CfgNode:
    cfg = get_cfg()
    add_boxsup_config(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "BoxFill", "cpu", ""
    cfg.PSEUDO_MASKS.DATASETS, cfg.DATASETS.TEST = (NAME,), ()
    cfg.DATALOADER.NUM_WORKERS, cfg.OUTPUT_DIR = 0, str(output)
    return cfg


def write_good(folder: Path, rng: Rng) -> Path:
    for image in good_json()["images"]:
        Image.fromarray(pixels(rng, H, W, 3)).save(folder / image["file_name"])
    path = folder / "boxes.json"
    path.write_text(json.dumps(good_json()))
    return path


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


def check_result(result: Json, usable: Json, folder: Path) -> None:
    """The usable part, entry by entry and field by field, with masks that fill the boxes."""
    assert [key for key in result if key != "info"] == [key for key in usable if key != "info"]
    for key in usable:
        if key not in ("info", "annotations"):
            assert repr(result[key]) == repr(usable[key])
    sizes = {image["id"]: read_image(str(folder / image["file_name"])).shape[:2] for image in usable["images"]}
    covered: dict[Any, int] = {}
    for new, old in zip(result["annotations"], usable["annotations"], strict=True):
        if old.get("iscrowd"):
            assert repr(new) == repr(old)
            continue
        ours = {"segmentation", "area", "confidence", "confidence_exact", "quality"}
        assert repr({k: v for k, v in new.items() if k not in ours}) == repr(
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
    endings = run_seeds(range(60), tmp_path)
    assert min(endings.values()) >= 5, endings


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
