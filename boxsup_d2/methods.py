"""The box-to-mask methods by name, and complete configs to label boxes with them.

For whoever has boxes and no wish to write a config: the command line and :mod:`boxsup_d2.api` start here. What a method
needs it says itself (:class:`boxsup_d2.modeling.box_to_mask.MethodInfo`); a network that was trained here brings its
own config, the ``config.yaml`` that training leaves beside its weights.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from torch import nn

from boxsup_d2.checkpoint import load_trained
from boxsup_d2.checkpoint.convert import checkpoint_format
from boxsup_d2.checkpoint.reading import read_checkpoint
from boxsup_d2.config import load_config, merge_overrides, use_available_device
from boxsup_d2.modeling.box_to_mask import BoxToMaskMethod, box_to_mask_classes, method_info
from boxsup_d2.modeling.build import check_architecture, explain_build_errors
from boxsup_d2.same_work import value_of, weights_sha256
from boxsup_d2.utils.processes import usable_cores

__all__ = ["DEFAULT_METHOD", "file_config", "load_model", "method_config", "methods", "prepare_inference"]

#: What labels boxes where nobody names a method: needs no training, and no weights of one's own.
DEFAULT_METHOD = "boxmask"


def methods() -> dict[str, type[BoxToMaskMethod]]:
    """All methods that have a name, by it; those of other packages included.

    Raises:
        ValueError: two have the same name.
    """
    named: dict[str, type[BoxToMaskMethod]] = {}
    for kind in box_to_mask_classes().values():
        # A subclass that says nothing of itself is not the method that it derives from.
        name = kind.info.name if "info" in vars(kind) else ""
        if name in named:
            raise ValueError(
                f"Two methods are called '{name}': {named[name].__module__}.{named[name].__name__} and "
                f"{kind.__module__}.{kind.__name__}. Rename one."
            )
        if name:
            named[name] = kind
    return named


def method_config(
    name: str,
    weights: str | None = None,
    config_file: str | None = None,
    opts: Sequence[Any] = (),
    device: str | None = None,
) -> CfgNode:
    """A complete config to label boxes with a method; no data set is in it.

    Args:
        name: of a method, see :func:`methods`.
        weights: a checkpoint, or what else the method takes (``weights_help`` of its ``info``). A
            checkpoint that was trained here brings its config, ``config.yaml`` in its folder; a published one is
            recognised. None: those that ship with the package, where some do.
        config_file: config of the method, for weights that have none beside them, or instead of that.
        opts: overrides, ``[KEY, VALUE, ...]``.
        device: "cpu", "cuda", "cuda:1"; None: the GPU if there is one, unless ``opts`` say where.

    Returns:
        The config, not frozen. ``PSEUDO_MASKS.FORMAT`` is "instances": a mask per box.

    Raises:
        ValueError: there is no such method, it needs weights, has none, or these belong to another one; a key or the
            device does not exist.
        FileNotFoundError: the weights or the config are missing.
    """
    known = methods()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"There is no method '{name}'; there are {', '.join(known)}.{hint}")
    method = known[name]
    weights_key = method.info.weights_key
    if weights and not weights_key:
        raise ValueError(f"Method '{name}' has no weights, but '{weights}' is given: leave it out.")
    ships = not weights and not config_file and bool(method.info.weights)
    if ships:
        weights, config_file = method.info.weights, f"package://boxsup_d2/model_zoo/configs/{method.info.recipe}"
    elif weights and weights_key == "MODEL.WEIGHTS":
        config_file = config_file or _config_of(method, weights)
    cfg = _read(method, config_file)
    if ships:
        cfg.DATASETS.REGISTER = []  # the recipe's, which are not here
    if weights:
        cfg.merge_from_list([weights_key, weights])
    prepare_inference(cfg, opts, device)
    _check_weights_given(cfg, method, weights)
    return cfg


def file_config(
    config_file: str, weights: str | None = None, opts: Sequence[Any] = (), device: str | None = None
) -> CfgNode:
    """As :func:`method_config`, for a config file of any box-to-mask network, a retrained Mask R-CNN for instance.

    Args:
        config_file: a yaml file.
        weights: its weights; needed by whatever is trained.
        opts, device: as of :func:`method_config`.

    Raises:
        ValueError, FileNotFoundError: as :func:`method_config`.
    """
    cfg = load_config(config_file)
    check_architecture(cfg, config_file)
    kind = box_to_mask_classes().get(cfg.MODEL.META_ARCHITECTURE)
    if kind is not None and methods().get(kind.info.name) is kind:
        return method_config(kind.info.name, weights, config_file, opts, device)
    if cfg.ROUNDS:
        raise ValueError(f"'{config_file}' is a rounds config: give the config of one of its steps.")
    key = (kind.info.weights_key if kind is not None else "") or "MODEL.WEIGHTS"
    if weights:
        cfg.merge_from_list([key, weights])
    elif kind is None or kind.info.weights_key:
        raise ValueError(f"'{config_file}' is the config of a {cfg.MODEL.META_ARCHITECTURE}: give its trained weights.")
    prepare_inference(cfg, opts, device)
    return cfg


def load_model(cfg: CfgNode) -> nn.Module:
    """Build the network of a config with all of its weights, in evaluation mode.

    Other than in training, no parameter may be missing in ``MODEL.WEIGHTS``: it would stay random.

    Args:
        cfg: from :func:`method_config`, or any config of a box-to-mask network.

    Raises:
        ValueError, FileNotFoundError, RuntimeError: see :func:`boxsup_d2.checkpoint.load_trained`.
        ImportError: the method needs a package that is not installed.
    """
    _check_shipped(cfg)
    with explain_build_errors(cfg):
        model = build_model(cfg).eval()
    load_trained(model, cfg.MODEL.WEIGHTS)
    # Convolutions of narrow networks are faster in this layout; inputs follow the weights.
    model.to(memory_format=torch.channels_last)
    if isinstance(model, BoxToMaskMethod):
        model.only_predict()
    return model


def _check_shipped(cfg: CfgNode) -> None:
    """See to it that weights which ship with the package are the ones that were measured."""
    info = method_info(cfg)
    if info.weights and info.weights == cfg.MODEL.WEIGHTS:
        found = weights_sha256(info.weights)
        if found != info.weights_sha256:
            raise RuntimeError(
                f"The weights of '{info.name}' that came with boxsup_d2 are damaged (sha256 {found[:12]}, not "
                f"{info.weights_sha256[:12]}): install boxsup_d2 again."
            )


def _config_of(method: type[BoxToMaskMethod], weights: str) -> str | None:
    """Config file of a checkpoint; None for a published one, whose config is the method's own.

    Raises:
        FileNotFoundError: there is no checkpoint, or no config beside one that is not published.
        ValueError: it is no checkpoint, or one of another method's published networks.
    """
    if not PathManager.isfile(weights):
        raise FileNotFoundError(f"Method '{method.info.name}': there is no checkpoint '{weights}'.")
    local = Path(PathManager.get_local_path(weights))
    content = read_checkpoint(local, mmap=True)
    try:
        found = checkpoint_format(content)
    except ValueError as error:
        raise ValueError(f"'{weights}' is no checkpoint: {error}.") from error
    if found is not None and found is method.info.published:
        return None
    other = next((name for name, kind in methods().items() if found and kind.info.published is found), None)
    if found is not None and other is not None:
        raise ValueError(
            f"'{weights}' is a {found.name} checkpoint: use it with the method '{other}', not '{method.info.name}'."
        )
    config = local.parent / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(
            f"'{weights}' is no published checkpoint, and 'config.yaml', which training writes beside its checkpoints, "
            "is not there: put it there, or give the config that the checkpoint was trained with."
        )
    return str(config)


def _read(method: type[BoxToMaskMethod], config_file: str | None) -> CfgNode:
    """The method's own config, or that of a file, which must be of the method."""
    cfg = load_config(config_file or "")
    if config_file is None:
        cfg.MODEL.WEIGHTS, cfg.MODEL.META_ARCHITECTURE = "", method.__name__
        cfg.merge_from_list([part for pair in method.info.config.items() for part in pair])
        return cfg
    found = cfg.MODEL.META_ARCHITECTURE
    if cfg.ROUNDS or found != method.__name__:
        what = "a rounds config" if cfg.ROUNDS else f"the config of a {found}"
        known = box_to_mask_classes().get(found, BoxToMaskMethod).info.name
        fix = f"use the method '{known}'" if known and not cfg.ROUNDS else "give the config of such a network"
        raise ValueError(f"'{config_file}' is {what}, but method '{method.info.name}' is a {method.__name__}: {fix}.")
    return cfg


