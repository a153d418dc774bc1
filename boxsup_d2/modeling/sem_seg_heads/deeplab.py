"""Heads of the DeepLab family: one feature map to class logits of its size.

:class:`~boxsup_d2.modeling.DeepLabSegmenter` calls only ``layers(features)``, which Detectron2's ``SemSegFPNHead`` has
as well; the loss is in the meta-architecture.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from fvcore.nn import weight_init
from torch import Tensor, nn


@SEM_SEG_HEADS_REGISTRY.register()
class LargeFOVHead(nn.Module):
    """fc6 (3×3, dilation 12), fc7 and fc8 (1×1) of DeepLab-LargeFOV."""

    @configurable
    def __init__(
        self, *, in_feature: str, in_channels: int, num_classes: int, hidden_channels: int = 1024, lr_factor: float = 10
    ) -> None:
        """
        Args:
            in_feature, in_channels: name and channels of the backbone's map.
            num_classes: with the background.
            hidden_channels: of fc6 and fc7.
            lr_factor: see :meth:`lr_factors`.
        """
        super().__init__()
        self.in_feature = in_feature
        self.lr_factor = lr_factor
        self.fc6 = nn.Conv2d(in_channels, hidden_channels, 3, padding=12, dilation=12)
        self.fc7 = nn.Conv2d(hidden_channels, hidden_channels, 1)
        self.fc8 = nn.Conv2d(hidden_channels, num_classes, 1)
        for conv in (self.fc6, self.fc7):
            weight_init.c2_msra_fill(conv)
        _init_classifier(self.fc8)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        return {**_common_arguments(cfg, input_shape), "hidden_channels": cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM}

    def lr_factors(self) -> dict[str, float]:
        """Factors on the learning rate by name of the submodule."""
        return {"fc8": self.lr_factor}

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """Logits N × num_classes × h × w of the backbone's maps."""
        x = features[self.in_feature]
        # Whole channels are dropped, since neighbouring pixels are alike.
        x = F.dropout2d(F.relu(self.fc6(x)), 0.5, self.training)
        x = F.dropout2d(F.relu(self.fc7(x)), 0.5, self.training)
        return self.fc8(x)

    forward = layers


@SEM_SEG_HEADS_REGISTRY.register()
class ASPPSumHead(nn.Module):
    """DeepLabV2's atrous spatial pyramid: the sum of 3×3 convolutions at several dilations."""

    @configurable
    def __init__(
        self,
        *,
        in_feature: str,
        in_channels: int,
        num_classes: int,
        rates: Sequence[int] = (6, 12, 18, 24),
        lr_factor: float = 10,
    ) -> None:
        """
        Args:
            in_feature, in_channels: name and channels of the backbone's map.
            num_classes: with the background.
            rates: dilations, one convolution each.
            lr_factor: see :meth:`lr_factors`.
        """
        super().__init__()
        self.in_feature = in_feature
        self.lr_factor = lr_factor
        self.convs = nn.ModuleList(nn.Conv2d(in_channels, num_classes, 3, padding=r, dilation=r) for r in rates)
        for conv in self.convs:
            _init_classifier(conv)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        return _common_arguments(cfg, input_shape)

    def lr_factors(self) -> dict[str, float]:
        """Factors on the learning rate by name of the submodule."""
        return {"convs": self.lr_factor}

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """Logits N × num_classes × h × w of the backbone's maps."""
        x = features[self.in_feature]
        logits = self.convs[0](x)
        for conv in self.convs[1:]:
            logits = logits + conv(x)
        return logits

    forward = layers


def _common_arguments(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
    node = cfg.MODEL.SEM_SEG_HEAD
    if len(node.IN_FEATURES) != 1 or node.IN_FEATURES[0] not in input_shape:
        raise ValueError(
            f"{node.NAME} takes one map: MODEL.SEM_SEG_HEAD.IN_FEATURES is {list(node.IN_FEATURES)}, the backbone "
            f"'{cfg.MODEL.BACKBONE.NAME}' gives {sorted(input_shape)}"
        )
    return {
        "in_feature": node.IN_FEATURES[0],
        "in_channels": input_shape[node.IN_FEATURES[0]].channels,
        "num_classes": node.NUM_CLASSES,
        "lr_factor": node.LR_FACTOR,
    }


def _init_classifier(conv: Any) -> None:
    """The published initialisation of the last layer, a convolution with bias."""
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)
