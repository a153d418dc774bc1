#!/usr/bin/env python
"""The cost of the project's hot paths, beside a plain way of doing the same.

  loader           ms per training crop and per test crop: ours, and a plain scikit-image loader of the published kind
  semantic-loader  ms per sample of class masks and of label maps: ours, and a plain Pillow loader
  batches          what the trainer spends on a batch that a worker has made
  merge            merging the masks of every image: time, memory, and whether it is linear
  mask-head        what the confidence-governed mask head adds to a training step of Mask R-CNN
  boxinst          a training step of BoxInst, and one of the same network from masks (CondInst)
  crf              DenseCRF of class probabilities: one process, and a pool of them
  labels           labelling by LPG's generator, images and classes batched or one by one
  commands         boxsup label, report and eval, and plain loops over the same images
  start            a process until boxsup label has made one mask, and until it has imported torch
  all              all of them, one after the other

Variants take turns and medians are printed, so that a busy machine slows all of them alike. Everything but the CRF's
pool, and the processes of ``start``, runs in one process on one thread. CPU time is printed as well, since other
processes distort wall time.

Examples:

  python tools/benchmark.py all --json benchmark.json
  python tools/benchmark.py merge --instances 5000
  python tools/benchmark.py mask-head --device cuda --side 800 --batch 6
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import torch
from _benchmark_batches import benchmark_batches
from _benchmark_boxinst import benchmark_boxinst
from _benchmark_commands import benchmark_commands, benchmark_start
from _benchmark_crf import benchmark_crf
from _benchmark_loader import benchmark_loader
from _benchmark_lpg import benchmark_lpg
from _benchmark_mask_head import benchmark_mask_head
from _benchmark_merge import benchmark_merge
from _benchmark_semantic_loader import benchmark_semantic_loader
from _benchmark_timing import Result

import boxsup_d2
from boxsup_d2.evaluation.tables import format_table


def environment(device: str) -> dict[str, Any]:
    """What the results depend on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "opencv": cv2.__version__,
        "boxsup_d2": boxsup_d2.__version__,
    }


# Merging comes first: the peak memory of others would hide its own.
BENCHMARKS: dict[str, Callable[[argparse.Namespace], Result]] = {
    "merge": benchmark_merge,
    "loader": benchmark_loader,
    "semantic-loader": benchmark_semantic_loader,
    "batches": benchmark_batches,
    "mask-head": benchmark_mask_head,
    "boxinst": benchmark_boxinst,
    "crf": benchmark_crf,
    "labels": benchmark_lpg,
    "commands": benchmark_commands,
    "start": benchmark_start,
}


def build_parser() -> argparse.ArgumentParser:
    """The command line; ``all`` takes the options of all benchmarks."""

    def positive(text: str) -> int:
        if int(text) < 1:
            raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
        return int(text)

    def options(*entries: tuple[str, int | None, str]) -> argparse.ArgumentParser:
        parent = argparse.ArgumentParser(add_help=False)
        for flag, default, text in entries:
            parent.add_argument(flag, type=positive, default=default, metavar="N", help=text)
        return parent

    common = options(
        (
            "--repeats",
            None,
            "rounds whose median is taken (default: 5 loaders, batches, 7 mask-head, boxinst, 3 others)",
        )
    )
    common.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1 ...; merging always takes the CPU")
    common.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    jpegs = options(("--images", 40, "JPEGs (default 40)"), ("--boxes", 3, "boxes per image (default 3)"))
    squares = options(
        ("--side", 160, "sides of the square images in pixels (default 160)"), ("--batch", 2, "images (default 2)")
    )
    own = {
        "loader": jpegs,
        "semantic-loader": jpegs,
        "merge": options(("--instances", 25000, "instances, 2.5 per image (default 25000)")),
        "batches": options(),
        "mask-head": squares,
        "boxinst": squares,
        "crf": options(
            ("--crf-images", 8, "images (default 8)"),
            ("--classes", 21, "classes (default 21)"),
            ("--workers", None, "processes of the pool (default: all cores)"),
        ),
        "labels": options(
            ("--labelled", 8, "images to label (default 8)"),
            ("--label-side", 500, "their longer side in pixels (default 500)"),
        ),
        "commands": jpegs,
        "start": options(),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{" + ",".join([*own, "all"]) + "}")
    for name, parent in own.items():
        text = BENCHMARKS[name].__doc__
        commands.add_parser(name, parents=[common, parent], help=text, description=text)
    commands.add_parser(
        "all", parents=[common, *dict.fromkeys(own.values())], help="all of them", description="All benchmarks."
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run benchmarks and print their tables; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.device != "cpu" and not (args.device.startswith("cuda") and torch.cuda.is_available()):
        parser.error(f"torch has no device '{args.device}' here: leave --device out to use the CPU")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    results: dict[str, Any] = {"environment": environment(args.device)}
    print(", ".join(f"{key} {value}" for key, value in results["environment"].items()), flush=True)
    for name, benchmark in BENCHMARKS.items():
        if args.command not in (name, "all"):
            continue
        result = results[name] = benchmark(args)
        rows = result["rows"]
        print(f"\n{format_table(list(rows[0]), [list(row.values()) for row in rows], digits=2)}")
        print("\n".join(result["remarks"]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
        print(f"\nResults: {args.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
