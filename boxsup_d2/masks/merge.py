"""Merge the masks of an image: every pixel belongs to one instance (published with BoxCaseg).

Linear in the number of instances: the masks are painted into one label map in the order of their boxes' areas, and read
back, both only inside their tight boxes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from boxsup_d2.masks.box_masks import BoxMasks, TightBox, tight_box
from boxsup_d2.masks.confidence import exact_confidence, published_confidence
from boxsup_d2.masks.rle import Rle, decode, encode_window

_FREE, _KEPT = -1, -2


class MergedInstance(NamedTuple):
    """An instance after the merge.

    Attributes:
        segmentation: compressed RLE (str counts).
        area: in pixels.
        confidence: in 0..1, see :func:`published_confidence`.
        confidence_exact: in 0..1, see :func:`exact_confidence`.
        quality: predicted IoU with the true mask, in 0..1: that before the merge, times the share of its pixels that
            the mask kept; 0 for an empty mask. (A method sees boxes one by one, and cannot know what others take. Of
            masks that lost more than 5 %, on VOC and COCO val, the product had a rank correlation of .86 and .57 with
            the true IoU, the former alone .30 and .29.)
    """

    segmentation: Rle
    area: int
    confidence: float
    confidence_exact: float
    quality: float


def paint_order(boxes: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the boxes (x, y, w, h), first painted first: descending w·h; on a tie the earlier one is on top."""
    return sorted(range(len(boxes)), key=lambda i: (-float(boxes[i][2]) * float(boxes[i][3]), -i))


def merge_image(
    predicted: torch.Tensor | BoxMasks | Sequence[Any],
    boxes: torch.Tensor | Sequence[Sequence[float]],
    *,
    height: int | None = None,
    width: int | None = None,
    kept: Sequence[Any] = (),
    quality: Sequence[float] | None = None,
) -> list[MergedInstance]:
    """Merge the predicted masks of one image and measure their confidence.

    Args:
        predicted: masks in their boxes, a N×H×W bool tensor, or N COCO segmentations (RLE or polygons), of which only
            one at a time is decoded; in the order of ``boxes``.
        boxes: N annotated boxes x, y, w, h; their w·h orders the painting.
        height: H of the image; needed only where ``predicted`` are COCO segmentations.
        width: W of the image.
        kept: COCO segmentations that keep all their pixels; predicted masks get the rest.
        quality: N predicted IoUs of the masks before the merge, in 0..1; None: 1 each.

    Returns:
        N merged instances in the order of ``boxes``, pairwise disjoint and disjoint from ``kept``.

    Raises:
        ValueError: there are not as many masks, or qualities, as boxes, or a segmentation has another size than the
            image.
    """
    if isinstance(predicted, torch.Tensor | BoxMasks):
        predicted = BoxMasks.of(predicted).to("cpu")
        height, width = predicted.image_size
    elif height is None or width is None:
        raise ValueError("merge_image needs height and width where the masks are COCO segmentations.")
    rows = boxes.tolist() if isinstance(boxes, torch.Tensor) else boxes
    if len(predicted) != len(rows):
        raise ValueError(f"{len(predicted)} masks for {len(rows)} boxes: one mask per box is needed.")
    before = [1.0] * len(rows) if quality is None else [float(value) for value in quality]
    if len(before) != len(rows):
        raise ValueError(f"{len(before)} qualities for {len(rows)} boxes: one per box is needed.")

    labels, windows, areas = _paint(predicted, rows, height, width)
    for segmentation in kept:
        labels[decode(segmentation, height, width)] = _KEPT
    merged = []
    for index, box in enumerate(rows):
        mask, x0, y0 = _read_back(labels, index, windows[index])
        tight = tight_box(mask.T, x0, y0)
        area = int(np.count_nonzero(mask))
        merged.append(
            MergedInstance(
                segmentation=encode_window(mask, x0, y0, height, width),
                area=area,
                confidence=published_confidence(tight, box),
                confidence_exact=exact_confidence(tight, box),
                # Four digits: more would say nothing, and be most of a small mask's line in the file.
                quality=round(before[index] * area / max(areas[index], 1), 4),
            )
        )
    return merged


def _paint(
    masks: BoxMasks | Sequence[Any], boxes: Sequence[Sequence[float]], height: int, width: int
) -> tuple[np.ndarray, list[TightBox], list[int]]:
    """Label map (W×H int32: index of the topmost instance), tight boxes and areas of the masks before the merge."""
    labels = np.full((width, height), _FREE, dtype=np.int32)
    windows: list[TightBox] = [None] * len(boxes)
    areas = [0] * len(boxes)
    for index in paint_order(boxes):
        if isinstance(masks, BoxMasks):
            mask, (left, top) = masks.parts[index].numpy().T, masks.corners[index]
        else:
            mask, left, top = decode(masks[index], height, width), 0, 0
        window = windows[index] = tight_box(mask.T, left, top)
        if window is not None:
            x0, y0, x1, y1 = window
            own = mask[x0 - left : x1 - left, y0 - top : y1 - top]
            areas[index] = int(np.count_nonzero(own))
            labels[x0:x1, y0:y1][own] = index
    return labels, windows, areas


def _read_back(labels: np.ndarray, index: int, window: TightBox) -> tuple[np.ndarray, int, int]:
    """What an instance kept of its tight box before the merge (columns first), and where that begins: x, y."""
    x0, y0, x1, y1 = window or (0, 0, 0, 0)
    return labels[x0:x1, y0:y1] == index, x0, y0
