"""Running things: configs to processes, trainer, hooks, labelling, and the round runner."""

from boxsup_d2.engine.defaults import default_argument_parser, load_config, setup
from boxsup_d2.engine.labelling import label_datasets
from boxsup_d2.engine.launch import launch
from boxsup_d2.engine.rounds import run_rounds
from boxsup_d2.engine.step import run_step
from boxsup_d2.engine.trainer import Trainer

__all__ = [
    "Trainer",
    "default_argument_parser",
    "label_datasets",
    "launch",
    "load_config",
    "run_rounds",
    "run_step",
    "setup",
]
