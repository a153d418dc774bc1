"""The network of BoxMask: a backbone, a decoder to stride 2, and a head that judges the mask.

Shape legend: N windows, S their side, h = S / 2 the side of the maps at stride 2.
"""

import torch
import torch.nn.functional as F
from detectron2.modeling import Backbone
from torch import Tensor, nn


def conv_norm(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU; the size stays."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Decoder(nn.Module):
    """From backbone maps of strides 2 to 32 to one map of stride 2: coarse maps, refined by each finer one in turn."""

    def __init__(self, channels: list[int], hidden: int, fine: int) -> None:
        """
        Args:
            channels: of the backbone's maps, finest (stride 2) first.
            hidden: channels at strides 4 and more.
            fine: channels at stride 2.
        """
        super().__init__()
        widths = [fine, *[hidden] * (len(channels) - 1)]
        self.lateral = nn.ModuleList(conv_norm(c, w, 1) for c, w in zip(channels, widths, strict=True))
        self.context = nn.Linear(channels[-1], hidden)
        self.narrow = conv_norm(hidden, fine, 1)
        self.merge = nn.ModuleList(conv_norm(2 * w, w, 3) for w in widths[:-1])
        self.refine = nn.ModuleList(conv_norm(w, w, 3) for w in widths[:-1])

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """
        Args:
            maps: of the backbone, finest first.

        Returns:
            N x fine x h x h map, and the N x hidden coarse context.
        """
        context = self.context(maps[-1].mean(dim=(2, 3)))
        x = self.lateral[-1](maps[-1]) + context[:, :, None, None]
        for level in range(len(maps) - 2, -1, -1):
            if level == 0:
                x = self.narrow(x)
            side = self.lateral[level](maps[level])
            x = F.interpolate(x, size=side.shape[-2:], mode="bilinear", align_corners=False)
            x = self.merge[level](torch.cat([x, side], dim=1))
            x = x + self.refine[level](x)
        return x, context


class QualityHead(nn.Module):
    """Predicts the IoU of a mask with the truth, from the mask and what it was made of.

    No gradient flows back into the mask: it judges, it does not bribe.
    """

    NUM_STATISTICS = 7

    def __init__(self, fine: int, context: int, hidden: int = 96) -> None:
        super().__init__()
        inputs = 3 * fine + context + self.NUM_STATISTICS
        # What it sees differs in scale by orders of magnitude.
        self.scale = nn.BatchNorm1d(inputs, affine=False)
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 1),
        )

    def forward(self, features: Tensor, context: Tensor, logits: Tensor, boxes: Tensor) -> Tensor:
        """
        Args:
            features: N x fine x h x h.
            context: N x hidden.
            logits: N x 1 x h x h of the mask.
            boxes: N x 1 x h x h coverage by the box, in 0..1.

        Returns:
            N logits of the IoU.
        """
        features, context, prob = features.detach().float(), context.detach().float(), logits.detach().float().sigmoid()
        edge = 4 * prob * (1 - prob)
        pooled = [(features * w).sum((2, 3)) / (w.sum((2, 3)) + 1) for w in (prob, edge, boxes * (1 - prob))]
        statistics = mask_statistics(prob, boxes)
        seen = torch.cat([*pooled, context, statistics], dim=1)
        if len(seen) > 1 or not self.training:
            seen = self.scale(seen)  # which refuses to learn from a single sample
        return self.layers(seen)[:, 0]


def mask_statistics(prob: Tensor, boxes: Tensor) -> Tensor:
    """N x 7 numbers in 0..1 that tell a sure mask from an unsure one.

    Args:
        prob: N x 1 x h x h.
        boxes: N x 1 x h x h coverage, in 0..1.
    """
    dims = (1, 2, 3)
    sure = (prob > 0.5).float()
    area, box_area = sure.sum(dims), boxes.sum(dims) + 1
    inside = (prob * sure).sum(dims) / (area + 1)
    soft_iou = (prob * sure).sum(dims) / (prob.sum(dims) + (sure * (1 - prob)).sum(dims) + 1)
    narrow, wide = (prob > 0.7).float().sum(dims), (prob > 0.3).float().sum(dims)
    stable = (narrow + 1) / (wide + 1)
    rows = (sure.amax(3)[:, 0] * (boxes.amax(3)[:, 0] > 0)).sum(1) / ((boxes.amax(3)[:, 0] > 0).sum(1) + 1)
    columns = (sure.amax(2)[:, 0] * (boxes.amax(2)[:, 0] > 0)).sum(1) / ((boxes.amax(2)[:, 0] > 0).sum(1) + 1)
    outside = (prob * (1 - boxes)).sum(dims) / (prob.sum(dims) + 1)
    return torch.stack([inside, soft_iou, stable, (area / box_area).clamp(max=2), rows, columns, outside], dim=1)


class BoxMaskNetwork(nn.Module):
    """Windows with their boxes to logits of masks and of their quality."""

    def __init__(self, backbone: Backbone, in_features: list[str], hidden: int, fine: int, box_channel: bool) -> None:
        """
        Args:
            backbone: takes the box's channel, if any, and then the image's three.
            in_features: its maps, finest (stride 2) first.
            hidden, fine: see :class:`Decoder`.
            box_channel: whether the backbone sees the box.
        """
        super().__init__()
        self.backbone = backbone
        self.in_features = in_features
        self.box_channel = box_channel
        shapes = backbone.output_shape()
        self.decoder = Decoder([shapes[name].channels for name in in_features], hidden, fine)
        self.mask = nn.Conv2d(fine, 1, 3, padding=1)
        self.quality = QualityHead(fine, hidden)

    def forward(self, images: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            images: N x 3 x S x S, normalised.
            boxes: N x 1 x S x S coverage by the box, in 0..1.

        Returns:
            N x 1 x h x h logits of the mask and N logits of its IoU.
        """
        maps = self.backbone(torch.cat([boxes * 2 - 1, images], dim=1) if self.box_channel else images)
        features, context = self.decoder([maps[name] for name in self.in_features])
        logits = self.mask(features)
        # The logits' stride, said as a number: ONNX has no pooling to a size that is looked up.
        coverage = F.avg_pool2d(boxes, 2, ceil_mode=True, count_include_pad=False)
        return logits, self.quality(features, context, logits, coverage)
