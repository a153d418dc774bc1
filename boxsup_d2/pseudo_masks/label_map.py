"""Label maps of semantic segmentation out of box-to-mask answers, and the pixels of boxes: pure functions."""

import torch

# A box that reaches into a pixel by less has not reached it: x + w rarely is a whole number in floating point.
_TOLERANCE = 1e-3


def covering_boxes(boxes: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """The whole pixels inside the image that boxes touch, as class masks' generators are given them.

    The published rule for ends that name a pixel, truncated corners with the last row and column included, gives the
    same; here an end lies behind its last pixel, so that one at a whole number does not touch the pixel it names.

    Not :func:`boxsup_d2.modeling.meta_arch.box_to_mask.truncate_boxes`, which leaves a last pixel out where the box
    covers a part of it, as BoxCaseg's crops do.

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
    high = (boxes[:, 2:] - _TOLERANCE).ceil().maximum(low + 1).clamp(min=0).minimum(limit)
    # Clipped as floats: far numbers do not fit integers.
    return torch.cat([low.clamp(min=0).minimum(high), high], dim=1).to(torch.int64)


def rasterize_boxes(boxes: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """Union of boxes, as the generator of class masks is given it in training and at inference.

    Args:
        boxes: N×4, see :func:`covering_boxes`; N may be 0.
        image_size: H, W.

    Returns:
        H×W bool, on the CPU.
    """
    union = torch.zeros(image_size, dtype=torch.bool)
    for x0, y0, x1, y1 in covering_boxes(boxes, image_size).tolist():
        union[y0:y1, x0:x1] = True
    return union
