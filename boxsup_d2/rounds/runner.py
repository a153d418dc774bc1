"""The round runner: several steps from one config, in order, resumed after any crash.

A rounds config lists named rounds of named steps; :mod:`boxsup_d2.rounds.plan` reads it::

    OUTPUT_DIR: output/voc
    DATASETS:
      REGISTER: [...]                 # optional: data sets of your own, for all steps; see boxsup_d2/config/keys.py
    ROUNDS:
      - NAME: "1"                     # --round 1 runs only its steps
        STEPS:
          - NAME: joint               # unique; writes to <OUTPUT_DIR>/joint
            CONFIG: joint.yaml        # relative to this file
            OPTS: [SEED, 1]           # optional overrides
          - NAME: retrain
            CONFIG: retrain.yaml
            PSEUDO_MASKS: [joint]     # optional: train on what these steps labelled
          # WEIGHTS: <step>           optional: start from this step's model_final.pth
          # SEGMENTER: <step>         optional, of methods that ask another network (LPG): the step that trains it
          # EVAL_ONLY: True           optional: label and evaluate, do not train

The same command resumes after any crash; docs/rounds.md says which steps a change makes run again, and
:mod:`boxsup_d2.rounds.state` decides it.

Rank 0 decides and keeps the state, the other ranks follow.
"""

import argparse
import contextlib
import gc
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from tabulate import tabulate

from boxsup_d2.crf.refine import check_densecrf
from boxsup_d2.data.datasets import register_from_cfg, require_data_set
from boxsup_d2.data.formats.pseudo_masks import MISSING_FIX
from boxsup_d2.data.paths import require_path
from boxsup_d2.engine.step import run_step
from boxsup_d2.engine.trainer import Trainer
from boxsup_d2.rounds.plan import PlannedStep, plan_rounds, pseudo_mask_files, weights_file
from boxsup_d2.rounds.state import Decision, RoundsState, explain_write_errors, missing_outputs
from boxsup_d2.utils.files import atomic_write
from boxsup_d2.utils.lock import acquire_lock
from boxsup_d2.utils.processes import run_on_main

__all__ = ["run_rounds"]

logger = logging.getLogger(__name__)


_REPORTED = {"skip": "done before", "evaluate": "evaluated", "relabel": "relabelled"}
# Metrics for the table at the end, where a step has them.
_MAIN_METRICS = ("mIoU*", "mIoU", "AP", "AP50")


def run_rounds(cfg: CfgNode, args: argparse.Namespace, trainer_class: type[Trainer] = Trainer) -> dict[str, Any]:
    """Run the steps of a rounds config in order, skipping what is done. Every rank calls it.

    Args:
        cfg: the rounds config, from :func:`boxsup_d2.engine.defaults.setup`.
        args: the command line: ``config_file``, ``opts``, ``num_gpus``, ``round`` ("" runs all), ``eval_only``.
        trainer_class: of all steps.

    Returns:
        the results of the steps of this run by name, former runs' included; empty on ranks other than 0.

    Raises:
        ValueError, FileNotFoundError: if the rounds config is wrong (found before anything runs), the round does not
            exist, or ``rounds.json`` is damaged.
        ImportError: a step needs an optional package that is not installed.
        RuntimeError: if a step that ``--round`` needs is not done, the folder cannot be written, or another run is at
            work in it.
    """
    if args.eval_only:
        raise ValueError(
            "--eval-only is for the config of one step. In a rounds config give the step EVAL_ONLY: True; to measure "
            "finished steps anew, change their TEST settings and run the rounds again."
        )
    plan = plan_rounds(cfg, args)
    selected = _select_round(plan, args.round)
    with _lock(cfg.OUTPUT_DIR):
        state = run_on_main(lambda: RoundsState(cfg.OUTPUT_DIR), share=False)
        run_on_main(lambda: _check_needed_rounds(state, plan, selected), share=False)
        run_on_main(lambda: _check_ahead(state, plan, selected), share=False)
        report: dict[str, str] = {}
        for planned in selected:
            # state is None on the other ranks, so its method is not looked up here
            decision = run_on_main(partial(RoundsState.decide, state, planned))
            report[planned.name] = _REPORTED.get(decision.action, "done")
            logger.info("Step %s: %s (%s)", planned.name, decision.action, decision.reason)
            if decision.action == "skip":
                run_on_main(partial(RoundsState.skip, state, planned), share=False)
            else:
                _run_one(planned, decision, state, trainer_class)
    if not comm.is_main_process():
        return {}
    logger.info("Rounds in %s:\n%s", cfg.OUTPUT_DIR, _table(selected, state, report))
    return {planned.name: state.steps[planned.name]["results"] for planned in selected}


def _run_one(planned: PlannedStep, decision: Decision, state: RoundsState, trainer_class: type[Trainer]) -> None:
    """Run one step as decided, and keep the state."""
    cfg = planned.cfg
    if decision.action == "evaluate":
        cfg = _inference_config(planned, list(run_on_main(partial(missing_outputs, planned))))
    elif decision.action == "relabel":
        # All of it: the labelling knows which of its files are made with these settings already.
        cfg = _inference_config(planned, planned.cfg.PSEUDO_MASKS.DATASETS)
    run_on_main(lambda: state.begin(planned, decision), share=False)
    begun = time.perf_counter()
    with _step_log(planned.cfg):
        # A step must not depend on which ones ran before it in this process.
        seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
        register_from_cfg(cfg)
        try:
            results = run_step(
                cfg,
                resume=decision.action != "start",
                eval_only=planned.step.eval_only or decision.action in ("evaluate", "relabel"),
                trainer_class=trainer_class,
            )
        except Exception as error:
            if comm.is_main_process():
                state.fail(planned, error)
            raise
    gc.collect()  # trainers and hooks refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    comm.synchronize()
    run_on_main(lambda: state.finish(planned, results, time.perf_counter() - begun), share=False)


