#!/usr/bin/env python
"""The main job of ``make demo``: BoxCaseg from boxes to a trained Mask R-CNN, on toy scenes, in minutes on a CPU.

Writes the toy scenes, runs the rounds config ``configs/toy/BoxCaseg-rounds.yaml`` by ``train_net.py``, prints a table,
draws pictures of the masks, and checks the gains. Running it again continues where it stopped and skips what is done.
No number of the toy scenes says anything about real images.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
ROUNDS_CONFIG = ROOT / "configs" / "toy" / "BoxCaseg-rounds.yaml"
# Two CPU processes get more out of two cores than one of two threads: the networks are small.
PROCESSES = 2

STEPS = {
    "joint": "BoxCaseg: train on boxes and salient images, label all boxes",
    "retrain": "retrain Mask R-CNN on the proxy masks",
    "fill": "label all boxes with filled boxes",
    "retrain-filled": "retrain Mask R-CNN on the filled boxes",
    "grabcut": "GrabCut, for comparison",
    "shipped": "the network that ships, for comparison",
}
# Smallest gains in percentage points; the second and third are far above the noise of seeds.
MIN_GAIN_PROXY = 15.0
MIN_GAIN_RETRAINED = 4.0
MIN_GAIN_AP50 = 5.0


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="output folder")
    parser.add_argument("--no-pictures", action="store_true", help="only the table")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of all steps' configs")
    args = parser.parse_args()
    start = time.perf_counter()
    output = args.output.resolve()
    datasets = output / "datasets"
    try:
        print(f"[1/3] toy scenes -> {shown(datasets)}", flush=True)
        write_scenes(datasets)
        os.environ["DETECTRON2_DATASETS"] = str(datasets)
        print(f"[2/3] {len(STEPS)} steps of {shown(ROUNDS_CONFIG)}", flush=True)
        run_rounds(output, args.opts)
        print("[3/3] table and pictures", flush=True)
        results = read_results(output)
        pictures = [] if args.no_pictures else draw(output)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"The demo stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again to continue from here.", file=sys.stderr)
        return 130
    print_table(results)
    for name, path in pictures:
        print(f"{name}: {shown(path)}")
    print(f"Time: {(time.perf_counter() - start) / 60:.1f} minutes")
    return 0 if check(results) else 1


def shown(path: Path) -> str:
    """A path as short as it can be written from the working folder."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def write_scenes(root: Path) -> None:
    """Write the toy data sets, unless they are there."""
    from boxsup_d2.toy.scenes import write_toy_datasets

    write_toy_datasets(root)


# ------------------------------------------------------------------------------------------------- running
def run_rounds(output: Path, opts: list[str]) -> None:
    """Run ``train_net.py`` on the rounds config as a child process and show its progress.

    Raises:
        RuntimeError: if it fails; names the log.
    """
    output.mkdir(parents=True, exist_ok=True)
    console = output / "console.txt"
    command = [sys.executable, str(ROOT / "train_net.py"), "--num-gpus", str(PROCESSES)]
    command += ["--config-file", str(ROUNDS_CONFIG), "OUTPUT_DIR", str(output), *opts]
    # On the CPU also where there is a GPU, for the same results everywhere.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    progress = Progress(output)
    with console.open("w") as file:
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment)
        try:
            while child.poll() is None:
                progress.update()
                time.sleep(0.5)
        except BaseException:
            child.terminate()
            child.wait()
            raise
        finally:
            progress.close()
    if child.returncode:
        tail = "\n".join(console.read_text(errors="replace").splitlines()[-12:])
        raise RuntimeError(
            f"train_net.py ended with status {child.returncode}. Its last lines:\n{tail}\n"
            f"The whole log is {shown(console)}. Run the same command again to continue from the last checkpoint."
        )


class Progress:
    """Shows the progress of a rounds run from its files: ``rounds.json``, and ``metrics.json`` of the steps."""

    def __init__(self, output: Path, line_every: float = 20) -> None:
        """
        Args:
            output: folder of the run.
            line_every: seconds between two lines, where there is no terminal.
        """
        from boxsup_d2.utils.progress import ProgressBar

        self.output = output
        self.iterations = {name: _max_iter(name) for name in STEPS}
        self.bar = ProgressBar("starting", sum(self.iterations.values()), unit="iteration", line_every=line_every)
        self.finished: set[str] = set()

    def update(self) -> None:
        """Read the files and show the progress."""
        states = {name: entry["status"] for name, entry in _read_state(self.output).items() if name in STEPS}
        finished = {name for name, status in states.items() if status == "finished"}
        for name, title in STEPS.items():
            if name in finished - self.finished:
                print(f"      done: {title}", flush=True)
        self.finished = finished
        done = sum(self.iterations[name] for name in finished)
        text = "starting"
        current = next((name for name in states if name not in finished), None)
        if current:
            iteration, loss = _last_metrics(self.output / current / "metrics.json")
            trained = iteration >= self.iterations[current]
            text = f"{current}: " + ("labelling, evaluating" if trained else f"loss {loss:.2f}" if loss else "training")
            done += iteration
        self.bar.update(done - self.bar.done, text)

    def close(self) -> None:
        """Show the progress once more and end the bar."""
        self.update()
        self.bar.close()


