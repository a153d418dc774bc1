#!/usr/bin/env python
"""Give the commands mutated inputs: each has to end in an answer, or in one line that says what is wrong.

    python tools/hostile_campaign.py --cases 2000 --seed 0
    python tools/hostile_campaign.py --cases 1 --seed 1234 --keep case      # this case again, with its files

Every case is a process of its own, forked from this one. It must not end in a traceback or a signal, not run for more
than a minute (``--seconds``, on a busy machine), not take more than 4 GB, leave no json with NaN and no page with the
path of a folder of this machine, and run no code that a file names. Prints how the cases ended, and the number of each
that did not end as it should.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _hostile_inputs import (
    Rng,
    damage_image,
    good_json,
    mutated_json,
    trained_network,
    write_good,
    write_mutated_checkpoint,
    write_mutated_config,
    write_mutated_network,
)

from boxsup_cli import main as boxsup
from boxsup_cli.errors import exit_code_of
from boxsup_d2.engine.defaults import default_argument_parser, setup
from boxsup_d2.engine.step import run_step

_BYTES = 4 << 30


# ------------------------------------------------------------------------------------------------- the cases
def _damage(folder: Path, rng: Rng, *, masks: bool = False) -> None:
    """Replace ``boxes.json``, or some images, by damaged ones."""
    if rng.random() < 0.7:
        (folder / "boxes.json").write_bytes(mutated_json(rng, masks=masks))
        return
    if masks:
        (folder / "boxes.json").write_text(json.dumps(_with_masks()))
    for image in rng.sample(good_json()["images"], rng.choice([1, 1, 2, 5])):
        damage_image(folder / image["file_name"], rng)


def _with_masks() -> dict[str, Any]:
    data = good_json()
    for annotation in data["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation.setdefault("segmentation", [[x, y, x + w, y, x + w, y + h, x, y + h]])
    return data


def _some(rng: Rng, *options: tuple[str, ...]) -> list[str]:
    return [word for option in options if rng.random() < 0.3 for word in option]


def _label(folder: Path, rng: Rng) -> int:
    _damage(folder, rng)
    exports = [(f"--{name}", str(folder / name)) for name in ("png", "voc-png", "yolo-seg")]
    workers = rng.choice(["0"] * 5 + ["1"])
    options = _some(rng, ("--keep-going",), ("--polygons",), ("--outside-images",), ("--min-quality", "0.5"), *exports)
    options += _some(rng, ("--report", str(folder / "page.html")))
    words = ["--json", str(folder / "boxes.json"), "--images", str(folder), "--out", str(folder / "masks.json")]
    more = ["--method", "box", "--num-gpus", "0", "--opts", "DATALOADER.NUM_WORKERS", workers]
    return boxsup(["label", *words, *options, *more])


def _eval(folder: Path, rng: Rng) -> int:
    (folder / "truth.json").write_text(json.dumps(_with_masks()))
    _damage(folder, rng, masks=True)
    files = ["boxes.json", "truth.json"] if rng.random() < 0.6 else ["truth.json", "boxes.json"]
    outputs = ["--csv", str(folder / "rows.csv"), "--json-out", str(folder / "figures.json")]
    return boxsup(["eval", *(str(folder / name) for name in files), *outputs])


def _report(folder: Path, rng: Rng) -> int:
    (folder / "truth.json").write_text(json.dumps(_with_masks()))
    _damage(folder, rng, masks=True)
    truth = _some(rng, ("--truth", str(folder / "truth.json")), ("--keep-going",), ("--max-images", "3"))
    words = ["--images", str(folder), "--out", str(folder / "page.html")]
    return boxsup(["report", str(folder / "boxes.json"), *words, *truth])


def _convert(folder: Path, rng: Rng) -> int:
    source = write_mutated_checkpoint(folder, rng)
    return boxsup(["convert", str(source), "--out", str(folder / rng.choice(["new.safetensors", "new.pth"]))])


def _weights(folder: Path, rng: Rng) -> int:
    weights = write_mutated_checkpoint(folder, rng)
    words = ["--json", str(folder / "boxes.json"), "--images", str(folder), "--out", str(folder / "masks.json")]
    return boxsup(["label", *words, "--method", "boxmask", "--weights", str(weights), "--num-gpus", "0"])


def _config(folder: Path, rng: Rng) -> int:
    """As ``train_net.py --eval-only``."""
    words = ["--config-file", str(write_mutated_config(folder, rng)), "--eval-only", "--num-gpus", "0"]
    args = default_argument_parser().parse_args(words)
    work = lambda: run_step(setup(args), resume=False, eval_only=True)  # noqa: E731
    return exit_code_of("train_net.py", work, debug=False)


def _train(folder: Path, rng: Rng) -> int:
    _damage(folder, rng)
    words = ["--json", str(folder / "boxes.json"), "--images", str(folder), "--out", str(folder / "trained")]
    if rng.random() < 0.3:
        words += ["--init", str(write_mutated_checkpoint(folder, rng))]
    tiny = ["SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0", "INPUT.BOX_CROP.TRAIN_SIZE", "64"]
    return boxsup(["train", *words, "--iterations", "1", "--num-gpus", "0", "--opts", *tiny])


def _predict(folder: Path, rng: Rng) -> int:
    network = write_mutated_network(folder / "network", rng)
    if rng.random() < 0.6:
        _damage(folder, rng)
    inputs = [[str(folder / "boxes.json"), "--images", str(folder)], [str(folder)], [str(folder / "*.png")]]
    words = [*rng.choice(inputs), "--out", str(folder / "masks.json"), "--num-gpus", "0", "--min-score", "0.01"]
    options = _some(rng, ("--keep-going",), ("--overlays", str(folder / "drawn")), ("--batch-size", "2"))
    return boxsup(["predict", str(network), *words, *options])


# What is run how often in a hundred cases; training takes seconds where a file is good after all.
COMMANDS: dict[str, tuple[Callable[[Path, Rng], int], int]] = {
    "label": (_label, 31),
    "eval": (_eval, 19),
    "report": (_report, 19),
    "predict": (_predict, 5),
    "convert": (_convert, 10),
    "train_net": (_config, 9),
    "weights": (_weights, 5),
    "train": (_train, 2),
}


def run_case(seed: int, folder: Path, commands: list[str]) -> tuple[str, int, str]:
    """Run one case in this process.

    Args:
        seed: decides everything.
        folder: empty.
        commands: to choose from, keys of :data:`COMMANDS`.

    Returns:
        The command, its exit code, and what it told.
    """
    rng = random.Random(seed)
    command = rng.choices(commands, [COMMANDS[name][1] for name in commands])[0]
    write_good(folder, rng)
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        try:
            code = COMMANDS[command][0](folder, rng)
        except SystemExit as error:  # argparse's
            code = int(error.code or 0)
    return command, code, told.getvalue()


def fault_of(folder: Path, code: int, told: str) -> str | None:
    """What is wrong with how a case ended; None where it ended as it should."""
    if code not in (0, 1, 2):
        return f"ended with {code}"
    for mark in ("Traceback (most recent", "a mistake in boxsup_d2", "Unable to allocate", "MemoryError", "bad_alloc"):
        if mark in told:
            return f"told '{mark}'"
    errors = re.findall(r"^(?:boxsup|train_net\.py): error: (.+)$", told, re.MULTILINE)
    if len(errors) != (code != 0):
        return f"ended with {code} and {len(errors)} lines of error"
    files = [str(folder), *(path.name for path in folder.iterdir())]
    if errors and not any(name in errors[0] for name in files) and not re.search(r"\b[A-Z_]+\.[A-Z]", errors[0]):
        return "an error that names neither a file nor a key"
    if (folder / "ran").exists():
        return "ran code of a file"
    for path in [folder / "masks.json", folder / "figures.json", *(folder / "out").rglob("*.json")]:
        if path.is_file():
            try:
                json.loads(path.read_text(), parse_constant=_refuse)
            except ValueError as error:
                return f"wrote {path.name}: {error}"
    page = folder / "page.html"
    if page.is_file() and str(folder.parent) in page.read_text(errors="replace"):
        return "wrote a page with a folder of this machine"
    return None


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}")


# ------------------------------------------------------------------------------------------------- the campaign
def _forked(seed: int, folder: Path, commands: list[str], seconds: float) -> tuple[str, str | None, str]:
    """Run a case in a process of its own: the command, what is wrong, and what it told."""
    report, begun = folder.parent / f"{folder.name}.txt", time.monotonic()
    child = os.fork()
    if child == 0:
        os.setpgrp()
        with open(os.devnull, "w", encoding="utf-8") as nothing:  # libraries in C tell what they like
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _BYTES,) * 2)
        try:
            command, code, told = run_case(seed, folder, commands)
            report.write_text(json.dumps([command, fault_of(folder, code, told), told, code]))
        except BaseException as error:
            report.write_text(json.dumps(["?", f"raised {type(error).__name__}: {error}", "", 1]))
        os._exit(0)
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() - begun > seconds:
            os.killpg(child, signal.SIGKILL)
            os.wait4(child, 0)
            return "?", f"ran for more than {seconds:g} s", ""
        time.sleep(0.01)
    if not report.is_file():
        return "?", f"was ended by signal {os.WTERMSIG(status)}", ""
    command, fault, told, code = json.loads(report.read_text())
    report.unlink()
    if fault is None and usage.ru_maxrss * 1024 > _BYTES:
        fault = f"took {usage.ru_maxrss / 1e6:.1f} GB"
    return f"{command}: {'refused' if code else 'answered'}", fault, told


def main(arguments: list[str] | None = None) -> int:
    """Run a campaign; returns 1 where a case did not end as it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="number of the first (default: %(default)s)")
    parser.add_argument("--commands", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--seconds", type=float, default=60, help="limit of a case (default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the files of faulty cases there")
    args = parser.parse_args(arguments)
    endings: Counter[str] = Counter()
    faults = 0
    if "predict" in args.commands:
        trained_network()  # once, for all cases
    with tempfile.TemporaryDirectory(prefix="hostile-") as root:
        for seed in range(args.seed, args.seed + args.cases):
            folder = Path(root) / f"case-{seed}"
            folder.mkdir()
            ending, fault, told = _forked(seed, folder, args.commands, args.seconds)
            endings[ending] += 1
            if fault is not None:
                faults += 1
                print(f"seed {seed}, {ending}: {fault}\n    {told.strip()[-600:]}", flush=True)
            if args.keep and (fault is not None or args.cases == 1):
                shutil.copytree(folder, args.keep / folder.name, symlinks=True, ignore_dangling_symlinks=True)
            shutil.rmtree(folder, ignore_errors=True)
    print(f"seeds {args.seed} to {args.seed + args.cases - 1}: {faults} faults")
    for ending, count in sorted(endings.items()):
        print(f"  {ending}: {count}")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
