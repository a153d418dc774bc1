"""Losses of box-supervised mask learning: tensors in, scalar tensors out.

Shape legend: N images of the batch, H x W the sides of logits and masks. Every function computes in float32, also of
half-precision inputs, and returns zero, with a gradient, for an empty batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from boxsup_d2.masks.label_map import IGNORE_LABEL

# One of each pair (d, -d) of the 8 neighbour offsets.
_HALF_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))


def box_projection_mil_loss(logits: Tensor, box_masks: Tensor) -> Tensor:
    """Multiple-instance loss of a box: there is foreground in exactly the rows and columns that cross it.

    A bag is a row or column; its score is the maximum of its logits, its label the maximum of its mask (BoxCaseg,
    section 3.2).

    Args:
        logits: N x 1 x H x W, unbounded.
        box_masks: N x 1 x H x W, 1 inside the box and 0 outside.

    Returns:
        Scalar: binary cross-entropy, averaged over all N * (H + W) bags.
    """
    if logits.numel() == 0:
        return logits.sum()
    bags = torch.cat([logits.amax(dim=3), logits.amax(dim=2)], dim=2)
    labels = torch.cat([box_masks.amax(dim=3), box_masks.amax(dim=2)], dim=2)
    return F.binary_cross_entropy_with_logits(bags.float(), labels.float())


def pairwise_smoothness_loss(logits: Tensor) -> Tensor:
    """Mean squared difference between the probabilities of neighbouring pixels, over the 8 neighbours.

    Outside the image the probability counts as 0, so that foreground at the border adds to the loss (BoxCaseg,
    section 3.2, as published).

    Args:
        logits: N x 1 x H x W, unbounded.

    Returns:
        Scalar in 0..1: the mean over the 8 directions of the mean over all N * H * W pixels.
    """
    if logits.numel() == 0:
        return logits.sum()
    prob = logits.float().sigmoid()
    height, width = prob.shape[-2:]
    padded = F.pad(prob, (1, 1, 1, 1))
    total = prob.new_zeros(())
    for dy, dx in _HALF_NEIGHBOURS:
        # Both directions, because they differ at the border.
        for sign in (1, -1):
            top, left = 1 + sign * dy, 1 + sign * dx
            neighbour = padded[..., top : top + height, left : left + width]
            total = total + (prob - neighbour).square().mean()
    return total / (2 * len(_HALF_NEIGHBOURS))


def pseudo_label_loss(
    logits: Tensor, box_logits: Tensor, *, foreground: float = 0.85, background: float = 0.05
) -> Tensor:
    """Loss of one head on the confident pixels of the other (in BoxCaseg's code, but not in its recipe).

    Args:
        logits: N x 1 x H x W, the head that learns.
        box_logits: N x 1 x H x W, the head that teaches; no gradient flows into it.
        foreground: teacher probabilities above this, after stretching the whole batch to 0..1, are foreground.
        background: those below this are background; those between are ignored.

    Returns:
        Scalar: mean of -log q over the foreground plus mean of -log(1 - q) over the background.
    """
    return pseudo_label_loss_from_probabilities(
        logits.float().sigmoid(), box_logits.float().sigmoid(), foreground=foreground, background=background
    )


def pseudo_label_loss_from_probabilities(
    prob: Tensor, teacher_prob: Tensor, *, foreground: float = 0.85, background: float = 0.05
) -> Tensor:
    """:func:`pseudo_label_loss` of probabilities in 0..1 instead of logits."""
    if prob.numel() == 0:
        return prob.sum()
    teacher = teacher_prob.detach()
    low, high = teacher.aminmax()
    teacher = (teacher - low) / (high - low).clamp(min=torch.finfo(teacher.dtype).tiny)
    q = prob.clamp(1e-4, 1 - 1e-4)
    is_fg = (teacher > foreground).to(q.dtype)
    is_bg = (teacher < background).to(q.dtype)
    loss_fg = -(is_fg * q.log()).sum() / (is_fg.sum() + 1e-4)
    loss_bg = -(is_bg * (1 - q).log()).sum() / (is_bg.sum() + 1e-4)
    return loss_fg + loss_bg


def salient_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Binary cross-entropy of full masks.

    Args:
        logits: N x 1 x H x W, unbounded; N may be 0.
        masks: N x 1 x H x W in 0..1.

    Returns:
        Scalar mean over all pixels.
    """
    if logits.numel() == 0:
        return logits.sum()
    return F.binary_cross_entropy_with_logits(logits.float(), masks.float())


def pixel_cross_entropy(logits: Tensor, labels: Tensor, *, ignore: int = IGNORE_LABEL) -> Tensor:
    """Cross-entropy of the pixels that have a label.

    Args:
        logits: N x C x H x W, unbounded; N may be 0.
        labels: N x H x W integers in 0..C-1, or ``ignore``.
        ignore: label of the pixels that do not count.

    Returns:
        Scalar mean over the pixels that count; zero, not NaN, where none does.
    """
    if logits.numel() == 0:
        return logits.sum()
    labels = labels.long()
    total = F.cross_entropy(logits.float(), labels, ignore_index=ignore, reduction="sum")
    return total / (labels != ignore).sum().clamp(min=1)
