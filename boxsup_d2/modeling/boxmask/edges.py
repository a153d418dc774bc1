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

from boxsup_d2.modeling.affinity import neighbour_pairs


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
    # A plane per channel, along whose rows sums are fastest.
    logits, images = logits.float(), images.float().contiguous()
    # The weight of a pair is the same seen from either side.
    pairs = []
    for here, there in (pair for distance in distances for pair in neighbour_pairs(distance)):
        difference = (images[here] - images[there]).square().mean(1, keepdim=True)
        pairs.append((here, there, torch.exp(difference / (-2 * color**2))))
    scale = weight / (2 * len(pairs))
    belief = logits
    for _ in range(steps):
        side = torch.tanh(belief / 2)
        pull = torch.zeros_like(belief)
        for here, there, kernel in pairs:
            # In place, on what has a neighbour: shifted copies of whole maps took twice as long.
            pull[here].addcmul_(kernel, side[there])
            pull[there].addcmul_(kernel, side[here])
        belief = logits + scale * pull
    return belief
