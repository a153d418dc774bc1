"""Dilated VGG16: the trunk of DeepLab-LargeFOV (Chen et al., ICLR 2015), output stride 8.

The convolutions keep torchvision's names (``features.0`` ... ``features.28``), which are also the published ones.
"""

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from fvcore.nn import weight_init
from torch import Tensor, nn

# Convolutions of each stage, and the stride of the pool after it.
_CONVS = (2, 2, 3, 3, 3)
_POOL_STRIDES = (2, 2, 2, 1, 1)
_WIDTHS = (64, 128, 256, 512, 512)


class VGG16LargeFOV(Backbone):
    """Thirteen convolutions, each with ReLU; the last two pools do not stride, and conv5 has dilation 2 instead.

    Output: ``conv5``, N × C × ceil(H / 8) × ceil(W / 8), average-pooled for fc6. Its position (y, x) belongs to
    pixel (8y, 8x) of the image.
    """

    def __init__(self, in_channels: int = 3, widths: Sequence[int] = _WIDTHS) -> None:
        """
        Args:
            in_channels: channels of the input image.
            widths: channels of the five stages.
        """
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for stage, (convs, stride, width) in enumerate(zip(_CONVS, _POOL_STRIDES, widths, strict=True), start=1):
            dilation = 2 if stage == 5 else 1
            for _ in range(convs):
                layers += [nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(3, stride=stride, padding=1))
        layers.append(nn.AvgPool2d(3, stride=1, padding=1))
        self.features = nn.Sequential(*layers)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                # Without batch norms, the initialisation must keep the signal's size through thirteen layers.
                weight_init.c2_msra_fill(module)
        self._out_features = ["conv5"]
        self._out_feature_channels = {"conv5": channels}
        self._out_feature_strides = {"conv5": 8}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """``{"conv5": map}`` of N × C × H × W normalised images of any size."""
        return {"conv5": self.features(image)}


@BACKBONE_REGISTRY.register()
def build_vgg16_largefov_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> VGG16LargeFOV:
    """``MODEL.BACKBONE.NAME: build_vgg16_largefov_backbone``: output ``conv5``."""
    del cfg
    return VGG16LargeFOV(input_shape.channels)
