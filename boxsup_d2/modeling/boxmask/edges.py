"""Snapping masks to the edges of the image: mean-field steps over neighbours at several distances.

The same idea as the dense CRF in ``boxsup_d2/crf/refine.py``, for all windows of a batch at once, on any
device and without a compiled package: neighbours of one colour pull each other to one side. Where the dense CRF sees
all pairs of pixels, this sees eight directions at a few distances.

Shape legend: N windows, S their side.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from boxsup_d2.modeling.affinity import HALF_NEIGHBOURS


def snap_to_edges(
    logits: Tensor,
    images: Tensor,
    *,
    steps: int = 3,
    weight: float = 6.0,
    color: float = 12.0,
    distances: Sequence[int] = (2, 6),
) -> Tensor:
    """Refine logits of masks by the colours of the image.

    Args:
        logits: N x 1 x h x h, resized to the images.
        images: N x 3 x S x S in 0..255.
        steps: mean-field steps; 0 changes nothing.
        weight: what all neighbours of the same colour together add to a pixel's logit at most.
        color: root mean square difference over the channels, in grey values, at which a neighbour counts 0.6 of a
            neighbour of the same colour.
        distances: of the neighbours, pixels.

    Returns:
        N x 1 x S x S logits.
    """
    if logits.shape[-2:] != images.shape[-2:]:
        logits = F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)
    if steps == 0 or logits.numel() == 0:
        return logits
    logits, images = logits.float(), images.float()
    offsets = [(d * y, d * x) for d in distances for y, x in HALF_NEIGHBOURS]
    # The weight of a pair is the same seen from either side: half of the pairs are computed, all are used.
    differences = [(images - _shift(images, o)).square().mean(1, keepdim=True) for o in offsets]
    kernels = [torch.exp(d / (-2 * color**2)) * _inside(d, o) for d, o in zip(differences, offsets, strict=True)]
    scale = weight / (2 * len(offsets))
    belief = logits
    for _ in range(steps):
        side = torch.tanh(belief / 2)
        pull = torch.zeros_like(belief)
        for kernel, offset in zip(kernels, offsets, strict=True):
            pull += kernel * _shift(side, offset)
            pull += _shift(kernel * side, (-offset[0], -offset[1]))
        belief = logits + scale * pull
    return belief


def _shift(values: Tensor, offset: tuple[int, int]) -> Tensor:
    """Every pixel's neighbour at (rows, columns) ``offset``; zero beyond the border."""
    dy, dx = offset
    height, width = values.shape[-2:]
    padded = F.pad(values, (max(-dx, 0), max(dx, 0), max(-dy, 0), max(dy, 0)))
    top, left = max(dy, 0), max(dx, 0)
    return padded[..., top : top + height, left : left + width]


def _inside(values: Tensor, offset: tuple[int, int]) -> Tensor:
    """1 where the neighbour at ``offset`` is a pixel, 0 beyond the border."""
    return _shift(torch.ones_like(values[:1]), offset)
