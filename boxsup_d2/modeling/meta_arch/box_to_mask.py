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


def covering_boxes(boxes: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """Whole-pixel boxes of every pixel inside the image that a box touches, as LPG rasterises them.

    The published rule for ends that name a pixel, truncated corners with the last row and column included, gives the
    same; here an end lies behind its last pixel, so that one at a whole number does not touch the pixel it names.

    Args:
        boxes: N×4 float, x0, y0, x1, y1 in pixels, exclusive ends.
        image_size: height, width.

    Returns:
        N×4 int64 with 0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height. A box without extent touches the pixel that
        it lies on; one outside the image nothing: x0 = x1 or y0 = y1.
    """
    height, width = image_size
    limit = boxes.new_tensor([width, height])
    low = boxes[:, :2].floor()
    high = boxes[:, 2:].ceil().maximum(low + 1).clamp(min=0).minimum(limit)
    # Clipped as floats: far numbers do not fit integers.
    return torch.cat([low.clamp(min=0).minimum(high), high], dim=1).to(torch.int64)


def rasterize_boxes(boxes: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """Union (H×W bool, on the CPU) of the boxes' pixels, see :func:`covering_boxes`."""
    mask = torch.zeros(image_size, dtype=torch.bool)
    for x0, y0, x1, y1 in covering_boxes(boxes, image_size).tolist():
        mask[y0:y1, x0:x1] = True
    return mask


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