def prepare_inference(cfg: CfgNode, opts: Sequence[Any], device: str | None) -> None:
    """Take out of a config what it was trained and measured on; then overrides and device.

    Args:
        cfg: changed in place.
        opts, device: as of :func:`method_config`.

    Raises:
        ValueError: a key or the device does not exist.
    """
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = cfg.DATASETS.PSEUDO_MASKS = ()
    cfg.PSEUDO_MASKS.DATASETS = ()
    cfg.PSEUDO_MASKS.FORMAT = "instances"
    # torch warns of more worker processes than there are cores.
    cfg.DATALOADER.NUM_WORKERS = min(cfg.DATALOADER.NUM_WORKERS, usable_cores())
    cfg.MODEL.DEVICE = "cuda"
    merge_overrides(cfg, opts)
    _set_device(cfg, device)


def _check_weights_given(cfg: CfgNode, method: type[BoxToMaskMethod], weights: str | None) -> None:
    """Refuse a method without its weights; those that a training started from do not count."""
    key = method.info.weights_key
    if key and not weights and (key == "MODEL.WEIGHTS" or not value_of(cfg, key)):
        ships = method.info.weights and method.info.weights == cfg.MODEL.WEIGHTS
        hint = " The config begins with those that ship: leave it out to use these." if ships else ""
        raise ValueError(f"Method '{method.info.name}' needs weights (--weights): {method.info.weights_help}.{hint}")


def _set_device(cfg: CfgNode, device: str | None) -> None:
    if device is None:
        use_available_device(cfg)
        return
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"There is no device '{device}': use cpu, cuda or cuda:<number>.") from error
    if parsed.type == "cuda" and not (torch.cuda.is_available() and (parsed.index or 0) < torch.cuda.device_count()):
        raise ValueError(
            f"Device '{device}' is not available: this machine has {torch.cuda.device_count()} GPUs. Leave it out, or "
            "use cpu."
        )
    cfg.MODEL.DEVICE = device
