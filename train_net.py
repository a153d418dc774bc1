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
from typing import Any

from boxsup_d2.engine.defaults import default_argument_parser, setup
from boxsup_d2.engine.launch import launch
from boxsup_d2.engine.step import run_step
from boxsup_d2.rounds.runner import run_rounds


def main(args: argparse.Namespace) -> Any:
    """What every process of the run does.

    Returns:
        the results: metrics by task, or by step and task for rounds; empty on ranks other than 0.
    """
    cfg = setup(args)
    if cfg.ROUNDS:
        return run_rounds(cfg, args)
    return run_step(cfg, resume=args.resume, eval_only=args.eval_only)


if __name__ == "__main__":
    arguments = default_argument_parser().parse_args()
    launch(
        main,
        arguments.num_gpus,
        num_machines=arguments.num_machines,
        machine_rank=arguments.machine_rank,
        dist_url=arguments.dist_url,
        args=(arguments,),
    )
