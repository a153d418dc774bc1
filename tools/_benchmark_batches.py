"""``benchmark.py batches``: what a trainer spends on a batch of a worker, in one piece and tensor by tensor."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils.data
from _benchmark_timing import Result, interleaved
from detectron2.data.build import trivial_batch_collator

from boxsup_d2.data.parcels import pack, unpack

SAMPLES, SIDE = 24, 128  # BoxMask's
AHEAD = 4  # batches that a worker has ready


class Batches(torch.utils.data.IterableDataset):
    """Endless samples of four tensors."""

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        maps = {name: torch.zeros(SIDE, SIDE, dtype=torch.uint8) for name in ("box", "mask", "void")}
        while True:
            yield {"image": torch.zeros(3, SIDE, SIDE, dtype=torch.uint8), **maps}


def benchmark_batches(args: argparse.Namespace) -> Result:
    """ms of the trainer per batch of 24 samples of four tensors."""
    ways: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
        "tensor by tensor": (trivial_batch_collator, lambda batch: batch),
        "in one piece": (pack, unpack),
    }
    waiting = {}
    for name, (collate, _) in ways.items():
        loader = torch.utils.data.DataLoader(
            Batches(), SAMPLES, num_workers=1, prefetch_factor=AHEAD, collate_fn=collate
        )
        waiting[name] = iter(loader)

    def receive(name: str) -> None:
        for _ in range(AHEAD):
            ways[name][1](next(waiting[name]))

    runs: dict[str, Callable[[], None]] = {}
    for name in ways:
        runs[f"(the worker of '{name}')"] = lambda: time.sleep(0.3)  # it makes batches, and the other one sleeps
        runs[name] = lambda name=name: receive(name)  # type: ignore[misc]
    timings = interleaved(runs, args.repeats or 5)
    plain = timings["tensor by tensor"].cpu
    rows = [
        {
            "a batch comes": name,
            "wall ms": 1e3 * timings[name].wall / AHEAD,
            "CPU ms": 1e3 * timings[name].cpu / AHEAD,
            "times as fast": plain / timings[name].cpu,
        }
        for name in ways
    ]
    return {"rows": rows, "remarks": [f"{SAMPLES} samples of four tensors, {SIDE} px; one worker."]}
