#!/usr/bin/env python
"""Try everything on a GPU and write one markdown table: does it work, does it give the CPU's results, how fast is it.

    python tools/gpu_check.py                                    # eight minutes at most, on one GPU
    python tools/gpu_check.py --device cpu --quick               # the same steps in tiny, to try this tool itself
    python tools/gpu_check.py --only recipes labels              # parts of it
    python tools/gpu_check.py --wheels wheels                    # on a machine with torch and without a network

Every part is a process with a limit of time; what fails is a line of the table, and the others go on.

Wheels are gathered on a machine with a network and the same Python, and copied beside the checkout:

    python -m pip wheel --wheel-dir wheels --constraint constraints.txt '.[demo,dev]'
    rm -f wheels/torch* wheels/nvidia* wheels/triton* wheels/boxsup*      # torch is there, and this is the checkout
    python -m pip download --no-deps --no-build-isolation --dest wheels pb1-detectron2==0.6   # or Detectron2's wheel

They are unpacked into a folder of the output, and change nothing of the machine's own environment.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _detectron2_edits import InstallError
from install_detectron2 import build_wheel, run_pip

ROOT = Path(__file__).resolve().parents[1]
# Seconds; what a part leaves over is the next one's.
PARTS = {"tests": 45, "methods": 125, "steps": 60, "recipes": 110, "labels": 90, "loader": 50}
MINUTES = 8.0
LEAST_SECONDS = 5.0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:1, or cpu")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: no figure means anything")
    parser.add_argument(
        "--only", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of all parts together (default: %(default)g)")
    parser.add_argument("--out", type=Path, default=Path("output/gpu_check"), help="folder (default: %(default)s)")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="packages that are missing here, as wheels")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)  # one of the processes
    parser.add_argument("--seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    return parser


def unpack_wheels(wheels: Path, folder: Path) -> Path:
    """Put wheels, and Detectron2's archive where it is among them, into a folder for ``PYTHONPATH``, offline.

    Raises:
        InstallError: there are none, or pip cannot install them.
    """
    found = sorted(wheels.glob("*.whl"))
    folder.mkdir(parents=True, exist_ok=True)
    for archive in wheels.glob("pb1*detectron2-0.6.tar.gz"):
        built = folder / "build"
        built.mkdir(exist_ok=True)
        found.append(build_wheel(archive, built))
    if not found:
        raise InstallError(f"--wheels: there is no wheel in '{wheels}'")
    packages = folder / "packages"
    # Without dependencies: pip must not look for a torch, which is there in whatever version.
    words = ["install", "--quiet", "--no-index", "--no-deps", "--upgrade", "--target", str(packages)]
    run_pip([*words, *map(str, found)], "Build the wheels with the Python that this machine has.")
    return packages


def run_part(args: argparse.Namespace, part: str, seconds: float, environment: dict[str, str]) -> list[dict[str, Any]]:
    """Rows of a part: those that it has written, and one that says how it failed where it did."""
    rows_file, log_file = args.out / f"{part}.jsonl", args.out / f"{part}.log"
    rows_file.unlink(missing_ok=True)
    words = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "--part", part]
    words += ["--device", args.device, "--out", str(args.out), "--seconds", str(seconds)]
    words += ["--quick"] if args.quick else []
    failure, started = None, time.monotonic()
    with log_file.open("w") as log:
        # A group of its own, so that the workers of a loader end with it.
        child = subprocess.Popen(
            words, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = child.wait(seconds)
            failure = f"FAILED: ended with status {status}" if status else None
        except subprocess.TimeoutExpired:
            failure = f"stopped after {seconds:.0f} s"
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()] if rows_file.is_file() else []
    if failure is not None:
        lines = log_file.read_text(errors="replace").strip().splitlines()
        result = f"{failure}; {log_file.name} ends in: {lines[-1] if lines else 'nothing'}"
        rows.append({"what": "the rest", "result": result, "GiB": None, "seconds": time.monotonic() - started})
    return [{"part": part, **row} for row in rows]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as Markdown."""

    def cell(value: Any) -> str:
        text = "" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)
        return text.replace("|", "\\|").replace("\n", " ")

    heads = ["part", "what", "result", "GiB", "seconds"]
    lines = [heads, ["---"] * len(heads), *([cell(row[head]) for head in heads] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run all parts; returns 0 where nothing failed."""
    args = build_parser().parse_args(argv)
    args.out = args.out.resolve()
    if args.part:
        from _gpu_parts import write_rows

        write_rows(args.part, args.device, args.out, quick=args.quick, seconds=args.seconds)
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    if args.wheels:
        try:
            paths.insert(0, str(unpack_wheels(args.wheels, args.out / "wheels")))
        except InstallError as error:
            print(f"gpu_check: {error}", file=sys.stderr)
            return 1
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    parts = [part for part in PARTS if part in args.only]
    scale = args.minutes / MINUTES * sum(PARTS.values()) / sum(PARTS[part] for part in parts)
    rows: list[dict[str, Any]] = []
    due, path = started, args.out / "gpu_check.md"
    for part in parts:
        due += PARTS[part] * scale
        rows += run_part(args, part, max(due - time.monotonic(), LEAST_SECONDS), environment)
        path.write_text(table(rows))  # what is there is kept, whatever comes
    print(table(rows) + f"\n{(time.monotonic() - started) / 60:.1f} minutes. The table: {path}")
    return 1 if any(row["result"].startswith("FAILED") for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
