"""How BoxMask learns from a box whose mask nobody drew: its projections, the image's colours, the averaged network.

With ``PROJECTION_LOSS dice`` and ``TEACHER_LABELS mean_field`` this is Mask Auto-Labeler's training, with
``PAIRWISE_WEIGHT`` BoxInst's.

Shape legend: N samples, S their side, h = S / 2 the side of logits, boxes, labels and of the colours here.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

from boxsup_d2.modeling.affinity import box_contrast, color_similarity, mean_field
from boxsup_d2.modeling.boxmask.edges import snap_to_edges
from boxsup_d2.modeling.boxmask.losses import teacher_loss
from boxsup_d2.modeling.losses import (
    box_projection_mil_loss,
    dice_loss,
    pairwise_affinity_loss,
    projection_dice_loss,
)

# Of Mask Auto-Labeler: added to the denominators of its dice losses.
_EPS = 2e-3
_PROJECTION: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": box_projection_mil_loss,
    "dice": projection_dice_loss,
}
_LABELS = ("certain", "mean_field")


@dataclass(frozen=True)
class BoxLearning:
    """The attributes are the keys of ``MODEL.BOXMASK``; what these give as shares of the schedule is in iterations."""

    projection_loss: str = "cross_entropy"
    pairwise_warmup: float = 0.0
    pairwise_dilation: int = 1
    color_threshold: float = 0.3
    teacher_start: float = 500
    teacher_warmup: float = 0.0
    teacher_labels: str = "certain"
    teacher_edges: bool = False
    mean_field_steps: int = 100
    mean_field_color: float = 5.8
    contrast_weight: float = 0.0

    def __post_init__(self) -> None:
        for key, value, known in (
            ("PROJECTION_LOSS", self.projection_loss, tuple(_PROJECTION)),
            ("TEACHER_LABELS", self.teacher_labels, _LABELS),
        ):
            if value not in known:
                raise ValueError(f"MODEL.BOXMASK.{key} is '{value}': it must be {' or '.join(known)}.")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "BoxLearning":
        """
        Raises:
            ValueError: a key names nothing that there is.
        """
        node = cfg.MODEL.BOXMASK
        iterations = cfg.SOLVER.MAX_ITER
        return cls(
            projection_loss=node.PROJECTION_LOSS,
            pairwise_warmup=node.PAIRWISE_WARMUP * iterations,
            pairwise_dilation=node.PAIRWISE_DILATION,
            color_threshold=node.COLOR_THRESHOLD,
            teacher_start=max(node.TEACHER_START, node.TEACHER_START_SHARE * iterations),
            teacher_warmup=node.TEACHER_WARMUP * iterations,
            teacher_labels=node.TEACHER_LABELS,
            teacher_edges=node.TEACHER_EDGES,
            mean_field_steps=node.MEAN_FIELD_STEPS,
            mean_field_color=node.MEAN_FIELD_COLOR,
            contrast_weight=node.CONTRAST_WEIGHT,
        )

    def pairwise_share(self, iteration: int) -> float:
        """Share of its weight, 0..1, that the pairwise loss has."""
        return min(iteration / max(self.pairwise_warmup, 1), 1.0)

    def teacher_share(self, iteration: int) -> float:
        """Share of its weight, 0..1, that the loss of the averaged network's labels has."""
        if iteration < self.teacher_start:
            return 0.0
        return min((iteration + 1 - self.teacher_start) / max(self.teacher_warmup, 1), 1.0)

    @torch.no_grad()
    def contrast_labels(self, colors: Tensor, seen: Tensor, boxes: Tensor) -> Tensor:
        """Masks by the colours that a box has and its surroundings lack, smoothed and snapped to edges.

        Args:
            colors, seen, boxes: as of :meth:`pairwise`.

        Returns:
            N x 1 x h x h probabilities.
        """
        inside = (boxes > 0.5).float()
        if not len(inside):
            return inside
        kernel = inside.shape[-1] // 8 | 1  # a smaller one leaves textures full of holes
        prob = F.avg_pool2d(box_contrast(colors, inside, seen > 0.5), kernel, stride=1, padding=kernel // 2)
        logits = prob.clamp(0.02, 0.98).logit()
        return snap_to_edges(logits, colors, distances=(1, 2, 4)).sigmoid() * inside

    def projection(self, logits: Tensor, boxes: Tensor) -> Tensor:
        """Loss of the projections of N x 1 x h x h logits; ``boxes``: coverage in 0..1."""
        return _PROJECTION[self.projection_loss](logits, boxes)

    def pairwise(self, logits: Tensor, colors: Tensor, seen: Tensor, boxes: Tensor) -> Tensor:
        """Loss of neighbours of like colour on two sides of the mask.

        Args:
            logits: N x 1 x h x h.
            colors: N x 3 x h x h, R, G, B in 0..255.
            seen: N x 1 x h x h, above 0.5 in the image.
            boxes: N x 1 x h x h coverage in 0..1.
        """
        dilation = self.pairwise_dilation
        edges = color_similarity(colors, seen > 0.5, dilation=dilation) >= self.color_threshold
        return pairwise_affinity_loss(logits, edges, (boxes > 0.5).float(), dilation=dilation)

    @torch.no_grad()
    def labels(self, logits: Tensor, taught: Tensor, pixels: Tensor, boxes: Tensor) -> Tensor:
        """What the averaged network teaches.

        Args:
            logits: N x 1 x h x h of the network that learns.
            taught: N x 1 x h x h logits of the averaged one.
            pixels: N x 3 x S x S that it saw, in 0..255.
            boxes: N x 1 x h x h coverage in 0..1.

        Returns:
            N x 1 x h x h probabilities.
        """
        size = taught.shape[-2:]
        if self.teacher_labels == "mean_field":
            both = (logits.float().sigmoid() + taught.float().sigmoid()) / 2
            colors = F.interpolate(pixels, size, mode="area")
            inside = (boxes > 0.5).float()
            return mean_field(both, colors, inside, iterations=self.mean_field_steps, sigma=self.mean_field_color)
        if self.teacher_edges:
            # Not by the EDGE_ keys, which decide predictions and no weights.
            taught = F.interpolate(snap_to_edges(taught, pixels), size, mode="area")
        return taught.float().sigmoid()

    def teacher(self, logits: Tensor, labels: Tensor, boxes: Tensor) -> Tensor:
        """Loss of N x 1 x h x h logits against :meth:`labels`."""
        if self.teacher_labels == "mean_field":
            losses = dice_loss(logits.float().sigmoid(), (labels > 0.5).float(), eps=_EPS)
            return losses.sum() / max(len(losses), 1)
        return teacher_loss(logits, labels, boxes)
