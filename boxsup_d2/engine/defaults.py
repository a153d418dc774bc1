"""From command line to config: the argument parser, reading configs with helpful errors, and the setup of a process.

What happens after that is one step (:mod:`boxsup_d2.engine.step`) or several (:mod:`boxsup_d2.rounds.runner`).
"""

import argparse
import difflib
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser as detectron2_argument_parser
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from boxsup_d2.config import add_boxsup_config
from boxsup_d2.data.datasets import apply_dataset_switches, register_listed, register_pseudo_masks_from_cfg

__all__ = ["default_argument_parser", "load_config", "merge_overrides", "setup", "use_available_device"]

logger = logging.getLogger(__name__)

_ABSENT = object()

_EPILOG = """
examples:
  one step (train, label, evaluate):
    $ python train_net.py --config-file configs/BoxCaseg/voc-joint-HRNet-W48.yaml --num-gpus 2
  go on after a crash:
    $ python train_net.py --config-file configs/BoxCaseg/voc-joint-HRNet-W48.yaml --num-gpus 2 --resume
  only label and evaluate:
    $ python train_net.py --config-file <config> --eval-only MODEL.WEIGHTS output/model_final.pth
  all steps of a rounds config, in order; the same command goes on after a crash:
    $ python train_net.py --config-file <rounds config> OUTPUT_DIR output/voc
  two CPU processes on a machine without GPUs:
    $ python train_net.py --config-file <config> --num-gpus 2

Options go before the first KEY VALUE pair.
"""


def default_argument_parser() -> argparse.ArgumentParser:
    """Detectron2's parser with our examples, and ``--round``."""
    parser = detectron2_argument_parser(epilog=_EPILOG)
    parser.add_argument("--round", default="", metavar="NAME", help="run only this round of a rounds config")
    return parser


def load_config(config_file: str, opts: Sequence[Any] = ()) -> CfgNode:
    """Read a config: Detectron2's defaults, ours, the file (with its ``_BASE_``), then overrides.

    Args:
        config_file: a yaml file; "" reads none.
        opts: overrides, ``[KEY, VALUE, KEY, VALUE, ...]``; values may be strings, as on a command line.

    Returns:
        the config, not frozen.

    Raises:
        FileNotFoundError: if the file is absent.
        ValueError: if a key does not exist (the nearest one that does is named), or a value has the wrong type.
    """
    cfg = get_cfg()
    add_boxsup_config(cfg)
    if config_file:
        _merge_file(cfg, config_file)
    merge_overrides(cfg, opts)
    return cfg


def use_available_device(cfg: CfgNode, num_gpus: int | None = None) -> bool:
    """Put the config on the CPU where it cannot have the GPU that it asks for.

    Args:
        cfg: changed in place.
        num_gpus: ``--num-gpus``; 0 asks for the CPU, also where there is a GPU.

    Returns:
        whether a GPU was asked for and is missing, i.e. whether the user should be told.
    """
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        return False
    if num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
        return False
    if torch.cuda.is_available():
        return False
    cfg.MODEL.DEVICE = "cpu"
    return True


