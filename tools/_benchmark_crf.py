"""``benchmark.py crf``: DenseCRF over images in one process and in several."""

from __future__ import annotations

import argparse
import importlib.util
from functools import partial

import cv2
import numpy as np
from _benchmark_loader import HEIGHT, WIDTH
from _benchmark_timing import Result, interleaved

from boxsup_d2.crf.pool import CRFPool, refine_label_map
from boxsup_d2.crf.refine import CRF_VGG16
from boxsup_d2.crf.workers import default_workers


def crf_inputs(count: int, classes: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images H x W x 3 uint8 with smooth class probabilities C x H x W float32, as a network of stride 8 gives them."""
    rng = np.random.default_rng(seed)
    inputs = []
    for _ in range(count):
        image = cv2.resize(rng.integers(0, 256, (HEIGHT // 25, WIDTH // 25, 3), dtype=np.uint8), (WIDTH, HEIGHT))
        logits = 3 * rng.standard_normal((HEIGHT // 40, WIDTH // 40, classes)).astype(np.float32)
        weights = np.exp(cv2.resize(logits, (WIDTH, HEIGHT)).transpose(2, 0, 1))
        inputs.append((image, np.ascontiguousarray(weights / weights.sum(axis=0))))
    return inputs


def benchmark_crf(args: argparse.Namespace) -> Result:
    """Seconds per image of a DenseCRF, one process against a pool."""
    if importlib.util.find_spec("pydensecrf") is None:
        return {"rows": [{"DenseCRF": "not measured"}], "remarks": ["pydensecrf is not installed."]}
    inputs = crf_inputs(args.crf_images, args.classes)
    workers = args.workers or max(default_workers(), 2)

    def alone() -> list[np.ndarray]:
        return [refine_label_map(image, prob, CRF_VGG16) for image, prob in inputs]

    def pooled(pool: CRFPool) -> list[np.ndarray]:
        ready = [label for key, (image, prob) in enumerate(inputs) for label in pool.submit(key, image, prob)]
        return [labels for _, labels in [*ready, *pool.drain()]]

    # The pools outlive the rounds: starting a worker takes seconds, once per evaluation.
    with CRFPool(CRF_VGG16, workers=workers) as pool:
        equal = all(map(np.array_equal, alone(), pooled(pool)))
        timings = interleaved({"1, in place": alone, f"{workers}, pool": partial(pooled, pool)}, args.repeats or 3)
    rows = [
        {"processes": name, "images": len(inputs), "wall s": timing.wall, "wall s per image": timing.wall / len(inputs)}
        for name, timing in timings.items()
    ]
    one, many = (timing.wall for timing in timings.values())
    return {
        "rows": rows,
        "speedup": one / many,
        "equal": equal,
        "remarks": [
            f"{args.classes} classes, images of {WIDTH}x{HEIGHT}, 10 iterations. {workers} processes: {one / many:.2f} "
            "times as fast; only a machine with as many idle cores shows what they can do."
        ],
    }
