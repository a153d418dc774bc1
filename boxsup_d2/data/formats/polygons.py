"""Polygons out of masks, along the edges of the pixels: they give back every pixel of the mask, and no other.

OpenCV's contours run through the middles of border pixels, half a pixel inside of the mask, so that the mask that COCO
tools make of them is smaller. Here the contours are those of the mask at twice its size, whose middles, halved, are the
corners of the original pixels.

A COCO polygon cannot have a hole: several polygons of an object are united. A hole is therefore joined to the outline
around it by a cut of no width, walked to the hole and back. Rasterisers that count crossings see nothing of it, so that
no pixel is lost; in a drawing of the outline it shows as a line.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from boxsup_d2.masks.rle import decode, has_mask

# Points that the shortest cuts are looked for between (of more, every second, third, ...), and the most rings; rows of
# pixels that dust is joined along.
_MAX_ENDS, _MAX_TREE, _ROWS = 2048, 1024, 16
# How far outlines for OpenCV lie inside of the edges of the pixels; a power of 2, so that sums are exact. pycocotools
# rounds to fifths of a pixel: less than a tenth is nothing to it.
_INSET = 1 / 16
# How far simpler outlines may pass the edge, as a share of the part's size.
_SIMPLER = 0.05


def mask_to_polygons(mask: np.ndarray, tolerance: float = 0.0) -> list[list[float]]:
    """Outlines of a mask (H×W bool).

    Args:
        mask: the mask.
        tolerance: how far, in pixels, an outline may pass the edge of the mask, for fewer points (Douglas and Peucker);
            of small parts no more than a twentieth of their size. 0: it follows every step. Holes of that size are
            filled; parts never go. On masks of COCO's objects 1 leaves a third of the points, 1.5 a quarter, with an
            IoU of .993 and .986.

    Returns:
        A COCO polygon (x0, y0, x1, y1, ...) per connected part, pixels that touch at a corner being connected; holes
        are cut out as the module says. Without a tolerance coordinates are whole numbers, corners of pixels. Empty for
        an empty mask.
    """
    parts = _parts(mask)
    if tolerance > 0:
        parts = [_simplified(rings, tolerance) for rings in parts]
    return [join_rings(rings).reshape(-1).astype(float).tolist() for rings in parts]


def _simplified(rings: Sequence[np.ndarray], tolerance: float) -> list[np.ndarray]:
    """The outline and the holes of a part by fewer points."""
    area = cv2.contourArea(rings[0].astype(np.float32))
    # Cut corners lie a third of a pixel off already.
    left = min(tolerance, _SIMPLER * area**0.5) - 0.125**0.5
    if left <= 0:
        return list(rings)
    fewer = [cv2.approxPolyDP(_cut_corners(ring).astype(np.float32), left, closed=True)[:, 0] for ring in rings]
    return [fewer[0] if len(fewer[0]) > 2 else rings[0], *(ring for ring in fewer[1:] if len(ring) > 2)]


def _cut_corners(ring: np.ndarray) -> np.ndarray:
    """A ring through the middles of the first and the last pixel of every side: of slanting stairs, a straight line."""
    following = np.roll(ring, -1, axis=0)
    half = np.sign(following - ring) / 2
    points = np.stack([ring + half, following - half], axis=1).reshape(-1, 2)
    return points[(points != np.roll(points, 1, axis=0)).any(axis=1)]


def mask_to_polygon(mask: np.ndarray, tolerance: float = 0.0) -> list[float]:
    """All of a mask (H×W bool) as one polygon, for rasterisers of either kind; empty for an empty mask.

    Its points lie a sixteenth of a pixel inside of the mask: between the edges of its pixels for pycocotools, and, cut
    down to whole numbers, on its border pixels for OpenCV's ``fillPoly``, which paints the points themselves. Both give
    the mask back, holes included. Of several parts ``fillPoly`` also paints the cuts between them, a pixel wide:
    they are as short as they can be. With a ``tolerance``, see :func:`mask_to_polygons`, this is so but for that.
    """
    parts = _parts(mask)
    if not parts:
        return []
    rings = _inset(parts)
    if tolerance > 0:
        inset = iter(rings)
        rings = [ring for part in parts for ring in _simplified([next(inset) for _ in part], tolerance)]
    return join_rings(rings).reshape(-1).tolist()


def _inset(parts: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Outlines and holes (N×2, sides along the axes) of the parts of a mask, moved a little to the inside of it."""
    rings = [ring for part in parts for ring in part]
    sizes = np.array([len(ring) for ring in rings])
    starts = np.cumsum(sizes) - sizes
    points = np.concatenate(rings)
    following = np.arange(1, len(points) + 1)
    following[starts + sizes - 1] = starts
    former = np.argsort(following)
    way = points[following] - points
    # On which side of the way the mask is: within an outline, and outside of a hole.
    (x, y), (w, h) = points.T, way.T
    areas = np.add.reduceat(x * h - y * w, starts)
    within = [1 if place == 0 else -1 for part in parts for place in range(len(part))]
    side = np.repeat(np.sign(areas) * within, sizes)
    after = np.sign(way)
    inwards = np.stack([-after[:, 1], after[:, 0]], axis=1) * side[:, None]
    before, inwards_before = after[former], inwards[former]
    # Where two pixels touch at a corner, the way from one to the other is through it: a point in each.
    _, number, counts = np.unique(x * (y.max() + 1) + y, return_inverse=True, return_counts=True)
    turn = (before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) * side
    through = (counts[number] > 1) & (turn < 0)
    first = points + _INSET * np.where(through[:, None], inwards_before - before, inwards_before + inwards)
    both = np.stack([first, points + _INSET * (inwards + after)], axis=1)
    moved = both[np.stack([np.ones(len(points), bool), through], axis=1)]
    return np.split(moved, np.cumsum(np.add.reduceat(1 + through, starts))[:-1])


