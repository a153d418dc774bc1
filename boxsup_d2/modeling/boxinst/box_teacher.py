"""BoxTeacher: BoxInst that also learns from masks, those that the average of its own weights finds in its boxes.

Shape legend: N images, G objects of all images in a row, K sampled locations, D detections of an image, h x w the sides
of the grid of the masks.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import BitMasks, Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import Tensor
from torchvision.transforms import ColorJitter, Compose, GaussianBlur, RandomApply, RandomGrayscale

from boxsup_d2.modeling.average import TaughtByAverage
from boxsup_d2.modeling.boxinst.meta_arch import BoxInst
from boxsup_d2.modeling.boxinst.targets import sample_masks
from boxsup_d2.modeling.losses import dice_loss, mask_affinity_loss, mean_of_counted


@dataclass(frozen=True)
class TeacherSettings:
    """The attributes are the keys of ``MODEL.BOXTEACHER``; ``warmup`` is in iterations.

    Attributes:
        min_size, max_size: of the images that the teacher sees, ``INPUT.MIN_SIZE_TEST`` and ``MAX_SIZE_TEST``; a
            ``min_size`` of 0 leaves them as they are.
    """

    mask_weight: float
    affinity_weight: float
    affinity_threshold: float
    warmup: float
    match_iou: float
    match_classes: bool
    min_size: int
    max_size: int


@META_ARCH_REGISTRY.register()
class BoxTeacher(TaughtByAverage, BoxInst):
    """Two views of every image (`Cheng et al., CVPR 2023 <https://arxiv.org/abs/2210.05174>`_): the averaged network
    sees it as it is, the network that learns in other colours, with the boxes and the masks of the former as targets.

    To BoxInst's losses it adds ``loss_mask`` and ``loss_mask_affinity``. In evaluation it is a BoxInst.
    """

    @configurable
    def __init__(self, *, strong_view: Any, teacher_settings: TeacherSettings, **kwargs: Any):
        """
        Args:
            strong_view: changes the colours of a 3 x H x W uint8 RGB image.
            teacher_settings: how the averaged network teaches.
            kwargs: see :class:`BoxInst`.
        """
        super().__init__(**kwargs)
        self.strong_view = strong_view
        self.teacher_settings = teacher_settings

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Those of :class:`BoxInst`, and ``MODEL.BOXTEACHER``.

        Raises:
            ValueError: see there; or there is no teacher, or masks to learn from.
        """
        if not cfg.MODEL.EMA.ENABLED:
            raise ValueError("The teacher of BoxTeacher is the average of its weights: set MODEL.EMA.ENABLED True.")
        if cfg.MODEL.MASK_ON:
            raise ValueError("BoxTeacher learns from boxes: set MODEL.MASK_ON False, or use BoxInst for masks.")
        node = cfg.MODEL.BOXTEACHER
        return {
            **super().from_config(cfg),
            "strong_view": Compose(
                [
                    RandomApply([ColorJitter(*node.JITTER)], node.JITTER_PROB),
                    RandomGrayscale(node.GREY_PROB),
                    RandomApply([GaussianBlur(3)], node.BLUR_PROB),
                ]
            ),
            "teacher_settings": TeacherSettings(
                mask_weight=node.MASK_WEIGHT,
                affinity_weight=node.AFFINITY_WEIGHT,
                affinity_threshold=node.AFFINITY_THRESHOLD,
                warmup=node.WARMUP * cfg.SOLVER.MAX_ITER,
                match_iou=node.MATCH_IOU,
                match_classes=node.MATCH_CLASSES,
                min_size=cfg.INPUT.MIN_SIZE_TEST,
                max_size=cfg.INPUT.MAX_SIZE_TEST,
            ),
        }

    def training_view(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The inputs in other colours."""
        flip = self.image_format == "BGR"
        images = [x["image"].flip(0) if flip else x["image"] for x in batched_inputs]
        images = [self.strong_view(image) for image in images]
        return [{**x, "image": y.flip(0) if flip else y} for x, y in zip(batched_inputs, images, strict=True)]

    def box_losses(
        self,
        logits: Tensor,
        batched_inputs: list[dict[str, Any]],
        images: ImageList,
        targets: list[Instances],
        image: Tensor,
        owner: Tensor,
    ) -> dict[str, Tensor]:
        """BoxInst's losses of masks, and those with the teacher's masks; arguments as there."""
        losses = super().box_losses(logits, batched_inputs, images, targets, image, owner)
        settings, boxes = self.teacher_settings, self.box_cells(logits, targets)
        masks, weights = logits.new_zeros(boxes.shape), logits.new_zeros(len(boxes))
        if self.teacher is not None:
            masks, weights = self.taught_masks(batched_inputs, targets, (logits.shape[-2], logits.shape[-1]))
        boxes, masks, weights = boxes[owner], (masks * boxes)[owner], weights[owner]
        valid = self.neighbour_cells(logits, batched_inputs, images).index_select(0, image)
        warmup = min(get_event_storage().iter / max(settings.warmup, 1), 1)
        overlap = mean_of_counted(dice_loss(logits.float().sigmoid(), masks), weights)
        affinity = mask_affinity_loss(
            logits,
            masks,
            boxes,
            valid,
            weights,
            dilation=self.mask_settings.pairwise_dilation,
            threshold=settings.affinity_threshold,
        )
        losses["loss_mask"] = settings.mask_weight * warmup * overlap
        losses["loss_mask_affinity"] = settings.affinity_weight * warmup * affinity
        return losses

    @torch.no_grad()
    def taught_masks(
        self, batched_inputs: list[dict[str, Any]], targets: list[Instances], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """What the teacher sees in the boxes.

        Args:
            batched_inputs: on the device, in their own colours.
            targets: of the images, on the device.
            size: h and w.

        Returns:
            G x 1 x h x w masks, 0 or 1, and G weights in 0..1, 0 of an object that it does not see.
        """
        settings, seen = self.teacher_settings, []
        for x in batched_inputs:
            height, width = x["image"].shape[-2:]
            shape = (height, width)
            if settings.min_size > 0:
                shape = ResizeShortestEdge.get_output_shape(height, width, settings.min_size, settings.max_size)
            picture = F.interpolate(x["image"][None].float(), shape, mode="bilinear", align_corners=False)[0]
            seen.append({"image": picture, "height": height, "width": width})
        weights, taught = [], []
        for found, target in zip(self.teacher.look(seen), targets, strict=True):
            found = found[(found.scores * found.mask_certainty).argsort(descending=True)]
            confidence = mask_scores(found.scores, found.mask_certainty)
            classes = (found.pred_classes, target.gt_classes) if settings.match_classes else None
            match = match_detections(found.pred_boxes, target.gt_boxes, settings.match_iou, classes)
            masks = torch.cat([found.pred_masks, found.pred_masks.new_zeros(1, *found.image_size)])
            weights.append(torch.cat([confidence, confidence.new_zeros(1)])[match])
            taught.append(Instances(found.image_size, gt_boxes=target.gt_boxes, taught=BitMasks(masks[match])))
        return sample_masks(taught, "taught", size, self.mask_settings.stride), torch.cat(weights)

    def look(self, batched_inputs: list[dict[str, Any]]) -> list[Instances]:
        """:meth:`detections` of inputs on the device."""
        return self.detections(batched_inputs, *self.predictions(batched_inputs))


def mask_scores(scores: Tensor, certainty: Tensor) -> Tensor:
    """Weights in 0..1 of the teacher's masks, out of D scores of the detections and mean probabilities in the masks."""
    return (scores.sqrt() * certainty).sqrt()


def match_detections(
    detections: Boxes, objects: Boxes, iou: float, classes: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Which detection is which object's: one after the other takes the free object that it overlaps most.

    Args:
        detections: D boxes, best first.
        objects: G' boxes.
        iou: smallest IoU of the boxes of a pair.
        classes: of both; None: any fits any.

    Returns:
        G' positions in 0..D-1, or -1.
    """
    overlap = pairwise_iou(detections, objects)
    if classes is not None:
        overlap = overlap * (classes[0][:, None] == classes[1][None])
    # One transfer; what follows is a loop over a few rows.
    rows = overlap.cpu()
    match = torch.full((len(objects),), -1, dtype=torch.int64)
    for position in (rows >= iou).any(1).nonzero()[:, 0].tolist() if len(objects) else ():
        free = rows[position].masked_fill(match >= 0, -1)
        best = int(free.argmax())
        if free[best] >= iou:
            match[best] = position
    return match.to(overlap.device)