def setup(args: argparse.Namespace) -> CfgNode:
    """Read the config that the command line names and set this process up: device, loggers, seed, data sets.

    Writes the resolved config to ``<OUTPUT_DIR>/config.yaml`` and logs to ``<OUTPUT_DIR>/log.txt``. Every rank is
    seeded with ``SEED`` + rank, or at random where ``SEED`` is negative.

    Args:
        args: what :func:`default_argument_parser` parsed.

    Returns:
        the config, frozen.

    Raises:
        FileNotFoundError: if the config file is absent.
        ValueError: if it is not given, a key does not exist, or options do not fit together.
        RuntimeError: if ``OUTPUT_DIR`` cannot be made.
    """
    if not args.config_file:
        raise ValueError("No config is given: pass --config-file <yaml>; configs/ holds ready ones.")
    cfg = load_config(args.config_file, args.opts)
    if args.round and not cfg.ROUNDS:
        raise ValueError(f"--round {args.round}: {args.config_file} is the config of one step, it has no ROUNDS.")
    fell_back = use_available_device(cfg, args.num_gpus)
    if cfg.MODEL.DEVICE == "cpu" and dist.is_initialized() and dist.get_backend() == "nccl":
        raise ValueError(
            f"MODEL.DEVICE is cpu, but --num-gpus {args.num_gpus} started processes on GPUs. "
            "For several CPU processes hide the GPUs: CUDA_VISIBLE_DEVICES= python train_net.py ..."
        )
    cfg.freeze()

    try:
        PathManager.mkdirs(cfg.OUTPUT_DIR)
    except OSError as error:
        raise RuntimeError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR} cannot be made: {error}. Name another one: OUTPUT_DIR <folder>."
        ) from error
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="boxsup_d2")
    default_setup(cfg, args)
    if fell_back and comm.is_main_process():
        logger.warning("No GPU is available: running on the CPU, in %d process(es).", comm.get_world_size())
    apply_dataset_switches(cfg)
    register_listed(cfg.DATASETS.REGISTER)
    register_pseudo_masks_from_cfg(cfg)
    return cfg


def _merge_file(cfg: CfgNode, config_file: str) -> None:
    if not PathManager.isfile(config_file):
        raise FileNotFoundError(f"There is no config file {config_file} (working folder: {os.getcwd()}).")
    try:
        content = cfg.load_yaml_with_base(config_file, allow_unsafe=True)
    except yaml.YAMLError as error:
        raise ValueError(f"{config_file} is not valid yaml: {error}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{config_file} has a _BASE_ that does not exist: {error.filename}") from error
    except TypeError:  # an empty file
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{config_file}, or a _BASE_ of it, holds no KEY: VALUE pairs.")
    try:
        cfg.merge_from_file(config_file)
    except (KeyError, ValueError, AssertionError, AttributeError) as error:
        problem = next(filter(None, (_key_problem(cfg, key) for key in _flat_keys(content))), error)
        raise ValueError(f"{config_file}: {problem}") from error


def merge_overrides(cfg: CfgNode, opts: Sequence[Any]) -> None:
    """Change a config by overrides, ``[KEY, VALUE, ...]``; values may be strings, as on a command line.

    Raises:
        ValueError: as :func:`load_config`.
    """
    opts = list(opts)
    for word in opts:
        if isinstance(word, str) and word.startswith("--"):
            raise ValueError(f"{word} comes after the overrides {opts}: options go before the first KEY VALUE pair.")
    if len(opts) % 2:
        raise ValueError(f"Overrides come in pairs KEY VALUE; these are {len(opts)} words: {opts}")
    for key, value in zip(opts[0::2], opts[1::2], strict=True):
        problem = _key_problem(cfg, str(key))
        if problem:
            raise ValueError(f"Overrides: {problem}")
        try:
            cfg.merge_from_list([key, value])
        except (ValueError, AssertionError) as error:
            raise ValueError(f"Override {key} {value}: {error}") from error


def _flat_keys(node: dict, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _key_problem(cfg: CfgNode, key: str) -> str:
    """Why no value can be given to this key, with the key that was probably meant; "" if one can."""
    node: Any = cfg
    for part in key.split("."):
        node = node.get(part, _ABSENT) if isinstance(node, CfgNode) else _ABSENT
    if isinstance(node, CfgNode):
        return f"{key} is a section; give values to its keys, for example {key}.{next(iter(node), '...')}."
    if node is not _ABSENT:
        return ""
    valid = list(_flat_keys(cfg))
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.6)
    if not near:  # the right name in the wrong section, or in lower case
        by_upper = {name.upper(): name for name in valid}
        last = key.upper().rsplit(".", 1)[-1]
        near = [by_upper[key.upper()]] if key.upper() in by_upper else []
        near = near or [name for name in valid if name.rsplit(".", 1)[-1] == last][:1]
    hint = f" Did you mean {near[0]}?" if near else " See boxsup_d2/config.py and detectron2/config/defaults.py."
    return f"there is no config key {key}.{hint}"