def _inference_config(planned: PlannedStep, unlabelled: Sequence[str]) -> CfgNode:
    """The config to evaluate a finished step again: its own weights, and no labelling but of these data sets."""
    cfg = planned.cfg.clone()
    cfg.defrost()
    cfg.PSEUDO_MASKS.DATASETS = tuple(unlabelled)
    if not planned.step.eval_only:
        cfg.MODEL.WEIGHTS = weights_file(cfg)
    cfg.freeze()
    return cfg


def _select_round(plan: list[PlannedStep], name: str) -> list[PlannedStep]:
    names = list(dict.fromkeys(planned.step.round for planned in plan))
    if name and name not in names:
        raise ValueError(f"There is no round {name}; there are {', '.join(names)}.")
    return [planned for planned in plan if name in ("", planned.step.round)]


def _check_ahead(state: RoundsState, plan: list[PlannedStep], selected: list[PlannedStep]) -> None:
    """What only a late step needs, a package or a data set, should not be missed after the night's training.

    Steps that are done need none, unless one before them makes anew what they were made from.
    """
    configs = {planned.name: planned.cfg for planned in plan}
    remade: set[str] = set()
    for planned in selected:
        action = "start" if remade.intersection(planned.step.needs) else state.decide(planned).action
        if action == "skip":
            continue
        if action != "evaluate":
            remade.add(planned.name)
        cfg = planned.cfg
        try:
            if cfg.PSEUDO_MASKS.CRF or cfg.TEST.SEM_SEG_CRF:
                check_densecrf()
            made = {path for name in planned.step.pseudo_masks for path in pseudo_mask_files(configs[name])}
            labels = {os.path.splitext(os.path.basename(path))[0]: path for path in cfg.DATASETS.PSEUDO_MASKS}
            for name in dict.fromkeys(_data_sets(planned, action)):
                if name not in labels:
                    require_data_set(name)
                elif labels[name] not in made:
                    require_path(labels[name], name, MISSING_FIX)
        except (ImportError, FileNotFoundError) as error:
            raise type(error)(f"{planned.step.config}, step {planned.name}: {error}") from error


def _data_sets(planned: PlannedStep, action: str) -> list[str]:
    """Those that a step reads if it does what was decided."""
    cfg = planned.cfg
    if action == "evaluate":
        return [*cfg.DATASETS.TEST, *missing_outputs(planned)]
    trains = () if planned.step.eval_only or action == "relabel" else cfg.DATASETS.TRAIN
    return [*trains, *cfg.PSEUDO_MASKS.DATASETS, *cfg.DATASETS.TEST]


def _check_needed_rounds(state: RoundsState, plan: list[PlannedStep], selected: list[PlannedStep]) -> None:
    """With --round, steps of other rounds are not run: what they leave must be there and up to date."""
    by_name = {planned.name: planned for planned in plan}
    chosen = {planned.name for planned in selected}
    for name in dict.fromkeys(need for planned in selected for need in planned.step.needs):
        decision = state.decide(by_name[name])
        if name not in chosen and decision.action not in ("skip", "evaluate"):
            raise RuntimeError(
                f"Step {name} is needed, but has to run first ({decision.reason}): run --round "
                f"{by_name[name].step.round}, or leave --round out to run everything that is not done."
            )


@contextlib.contextmanager
def _lock(output_dir: str) -> Iterator[None]:
    """Keep a second run out of the folder."""
    held = []

    def acquire() -> None:
        with explain_write_errors(output_dir):
            os.makedirs(output_dir, exist_ok=True)
            held.append(acquire_lock(output_dir, "rounds.lock"))

    run_on_main(acquire, share=False)
    try:
        yield
    finally:
        for file in held:
            file.close()


@contextlib.contextmanager
def _step_log(cfg: CfgNode) -> Iterator[None]:
    """Make the step's folder, save its config there, and log to it as well as to the rounds' own log."""
    rank = comm.get_rank()

    def prepare() -> None:
        path = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
        with explain_write_errors(cfg.OUTPUT_DIR), atomic_write(path) as file:
            file.write(cfg.dump())

    run_on_main(prepare, share=False)
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)  # machines need not share their disks
    handler = logging.FileHandler(os.path.join(cfg.OUTPUT_DIR, "log.txt" + (f".rank{rank}" if rank else "")))
    handler.setFormatter(logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", "%m/%d %H:%M:%S"))
    loggers = [logging.getLogger(name) for name in ("boxsup_d2", "detectron2", "fvcore")]
    for each in loggers:
        each.addHandler(handler)
    try:
        yield
    finally:
        for each in loggers:
            each.removeHandler(handler)
        handler.close()


def _flat_metrics(results: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat.update(_flat_metrics(value, f"{prefix}{key}/"))
        elif isinstance(value, (int, float)):
            flat[prefix + key] = value
    return flat


def _table(selected: list[PlannedStep], state: RoundsState, report: Mapping[str, str]) -> str:
    """Round, step, status, minutes and main results of every step."""
    rows = []
    for planned in selected:
        entry = state.steps[planned.name]
        metrics = _flat_metrics(entry["results"])
        main = {key: value for key, value in metrics.items() if key.rsplit("/", 1)[-1] in _MAIN_METRICS}
        shown = list((main or metrics).items())[:6]
        text = ", ".join(f"{key} {value:.4g}" for key, value in shown) or "-"
        rows.append([planned.step.round, planned.name, report[planned.name], f"{entry['seconds'] / 60:.1f}", text])
    return tabulate(rows, headers=["round", "step", "status", "minutes", "results"], disable_numparse=True)