def _max_iter(step: str) -> int:
    """Iterations of a step: 0 for those that only label or evaluate."""
    for group in yaml.safe_load(ROUNDS_CONFIG.read_text())["ROUNDS"]:
        for entry in group["STEPS"]:
            if entry["NAME"] == step and not entry.get("EVAL_ONLY", False):
                config = yaml.safe_load((ROUNDS_CONFIG.parent / entry["CONFIG"]).read_text())
                return int(config["SOLVER"]["MAX_ITER"])
    return 0


def _read_state(output: Path) -> dict[str, dict[str, Any]]:
    path = output / "rounds.json"
    return json.loads(path.read_text())["steps"] if path.is_file() else {}


def _last_metrics(path: Path) -> tuple[int, float | None]:
    """Iterations done and total loss, from the last line of ``metrics.json``."""
    if not path.is_file():
        return 0, None
    for line in reversed(path.read_text().splitlines()):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # being written
            continue
        if "total_loss" in record:
            return int(record["iteration"]) + 1, float(record["total_loss"])
    return 0, None


# ------------------------------------------------------------------------------------------------- results
def read_results(output: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Metrics in percent by step and task.

    Raises:
        RuntimeError: if a step has none.
    """
    steps = _read_state(output)
    missing = [name for name in STEPS if not steps.get(name, {}).get("results")]
    if missing:
        raise RuntimeError(f"{output / 'rounds.json'} has no results of {', '.join(missing)}")
    return {name: steps[name]["results"] for name in STEPS}


def print_table(results: dict[str, dict[str, dict[str, float]]]) -> None:
    """One table: masks from boxes of four methods, and of the two retrained networks with their mask AP."""
    from boxsup_d2.evaluation.tables import format_table

    metrics = ["mIoU*", "IoU@25", "IoU@50", "IoU@70", "IoU@75"]
    rows = []
    for title, step in (
        ("filled box", "fill"),
        ("GrabCut", "grabcut"),
        ("BoxCaseg proxy masks", "joint"),
        ("Mask R-CNN retrained on filled boxes", "retrain-filled"),
        ("Mask R-CNN retrained on proxy masks", "retrain"),
        ("the network that ships, which saw no toy scene", "shipped"),
    ):
        found = results[step]
        ap50 = found.get("segm", {}).get("AP50")
        rows.append([title, *(found["box_to_mask"][name] for name in metrics), ap50])
    print("\nMasks on the toy validation scenes, percent. mIoU* and IoU@k: masks from ground-truth boxes; "
          "mask AP50: detection.\n")  # fmt: skip
    print(format_table(["toy scenes, percent", *metrics, "mask AP50"], rows))
    print()


def check(results: dict[str, dict[str, dict[str, float]]]) -> bool:
    """Print whether every gain is large enough; True if all are."""
    masks = {step: found["box_to_mask"]["mIoU*"] for step, found in results.items()}
    ap50 = {step: results[step]["segm"]["AP50"] for step in ("retrain", "retrain-filled")}
    passed = True
    for text, gain, wanted in (
        ("proxy masks beat filled boxes in mIoU*", masks["joint"] - masks["fill"], MIN_GAIN_PROXY),
        ("retraining on them beats retraining on filled boxes in mIoU*",
         masks["retrain"] - masks["retrain-filled"], MIN_GAIN_RETRAINED),
        ("and in mask AP50", ap50["retrain"] - ap50["retrain-filled"], MIN_GAIN_AP50),
    ):  # fmt: skip
        passed &= gain >= wanted
        print(f"{'PASS' if gain >= wanted else 'FAIL'}: {text} by {gain:.1f} points (at least {wanted:.0f} wanted)")
    if not passed:
        print("FAIL means that this installation learns less than it should: run the tests (make test), and compare "
              "the losses in the steps' log.txt with docs/toy.md.")  # fmt: skip
    return passed


def draw(output: Path) -> list[tuple[str, Path]]:
    """Draw the contact sheets; returns titles and paths."""
    from _demo_pictures import draw_pictures

    return draw_pictures(output)


if __name__ == "__main__":
    sys.exit(main())
