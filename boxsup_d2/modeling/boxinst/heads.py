"""Heads of CondInst in plain torch: FCOS's with a controller, the mask branch, and the mask head that both feed.

Shape legend: N images, K instances, h x w the sides of a feature map. Cell i of a map of stride s lies at pixel
s * i + s // 2 of the image.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.meta_arch.fcos import FCOSHead
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn


def aligned_bilinear(x: Tensor, factor: int) -> Tensor:
    """Enlarge maps by an integer as the published networks do: to pixels, cells stay where the shape legend says; to a
    finer map, they move right and down by half a cell of that one.

    Args:
        x: N x C x h x w; N may be 0.
        factor: at least 1.

    Returns:
        N x C x (h * factor) x (w * factor); index i samples index (i - factor // 2) / factor of ``x``, clamped.
    """
    if factor == 1:
        return x
    if not len(x):
        return x.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    height, width = x.shape[-2:]
    size = (factor * (height - 1) + 1, factor * (width - 1) + 1)
    x = F.interpolate(x, size, mode="bilinear", align_corners=True)
    before, after = factor // 2, factor - 1 - factor // 2
    return F.pad(x, (before, after, before, after), mode="replicate")


def group_norm(channels: int) -> nn.GroupNorm:
    """At most 32 groups; Detectron2's "GN" has 32 always, and its dense heads try their norm with one channel."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


class ControlledFCOSHead(FCOSHead):
    """Detectron2's FCOS head that predicts the parameters of a mask head beside each box.

    Other than Detectron2's it has a learned scale of the box regression per map, as the published networks.
    """

    def __init__(
        self, *, input_shape: list[ShapeSpec], conv_dims: list[int], norm: str, num_parameters: int, **kwargs: Any
    ):
        """
        Args:
            input_shape, conv_dims, norm: see Detectron2's ``FCOSHead``.
            num_parameters: of a mask head.
            kwargs: see Detectron2's ``FCOSHead``.
        """
        super().__init__(input_shape=input_shape, conv_dims=conv_dims, norm=_norm(norm), **kwargs)
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(1)) for _ in input_shape)
        self.controller = Conv2d(conv_dims[-1], num_parameters, kernel_size=3, padding=1)
        nn.init.normal_(self.controller.weight, std=0.01)
        nn.init.zeros_(self.controller.bias)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], ...]:
        """Per map: N x classes x h x w logits, N x 4 x h x w distances in strides, N x 1 x h x w logits of centreness,
        and N x P x h x w parameters."""
        logits, distances, centerness, parameters = [], [], [], []
        for feature, scale in zip(features, self.scales, strict=True):
            logits.append(self.cls_score(self.cls_subnet(feature)))
            tower = self.bbox_subnet(feature)
            distances.append(self.bbox_pred(tower) * scale)
            centerness.append(self.ctrness(tower))
            parameters.append(self.controller(tower))
        return logits, distances, centerness, parameters


class MaskBranch(nn.Module):
    """Maps of the pyramid to the one map that the masks of all instances are made of."""

    def __init__(
        self, input_shape: Sequence[ShapeSpec], *, channels: int, num_convs: int, norm: str, out_channels: int
    ) -> None:
        """
        Args:
            input_shape: of the maps, finest first.
            channels: of all convolutions but the last.
            num_convs: 3 x 3 convolutions after the maps are added up.
            norm: a name of Detectron2's ``get_norm``.
            out_channels: of the result.
        """
        super().__init__()
        self.strides = [int(shape.stride or 0) for shape in input_shape]
        self.refine = nn.ModuleList(_conv_block(shape.channels or 0, channels, norm) for shape in input_shape)
        self.tower = nn.Sequential(
            *(_conv_block(channels, channels, norm) for _ in range(num_convs)), nn.Conv2d(channels, out_channels, 1)
        )
        c2_xavier_fill(self.tower[-1])

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """N x out_channels x h x w, at the first map's stride."""
        total = self.refine[0](maps[0])
        for refine, stride, x in zip(self.refine[1:], self.strides[1:], maps[1:], strict=True):
            total = total + aligned_bilinear(refine(x), stride // self.strides[0])
        return self.tower(total)


def _norm(name: str) -> Any:
    return group_norm if name == "GN" else name


def _conv_block(in_channels: int, channels: int, norm: str) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=not norm)
    c2_xavier_fill(conv)
    layers = [conv, get_norm(_norm(norm), channels), nn.ReLU()]
    return nn.Sequential(*(layer for layer in layers if layer is not None))


class DynamicMaskHead(nn.Module):
    """A small network of 1 x 1 layers whose parameters are an input, one set for every instance.

    A set is the weights (out x in) of all layers and then their biases. The first layer sees an instance's relative
    coordinates, x and y, in front of the features.
    """

    def __init__(self, in_channels: int, *, channels: int, num_layers: int) -> None:
        """
        Args:
            in_channels: of the features.
            channels: between the layers.
            num_layers: at least 1.
        """
        super().__init__()
        widths = [in_channels + 2, *[channels] * (num_layers - 1), 1]
        self._shapes = [(out, inside) for inside, out in pairwise(widths)]
        self._sizes = [out * inside for out, inside in self._shapes] + widths[1:]
        self.num_parameters = sum(self._sizes)

    def forward(
        self, features: Tensor, stride: int, parameters: Tensor, points: Tensor, ranges: Tensor, image_of: Tensor
    ) -> Tensor:
        """Logits of masks.

        Args:
            features: N x C x h x w.
            stride: of the features, pixels.
            parameters: K x ``num_parameters``.
            points: K x 2, x and y of the locations that the parameters were predicted at, pixels.
            ranges: K, the unit of the relative coordinates, pixels.
            image_of: K positions in 0..N-1.

        Returns:
            K x 1 x h x w.
        """
        height, width = features.shape[-2:]
        x = torch.arange(width, device=features.device) * stride + stride // 2
        y = torch.arange(height, device=features.device) * stride + stride // 2
        offsets_x = ((points[:, :1] - x) / ranges[:, None])[:, None, :].expand(-1, height, -1)
        offsets_y = ((points[:, 1:] - y) / ranges[:, None])[:, :, None].expand(-1, -1, width)
        relative = torch.stack([offsets_x, offsets_y], dim=1).to(features.dtype)
        # index_select: the backward pass of an index in brackets sorts, which is slow where many are alike.
        values = torch.cat([relative, features.index_select(0, image_of)], dim=1).flatten(2)
        parts = parameters.split(self._sizes, dim=1)
        weights, biases = parts[: len(self._shapes)], parts[len(self._shapes) :]
        # A 1 x 1 convolution with a group for each instance is a batched matrix product, which is faster.
        for i, (shape, weight, bias) in enumerate(zip(self._shapes, weights, biases, strict=True)):
            values = torch.baddbmm(bias[:, :, None], weight.unflatten(1, shape), values)
            if i + 1 < len(self._shapes):
                values = values.relu()
        return values.unflatten(2, (height, width))
