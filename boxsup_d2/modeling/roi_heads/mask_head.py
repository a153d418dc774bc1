"""Mask head whose loss depends on the confidence of each ground-truth mask (BoxCaseg's retraining).

Shapes: B foreground RoIs of all images of the batch, C classes (1 when class-agnostic), M side of the predicted mask.
"""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.roi_heads.mask_head import ROI_MASK_HEAD_REGISTRY, MaskRCNNConvUpsampleHead, mask_rcnn_loss
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch.nn import functional as F


@ROI_MASK_HEAD_REGISTRY.register()
class ConfidenceMaskRCNNConvUpsampleHead(MaskRCNNConvUpsampleHead):
    """Detectron2's mask head; the loss of each RoI is weighted by the confidence of the instance that it matches.

    Reads ``gt_mask_confidence`` (0..1) of the instances, which ``PseudoMaskDatasetMapper`` provides and Detectron2's
    RoI heads copy to the proposals; instances without it have confidence 1. The loss is the weighted mean over the
    RoIs: Detectron2's when all confidences are 1, and zero, with a gradient, when all weights are 0. Box and class
    losses do not change. Pixels of ``gt_void`` (masks as ``gt_masks``), where the instances have it, count for neither
    side.
    """

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, confidence_threshold: float, confidence_weighting: bool, **kwargs: Any
    ):
        """
        Args:
            input_shape: shape of the pooled features.
            confidence_threshold: RoIs whose confidence is below it, or 0, have no loss.
            confidence_weighting: weight the others by their confidence; else equally.
            kwargs: see Detectron2's ``MaskRCNNConvUpsampleHead``.
        """
        super().__init__(input_shape, **kwargs)
        self.confidence_threshold = confidence_threshold
        self.confidence_weighting = confidence_weighting

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Detectron2's arguments and ``MODEL.ROI_MASK_HEAD.CONFIDENCE_{THRESHOLD,WEIGHTING}``."""
        return {
            **super().from_config(cfg, input_shape),
            "confidence_threshold": cfg.MODEL.ROI_MASK_HEAD.CONFIDENCE_THRESHOLD,
            "confidence_weighting": cfg.MODEL.ROI_MASK_HEAD.CONFIDENCE_WEIGHTING,
        }

    def forward(self, x: torch.Tensor, instances: list[Instances]) -> dict[str, torch.Tensor] | list[Instances]:
        """See Detectron2's ``BaseMaskRCNNHead.forward``: losses in training, ``instances`` with masks otherwise."""
        if not self.training:
            return super().forward(x, instances)
        return {"loss_mask": self.losses(self.layers(x), instances) * self.loss_weight}

    def losses(self, mask_logits: torch.Tensor, instances: list[Instances]) -> torch.Tensor:
        """Weighted mask loss.

        Args:
            mask_logits: B×C×M×M.
            instances: one per image, B in all, in the order of the logits, with ``proposal_boxes``, ``gt_classes``,
                ``gt_masks`` and, optionally, ``gt_mask_confidence`` and ``gt_void``.

        Returns:
            Scalar Σ w_i·L_i / Σ w_i, where L_i is the mean binary cross entropy of RoI i over its known pixels and w_i
            its weight, 0 where no pixel is known.
        """
        instances = [x for x in instances if len(x)]
        if not instances:
            return mask_logits.sum() * 0
        logits = _logits_of_class(mask_logits, instances)
        targets = _cropped(instances, "gt_masks", logits)
        known = ~_cropped(instances, "gt_void", logits) if any(x.has("gt_void") for x in instances) else None
        confidence = cat([_confidence(x) for x in instances]).to(logits.device)
        weights = confidence_weights(confidence, self.confidence_threshold, self.confidence_weighting)

        storage = get_event_storage()
        if self.vis_period > 0 and storage.iter % self.vis_period == 0:
            mask_rcnn_loss(mask_logits.detach(), instances, self.vis_period)  # for its pictures
        counted = (weights > 0)[:, None, None] & (torch.ones_like(targets) if known is None else known)
        _log_accuracy(logits.detach(), targets, counted)
        return weighted_mask_loss(logits, targets, weights, known)


def confidence_weights(confidence: torch.Tensor, threshold: float, weighting: bool) -> torch.Tensor:
    """Weights (B, float32, >= 0) of the mask losses of RoIs with these confidences (B, 0..1).

    A confidence of 0 means that there is no mask: its weight is 0 with any threshold.
    """
    confidence = confidence.float()
    kept = (confidence >= threshold) & (confidence > 0)
    return confidence * kept if weighting else kept.float()


def weighted_mask_loss(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, known: torch.Tensor | None = None
) -> torch.Tensor:
    """Weighted mean over RoIs of their mean binary cross entropy.

    Args:
        logits: B×M×M, any floating type.
        targets: B×M×M bool.
        weights: B, >= 0.
        known: B×M×M bool, the pixels that count; None: all.

    Returns:
        Scalar float32; zero, with a gradient, where all weights are 0.
    """
    # In float32: a sum over half-precision losses would overflow.
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none").flatten(1)
    if known is None:
        per_roi = losses.mean(1)
    else:
        counted = known.flatten(1).float()
        per_roi = (losses * counted).sum(1) / counted.sum(1).clamp(min=1)
        weights = weights * counted.amax(1)
    # The clamp acts only where the numerator is 0 as well, and needs no transfer to the host.
    return (per_roi * weights).sum() / weights.sum().clamp(min=torch.finfo(torch.float32).tiny)


def _confidence(instances: Instances) -> torch.Tensor:
    if instances.has("gt_mask_confidence"):
        return instances.gt_mask_confidence
    return instances.proposal_boxes.tensor.new_ones(len(instances))


def _logits_of_class(mask_logits: torch.Tensor, instances: list[Instances]) -> torch.Tensor:
    """B×M×M logits of each RoI's own class."""
    if mask_logits.size(1) == 1:
        return mask_logits[:, 0]
    classes = cat([x.gt_classes for x in instances]).to(torch.int64)
    return mask_logits[torch.arange(len(classes), device=classes.device), classes]


def _cropped(instances: list[Instances], field: str, logits: torch.Tensor) -> torch.Tensor:
    """B×M×M bool: the masks of a field, cropped to the RoIs; False for images that lack the field."""
    side = logits.size(-1)
    masks = [
        x.get(field).crop_and_resize(x.proposal_boxes.tensor, side).to(logits.device)
        if x.has(field)
        else logits.new_zeros((len(x), side, side), dtype=torch.bool)
        for x in instances
    ]
    return cat(masks) > 0.5


def _log_accuracy(logits: torch.Tensor, targets: torch.Tensor, counted: torch.Tensor) -> None:
    """Log Detectron2's scalars of the pixels that count, with one transfer to the host instead of three."""
    wrong = ((logits > 0) != targets) & counted
    positive = targets & counted
    counts = torch.stack([counted.sum(), positive.sum(), (wrong & targets).sum(), wrong.sum()])
    num_pixels, num_positive, num_missed, num_wrong = counts.tolist()
    storage = get_event_storage()
    storage.put_scalar("mask_rcnn/accuracy", 1 - num_wrong / max(num_pixels, 1))
    storage.put_scalar("mask_rcnn/false_positive", (num_wrong - num_missed) / max(num_pixels - num_positive, 1))
    storage.put_scalar("mask_rcnn/false_negative", num_missed / max(num_positive, 1))
