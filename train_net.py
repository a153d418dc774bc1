#!/usr/bin/env python
"""Train, label and evaluate: one step, or all steps of a rounds config.

One step (a network to train, data sets to label, or both) from its config; ``--resume`` continues after a crash::

    python train_net.py --config-file configs/BoxCaseg/voc-joint-HRNet-W48.yaml --num-gpus 8 --resume

Only label the data sets of ``PSEUDO_MASKS.DATASETS`` and evaluate on ``DATASETS.TEST``::

    python train_net.py --config-file <config> --eval-only MODEL.WEIGHTS output/model_final.pth

All steps of a config with ``ROUNDS``, or one round of it; the same command continues after a crash::

    python train_net.py --config-file <rounds config> [--round NAME] OUTPUT_DIR output/voc

Without a GPU everything runs on the CPU; ``--num-gpus N`` then starts N CPU processes.
"""

import argparse
import sys
from typing import Any

if __name__.endswith("main__"):  # also in the processes that it starts
    import boxsup_cli.entry  # noqa: F401 - Ctrl-C is quiet while the rest is imported

from boxsup_cli.errors import exit_code_of
from boxsup_d2.engine.defaults import default_argument_parser, setup
from boxsup_d2.engine.launch import launch
from boxsup_d2.engine.step import run_step
from boxsup_d2.rounds.runner import run_rounds
from boxsup_d2.utils.processes import hear_interrupts


def main(args: argparse.Namespace) -> Any:
    """What every process of the run does.

    Returns:
        the results: metrics by task, or by step and task for rounds; empty on ranks other than 0.
    """
    cfg = setup(args)
    if cfg.ROUNDS:
        return run_rounds(cfg, args)
    return run_step(cfg, resume=args.resume, eval_only=args.eval_only)


def launch_all(args: argparse.Namespace) -> None:
    """Start the processes of the run."""
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


if __name__ == "__main__":
    hear_interrupts()
    arguments = default_argument_parser().parse_args()
    sys.exit(exit_code_of("train_net.py", lambda: launch_all(arguments), debug=arguments.debug))
