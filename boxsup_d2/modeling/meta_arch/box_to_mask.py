"""What every box-to-mask meta-architecture shares: the pixels of a box, and the form of the answer."""

import torch
from detectron2.structures import Boxes, Instances


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
