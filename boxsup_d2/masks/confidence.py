"""How well a mask fills its box: the confidence of a pseudo mask (published with BoxCaseg).

Beside it masks have a *quality*, their predicted IoU with the true mask, which comes from the method
(:func:`boxsup_d2.modeling.box_to_mask.predicted_quality`).
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from boxsup_d2.masks.box_masks import BoxMasks, TightBox

#: Masks whose quality is below it deserve a look. Of the masks of VOC val by the demo's BoxCaseg these were 14 %, with
#: a mean IoU of .49; that of the others was .75. (0.5 would find few: where there is a mask, the mean foreground
#: probability, the quality of methods that learn none, is above it.)
DOUBTFUL_QUALITY = 0.7


def published_confidence(tight: TightBox, box: Sequence[float]) -> float:
    """Box IoU between mask and annotation as the published code computes it.

    Both boxes follow the +1 convention (the end counts as a pixel), but the ends of the mask are its last pixels and
    those of the annotation x + w, y + h. So a perfect mask of side s scores s²/(s+1)²: 0.64 at 4 px, 0.94 at 32 px.

    Args:
        tight: tight box of the mask; an empty mask counts as the pixel (0, 0).
        box: annotated x, y, w, h. Each is truncated to an integer before they are added, as published:
            [10.6, 12.4, 40.7, 30.9] ends at 50, 42 and not at 51, 43.

    Returns:
        0..1.
    """
    mx0, my0, mx1, my1 = (0, 0, 0, 0) if tight is None else (tight[0], tight[1], tight[2] - 1, tight[3] - 1)
    bx0, by0, box_w, box_h = (int(value) for value in box)
    bx1, by1 = bx0 + box_w, by0 + box_h
    inter_w, inter_h = min(mx1, bx1) - max(mx0, bx0) + 1, min(my1, by1) - max(my0, by0) + 1
    if inter_w <= 0 or inter_h <= 0:
        return 0.0
    inter = inter_w * inter_h
    return inter / ((mx1 - mx0 + 1) * (my1 - my0 + 1) + (bx1 - bx0 + 1) * (by1 - by0 + 1) - inter)


def exact_confidence(tight: TightBox, box: Sequence[float]) -> float:
    """Box IoU of the tight box and the annotated x, y, w, h as areas; 0 for an empty mask or box. In 0..1."""
    if tight is None:
        return 0.0
    x, y, w, h = (float(value) for value in box)
    inter_w = min(tight[2], x + w) - max(tight[0], x)
    inter_h = min(tight[3], y + h) - max(tight[1], y)
    if inter_w <= 0 or inter_h <= 0:
        return 0.0
    inter = inter_w * inter_h
    return inter / ((tight[2] - tight[0]) * (tight[3] - tight[1]) + w * h - inter)


def rotated_confidence(mask: np.ndarray, left: int, top: int, rotated: Sequence[float]) -> float:
    """IoU of a rotated box and the smallest box of its angle around a mask, as areas; 0 for an empty mask or box.

    Args:
        mask: h×w bool; a pixel reaches half a pixel from its centre, whatever the angle.
        left, top: its first column and row in the image.
        rotated: cx, cy, w, h, degrees counter-clockwise.

    Returns:
        0..1.
    """
    # Of every row, its outermost pixels: the others are not at a side of any box around.
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return 0.0
    first, last = mask[rows].argmax(axis=1), mask.shape[1] - 1 - mask[rows, ::-1].argmax(axis=1)
    cx, cy, w, h, degrees = rotated
    x, y = np.r_[first, last] + left + 0.5 - cx, np.r_[rows, rows] + top + 0.5 - cy
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    across, down = x * cos - y * sin, x * sin + y * cos
    tight = (across.min() - 0.5, down.min() - 0.5, across.max() + 0.5, down.max() + 0.5)
    return float(exact_confidence(tight, (-w / 2, -h / 2, w, h)))


def mask_confidence(masks: torch.Tensor | BoxMasks, boxes: torch.Tensor | Sequence[Sequence[float]]) -> torch.Tensor:
    """Published confidence of merged masks.

    Args:
        masks: N×H×W bool, or in their boxes.
        boxes: N annotated boxes x, y, w, h.

    Returns:
        N float64 in 0..1, see :func:`published_confidence`.
    """
    pairs = zip(BoxMasks.of(masks).tight_boxes(), _rows(boxes), strict=True)
    return torch.tensor([published_confidence(tight, box) for tight, box in pairs], dtype=torch.float64)


def box_iou_exact(masks: torch.Tensor | BoxMasks, boxes: torch.Tensor | Sequence[Sequence[float]]) -> torch.Tensor:
    """Exact box IoU; arguments as of :func:`mask_confidence`: N float64 in 0..1."""
    pairs = zip(BoxMasks.of(masks).tight_boxes(), _rows(boxes), strict=True)
    return torch.tensor([exact_confidence(tight, box) for tight, box in pairs], dtype=torch.float64)


def rotated_box_iou(masks: BoxMasks, rotated: Sequence[Sequence[float]]) -> torch.Tensor:
    """:func:`rotated_confidence` of N masks and N rotated boxes: N float64 in 0..1."""
    pairs = zip(masks.parts, masks.corners, rotated, strict=True)
    values = [rotated_confidence(part.cpu().numpy(), *corner, box) for part, corner, box in pairs]
    return torch.tensor(values, dtype=torch.float64)


def _rows(boxes: torch.Tensor | Sequence[Sequence[float]]) -> Sequence[Sequence[float]]:
    return boxes.tolist() if isinstance(boxes, torch.Tensor) else boxes