def join_rings(rings: Sequence[np.ndarray]) -> np.ndarray:
    """Join rings (one or more, each N×2) to one (N×2) by cuts of no width, together as short as they can be.

    A pixel's being inside is by the number of crossings. Of very many rings, dust, every one is joined to the next one
    along the rows instead.
    """
    if len(rings) == 1:
        return rings[0]
    if len(rings) > _MAX_TREE:
        return _chain(rings)
    entries, children, order = _tree(rings)
    paths: dict[int, list[np.ndarray]] = {}
    for index in reversed(order):
        # Once around from where it is entered, and on the way into whatever hangs on it, and back.
        ring, entry = np.roll(rings[index], -entries[index], axis=0), entries[index]
        pieces, position = [], 0
        for offset, child in sorted(((spot - entry) % len(ring), child) for spot, child in children[index]):
            pieces += [ring[position : offset + 1], *paths.pop(child)]
            position = offset
        paths[index] = [*pieces, ring[position:], ring[:1]]
    return np.concatenate(paths[0][:-1])


def _tree(rings: Sequence[np.ndarray]) -> tuple[list[int], list[list[tuple[int, int]]], list[int]]:
    """The shortest cuts that join rings, by Prim's algorithm.

    Returns:
        The point that each ring is entered at; of each ring, the points that others hang on, and these; the rings in an
        order in which every one comes after the one that it hangs on.
    """
    step = -(-sum(map(len, rings)) // _MAX_ENDS)
    owner = np.concatenate([np.full(len(ring[::step]), index) for index, ring in enumerate(rings)])
    place = np.concatenate([np.arange(len(ring))[::step] for ring in rings])
    x, y = np.concatenate([ring[::step] for ring in rings]).astype(np.float32).T
    # Per end of a cut, a point of a ring that is not joined yet, how near the joined ones are, and their nearest point.
    distance, nearest = np.full(len(x), np.inf, np.float32), np.zeros(len(x), np.int64)
    waiting, order = owner > 0, [0]
    entries, children = [0] * len(rings), [[] for _ in rings]  # type: tuple[list[int], list[list[tuple[int, int]]]]
    while len(order) < len(rings):
        own = np.flatnonzero(owner == order[-1])
        squares = np.square(x[:, None] - x[own]) + np.square(y[:, None] - y[own])
        best = squares.argmin(axis=1)
        found = squares[np.arange(len(x)), best]
        nearer = found < distance
        distance[nearer], nearest[nearer] = found[nearer], own[best[nearer]]
        end = int(np.where(waiting, distance, np.inf).argmin())
        ring, start = int(owner[end]), nearest[end]
        waiting &= owner != ring
        entries[ring] = int(place[end])
        children[owner[start]].append((int(place[start]), ring))
        order.append(ring)
    return entries, children, order


def _chain(rings: Sequence[np.ndarray]) -> np.ndarray:
    """Rings joined one after another from their first points, and the way back."""
    starts = np.stack([ring[0] for ring in rings])
    order = np.lexsort((starts[:, 0], starts[:, 1] // _ROWS))
    there = [piece for index in order for piece in (rings[index], rings[index][:1])]
    return np.concatenate([*there, starts[order[-2:0:-1]]])


def to_polygons(data: dict[str, Any], tolerance: float = 0.0) -> dict[str, Any]:
    """A COCO json, which is not changed, with polygons in the place of run-length masks.

    Polygons stay as they are. Crowd regions stay RLE, which is how COCO tools know them, and so do empty masks: a
    polygon cannot be empty, and pycocotools fails on an empty list. ``tolerance``: see :func:`mask_to_polygons`.

    Raises:
        ValueError: a mask cannot be read; names the annotation.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
    annotations = []
    for annotation in data["annotations"]:
        value = annotation.get("segmentation")
        if isinstance(value, dict) and not annotation.get("iscrowd") and has_mask(value):
            mask = decode_mask(annotation, *sizes[annotation["image_id"]])
            annotation = {**annotation, "segmentation": mask_to_polygons(mask, tolerance)}
        annotations.append(annotation)
    return {**data, "annotations": annotations}


def polygons_of(annotation: dict[str, Any], height: int, width: int, tolerance: float = 0.0) -> list[list[float]]:
    """The polygons of an annotation: those that it has, inside of the image; else :func:`mask_to_polygons` of its mask.

    Raises:
        ValueError: the mask cannot be read; names the annotation.
    """
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list) and all(
        min(ring) >= 0 and max(ring[0::2]) <= width and max(ring[1::2]) <= height for ring in segmentation if ring
    ):
        return [ring for ring in segmentation if len(ring) >= 6]
    return mask_to_polygons(decode_mask(annotation, height, width), tolerance)


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
