#!/usr/bin/env python
"""How good the masks of a box-to-mask network are, on registered data sets and on any folders of pictures with masks.

One row per data set: mean IoU over objects with a bootstrap interval, mIoU* over the classes present, the share of
objects above 50 and 75 % IoU, what the filled box reaches, how well the predicted quality ranks the masks, what
jittered boxes cost, and the CPU time per box on one thread::

    python tools/evaluate_box_to_mask.py --config-file configs/zoo/boxmask.yaml --weights output/model_final.pth \
        voc_2012_val_instance coco_2017_val pictures/fish --jitter 0.1

A folder holds ``images/`` and ``instances.json`` (COCO's format, with masks). Pixels of unknown label count for neither
side; objects with a side below 8 pixels are left out, except for VOC's official sets.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from torch import nn

import boxsup_d2  # noqa: F401 - registers data sets and networks
from boxsup_d2.config import load_config
from boxsup_d2.crf.refine import CRFRefinedModel
from boxsup_d2.data.datasets import register_coco_masks, register_listed
from boxsup_d2.data.images import read_image
from boxsup_d2.evaluation.ground_truth import ImageTruth, load_ground_truth
from boxsup_d2.evaluation.metrics import bootstrap_interval, mask_iou, summarize_box_to_mask
from boxsup_d2.methods import load_model
from boxsup_d2.modeling.box_to_mask import predicted_quality


@dataclass
class Scores:
    """What was measured of every object of one data set, in the order of the data set.

    Attributes:
        image, category: of the object.
        iou, filled: of its mask, and of its box as a mask, in 0..1.
        quality, score: predicted IoU (the score, where the method predicts none) and mean foreground probability.
        side: the shorter one of the box, pixels.
        seconds: CPU time of the whole set's predictions.
    """

    image: list[int] = field(default_factory=list)
    category: list[int] = field(default_factory=list)
    iou: list[float] = field(default_factory=list)
    filled: list[float] = field(default_factory=list)
    quality: list[float] = field(default_factory=list)
    score: list[float] = field(default_factory=list)
    side: list[float] = field(default_factory=list)
    seconds: float = 0.0


def main() -> None:
    """Evaluate, print a table, and write the numbers of every object where asked."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    cfg = load_config(args.config_file, ["MODEL.DEVICE", args.device, "MODEL.WEIGHTS", args.weights, *args.opts])
    register_listed(cfg.DATASETS.REGISTER)
    model = load_model(cfg)
    if args.crf:
        model = CRFRefinedModel(model, workers=1)
    rows, objects = [], {}
    for source in args.sources:
        name = registered_name(source)
        truths = load_ground_truth(name)
        min_side = 0.0 if name.startswith("voc_") else args.min_side
        scores = evaluate(model, truths, cfg.INPUT.FORMAT, min_side=min_side, every=args.every)
        seeds = range(args.jitter_seeds if args.jitter > 0 else 0)
        options = {"min_side": min_side, "every": args.every, "jitter": args.jitter}
        jittered = [evaluate(model, truths, cfg.INPUT.FORMAT, **options, seed=seed) for seed in seeds]
        rows.append(summary(name, scores, jittered))
        objects[name] = {key: value for key, value in vars(scores).items() if key != "seconds"}
        print_row(rows[-1], first=len(rows) == 1)
    if len(rows) > 1:
        mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0] if isinstance(rows[0][key], float)}
        print_row({"set": "mean", "objects": sum(row["objects"] for row in rows), **mean}, first=False)
    if args.output:
        Path(args.output).write_text(json.dumps({"rows": rows, "objects": objects}))


def parse_arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", help="registered data sets, or folders of images/ and instances.json")
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", default="", help="checkpoint; methods without one need none")
    parser.add_argument("--jitter", type=float, default=0.0, help="also with edges moved by up to this share of a side")
    parser.add_argument("--jitter-seeds", type=int, default=1, help="how often the jitter is drawn")
    parser.add_argument("--crf", action="store_true", help="refine every mask by a dense CRF (pip install pydensecrf2)")
    parser.add_argument("--min-side", type=float, default=8.0, help="leave smaller objects out, pixels of the box")
    parser.add_argument("--every", type=int, default=1, help="take every n-th image only")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", default="", help="json of the rows and of every object")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs of the config")
    return parser.parse_args()


def registered_name(source: str) -> str:
    """The data set called ``source``, or that of the folder ``source``, which is registered under its name."""
    if source in DatasetCatalog.list():
        return source
    folder = Path(source)
    if not (folder / "instances.json").is_file():
        raise SystemExit(f"'{source}' is neither a registered data set nor a folder with an instances.json")
    register_coco_masks(folder.name, str(folder / "instances.json"), str(folder / "images"))
    return folder.name


