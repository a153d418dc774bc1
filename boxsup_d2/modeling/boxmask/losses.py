"""Losses of BoxMask: tensors in, scalars out, float32 whatever comes in, a connected zero for an empty batch.

Shape legend: N samples, H x W the side lengths of logits and masks.
"""

import torch.nn.functional as F
from torch import Tensor

from boxsup_d2.modeling.losses import mean_of_counted


def boundary_weights(masks: Tensor, weight: float) -> Tensor:
    """1, and up to 1 + ``weight`` within a tenth of the side of the masks' boundaries.

    Args:
        masks: N x 1 x H x W in 0..1.
        weight: >= 0.

    Returns:
        N x 1 x H x W.
    """
    if masks.numel() == 0:
        return masks
    kernel = masks.shape[-1] // 10 | 1
    around = F.avg_pool2d(masks, kernel, stride=1, padding=kernel // 2, count_include_pad=False)
    return 1 + 2 * weight * (around - masks).abs()


def pixel_and_overlap_losses(
    logits: Tensor, masks: Tensor, weights: Tensor, confidence: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted binary cross-entropy, and one minus the soft IoU, both averaged over samples.

    Args:
        logits: N x 1 x H x W, unbounded.
        masks: N x 1 x H x W in 0..1.
        weights: N x 1 x H x W, >= 0.
        confidence: N, >= 0, by which the samples count.
    """
    logits = logits.float()
    dims = (1, 2, 3)
    entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    pixel = (entropy * weights).sum(dims) / weights.sum(dims).clamp(min=1)
    prob = logits.sigmoid()
    intersection = (prob * masks * weights).sum(dims)
    union = ((prob + masks - prob * masks) * weights).sum(dims)
    # One pixel on both sides: an empty mask has a gradient, too.
    overlap = 1 - (intersection + 1) / (union + 1)
    return mean_of_counted(pixel, confidence), mean_of_counted(overlap, confidence)


def teacher_loss(logits: Tensor, teacher: Tensor, boxes: Tensor, *, certainty: float = 0.75) -> Tensor:
    """Cross-entropy with another network's prediction, where that is certain; outside of the box is background.

    Args:
        logits: N x 1 x H x W, unbounded.
        teacher: N x 1 x H x W probabilities; no gradient flows into them.
        boxes: N x 1 x H x W coverage by the box, in 0..1.
        certainty: the teacher counts where its probability, or that of background, is above this.
    """
    if logits.numel() == 0:
        return logits.sum()
    target = teacher.detach() * (boxes > 0)
    counted = ((target - 0.5).abs() > certainty - 0.5).float()
    entropy = F.binary_cross_entropy_with_logits(logits.float(), (target > 0.5).float(), reduction="none")
    return (entropy * counted).sum() / counted.sum().clamp(min=1)


def hard_iou(logits: Tensor, masks: Tensor, counted: Tensor) -> Tensor:
    """IoUs of the decided masks, without gradient.

    Args:
        logits, masks, counted: N x 1 x H x W; masks in 0..1; only pixels with more than 1/2 of ``counted`` do.

    Returns:
        N in 0..1.
    """
    pred, true = (logits.detach() > 0) & (counted > 0.5), (masks > 0.5) & (counted > 0.5)
    intersection = (pred & true).sum((1, 2, 3)).float()
    return intersection / (pred | true).sum((1, 2, 3)).clamp(min=1)
