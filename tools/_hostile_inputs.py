"""Inputs that go wrong, out of good ones and a seed: jsons, images, configs and checkpoints.

For ``hostile_campaign.py`` and the tests. Everything is made of a ``random.Random``, so that a case is repeated by its
number.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import yaml
from detectron2.modeling import build_model
from PIL import Image

from boxsup_d2.model_zoo import get_config

H, W = 24, 32

Json = dict[str, Any]
Rng = random.Random


# ------------------------------------------------------------------------------------------------- good input


def good_json() -> Json:
    """Boxes, of which few have a mask, and one crowd region."""
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
    """Noise."""
    return np.random.default_rng(rng.randrange(2**32)).integers(0, 255, shape, dtype=np.uint8)


# ------------------------------------------------------------------------------------------------- mutations of jsons


def nested(depth: int) -> list[Any]:
    """A list in a list in a list."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


STRANGE: list[Callable[[Rng], Any]] = [
    lambda _: None,
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
    """What holds the value at a path."""
    value: Any = data
    for key in path[:-1]:
        value = value[key]
    return value


def replace(data: Json, rng: Rng) -> None:
    """Another value."""
    path = rng.choice(places(data))
    container(data, path)[path[-1]] = rng.choice(STRANGE)(rng)


def drop(data: Json, rng: Rng) -> None:
    """No value."""
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


def mutate(data: Any, rng: Rng) -> None:
    """Change a few things, anywhere."""
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        try:
            rng.choice([replace, replace, drop, swap, repeat])(data, rng)
        except (IndexError, KeyError, TypeError, AttributeError):
            continue  # an earlier mutation has taken what this one wanted to change


def mutated_json(rng: Rng, *, masks: bool = False) -> bytes:
    """``masks``: every object has one."""
    data = good_json()
    for annotation in data["annotations"] if masks else ():
        x, y, w, h = annotation["bbox"]
        annotation.setdefault("segmentation", [[x, y, x + w, y, x + w, y + h, x, y + h]])
        annotation["score"] = 0.5
    if rng.random() < 0.15:
        plausible(data, rng)
    mutate(data, rng)
    return dump([data] if rng.random() < 0.02 else data, rng)


# ------------------------------------------------------------------------------------------------- mutations of images


def damage_image(path: Path, rng: Rng) -> None:
    """Replace an image by something else of its name."""
    rgb = Image.fromarray(pixels(rng, H, W, 3))
    format = "JPEG" if path.suffix == ".jpg" else "PNG"
    kind = rng.randrange(16)
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
    elif kind == 13:
        path.unlink()
        if rng.random() < 0.5:
            path.mkdir()
    elif kind == 14:
        path.unlink()
        rng.choice([os.mkfifo, lambda p: p.symlink_to("/dev/zero"), lambda p: p.symlink_to("/etc/hostname")])(path)
    else:  # behind the header, in the middle of the pixels
        position = len(content) * 3 // 4
        path.write_bytes(content[:position] + bytes(len(content) // 8) + content[position + len(content) // 8 :])


def write_good(folder: Path, rng: Rng) -> Path:
    """The images, and ``boxes.json``, whose path is returned."""
    for image in good_json()["images"]:
        Image.fromarray(pixels(rng, H, W, 3)).save(folder / image["file_name"])
    path = folder / "boxes.json"
    path.write_text(json.dumps(good_json()))
    return path


# ------------------------------------------------------------------------------------------------- configs


def good_config(folder: Path) -> Json:
    """A step that fills the boxes of ``boxes.json``."""
    boxes = {"NAME": "hostile_boxes", "JSON": str(folder / "boxes.json"), "IMAGES": str(folder), "MASKS": "kept"}
    return {
        "MODEL": {"META_ARCHITECTURE": "BoxFill", "DEVICE": "cpu", "WEIGHTS": "", "PIXEL_MEAN": [1.0, 2.0, 3.0]},
        "DATASETS": {"REGISTER": [boxes], "TEST": [], "TRAIN": ["hostile_boxes"]},
        "PSEUDO_MASKS": {"DATASETS": ["hostile_boxes"], "REPORT_IMAGES": 0, "IMS_PER_BATCH": 2},
        "DATALOADER": {"NUM_WORKERS": 0},
        "INPUT": {"FORMAT": "RGB"},
        "OUTPUT_DIR": str(folder / "out"),
        "VERSION": 2,
    }


def write_mutated_config(folder: Path, rng: Rng) -> Path:
    """A config with wrong values, keys and bases, or no yaml any more."""
    path, data = folder / "config.yaml", good_config(folder)
    kind = rng.randrange(8)
    if kind == 0:
        data["_BASE_"] = rng.choice(["config.yaml", "gone.yaml", ".", "other.yaml", *STRANGE[:6]])
        data["_BASE_"] = data["_BASE_"](rng) if callable(data["_BASE_"]) else data["_BASE_"]
        (folder / "other.yaml").write_text("_BASE_: config.yaml\n")
    elif kind == 1:
        data["MODEL"]["META_ARCHITECTURE"] = rng.choice(["Foo", "BoxFil", "GeneralizedRCNN", "LPG", "SAM"])
    else:
        mutate(data, rng)
    if isinstance(data, dict) and isinstance(data.get("OUTPUT_DIR"), str):
        data["OUTPUT_DIR"] = str(folder / "out")  # elsewhere something could be written over
    try:
        content = yaml.safe_dump(data, sort_keys=False).encode(errors="replace")
    except (yaml.YAMLError, RecursionError, ValueError):
        content = repr(data).encode(errors="replace")
    path.write_bytes(damaged_bytes(content, rng) if rng.random() < 0.15 else content)
    return path


# ------------------------------------------------------------------------------------------------- checkpoints


class Code:
    """Runs something when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@functools.cache
def trained_network() -> tuple[str, bytes]:
    """Config and checkpoint of a small Mask R-CNN with random weights, as a training leaves them."""
    cfg = get_config("quick/voc-retrain.yaml")
    opts = {"MODEL.DEVICE": "cpu", "INPUT.MIN_SIZE_TEST": 32, "INPUT.MAX_SIZE_TEST": 64, "DATALOADER.NUM_WORKERS": 0}
    cfg.merge_from_list([word for pair in opts.items() for word in pair])
    buffer = io.BytesIO()
    torch.save({"model": build_model(cfg).state_dict(), "iteration": 1}, buffer)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ()
    return cfg.dump(), buffer.getvalue()


def write_mutated_network(folder: Path, rng: Rng) -> Path:
    """A folder as a training leaves it, in which config or checkpoint may be damaged."""
    config, weights = trained_network()
    folder.mkdir()
    content, kind = config.encode(), rng.randrange(5)
    if kind == 0:
        content = damaged_bytes(content, rng)
    elif kind == 1:
        data = yaml.safe_load(config)
        mutate(data, rng)
        with contextlib.suppress(yaml.YAMLError, RecursionError, ValueError):
            content = yaml.safe_dump(data, sort_keys=False).encode(errors="replace")
    (folder / "config.yaml").write_bytes(content)
    (folder / "model_final.pth").write_bytes(damaged_bytes(weights, rng) if kind == 2 else weights)
    return folder


def write_mutated_checkpoint(folder: Path, rng: Rng) -> Path:
    """A checkpoint of few parameters that is damaged, of another form, not finite, or runs code; its suffix may lie."""
    names = ["backbone.net.conv_stem.weight", "box_head.bias", "salient_head.weight"]
    state: Json = {name: torch.full((2, 3), rng.choice([0.5, 0.5, 0.5, float("nan"), float("inf")])) for name in names}
    if rng.random() < 0.3:
        state = {name: value.numpy() for name, value in state.items()}
    data: Any = rng.choice([{"model": state, "iteration": 3}, state, {"state_dict": state, "epoch": 1}])
    kind = rng.randrange(6)
    if kind == 0:
        data = rng.choice([None, 3, "text", [1, 2], torch.zeros(2), {}, {"model": 5}, {1: torch.zeros(2)}])
    elif kind == 1:
        next(iter(v for v in (data, *data.values()) if isinstance(v, dict)))["evil"] = Code(folder / "ran")
    elif kind < 4:
        mutate(data, rng)
    path = folder / rng.choice(["w.pth", "w.pth", "w.pkl", "w.safetensors", "w.pyth"])
    form = rng.randrange(5)
    if form == 0:
        path.write_bytes(pickle.dumps(data, protocol=rng.choice([0, 2, 4])))
    elif form == 1 and all(isinstance(value, torch.Tensor) for value in state.values()):
        path.write_bytes(safetensors.torch.save(state, metadata={"model": "x", "trainer": "y"}))
    else:
        torch.save(data, path, _use_new_zipfile_serialization=form > 2)
    if rng.random() < 0.3:
        path.write_bytes(damaged_bytes(path.read_bytes(), rng))
    return path


def damaged_bytes(content: bytes, rng: Rng) -> bytes:
    """Cut off, changed, or something else."""
    kind = rng.randrange(5)
    if kind == 0 or len(content) < 10:
        return content[: rng.randrange(len(content) + 1)]
    if kind == 1:
        return rng.choice([b"", b"class names\nfoo\n", b"<html>404 Not Found</html>", b"\x80\x04.", bytes(500)])
    if kind == 2:
        start = rng.randrange(len(content))
        return content[:start] + content[rng.randrange(len(content)) :]
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 5, 50])):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)
