"""The box-to-mask methods by name: what each one needs, and a complete config to label boxes with it.

For whoever has boxes and no wish to write a config: the command line and :mod:`boxsup_d2.api` start here. Configs are
built in Python, so that they are there wherever the package is installed; a network that was trained here brings its
own, the ``config.yaml`` that training leaves beside its weights. Configs to train with are in the repository.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from torch import nn

from boxsup_d2.checkpoint import load_trained
from boxsup_d2.checkpoint.convert import (
    BOXCASEG,
    BOXCASEG_MEAN,
    BOXCASEG_STD,
    HOURGLASS,
    LPG_MEAN,
    LPG_STD,
    published_form,
    read_checkpoint,
)
from boxsup_d2.engine.defaults import load_config, merge_overrides, use_available_device
from boxsup_d2.utils.processes import usable_cores

__all__ = ["METHODS", "Method", "file_config", "load_model", "method_config"]

# ImageNet's, for images in 0..255 in the order R, G, B.
_IMAGENET = {"MODEL.PIXEL_MEAN": [123.675, 116.280, 103.530], "MODEL.PIXEL_STD": [58.395, 57.120, 57.375]}


@dataclass(frozen=True)
class Method:
    """A box-to-mask method.

    Attributes:
        name: it is called by.
        summary: one line on what it does.
        needs_weights: whether it must be given weights.
        extra: of this package that installs what it needs ("onnx": ``pip install 'boxsup_d2[onnx]'``); "" for none.
        config: config keys and their values, ``MODEL.META_ARCHITECTURE`` among them. Of a method that is trained these
            are the published network's; for others' checkpoints the config that they were trained with counts.
        weights_key: config key that names its weights; "" where it has none.
        published: what :func:`boxsup_d2.checkpoint.convert.published_form` calls its published checkpoints, if any.
    """

    name: str
    summary: str
    needs_weights: bool
    extra: str
    config: Mapping[str, Any]
    weights_key: str = ""
    published: str = field(default="", repr=False)

    @property
    def meta_architecture(self) -> str:
        """``MODEL.META_ARCHITECTURE``."""
        return self.config["MODEL.META_ARCHITECTURE"]


def _methods() -> dict[str, Method]:
    rgb = {"INPUT.FORMAT": "RGB"}
    boxcaseg = {
        "MODEL.META_ARCHITECTURE": "BoxCaseg",
        "MODEL.BACKBONE.NAME": "build_timm_backbone",
        "MODEL.TIMM.NAME": "hrnet_w48",
        "MODEL.PIXEL_MEAN": BOXCASEG_MEAN,
        "MODEL.PIXEL_STD": BOXCASEG_STD,
        **rgb,
    }
    lpg = {
        "MODEL.META_ARCHITECTURE": "LPG",
        "MODEL.BACKBONE.NAME": "build_hourglass_backbone",
        "MODEL.PIXEL_MEAN": LPG_MEAN,
        "MODEL.PIXEL_STD": LPG_STD,
        "INPUT.FORMAT": "BGR",
    }
    onnx = {"MODEL.META_ARCHITECTURE": "SalientONNX", **_IMAGENET, **rgb}
    methods = [
        Method("box", "every box is its own mask", False, "", {"MODEL.META_ARCHITECTURE": "BoxFill", **rgb}),
        Method("grabcut", "OpenCV's colour model", False, "", {"MODEL.META_ARCHITECTURE": "GrabCut", **rgb}),
        Method("boxcaseg", "a network trained on boxes", True, "", boxcaseg, "MODEL.WEIGHTS", BOXCASEG),
        Method("lpg", "a network that learned on other classes' masks", True, "", lpg, "MODEL.WEIGHTS", HOURGLASS),
        Method(
            "salient-onnx",
            "the salient object of each box, by a network in ONNX's format",
            True,
            "onnx",
            onnx,
            "MODEL.SALIENT_ONNX.NETWORK",
        ),
        Method(
            "sam",
            "Segment Anything (SAM or SAM 2), prompted with each box",
            True,
            "sam",
            {"MODEL.META_ARCHITECTURE": "SAM", **rgb},
            "MODEL.SAM.NETWORK",
        ),
    ]
    return {method.name: method for method in methods}


METHODS: Mapping[str, Method] = MappingProxyType(_methods())
"""All methods by name."""


def method_config(
    name: str,
    weights: str | None = None,
    config_file: str | None = None,
    opts: Sequence[Any] = (),
    device: str | None = None,
) -> CfgNode:
    """A complete config to label boxes with a method; no data set is in it.

    Args:
        name: of a method, see :data:`METHODS`.
        weights: a checkpoint (``boxcaseg``, ``lpg``), an ``.onnx`` file, or a folder or hub name (``sam``). A
            checkpoint that was trained here brings its config, ``config.yaml`` in its folder; a published one is
            recognised.
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
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"There is no method '{name}'; there are {', '.join(METHODS)}.{hint}")
    method = METHODS[name]
    if weights and not method.weights_key:
        raise ValueError(f"Method '{name}' has no weights, but '{weights}' is given: leave it out.")
    if weights and method.weights_key == "MODEL.WEIGHTS":
        config_file = config_file or _config_of(method, weights)
    cfg = _read(method, config_file)
    if weights:
        cfg.merge_from_list([method.weights_key, weights])
    _prepare(cfg, opts, device)
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
    named = {method.meta_architecture: method.name for method in METHODS.values()}
    if cfg.MODEL.META_ARCHITECTURE in named:
        return method_config(named[cfg.MODEL.META_ARCHITECTURE], weights, config_file, opts, device)
    if cfg.ROUNDS:
        raise ValueError(f"'{config_file}' is a rounds config: give the config of one of its steps.")
    if not weights:
        raise ValueError(f"'{config_file}' is the config of a {cfg.MODEL.META_ARCHITECTURE}: give its trained weights.")
    cfg.MODEL.WEIGHTS = weights
    _prepare(cfg, opts, device)
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
    model = build_model(cfg).eval()
    load_trained(model, cfg.MODEL.WEIGHTS)
    return model


