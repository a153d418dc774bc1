"""The window that a network sees of a box: the box, a margin, squeezed into a square.

Pure geometry, shared by training and inference. Boxes are (x0, y0, x1, y1) in pixels of the image, exclusive ends.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np

Box = tuple[float, float, float, float]
Window = tuple[int, int, int, int]


def clip_box(box: Sequence[float], height: int, width: int) -> Box:
    """The part of a box inside the image, at least a pixel wide and high."""
    x0, y0 = min(max(box[0], 0.0), width - 1.0), min(max(box[1], 0.0), height - 1.0)
    return x0, y0, max(min(box[2], float(width)), x0 + 1), max(min(box[3], float(height)), y0 + 1)


def box_window(box: Box, margin: float, max_aspect: float) -> Window:
    """Whole-pixel window around a box; it may reach beyond the image, as the box may.

    Args:
        box: of at least some extent; a flat one counts as one pixel.
        margin: share of the box's sides that is added on each side.
        max_aspect: a window longer than so many times its width is widened to it, at least 1.
    """
    width, height = max(box[2] - box[0], 1.0), max(box[3] - box[1], 1.0)
    center_x, center_y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    window_w, window_h = width * (1 + 2 * margin), height * (1 + 2 * margin)
    window_w, window_h = max(window_w, window_h / max_aspect), max(window_h, window_w / max_aspect)
    left, top = math.floor(center_x - window_w / 2), math.floor(center_y - window_h / 2)
    right, bottom = math.ceil(center_x + window_w / 2), math.ceil(center_y + window_h / 2)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def box_coverage(box: Box, window: Window, size: int) -> np.ndarray:
    """How much of each pixel of a window that is resized to size × size lies in the box.

    Returns:
        size × size float32 in 0..1.
    """

    def along(low: float, high: float, start: int, stop: int) -> np.ndarray:
        scale = size / (stop - start)
        edges = np.arange(size + 1, dtype=np.float64)
        inside = np.clip(edges, (low - start) * scale, (high - start) * scale)
        return np.diff(inside).astype(np.float32)

    columns = along(box[0], max(box[2], box[0] + 1), window[0], window[2])
    rows = along(box[1], max(box[3], box[1] + 1), window[1], window[3])
    return rows[:, None] * columns[None, :]


def cut_window(pixels: np.ndarray, window: Window, side: int) -> np.ndarray:
    """side x side x 3 uint8: a window of an H x W x 3 image, averaged where it shrinks; grey beyond the image."""
    height, width = pixels.shape[:2]
    left, top, right, bottom = window
    # Of a window far larger than the image only the image is resized.
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if x0 >= x1 or y0 >= y1:
        return np.full((side, side, 3), 127, np.uint8)
    piece = pixels[y0:y1, x0:x1]
    if (x0, y0, x1, y1) != window:
        piece = cv2.copyMakeBorder(
            piece, y0 - top, bottom - y1, x0 - left, right - x1, cv2.BORDER_CONSTANT, value=(127, 127, 127)
        )
    return resize_square(piece, side)


def resize_square(image: np.ndarray, side: int) -> np.ndarray:
    """side x side(x channels) uint8: bilinear, averaged along the axes that shrink."""
    height, width = image.shape[:2]
    if height > side or width > side:
        image = cv2.resize(image, (min(width, side), min(height, side)), interpolation=cv2.INTER_AREA)
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)