def evaluate(
    model: nn.Module,
    truths: dict[Any, ImageTruth],
    image_format: str,
    *,
    min_side: float,
    every: int = 1,
    jitter: float = 0.0,
    seed: int = 0,
) -> Scores:
    """Ask for the masks of all boxes, image by image.

    Args:
        model: a box-to-mask method in evaluation mode.
        truths: of the data set.
        image_format: channel order that the model wants.
        min_side: objects whose box has a shorter side are left out, pixels.
        every: take every n-th image only.
        jitter: edges are moved by up to this share of the box's sides.
        seed: of the jitter.
    """
    scores, rng = Scores(), np.random.default_rng(seed)
    for index, truth in enumerate(list(truths.values())[::every]):
        boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in truth.annotations]
        kept = [i for i, b in enumerate(boxes) if min(b[2] - b[0], b[3] - b[1]) >= min_side]
        if not kept:
            continue
        prompts = [move_edges(boxes[i], jitter, rng, truth) for i in kept]
        image = read_image(truth.file_name, image_format)
        instances = Instances((truth.height, truth.width))
        instances.gt_boxes = Boxes(torch.tensor(prompts, dtype=torch.float32))
        instances.gt_classes = torch.tensor([truth.annotations[i]["category_id"] for i in kept])
        inputs = {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "height": truth.height,
            "width": truth.width,
            "instances": instances,
        }
        start = time.process_time()
        with torch.no_grad():
            predicted = model([inputs])[0]["instances"]
        scores.seconds += time.process_time() - start
        void = truth.void_mask()
        score = [float(v) for v in predicted.scores]
        quality = predicted_quality(predicted)
        for position, i in enumerate(kept):
            true = truth.mask(i)
            scores.image.append(index)
            scores.category.append(int(truth.annotations[i]["category_id"]))
            scores.iou.append(float(mask_iou(predicted.pred_masks[position].cpu().numpy(), true, void)))
            scores.filled.append(float(mask_iou(filled(boxes[i], true.shape), true, void)))
            scores.quality.append(quality[position])
            scores.score.append(score[position])
            scores.side.append(float(min(boxes[i][2] - boxes[i][0], boxes[i][3] - boxes[i][1])))
    return scores


def move_edges(box: Sequence[float], most: float, rng: np.random.Generator, truth: ImageTruth) -> list[float]:
    """The box with each edge moved by up to ``most`` of its side, inside the image."""
    if most <= 0:
        return list(box)
    width, height = box[2] - box[0], box[3] - box[1]
    x0, y0, x1, y1 = np.asarray(box) + rng.uniform(-most, most, 4) * (width, height, width, height)
    return [max(x0, 0.0), max(y0, 0.0), min(x1, float(truth.width)), min(y1, float(truth.height))]


def filled(box: Sequence[float], shape: Sequence[int]) -> np.ndarray:
    """H x W bool: the box, corners rounded."""
    mask = np.zeros(shape, dtype=bool)
    x0, y0, x1, y1 = (round(v) for v in box)
    mask[max(y0, 0) : max(y1, y0 + 1), max(x0, 0) : max(x1, x0 + 1)] = True
    return mask


def summary(name: str, scores: Scores, jittered: Sequence[Scores]) -> dict[str, Any]:
    """The figures of one data set, in percent and milliseconds."""
    classes = len(set(scores.category))
    figures = summarize_box_to_mask(scores.iou, scores.category, num_classes=max(scores.category) + 1)
    low, high = bootstrap_interval(scores.iou, [0] * len(scores.iou), scores.image)
    row: dict[str, Any] = {
        "set": name,
        "objects": len(scores.iou),
        "mean IoU": 100 * figures.mean_iou,
        "low": 100 * low,
        "high": 100 * high,
        "mIoU*": 100 * figures.miou_present,
        "IoU@50": 100 * figures.iou_at[50],
        "IoU@75": 100 * figures.iou_at[75],
        "filled": 100 * float(np.mean(scores.filled)),
        "spearman": spearman(scores.quality, scores.iou),
        "sp. score": spearman(scores.score, scores.iou),
        "classes": classes,
        "ms/box": 1000 * scores.seconds / len(scores.iou),
    }
    if jittered:
        row["jittered"] = 100 * float(np.mean([np.mean(s.iou) for s in jittered]))
    return row


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation, ties sharing their mean rank; 0 where one of the two is constant."""

    def ranks(values: Sequence[float]) -> np.ndarray:
        _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
        ends = np.cumsum(counts)
        return (ends - (counts - 1) / 2)[inverse]

    x, y = ranks(first), ranks(second)
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / scale if scale else 0.0


_FIGURES = ("mean IoU", "low", "high", "mIoU*", "IoU@50", "IoU@75", "filled", "jittered")
_COLUMNS = (*_FIGURES, "spearman", "sp. score", "ms/box")


def print_row(row: dict[str, Any], *, first: bool) -> None:
    """One line of the table, with a header before the first."""
    if first:
        print(f"{'set':24s}{'objects':>8s}" + "".join(f"{c:>10s}" for c in _COLUMNS))
    values = (("" if c not in row else f"{row[c]:.3f}" if c.startswith("sp") else f"{row[c]:.1f}") for c in _COLUMNS)
    print(f"{row['set'][:23]:24s}{row['objects']:8d}" + "".join(f"{v:>10s}" for v in values), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
