"""Polygons out of masks, along the edges of the pixels: they give back every pixel of the mask, and no other.

OpenCV's contours run through the middles of border pixels, half a pixel inside of the mask, so that the mask that COCO
tools make of them is smaller. Here the contours are those of the mask at twice its size, whose middles, halved, are the
corners of the original pixels.

A COCO polygon cannot have a hole: several polygons of an object are united. A hole is therefore joined to the outline
around it by a cut of no width, walked to the hole and back. Rasterisers that count crossings, pycocotools' and OpenCV's
among them, see nothing of it, so that no pixel is lost; in a drawing of the outline it shows as a line.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from boxsup_d2.masks.rle import decode, has_mask

# Points of a ring that cuts may start from.
_ANCHORS = 2048


def mask_to_polygons(mask: np.ndarray) -> list[list[float]]:
    """Outlines of a mask (H×W bool).

    Returns:
        A COCO polygon (x0, y0, x1, y1, ...) per connected part, pixels that touch at a corner being connected; holes
        are cut out as the module says. Coordinates are whole numbers, corners of pixels. Empty for an empty mask.
    """
    return [join_rings(rings).reshape(-1).astype(float).tolist() for rings in _parts(mask)]


def mask_to_polygon(mask: np.ndarray) -> list[float]:
    """As :func:`mask_to_polygons`, with all parts joined to one polygon in the same way; empty for an empty mask."""
    parts = sorted((join_rings(rings) for rings in _parts(mask)), key=len, reverse=True)
    return join_rings(parts).reshape(-1).astype(float).tolist() if parts else []


def join_rings(rings: Sequence[np.ndarray]) -> np.ndarray:
    """Join rings (one or more, each N×2) to one (N×2) by cuts of no width, each from a point of the first near it.

    A pixel's being inside is by the number of crossings. Linear in the number of points, whatever a ragged mask
    consists of.
    """
    outline, *others = rings
    if not others:
        return outline
    step = -(-len(outline) // _ANCHORS)
    anchors = _nearest(np.stack([ring[0] for ring in others]), outline[::step]) * step
    pieces, position = [], 0
    for index in np.argsort(anchors, kind="stable"):
        # Along the outline to the anchor, to the ring, once around it, and back to the anchor.
        pieces += [outline[position : anchors[index] + 1], others[index], others[index][:1]]
        position = anchors[index]
    return np.concatenate([*pieces, outline[position:]])


def to_polygons(data: dict[str, Any]) -> dict[str, Any]:
    """A COCO json, which is not changed, with polygons in the place of run-length masks.

    Polygons stay as they are. Crowd regions stay RLE, which is how COCO tools know them, and so do empty masks: a
    polygon cannot be empty, and pycocotools fails on an empty list.

    Raises:
        ValueError: a mask cannot be read; names the annotation.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
    annotations = []
    for annotation in data["annotations"]:
        value = annotation.get("segmentation")
        if isinstance(value, dict) and not annotation.get("iscrowd") and has_mask(value):
            mask = decode_mask(annotation, *sizes[annotation["image_id"]])
            annotation = {**annotation, "segmentation": mask_to_polygons(mask)}
        annotations.append(annotation)
    return {**data, "annotations": annotations}


def decode_mask(annotation: dict[str, Any], height: int, width: int) -> np.ndarray:
    """The mask of an annotation, H×W bool; without a pixel where it has none.

    Raises:
        ValueError: it cannot be read; names the annotation.
    """
    segmentation = annotation.get("segmentation")
    if not segmentation or segmentation == [[]]:
        return np.zeros((height, width), dtype=bool)
    try:
        return decode(segmentation, height, width).T
    except ValueError as error:
        raise ValueError(f"Annotation {annotation.get('id')}: {error} Write the file again.") from error


def _parts(mask: np.ndarray) -> list[list[np.ndarray]]:
    """Per connected part its outline and then those of its holes, each N×2 int64, in corners of pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    top, left = int(rows[0]), int(columns[0])
    window = mask[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.uint8)
    doubled = cv2.resize(window, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    # Columns 2x − 1 and 2x of the doubled mask are the two sides of the edge at x.
    rings = [(contour.reshape(-1, 2).astype(np.int64) + 1) // 2 + (left, top) for contour in contours]
    parts: dict[int, list[np.ndarray]] = {}
    # OpenCV lists a hole's parent, the outline around it, in the fourth column; outlines have none.
    parents = hierarchy[0, :, 3]
    for index in np.flatnonzero(parents < 0):
        parts[int(index)] = [_without_repetition(rings[index])]
    for index in np.flatnonzero(parents >= 0):
        parts[int(parents[index])].append(_without_repetition(rings[index]))
    return list(parts.values())


def _without_repetition(ring: np.ndarray) -> np.ndarray:
    """The ring without points that equal their predecessor, and without those on a straight way."""
    ring = ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)]
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    return ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def _nearest(points: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Per point (N×2) the position of the nearest anchor (M×2)."""
    nearest = [
        np.square(points[start : start + 256, None] - anchors[None]).sum(axis=2).argmin(axis=1)
        for start in range(0, len(points), 256)
    ]
    return np.concatenate(nearest)
