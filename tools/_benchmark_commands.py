"""``benchmark.py commands`` and ``start``: the commands, beside plain loops that do the same to the same images."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from _benchmark_loader import write_images
from _benchmark_timing import Result, interleaved

from boxsup_cli import main as boxsup
from boxsup_d2.masks.windows import box_coverage, box_window, clip_box, cut_window
from boxsup_d2.methods import DEFAULT_METHOD, load_model, method_config
from boxsup_d2.modeling.boxmask.inference import mask_boxes
from boxsup_d2.report.drawing import Canvas, crop_window

# Longer sides, in pixels, of a report's pictures of images and of objects.
VIEW, CROP = 320, 240
IMPORTS = "import torch, detectron2"


def write_json(folder: Path, images: int, boxes: int) -> Path:
    """A COCO json of boxes, beside the images that it names."""
    folder.mkdir()
    records = write_images(folder, images, boxes)
    content = {
        "images": [
            {"id": number, "file_name": Path(r["file_name"]).name, "height": r["height"], "width": r["width"]}
            for number, r in enumerate(records)
        ],
        "annotations": [
            {"id": boxes * number + place, "image_id": number, "category_id": 1, "bbox": a["bbox"], "iscrowd": 0}
            for number, r in enumerate(records)
            for place, a in enumerate(r["annotations"])
        ],
        "categories": [{"id": 1, "name": "object"}],
    }
    path = folder / "boxes.json"
    path.write_text(json.dumps(content))
    return path


def run_command(*words: str) -> None:
    """Run ``boxsup`` in this process, without its output."""
    with contextlib.redirect_stdout(io.StringIO()):
        status = boxsup([*words])
    if status:
        raise RuntimeError(f"boxsup {' '.join(words)} ended with status {status}: see above.")


def boxes_by_image(path: Path) -> list[tuple[str, list[list[float]]]]:
    """Images of a json, and their boxes x, y, w, h."""
    content = json.loads(path.read_text())
    return [
        (
            str(path.parent / image["file_name"]),
            [a["bbox"] for a in content["annotations"] if a["image_id"] == image["id"]],
        )
        for image in content["images"]
    ]


def plain_network(path: Path) -> None:
    """The network that ships, on the crops that ``boxsup label`` gives it, image by image; what it says is dropped."""
    model: Any = load_model(method_config(DEFAULT_METHOD, device="cpu"))
    how = model.windows
    for file_name, boxes in boxes_by_image(path):
        image = cv2.imread(file_name)
        assert image is not None
        pixels = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        corners = [clip_box((x, y, x + w, y + h), *pixels.shape[:2]) for x, y, w, h in boxes]
        windows = [box_window(box, how.margin, how.max_aspect) for box in corners]
        for side in how.sizes:
            crops = torch.from_numpy(np.stack([cut_window(pixels, window, side) for window in windows]))
            covers = [box_coverage(box, window, side) for box, window in zip(corners, windows, strict=True)]
            seen = [crops.permute(0, 3, 1, 2), torch.from_numpy(np.stack(covers))[:, None]]
            with torch.no_grad():
                logits, quality = model.look(*seen)
                _, fit = mask_boxes(logits.sigmoid()[:, 0], windows, torch.tensor(corners, dtype=torch.float64))
                again = (quality.sigmoid() <= how.flip_below) | (fit < how.again_below)
                if again.any():
                    model.look(*(x[again].flip(-1) for x in seen))


def plain_pictures(path: Path) -> None:
    """The pictures of a report of one mask set, without what is drawn on them: two an image, and one an object."""
    with open(path.with_suffix(".pictures"), "wb") as file:
        for file_name, boxes in boxes_by_image(path):
            image = cv2.imread(file_name)
            assert image is not None
            height, width = image.shape[:2]
            view = Canvas(image, (0, 0, width, height), VIEW)
            file.write(view.jpeg() + view.jpeg())
            for box in boxes:
                file.write(Canvas(image, crop_window(box, height, width), CROP).jpeg())


def benchmark_commands(args: argparse.Namespace) -> Result:
    """label, report and eval after their imports, and plain loops: CPU time of all processes and threads."""
    with tempfile.TemporaryDirectory() as name:
        path = write_json(Path(name, "all"), args.images, args.boxes)
        few = write_json(Path(name, "few"), max(args.images // 10, 1), args.boxes)  # a box takes GrabCut a second
        number = itertools.count()
        made: dict[str, str] = {}

        def label(method: str, boxes: Path) -> None:
            # What is done is not done again, so each has a file of its own.
            made[method] = f"{name}/{method}{next(number)}.json"
            words = ["--json", str(boxes), "--images", str(boxes.parent), "--out", made[method], "--device", "cpu"]
            run_command("label", "--method", method, *words)

        def report() -> None:
            run_command("report", made[DEFAULT_METHOD], "--images", str(path.parent), "--out", f"{name}/report.html")

        runs: dict[str, Callable[[], None]] = {
            "label: the network that ships": partial(label, DEFAULT_METHOD, path),
            "the same network and crops": partial(plain_network, path),
            "label: GrabCut": partial(label, "grabcut", few),
            "report": report,
            "eval": lambda: run_command("eval", *[made[DEFAULT_METHOD]] * 2),
            "the report's pictures": partial(plain_pictures, path),
        }
        network, plain, grabcut, page, scores, pictures = runs
        timings = interleaved(runs, args.repeats or 3)
    images = dict.fromkeys(runs, args.images) | {grabcut: max(args.images // 10, 1)}
    bars = {network: (plain, 1.3), page: (pictures, 2.0), scores: (pictures, 1.0)}
    rows = []
    for what, timing in timings.items():
        loop, bar = bars.get(what, (None, None))
        rows.append(
            {
                "command or plain loop": what,
                "CPU s": timing.cpu,
                "images": images[what],
                "images per CPU s": images[what] / timing.cpu,
                "of the plain loop's time": timing.cpu / timings[loop].cpu if loop else None,
                "at most": bar,
            }
        )
    gain = timings[grabcut].cpu / images[grabcut] / (timings[network].cpu / images[network])
    remark = f"{args.boxes} boxes an image. The network labels {gain:.1f} times as fast as GrabCut."
    return {"rows": rows, "faster_than_grabcut": gain, "remarks": [remark]}


def benchmark_start(args: argparse.Namespace) -> Result:
    """CPU time of a process until ``boxsup label`` has written the mask of one box, and until torch is imported."""
    with tempfile.TemporaryDirectory() as name:
        path = write_json(Path(name, "one"), 1, 1)
        number = itertools.count()

        def run(*words: str) -> None:
            subprocess.run([sys.executable, *words], check=True, capture_output=True, env=environment)

        def label() -> None:
            out = f"{name}/{next(number)}.json"
            words = ["--json", str(path), "--images", str(path.parent), "--out", out, "--device", "cpu"]
            run("-m", "boxsup_cli.entry", "label", *words)

        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        runs: dict[str, Callable[[], Any]] = {
            IMPORTS: partial(run, "-c", IMPORTS),
            "import boxsup_d2": partial(run, "-W", "ignore", "-c", "import boxsup_d2"),
            "boxsup label, one box": label,
        }
        timings = interleaved(runs, args.repeats or 3)
    reference = timings[IMPORTS].cpu
    rows = [
        {
            "process": what,
            "CPU s": timing.cpu,
            "times the imports": timing.cpu / reference,
            "at most": 1.5 if what.startswith("boxsup") else None,
        }
        for what, timing in timings.items()
    ]
    return {"rows": rows, "remarks": ["Processes of their own, from their start to their end."]}
