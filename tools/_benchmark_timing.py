"""Timing of the benchmarks; see benchmark.py."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

# A benchmark returns rows (one line of its table each) and remarks on them.
Result = dict[str, Any]


@dataclass(frozen=True)
class Timing:
    """Medians over the repeats, in seconds."""

    wall: float
    cpu: float


def cpu_seconds() -> float:
    """CPU time so far of this process, and of those that it started, as far as they have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def interleaved(
    runs: dict[str, Callable[[], Any]], repeats: int, sync: Callable[[], None] = lambda: None
) -> dict[str, Timing]:
    """Time functions that take turns; a first round, in which caches fill, does not count.

    Args:
        runs: functions by name.
        repeats: rounds that count.
        sync: waits for the device.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            sync()
            wall, cpu = time.perf_counter(), cpu_seconds()
            run()
            sync()
            if turn:
                times[name].append((time.perf_counter() - wall, cpu_seconds() - cpu))
    return {name: Timing(*(statistics.median(values) for values in zip(*t, strict=True))) for name, t in times.items()}


def governing(timing: Timing, device: str) -> float:
    """Seconds to compare: CPU time, which other processes do not distort; on a GPU, wall time."""
    return timing.cpu if device == "cpu" else timing.wall


def device_sync(device: str) -> Callable[[], None]:
    """A function that waits until the device is idle."""
    return (lambda: torch.cuda.synchronize(device)) if device.startswith("cuda") else (lambda: None)