def _config_of(method: Method, weights: str) -> str | None:
    """Config file of a checkpoint; None for a published one, whose config is the method's own.

    Raises:
        FileNotFoundError: there is no checkpoint, or no config beside one that is not published.
        ValueError: it is no checkpoint, or one of another method's published networks.
    """
    if not PathManager.isfile(weights):
        raise FileNotFoundError(f"Method '{method.name}': there is no checkpoint '{weights}'.")
    local = Path(PathManager.get_local_path(weights))
    content = read_checkpoint(local, trust=False)
    try:
        form = published_form(content)
    except ValueError as error:
        raise ValueError(f"'{weights}' is no checkpoint: {error}.") from error
    if form == method.published:
        return None
    if form:
        other = next(other.name for other in METHODS.values() if other.published == form)
        raise ValueError(f"'{weights}' is a {form} checkpoint: use it with the method '{other}', not '{method.name}'.")
    config = local.parent / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(
            f"'{weights}' is no published checkpoint, and 'config.yaml', which training writes beside its checkpoints, "
            "is not there: put it there, or give the config that the checkpoint was trained with."
        )
    return str(config)


def _read(method: Method, config_file: str | None) -> CfgNode:
    """The method's own config, or that of a file, which must be of the method."""
    if config_file is None:
        cfg = load_config("")
        cfg.MODEL.WEIGHTS = ""
        cfg.merge_from_list([part for pair in method.config.items() for part in pair])
        return cfg
    cfg = load_config(config_file)
    found = cfg.MODEL.META_ARCHITECTURE
    if cfg.ROUNDS or found != method.meta_architecture:
        what = "a rounds config" if cfg.ROUNDS else f"the config of a {found}"
        known = next((other.name for other in METHODS.values() if other.meta_architecture == found), None)
        fix = f"use the method '{known}'" if known and not cfg.ROUNDS else "give the config of such a network"
        raise ValueError(
            f"'{config_file}' is {what}, but method '{method.name}' is a {method.meta_architecture}: {fix}."
        )
    return cfg


def _prepare(cfg: CfgNode, opts: Sequence[Any], device: str | None) -> None:
    """Take out of a config what it was trained and measured on; then overrides and device."""
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = cfg.DATASETS.PSEUDO_MASKS = ()
    cfg.PSEUDO_MASKS.DATASETS = ()
    cfg.PSEUDO_MASKS.FORMAT = "instances"
    # torch warns of more worker processes than there are cores.
    cfg.DATALOADER.NUM_WORKERS = min(cfg.DATALOADER.NUM_WORKERS, usable_cores())
    cfg.MODEL.DEVICE = "cuda"
    merge_overrides(cfg, opts)
    _set_device(cfg, device)


def _check_weights_given(cfg: CfgNode, method: Method, weights: str | None) -> None:
    """Refuse a method without its weights; those that a training started from do not count."""
    if not method.needs_weights or weights:
        return
    value: Any = cfg
    for part in method.weights_key.split("."):
        value = value[part]
    if method.weights_key == "MODEL.WEIGHTS" or not value:
        kind = {"salient-onnx": "the .onnx file of a salient-object network", "sam": "a folder or hub name of a SAM"}
        trained = "a trained checkpoint (.pth), such as 'boxsup train' or train_net.py leaves"
        raise ValueError(f"Method '{method.name}' needs weights (--weights): {kind.get(method.name, trained)}.")


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
