"""``benchmark.py boxinst``: a training step from boxes, beside one of the same network from masks."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from _benchmark_mask_head import training_batch
from _benchmark_timing import Result, device_sync, governing, interleaved
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from boxsup_d2 import model_zoo

# A step from boxes may cost so much of one from masks.
TARGET = 1.15


def boxinst(from_masks: bool, device: str) -> nn.Module:
    """BoxInst R-50-FPN with random weights; ``from_masks``: CondInst."""
    cfg = model_zoo.get_config("BoxInst/coco-R50-1x.yaml")
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.MODEL.MASK_ON = device, "", from_masks
    torch.manual_seed(0)
    return build_model(cfg).train()


def benchmark_boxinst(args: argparse.Namespace) -> Result:
    """Step times of BoxInst and of CondInst on the same images."""
    models = {"masks (CondInst)": boxinst(True, args.device), "boxes (BoxInst)": boxinst(False, args.device)}
    batch = training_batch(args.batch, args.side)

    def step(model: nn.Module) -> None:
        model.zero_grad(set_to_none=True)
        with EventStorage(100000):  # all losses have their full weight
            sum(model(batch).values()).backward()

    runs: dict[str, Callable[[], None]] = {name: partial(step, model) for name, model in models.items()}
    timings = interleaved(runs, args.repeats or 7, device_sync(args.device))
    base = governing(timings["masks (CondInst)"], args.device)
    rows = [
        {
            "step from": name,
            "wall ms": 1e3 * timing.wall,
            "CPU ms": 1e3 * timing.cpu,
            "of a step from masks": governing(timing, args.device) / base,
            "at most": TARGET if name.startswith("boxes") else None,
        }
        for name, timing in timings.items()
    ]
    remark = (
        f"R-50-FPN, {args.batch} images of {args.side} px with four instances, on {args.device}; forward and backward."
    )
    return {"rows": rows, "remarks": [remark]}
