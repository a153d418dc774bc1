"""Dilated ResNet: the trunk of DeepLabV2 (Chen et al., TPAMI 2018), output stride 8, or 4 as published with LPG.

Parameters have torchvision's names and layout (``conv1``, ``bn1``, ``layer1`` ... ``layer4``; the stride of a
bottleneck is in its 3×3 convolution), so that torchvision's ImageNet weights fit.
"""

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class DilatedResNet(Backbone):
    """Bottleneck ResNet whose res4 and res5 have dilation 2 and 4 instead of a stride.

    Output: ``res5``, N × 2048 × ceil(H / s) × ceil(W / s), with stride s = 8, or 4 without the stem's max-pool. Its
    position (y, x) belongs to pixel (sy, sx) of the image.
    """

    @configurable
    def __init__(
        self, *, blocks: Sequence[int], norm: str = "FrozenBN", stem_max_pool: bool = True, in_channels: int = 3
    ) -> None:
        """
        Args:
            blocks: bottlenecks of the four stages.
            norm: a name of Detectron2's ``get_norm``. "FrozenBN" suits small batches.
            stem_max_pool: True as in the paper; the code published with LPG has none.
            in_channels: channels of the input image.
        """
        super().__init__()
        net = ResNet(Bottleneck, list(blocks), norm_layer=lambda channels: get_norm(norm, channels))
        self.conv1 = net.conv1
        if in_channels != 3:
            self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = net.bn1
        self.relu = net.relu
        self.maxpool = net.maxpool if stem_max_pool else nn.Identity()
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        _replace_stride(self.layer3, dilation=2)
        _replace_stride(self.layer4, dilation=4)
        self._out_features = ["res5"]
        self._out_feature_channels = {"res5": 512 * Bottleneck.expansion}
        self._out_feature_strides = {"res5": 8 if stem_max_pool else 4}

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        node = cfg.MODEL.RESNETS
        if node.DEPTH not in _BLOCKS:
            raise ValueError(f"MODEL.RESNETS.DEPTH {node.DEPTH} has no DeepLab variant: use one of {sorted(_BLOCKS)}")
        return {
            "blocks": _BLOCKS[node.DEPTH],
            "norm": node.NORM,
            "stem_max_pool": node.STEM_MAX_POOL,
            "in_channels": input_shape.channels,
        }

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """``{"res5": map}`` of N × C × H × W normalised images of any size."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        return {"res5": self.layer4(self.layer3(self.layer2(self.layer1(x))))}


def _replace_stride(stage: Any, dilation: int) -> None:
    # Every 3×3 convolution of the stage; torchvision's replace_stride_with_dilation leaves out the first block.
    for block in stage:
        block.conv2.stride = (1, 1)
        block.conv2.dilation = block.conv2.padding = (dilation, dilation)
        if block.downsample is not None:
            block.downsample[0].stride = (1, 1)


@BACKBONE_REGISTRY.register()
def build_resnet_deeplab_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> DilatedResNet:
    """``MODEL.BACKBONE.NAME: build_resnet_deeplab_backbone``: output ``res5``; see ``MODEL.RESNETS``."""
    return DilatedResNet(cfg, input_shape)
