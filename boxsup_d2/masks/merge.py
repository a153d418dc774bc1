"""Merge the masks of an image: every pixel belongs to one instance (published with BoxCaseg).

Linear in the number of instances: the masks are painted into one label map in the order of their boxes' areas, and read
back, both run by run, down the columns as COCO counts pixels, and only between their first and their last pixel.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from boxsup_d2.masks.box_masks import BoxMasks, tight_box
from boxsup_d2.masks.confidence import exact_confidence, published_confidence, rotated_confidence
from boxsup_d2.masks.pieces import specks_and_pinholes
from boxsup_d2.masks.rle import Rle, edges_area, edges_box, edges_window, encode_edges, mask_edges, window_edges

_FREE = 0


class MergedInstance(NamedTuple):
    """An instance after the merge.

    Attributes:
        segmentation: compressed RLE (str counts).
        area: in pixels.
        confidence: in 0..1, see :func:`published_confidence`.
        confidence_exact: in 0..1, see :func:`exact_confidence`; of a rotated box both are its
            :func:`rotated_confidence`.
        quality: predicted IoU with the true mask, in 0..1: that before the merge, times the share of its pixels that
            the mask kept; 0 for an empty mask. (A method that sees boxes one by one cannot know what others take. Of
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
    rotated: Sequence[Sequence[float] | None] | None = None,
    specks: float = 0.0,
) -> list[MergedInstance]:
    """Merge the predicted masks of one image and measure their confidence.

    Args:
        predicted: masks in their boxes, a N×H×W bool tensor, or N COCO segmentations (RLE or polygons), of which only
            one at a time is decoded; in the order of ``boxes``.
        boxes: N annotated boxes x, y, w, h; their w·h orders the painting.
        height: H of the image; needed only where ``predicted`` are COCO segmentations.
        width: W of the image.
        kept: COCO segmentations that keep all their pixels; predicted masks get the rest. A mask of which one of them
            covers more than half loses nothing to that: things before a thing are often drawn as parts of it.
        quality: N predicted IoUs of the masks before the merge, in 0..1; None: 1 each.
        rotated: N rotated boxes (cx, cy, w, h, degrees counter-clockwise) that ``boxes`` are the upright ones around;
            None, or None for a box: it is upright.
        specks: of a mask that lost pixels to others, pieces that are smaller than this share of its largest one go;
            0: none does, as published.

    Returns:
        N merged instances in the order of ``boxes``, pairwise disjoint, and disjoint from ``kept`` but as said there.

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

    labels, spans, areas = _paint(predicted, rows, height, width)
    if kept:
        _take(labels, [mask_edges(segmentation, height, width) for segmentation in kept])
    merged = []
    for index, box in enumerate(rows):
        edges = _read_back(labels, index, spans[index])
        if specks and 0 < edges_area(edges) < areas[index]:
            edges = _without_specks(edges, height, specks)
        tight, area = edges_box(edges, height), edges_area(edges)
        turned = None if rotated is None else rotated[index]
        if turned is None:
            confidence, exact = published_confidence(tight, box), exact_confidence(tight, box)
        else:
            columns, left, top = edges_window(edges, height)
            confidence = exact = rotated_confidence(columns.T, left, top, turned)
        merged.append(
            MergedInstance(
                segmentation=encode_edges(edges, height, width),
                area=area,
                confidence=confidence,
                confidence_exact=exact,
                # Four digits: more would say nothing, and be most of a small mask's line in the file.
                quality=round(before[index] * area / max(areas[index], 1), 4),
            )
        )
    return merged


def _paint(
    masks: BoxMasks | Sequence[Any], boxes: Sequence[Sequence[float]], height: int, width: int
) -> tuple[np.ndarray, list[tuple[int, int]], list[int]]:
    """Label map (W·H: 1 + index of the topmost instance), and of the masks before the merge where in it each begins
    and ends, and its area."""
    # The smallest numbers that hold the indices: most of the time here goes into walking over memory.
    labels = np.zeros(width * height, dtype=np.min_scalar_type(len(boxes)))
    spans = [(0, 0)] * len(boxes)
    areas = [0] * len(boxes)
    for index in paint_order(boxes):
        if isinstance(masks, BoxMasks):
            edges = _edges(masks.parts[index].numpy(), *masks.corners[index], height)
        else:
            edges = mask_edges(masks[index], height, width)
        if len(edges):
            spans[index] = int(edges[0]), int(edges[-1])
            areas[index] = edges_area(edges)
            _fill(labels, edges, index + 1)
    return labels, spans, areas


def _edges(mask: np.ndarray, left: int, top: int, height: int) -> np.ndarray:
    """Edges (:func:`mask_edges`), in an image of that height, of h×w bool whose first pixel is at ``left``, ``top``."""
    box = tight_box(mask)
    if box is None:
        return np.zeros(0, np.int64)
    x0, y0, x1, y1 = box
    return window_edges(mask[y0:y1, x0:x1].T, left + x0, top + y0, height)


def _fill(labels: np.ndarray, edges: np.ndarray, value: int) -> None:
    """Give the pixels between edges a label."""
    if len(edges):
        np.copyto(labels[edges[0] : edges[-1]], value, where=_between(edges), casting="unsafe")


def _between(edges: np.ndarray) -> np.ndarray:
    """Which of the pixels from the first edge to the last one are the mask's: bool."""
    runs = np.diff(edges)
    inside = np.zeros(len(runs), dtype=bool)
    inside[::2] = True
    return np.repeat(inside, runs)


def _take(labels: np.ndarray, kept: Sequence[np.ndarray]) -> None:
    """Free the pixels between the edges of kept masks, but of no instance of which one covers more than half."""
    before, areas = labels.copy(), np.bincount(labels)
    for edges in kept:
        if len(edges):
            span, inside = slice(edges[0], edges[-1]), _between(edges)
            yields = 2 * np.bincount(before[span][inside], minlength=len(areas)) <= areas
            labels[span][inside & yields[before[span]]] = _FREE


def _read_back(labels: np.ndarray, index: int, span: tuple[int, int]) -> np.ndarray:
    """Edges (:func:`mask_edges`) of what an instance kept, which lies in the span that it had before."""
    start, end = span
    own = np.zeros(end - start + 2, dtype=bool)
    np.equal(labels[start:end], index + 1, out=own[1:-1])
    return np.flatnonzero(own[1:] != own[:-1]) + start


def _without_specks(edges: np.ndarray, height: int, share: float) -> np.ndarray:
    """Edges of what an instance kept, without its small pieces."""
    columns, left, top = edges_window(edges, height)
    small, _ = specks_and_pinholes(columns, share)
    return window_edges(columns & ~small, left, top, height)
