"""BoxCaseg's two heads: the box head, and the salient head that borrows its weights (section 3.3).

Both take the N x C x H x W feature map of the backbone and give N x 1 x H x W logits.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PixelHead(nn.Sequential):
    """conv1x1, batch norm, ReLU, conv1x1 to one logit per pixel; positions 0..3 as in the published checkpoints."""

    def __init__(self, in_channels: int, hidden_channels: int, bn_momentum: float = 0.01) -> None:
        super().__init__(
            nn.Conv2d(in_channels, hidden_channels, 1),
            nn.BatchNorm2d(hidden_channels, momentum=bn_momentum),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden_channels, 1, 1),
        )
        for module in self:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.001)

    def forward(self, features: Tensor, *, sync: bool = True) -> Tensor:
        """Logits; ``sync`` as for :class:`SalientHead`."""
        first, norm, relu, last = self
        return last(relu(_batch_norm(cast(nn.BatchNorm2d, norm), first(features), sync)))


class WeightTransfer(nn.Module):
    """Learned map from the weights of one convolution to those of another of the same shape.

    T(w) = fc2(LeakyReLU_0.1(fc1(w))) on each output filter's n = in_channels * kh * kw weights, fc1: n to 4n and
    fc2: 4n to n; the new bias is k * bias + b with learned scalars.
    """

    def __init__(self, weights_per_filter: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(weights_per_filter, 4 * weights_per_filter)
        self.fc2 = nn.Linear(4 * weights_per_filter, weights_per_filter)
        self.k = nn.Parameter(torch.ones(1))
        self.b = nn.Parameter(torch.zeros(1))
        for fc in (self.fc1, self.fc2):
            nn.init.normal_(fc.weight, std=0.01)
            nn.init.normal_(fc.bias, std=0.01)

    def forward(self, features: Tensor, source: nn.Conv2d) -> Tensor:
        """Apply the transferred convolution to N x C x H x W features; no gradient reaches ``source``."""
        weight, bias = source.weight.detach(), source.bias.detach()  # type: ignore[union-attr]  # both convs have one
        new_weight = self.fc2(F.leaky_relu(self.fc1(weight.flatten(1)), 0.1)).view_as(weight)
        new_bias = self.k * bias + self.b
        return F.conv2d(features, new_weight.to(features.dtype), new_bias.to(features.dtype), padding=source.padding)


class SalientHead(nn.Module):
    """alpha * own FCN branch + (1 - alpha) * branch with the box head's transferred weights."""

    def __init__(self, in_channels: int, hidden_channels: int, alpha: float, bn_momentum: float = 0.01) -> None:
        """
        Args:
            in_channels, hidden_channels: as for the box head.
            alpha: share of the FCN branch, in 0..1.
        """
        super().__init__()
        self.alpha = alpha
        self.fcn = PixelHead(in_channels, hidden_channels, bn_momentum)
        self.transfer1 = WeightTransfer(in_channels)
        self.transfer2 = WeightTransfer(hidden_channels)
        self.transfer_bn = nn.BatchNorm2d(hidden_channels, momentum=bn_momentum)

    def forward(self, features: Tensor, box_head: PixelHead, *, sync: bool = True) -> Tensor:
        """N x 1 x H x W logits of N x C x H x W features; N may be 0, and the result is still connected.

        Args:
            features, box_head: the shared map, and the head whose weights are transferred.
            sync: False where no rank has an image, which a SyncBatchNorm cannot take.
        """
        hidden = _batch_norm(self.transfer_bn, self.transfer1(features, box_head[0]), sync).relu()
        return self.alpha * self.fcn(features, sync=sync) + (1 - self.alpha) * self.transfer2(hidden, box_head[3])


def _batch_norm(norm: nn.modules.batchnorm._BatchNorm, x: Tensor, sync: bool) -> Tensor:
    """Batch norm that also takes an empty batch, which torch's refuses in training.

    The affine part alone keeps the norm's parameters connected, so that DDP finds a gradient for each of them. A
    SyncBatchNorm takes empty batches itself and must be called: other ranks wait for its all-gather.
    """
    if x.shape[0] == 0 and not (sync and isinstance(norm, nn.SyncBatchNorm)):
        return x * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
    return norm(x)
