"""``benchmark.py merge``: merging the masks of every image."""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Sequence
from functools import partial
from itertools import cycle, islice
from typing import Any

import cv2
import numpy as np
import torch
from _benchmark_loader import HEIGHT, WIDTH, random_boxes
from _benchmark_timing import Result, interleaved
from pycocotools import mask as mask_util

from boxsup_d2.masks.merge import merge_image

INSTANCES_PER_IMAGE = 2.5  # of VOC, about


def instance_pool(count: int, seed: int = 0) -> list[tuple[list[list[float]], list[dict[str, Any]]]]:
    """Images with one to four instances each: boxes x, y, w, h, and RLEs of an ellipse with a hole in each."""
    rng = np.random.default_rng(seed)
    pool = []
    for index in range(count):
        boxes = random_boxes(rng, 1 + index % 4)
        masks = np.zeros((HEIGHT, WIDTH, len(boxes)), np.uint8, order="F")
        for i, (x, y, w, h) in enumerate(boxes):
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            center = int(x + w / 2), int(y + h / 2)
            cv2.ellipse(mask, center, (int(w / 2), int(h / 2)), 0, 0, 360, 1, -1)
            cv2.circle(mask, (center[0] + int(w / 4), center[1]), int(min(w, h) / 5), 0, -1)
            masks[:, :, i] = mask
        rles = [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in mask_util.encode(masks)]
        pool.append((boxes, rles))
    return pool


def benchmark_merge(args: argparse.Namespace) -> Result:
    """Seconds for a data set, and per instance at two sizes."""
    pool = instance_pool(200)
    # Tensors take a thousand times the memory of RLEs.
    dense = [
        (boxes, torch.from_numpy(np.ascontiguousarray(mask_util.decode(rles).transpose(2, 0, 1))).bool())
        for boxes, rles in pool[:40]
    ]
    before = peak_megabytes()

    def merge(source: Sequence[tuple[Any, Any]], images: int) -> int:
        merged = 0
        for boxes, masks in islice(cycle(source), images):
            merged += len(merge_image(masks, boxes, height=HEIGHT, width=WIDTH))
        return merged

    images = max(round(args.instances / INSTANCES_PER_IMAGE), 5)
    cases: dict[str, tuple[Sequence[tuple[Any, Any]], int]] = {
        "from RLE, a fifth": (pool, images // 5),
        "from RLE, all": (pool, images),
        "from bool tensors, a fifth": (dense, images // 5),
    }
    timings = interleaved({name: partial(merge, *case) for name, case in cases.items()}, args.repeats or 3)
    counts = {
        name: sum(len(boxes) for boxes, _ in islice(cycle(source), number)) for name, (source, number) in cases.items()
    }
    rows: list[dict[str, Any]] = [
        {
            "masks": name,
            "images": cases[name][1],
            "instances": counts[name],
            "wall s": timing.wall,
            "CPU s": timing.cpu,
            "CPU ms per instance": timing.cpu / counts[name] * 1e3,
            "target s": 60 * counts[name] / 25000,
        }
        for name, timing in timings.items()
    ]
    small, large = (row["CPU ms per instance"] for row in rows[:2])
    return {
        "rows": rows,
        "linearity": large / small,
        "peak_rss_mb": peak_megabytes(),
        "added_peak_rss_mb": peak_megabytes() - before,
        "remarks": [
            f"Images of {WIDTH}x{HEIGHT}. Time per instance, all against a fifth: {large / small:.2f} (linear: 1).",
            f"Peak memory of the process {peak_megabytes():.0f} MB, of which merging added "
            f"{peak_megabytes() - before:.0f} MB.",
        ],
    }


def peak_megabytes() -> float:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)  # macOS counts bytes
