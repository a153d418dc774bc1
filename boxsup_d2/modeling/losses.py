"""Losses of box-supervised mask learning: tensors in, scalar tensors out.

Shape legend: N images of the batch, H x W the sides of logits and masks. Every function computes in float32, also of
half-precision inputs, and returns zero, with a gradient, for an empty batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from boxsup_d2.masks.label_map import IGNORE_LABEL
from boxsup_d2.modeling.affinity import HALF_NEIGHBOURS, at_first_ends, mask_similarity, neighbours


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
    for dy, dx in HALF_NEIGHBOURS:
        # Both directions, because they differ at the border.
        for sign in (1, -1):
            top, left = 1 + sign * dy, 1 + sign * dx
            neighbour = padded[..., top : top + height, left : left + width]
            total = total + (prob - neighbour).square().mean()
    return total / (2 * len(HALF_NEIGHBOURS))


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


def dice_loss(prob: Tensor, target: Tensor, *, eps: float = 1e-5) -> Tensor:
    """One minus the dice coefficient with squares in the denominator, of each of N samples.

    Args:
        prob, target: N x ..., of the same shape, in 0..1.
        eps: added to the denominator.

    Returns:
        N losses in 0..1, float32.
    """
    prob, target = prob.float().flatten(1), target.float().flatten(1)
    return 1 - 2 * (prob * target).sum(1) / (prob.square().sum(1) + target.square().sum(1) + eps)


def projection_dice_loss(logits: Tensor, boxes: Tensor, *, eps: float = 1e-5) -> Tensor:
    """What a box says of its mask, as BoxInst and Mask Auto-Labeler put it: both have the same projections.

    :func:`box_projection_mil_loss` compares the same projections by cross-entropy, line by line; here each axis is one
    overlap, so that a small box counts as much as a large one, and a line of background pulls less the more foreground
    there is.

    Args:
        logits: N x 1 x H x W, unbounded.
        boxes: N x 1 x H x W, 1 inside the box and 0 outside.
        eps: see :func:`dice_loss` (BoxInst: 1e-5, Mask Auto-Labeler: 2e-3).

    Returns:
        Scalar in 0..2: the dice losses of both projections, averaged over the samples whose box covers a pixel.
    """
    loss = logits.new_zeros(len(logits), dtype=torch.float32)
    for dim in (2, 3):
        # The largest probability is that of the largest logit.
        loss = loss + dice_loss(logits.amax(dim).float().sigmoid(), boxes.amax(dim), eps=eps)
    covered = (boxes > 0).flatten(1).any(1).float()
    return (loss * covered).sum() / covered.sum().clamp(min=1)


def pairwise_affinity_loss(logits: Tensor, edges: Tensor, boxes: Tensor, *, dilation: int = 2) -> Tensor:
    """Pixels that belong together are on one side of the mask (BoxInst): -log P(same label) over the edges.

    Only the pixel that an edge starts from has to lie in the box. Were both ends gated, the filled box would be an
    optimum: nothing would tie the colours inside to those outside.

    Args:
        logits: N x 1 x H x W, unbounded.
        edges: N x 8 x H x W bool, whether a pixel and its neighbours belong together; the order of the neighbours is
            that of :mod:`boxsup_d2.modeling.affinity`.
        boxes: N x 1 x H x W, above 0 inside the box.
        dilation: distance of the neighbours in pixels, that of ``edges``.

    Returns:
        Scalar >= 0: the mean over the edges of all samples together, 0 without any.
    """
    total, count = _edge_sums(logits, edges, boxes, dilation)
    return total.sum() / count.sum().clamp(min=1)


def mask_affinity_loss(
    logits: Tensor,
    masks: Tensor,
    boxes: Tensor,
    valid: Tensor,
    confidence: Tensor,
    *,
    dilation: int = 2,
    threshold: float = 0.5,
) -> Tensor:
    """:func:`pairwise_affinity_loss` with edges out of pseudo masks instead of colours, by sample (BoxTeacher).

    Args:
        logits: N x 1 x H x W, unbounded.
        masks: N x 1 x H x W pseudo masks in 0..1.
        boxes: N x 1 x H x W, above 0 inside the box.
        valid: N x 1 x H x W, 1 where a pixel may be a neighbour.
        confidence: N weights, >= 0; those of 0 do not count.
        dilation: distance of the neighbours in pixels.
        threshold: neighbours belong together where they are on one side with at least this probability.

    Returns:
        Scalar >= 0: the samples' means over edges, times their confidence, over the number of those that count.
    """
    edges = mask_similarity(masks, valid, dilation=dilation) >= threshold
    total, count = _edge_sums(logits, edges, boxes, dilation)
    return mean_of_counted(total / count.clamp(min=1), confidence)


def mean_of_counted(losses: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of N losses over the number of weights above 0: a low weight lowers the total, too.

    Zero, with a gradient, where no weight is above 0.
    """
    return (losses * weights).sum() / (weights > 0).sum().clamp(min=1)


def _edge_sums(logits: Tensor, edges: Tensor, boxes: Tensor, dilation: int) -> tuple[Tensor, Tensor]:
    """Sums over the edges of each of N samples: of -log P(same label), and their number."""
    logits, inside = logits[:, 0].float(), boxes > 0
    half = edges.shape[1] // 2
    # -log(p q + (1 - p)(1 - q)) without an exponential that could overflow or a logarithm of zero. It is the same seen
    # from either end, so that a pair is computed once and counts as often as its ends are in the box.
    softplus, there = F.softplus(logits)[:, None], neighbours(logits, dilation)
    loss = softplus + F.softplus(there) - F.softplus(logits[:, None] + there)
    starts = (edges & inside).byte()
    on_map = neighbours(torch.ones_like(starts[:1, 0]), dilation)
    starts = starts[:, :half] * on_map + at_first_ends(starts[:, half:], dilation)
    return (loss * starts).sum((1, 2, 3)), starts.sum((1, 2, 3)).to(loss.dtype)


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
