"""The hourglass network of LPG (Xie et al., arXiv 2103.05463) as a Detectron2 backbone.

A stack of one hourglass: the map is halved and doubled again level by level, and every level keeps a branch at its own
size, so that a whole image is seen at once, with an output at stride 4. Any number of input channels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from boxsup_d2.modeling.lpg.windows import Window


def normalized(x: Tensor, conv: nn.Conv2d, bn: nn.BatchNorm2d) -> Tensor:
    """``bn(conv(x))``; on a CPU, where nothing is learned, as one convolution.

    A batch norm that only scales goes into the weights, which are few: its own pass over the map would take a tenth of
    the network's time on a CPU. A GPU would have to start several small operations in place of that one.
    """
    if x.device.type != "cpu" or bn.training or torch.is_grad_enabled():
        return bn(conv(x))
    assert bn.running_mean is not None
    assert bn.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
    )
    # Detached: autocast keeps a copy of every weight that wants gradients until its context ends, and these are new
    # ones each time.
    return F.conv2d(x, weight.detach(), bias.detach(), conv.stride, conv.padding, conv.dilation, conv.groups)


class ConvNormRelu(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W to N×out×ceil(H / stride)×ceil(W / stride)."""
        return F.relu(normalized(x, self.conv, self.bn), inplace=True)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside a skip, which is an identity unless the stride or the width changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.skip = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.skip.append(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))
            self.skip.append(nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W to N×out×ceil(H / stride)×ceil(W / stride)."""
        y = F.relu(normalized(x, self.conv1, self.bn1), inplace=True)
        skip = normalized(x, *self.skip) if len(self.skip) else x
        return F.relu(normalized(y, self.conv2, self.bn2) + skip, inplace=True)


class Hourglass(nn.Module):
    """One level of the hourglass and, inside it, all lower ones.

    Args:
        widths: channels of this level and of each below; the last is the innermost's.
        modules: residual blocks per branch at this level and at each below, as many entries as ``widths``.
    """

    def __init__(self, widths: Sequence[int], modules: Sequence[int]) -> None:
        super().__init__()
        width, lower, count = widths[0], widths[1], modules[0]
        self.up1 = nn.Sequential(*(ResidualBlock(width, width) for _ in range(count)))
        self.low1 = nn.Sequential(
            ResidualBlock(width, lower, stride=2), *(ResidualBlock(lower, lower) for _ in range(count - 1))
        )
        self.low2 = (
            Hourglass(widths[1:], modules[1:])
            if len(widths) > 2
            else nn.Sequential(*(ResidualBlock(lower, lower) for _ in range(modules[1])))
        )
        self.low3 = nn.Sequential(*(ResidualBlock(lower, lower) for _ in range(count - 1)), ResidualBlock(lower, width))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape; sides must be multiples of 2 to the number of levels."""
        low = self.low3(self.low2(self.low1(x)))
        return self.up1(x) + F.interpolate(low, scale_factor=2.0, mode="nearest")

    def in_windows(self, x: Tensor, windows: Sequence[Window], levels: int = 2) -> list[Tensor]:
        """The output in one window of each map, without computing what only other places need.

        Args:
            x: N×C×H×W, see :meth:`forward`.
            windows: N parts of the output.
            levels: of the hourglass that are computed in parts, this one included; the inner ones, which see
                everything anyway and cost little, are computed wholly and for all maps together.

        Returns:
            N tensors 1×C×height×width of their windows.
        """
        size = (x.shape[-2], x.shape[-1])
        halved = (size[0] // 2, size[1] // 2)
        low = self.low1(x)
        # A residual block looks two rows and columns around.
        inner = [window.halved() for window in windows]
        outer = [window.grow(2 * len(self.low3), halved) for window in inner]
        if levels > 1 and isinstance(self.low2, Hourglass):
            lows = self.low2.in_windows(low, outer, levels - 1)
        else:
            low = self.low2(low)
            lows = [window.of(low[n : n + 1]) for n, window in enumerate(outer)]
        results = []
        for n, window in enumerate(windows):
            part = inner[n].of(self.low3(lows[n]), outer[n])
            part = window.of(F.interpolate(part, scale_factor=2.0, mode="nearest"), inner[n].doubled())
            seen = window.grow(2 * len(self.up1), size)
            results.append(part + window.of(self.up1(seen.of(x[n : n + 1])), seen))
        return results


class HourglassBackbone(Backbone):
    """Stem of stride 4, one hourglass, and a last convolution.

    Output: ``{"res2": N × out_channels × H/4 × W/4}``. With the published widths 12.1 M parameters.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        stem_channels: int = 48,
        widths: Sequence[int] = (96, 96, 128, 128, 128, 192),
        modules: Sequence[int] = (2, 2, 2, 2, 2, 4),
        out_channels: int = 256,
    ) -> None:
        """
        Args:
            in_channels: of the input.
            stem_channels: of the first convolution, whose output has stride 2.
            widths: channels per level, the stride-4 map first, and of the innermost blocks.
            modules: residual blocks per branch of each level, and the number of innermost blocks.
            out_channels: of the output.

        Raises:
            ValueError: there is no level, ``widths`` and ``modules`` differ in length, a branch has no block, or a map
                has fewer than 8 channels.
        """
        super().__init__()
        if len(widths) < 2 or len(widths) != len(modules) or min(modules) < 1:
            raise ValueError(
                f"MODEL.HOURGLASS.WIDTHS {list(widths)} and MODULES {list(modules)} must have as many entries each, at "
                "least 2, and no level without a block"
            )
        if min(stem_channels, *widths) < 8:
            # The gradient of a 1×1 convolution with a stride, in the channels-last layout, on 2 to 7 input channels
            # writes outside its memory in torch's CPU library (seen with torch 2.15).
            raise ValueError(
                f"MODEL.HOURGLASS.STEM_CHANNELS {stem_channels} and WIDTHS {list(widths)} must be at least 8: torch's "
                "convolutions on the CPU corrupt memory below"
            )
        self.stem = ConvNormRelu(in_channels, stem_channels, kernel=7, stride=2)
        self.down = ResidualBlock(stem_channels, widths[0], stride=2)
        self.hourglass = Hourglass(widths, modules)
        self.out = ConvNormRelu(widths[0], out_channels, kernel=3)
        self._size_divisibility = 4 * 2 ** (len(widths) - 1)
        self._out_features = ["res2"]
        self._out_feature_channels = {"res2": out_channels}
        self._out_feature_strides = {"res2": 4}

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        node = cfg.MODEL.HOURGLASS
        return {
            "in_channels": input_shape.channels,
            "stem_channels": node.STEM_CHANNELS,
            "widths": list(node.WIDTHS),
            "modules": list(node.MODULES),
            "out_channels": node.OUT_CHANNELS,
        }

    @property
    def size_divisibility(self) -> int:
        """Sides of the input must be multiples of this (published: 128)."""
        return self._size_divisibility

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """``{"res2": ...}`` of an N×C×H×W input.

        Raises:
            ValueError: a side is no multiple of ``size_divisibility``: the branches would not meet again.
        """
        return {"res2": self.out(self.hourglass(self._stride_4(image)))}

    def in_windows(self, image: Tensor, windows: Sequence[Window]) -> list[Tensor]:
        """``res2`` in one window of each of N inputs, N tensors 1×out_channels×height×width.

        The same as cutting the windows out of :meth:`forward`'s output, for less: three quarters of the arithmetic
        happen at strides 4 and 8, where a window does not see far.
        """
        x = self._stride_4(image)
        outer = [window.grow(1, (x.shape[-2], x.shape[-1])) for window in windows]
        maps = self.hourglass.in_windows(x, outer)
        return [window.of(self.out(m), seen) for m, window, seen in zip(maps, windows, outer, strict=True)]

    def _stride_4(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        if height % self._size_divisibility or width % self._size_divisibility:
            raise ValueError(
                f"the hourglass takes inputs whose sides are multiples of {self._size_divisibility}, not "
                f"{height}×{width}: pad them"
            )
        return self.down(self.stem(image))


@BACKBONE_REGISTRY.register()
def build_hourglass_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> HourglassBackbone:
    """``MODEL.BACKBONE.NAME: build_hourglass_backbone``: the network of ``MODEL.HOURGLASS``, ``res2``."""
    return HourglassBackbone(cfg, input_shape)
