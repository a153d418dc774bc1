"""Share the pixels of an image out among its instances (methods A4 of ``docs/boxcaseg.md``).

Linear in the number of instances: one label map per image is painted in the order of the boxes' areas, each mask only
inside its own tight box, and read back instance by instance inside the same boxes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from boxsup_d2.masks.confidence import TightBox, exact_confidence, published_confidence
from boxsup_d2.masks.rle import Rle, decode, encode_window

_FREE, _KEPT = -1, -2


class MergedInstance(NamedTuple):
    """An instance after the merge.

    ``segmentation``: compressed RLE (str counts). ``area``: its pixels. ``confidence``: the published number, with its
    +1 convention. ``confidence_exact``: the exact box IoU. Both in 0..1.
    """

    segmentation: Rle
    area: int
    confidence: float
    confidence_exact: float


def paint_order(boxes: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the boxes (x, y, w, h), first painted first: descending w·h; on a tie the earlier one is on top."""
    return sorted(range(len(boxes)), key=lambda i: (-float(boxes[i][2]) * float(boxes[i][3]), -i))


def merge_image(
    predicted: torch.Tensor | Sequence[Any],
    boxes: torch.Tensor | Sequence[Sequence[float]],
    *,
    height: int | None = None,
    width: int | None = None,
    kept: Sequence[Any] = (),
) -> list[MergedInstance]:
    """Merge the predicted masks of one image and measure their confidence.

    Args:
        predicted: N×H×W bool tensor, or N COCO segmentations (RLE or polygons), in the order of ``boxes``. Given as
            RLE, no more than one full mask is held at a time.
        boxes: N annotated boxes x, y, w, h; their w·h orders the painting.
        height: H of the image; needed only where ``predicted`` is not a tensor.
        width: W of the image.
        kept: COCO segmentations that are already there: predicted masks merge among themselves and yield to these.

    Returns:
        N merged instances in the order of ``boxes``, pairwise disjoint and disjoint from ``kept``.

    Raises:
        ValueError: numbers or sizes do not fit each other.
    """
    if isinstance(predicted, torch.Tensor):
        predicted = predicted.detach().cpu()
        height, width = int(predicted.shape[1]), int(predicted.shape[2])
    elif height is None or width is None:
        raise ValueError("merge_image needs height and width where the masks are not a tensor.")
    rows = boxes.tolist() if isinstance(boxes, torch.Tensor) else boxes
    if len(predicted) != len(rows):
        raise ValueError(f"{len(predicted)} masks for {len(rows)} boxes: one mask per box is needed.")

    labels, windows = _paint(predicted, rows, height, width)
    for segmentation in kept:
        labels[decode(segmentation, height, width)] = _KEPT
    return [_read_back(labels, index, windows[index], rows[index], height, width) for index in range(len(rows))]


def merge_masks(masks: torch.Tensor, boxes: torch.Tensor | Sequence[Sequence[float]]) -> torch.Tensor:
    """Merge masks of one image: N×H×W bool, annotated boxes x, y, w, h (N×4) → N×H×W bool, pairwise disjoint.

    For callers that want tensors; :func:`merge_image` gives the encoded masks and needs far less memory.
    """
    rows = boxes.tolist() if isinstance(boxes, torch.Tensor) else boxes
    if len(masks) != len(rows):
        raise ValueError(f"{len(masks)} masks for {len(rows)} boxes: one mask per box is needed.")
    labels, windows = _paint(masks.detach().cpu(), rows, int(masks.shape[1]), int(masks.shape[2]))
    merged = torch.zeros(masks.shape, dtype=torch.bool)
    for index, window in enumerate(windows):
        if window is not None:
            x0, y0, x1, y1 = window
            merged[index, y0:y1, x0:x1] = torch.from_numpy(labels[x0:x1, y0:y1] == index).T
    return merged.to(masks.device)


def _paint(
    masks: torch.Tensor | Sequence[Any], boxes: Sequence[Sequence[float]], height: int, width: int
) -> tuple[np.ndarray, list[TightBox]]:
    """Label map (W×H int32: index of the topmost instance) and the tight boxes of the masks before the merge."""
    labels = np.full((width, height), _FREE, dtype=np.int32)
    windows: list[TightBox] = [None] * len(boxes)
    for index in paint_order(boxes):
        item = masks[index]
        mask = item.numpy().T if isinstance(item, torch.Tensor) else decode(item, height, width)
        window = windows[index] = _tight_box(mask)
        if window is not None:
            x0, y0, x1, y1 = window
            labels[x0:x1, y0:y1][mask[x0:x1, y0:y1]] = index
    return labels, windows


def _read_back(
    labels: np.ndarray, index: int, window: TightBox, box: Sequence[float], height: int, width: int
) -> MergedInstance:
    x0, y0, x1, y1 = window or (0, 0, 0, 0)
    mask = labels[x0:x1, y0:y1] == index
    inner = _tight_box(mask)
    tight = None if inner is None else (x0 + inner[0], y0 + inner[1], x0 + inner[2], y0 + inner[3])
    return MergedInstance(
        segmentation=encode_window(mask, x0, y0, height, width),
        area=int(np.count_nonzero(mask)),
        confidence=published_confidence(tight, box),
        confidence_exact=exact_confidence(tight, box),
    )


def _tight_box(mask: np.ndarray) -> TightBox:
    """Tight box of a W×H bool array (columns first)."""
    if mask.size == 0:
        return None
    # max over uint8 is vectorised, any() over bool is not; the values are the same.
    pixels = mask.view(np.uint8)
    x, y = np.flatnonzero(pixels.max(axis=1)), np.flatnonzero(pixels.max(axis=0))
    return (int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1) if len(x) else None
