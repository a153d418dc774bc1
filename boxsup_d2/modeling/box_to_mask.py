"""What box-to-mask meta-architectures share: the pixels of a box, the form of an answer, the base of untrained ones."""

from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import nn


def truncate_boxes(boxes: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """Whole-pixel boxes inside the image: corners truncated, at least one pixel, as BoxCaseg crops them.

    Args:
        boxes: N×4 float, x0, y0, x1, y1 in pixels.
        image_size: height, width; both at least 1.

    Returns:
        N×4 int64 with 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height.
    """
    height, width = image_size
    limit = boxes.new_tensor([width, height], dtype=torch.int64)
    corners = boxes.to(torch.int64)
    low = corners[:, :2].clamp(min=0).minimum(limit - 1)
    high = corners[:, 2:].minimum(limit).maximum(low + 1)
    return torch.cat([low, high], dim=1)


def fill_boxes(boxes: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """Masks (N×H×W bool) that fill the truncated boxes."""
    height, width = image_size
    x0, y0, x1, y1 = truncate_boxes(boxes, image_size)[:, :, None].unbind(dim=1)
    x = torch.arange(width, device=boxes.device)
    y = torch.arange(height, device=boxes.device)
    columns = (x >= x0) & (x < x1)
    rows = (y >= y0) & (y < y1)
    return rows[:, :, None] & columns[:, None, :]


def box_to_mask_instances(
    masks: torch.Tensor,
    boxes: torch.Tensor,
    classes: torch.Tensor,
    scores: torch.Tensor,
    image_size: tuple[int, int],
) -> Instances:
    """The answer to the N box prompts of one image, in their order.

    Args:
        masks: N×H×W bool, original frame; may lie on another device than the rest.
        boxes: N×4, the prompts.
        classes: N, int64.
        scores: N, in 0..1: mean foreground probability inside the mask; 1 for methods without one.
        image_size: H, W.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    shape = (len(boxes), *image_size)
    if tuple(masks.shape) != shape or masks.dtype != torch.bool:
        raise ValueError(f"Box-to-mask answer is {tuple(masks.shape)} {masks.dtype}, expected {shape} torch.bool.")
    return Instances(image_size, pred_masks=masks, pred_boxes=Boxes(boxes), pred_classes=classes, scores=scores)


class UntrainedBoxToMask(nn.Module):
    """Base of methods that are used as they are; subclasses implement :meth:`predict_masks` or :meth:`answer`."""

    device_anchor: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        # Only tells where the model was moved to; not persistent, so that checkpoints stay empty.
        self.register_buffer("device_anchor", torch.zeros(0), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where :meth:`forward` leaves its answer."""
        return self.device_anchor.device

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Answer the prompts of every image.

        Args:
            batched_inputs: as ``BoxPromptDatasetMapper`` returns them.

        Returns:
            One ``{"instances": Instances}`` per image, see :func:`box_to_mask_instances`.

        Raises:
            RuntimeError: in training mode.
        """
        if self.training:
            raise RuntimeError(
                f"{type(self).__name__} is used as it is and cannot be trained: run train_net.py with --eval-only."
            )
        results = []
        for item in batched_inputs:
            instances = item["instances"].to(self.device)
            boxes = instances.gt_boxes.tensor
            masks, scores = self.answer(item["image"], boxes)
            image_size = (int(item["image"].shape[1]), int(item["image"].shape[2]))
            answer = box_to_mask_instances(masks, boxes, instances.gt_classes, scores.to(self.device), image_size)
            results.append({"instances": answer})
        return results

    def answer(self, image: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks (N×H×W bool) and scores (N, 0..1) of the boxes (N×4, x0, y0, x1, y1) of one image (3×H×W uint8).

        By default :meth:`predict_masks` and scores of 1, for methods that know no probabilities.
        """
        return self.predict_masks(image, boxes), torch.ones(len(boxes))

    def predict_masks(self, image: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Masks (N×H×W bool) of the boxes (N×4, x0, y0, x1, y1) of one image (3×H×W uint8)."""
        raise NotImplementedError
