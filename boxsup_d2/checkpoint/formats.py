"""Kinds of checkpoints: how one is recognised by its parameters' names, and how these become ours.

Each kind stands with the network that it belongs to; here is their list. Pure functions on state dicts, no files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Any]


@dataclass(frozen=True)
class CheckpointFormat:
    """A kind of checkpoint of another project.

    Attributes:
        name: for people, such as "published BoxCaseg".
        recognises: whether a state dict is of this kind, by its names alone.
        convert: state dict to that of our network; raises ``ValueError`` where a parameter is none of the kind's.
        help: how to use a converted file where its form needs more than its path; else "".
        backbone: whether the names lack the prefix of the backbone in our networks, so that their ends are matched.
    """

    name: str
    recognises: Callable[[State], bool]
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    help: str = ""
    backbone: bool = False


_FORMATS: list[CheckpointFormat] = []


def register_checkpoint_format(checkpoint_format: CheckpointFormat) -> CheckpointFormat:
    """Let ``MODEL.WEIGHTS`` name checkpoints of one more kind; returns it."""
    _FORMATS.append(checkpoint_format)
    return checkpoint_format


def known_formats() -> tuple[CheckpointFormat, ...]:
    """All kinds, in the order of their registration."""
    return tuple(_FORMATS)


def find_format(state: State) -> CheckpointFormat | None:
    """The kind of a state dict; None for ours, Detectron2's and unknown ones."""
    return next((known for known in _FORMATS if known.recognises(state)), None)


def grow_input_channels(weight: Tensor, channels: int) -> Tensor:
    """First convolution of a network whose input gains channels in front of those that it knows.

    The new channels have zero weights, so that the network computes what it did, whatever they hold, and learns from
    there: an image network gains the box mask, LPG's first generator the class probability.

    Args:
        weight: out × in × k × k.
        channels: of the new input, at least as many as ``weight`` takes.

    Returns:
        out × channels × k × k.

    Raises:
        ValueError: ``weight`` takes more channels than that.
    """
    missing = channels - weight.shape[1]
    if missing < 0:
        raise ValueError(f"the first convolution takes {weight.shape[1]} input channels, more than the {channels} here")
    return torch.cat([weight.new_zeros(weight.shape[0], missing, *weight.shape[2:]), weight], dim=1)
