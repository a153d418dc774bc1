"""Running things: configs to processes, trainer, hooks, and one step."""

from boxsup_d2.config import load_config
from boxsup_d2.engine.defaults import default_argument_parser, setup
from boxsup_d2.engine.launch import launch
from boxsup_d2.engine.step import run_step
from boxsup_d2.engine.trainer import Trainer
from boxsup_d2.labelling.driver import label_datasets

__all__ = [
    "Trainer",
    "default_argument_parser",
    "label_datasets",
    "launch",
    "load_config",
    "run_step",
    "setup",
]
