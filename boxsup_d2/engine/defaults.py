"""From command line to config: the argument parser of ``train_net.py``, and the setup of a process.

What happens after that is one step (:mod:`boxsup_d2.engine.step`) or several (:mod:`boxsup_d2.rounds.runner`).
"""

import argparse
import difflib
import logging

import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import default_argument_parser as detectron2_argument_parser
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from boxsup_d2.config import load_config, use_available_device
from boxsup_d2.data.datasets import register_from_cfg, require_data_set
from boxsup_d2.modeling.build import check_architecture

__all__ = ["default_argument_parser", "setup"]

logger = logging.getLogger(__name__)

_EPILOG = """
examples:
  one step (train, label, evaluate):
    $ python train_net.py --config-file configs/BoxCaseg/voc-joint-HRNet-W48.yaml --num-gpus 2
  resume after a crash:
    $ python train_net.py --config-file configs/BoxCaseg/voc-joint-HRNet-W48.yaml --num-gpus 2 --resume
  only label and evaluate:
    $ python train_net.py --config-file <config> --eval-only MODEL.WEIGHTS output/model_final.pth
  all steps of a rounds config, in order; the same command resumes after a crash:
    $ python train_net.py --config-file <rounds config> OUTPUT_DIR output/voc
  two CPU processes on a machine without GPUs:
    $ python train_net.py --config-file <config> --num-gpus 2

Options go before the first KEY VALUE pair.
"""


def default_argument_parser() -> argparse.ArgumentParser:
    """Detectron2's parser with our examples, ``--round`` and ``--debug``; by default processes meet at a free port."""
    parser = detectron2_argument_parser(epilog=_EPILOG)
    # Detectron2's port depends on the user alone: two runs would meet each other there.
    parser.set_defaults(dist_url="auto")
    parser.add_argument("--round", default="", metavar="NAME", help="run only this round of a rounds config")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


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
    if not cfg.ROUNDS:
        check_architecture(cfg, args.config_file)
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
    # Detectron2's report of the machine asks where CUDA is, and torch warns where there is a CUDA and no GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    default_setup(cfg, args)
    if not getattr(args, "debug", False):
        _leave_tracebacks_to_log_files()
    if fell_back and comm.is_main_process():
        logger.warning("No GPU is available: running on the CPU, in %d process(es).", comm.get_world_size())
    register_from_cfg(cfg)
    if not cfg.ROUNDS:
        _check_data_sets(cfg, args)
    return cfg


def _check_data_sets(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Of steps of rounds, whose data sets may be made by others, :mod:`boxsup_d2.rounds.plan` does it."""
    used = {"DATASETS.TEST": cfg.DATASETS.TEST, "PSEUDO_MASKS.DATASETS": cfg.PSEUDO_MASKS.DATASETS}
    if not args.eval_only:
        used["DATASETS.TRAIN"] = cfg.DATASETS.TRAIN
    for key, names in used.items():
        for name in names:
            if name not in DatasetCatalog:
                near = difflib.get_close_matches(name, DatasetCatalog.list(), n=1)
                hint = f" Did you mean '{near[0]}'?" if near else " Register it by DATASETS.REGISTER."
                raise ValueError(f"{args.config_file}: {key} names '{name}', and there is no such data set.{hint}")
            try:
                require_data_set(name)
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{args.config_file}: {key}: {error}") from error


def _leave_tracebacks_to_log_files() -> None:
    """What stops a run is told in one line at its end; Detectron2's trainer also logs it, with its traceback."""
    for name in ("boxsup_d2", "detectron2", "fvcore"):
        for handler in logging.getLogger(name).handlers:
            # Those of the console come before those of files, so that what is left out here is not remembered there.
            if type(handler) is logging.StreamHandler and handler.formatter is not None:
                handler.formatter.formatException = lambda _: ""  # type: ignore[method-assign, assignment]
