"""Square crops of randomly scaled images, as networks of semantic segmentation are trained on: scale, pad, crop, flip.

Nothing is resized that is not seen: the crop is drawn as a window of the source image, and only that window is resized.
Its sides are whole source pixels, so the scale of a window differs from the drawn one by less than half a pixel in a
window; image and masks are cut by the same window and fit each other exactly.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np


class CropWindow(NamedTuple):
    """What part of an image fills what part of a crop.

    Attributes:
        left, top: first column and row in the image.
        width, height: of the part of the image.
        out_width, out_height: what it is resized to; lies at the crop's top left before the flip, the rest is padding.
        flip: mirror the crop horizontally, padding included.
    """

    left: int
    top: int
    width: int
    height: int
    out_width: int
    out_height: int
    flip: bool


def check_crop(key: str, size: int, scales: Sequence[float], multiple: int = 1) -> None:
    """
    Raises:
        ValueError: a side or a scale that cannot be; names the config key ``INPUT.<key>``.
    """
    if size < 1 or size % multiple:
        raise ValueError(f"INPUT.{key}.SIZE is {size}: it must be a positive multiple of {multiple}.")
    if len(scales) == 0 or min(scales) <= 0:
        raise ValueError(f"INPUT.{key}.SCALES is {list(scales)}: it must hold numbers above 0.")


def random_window(
    height: int,
    width: int,
    size: int,
    scales: Sequence[float],
    flip: bool,
    keep: tuple[float, float, float, float] | None = None,
) -> CropWindow:
    """Draw scale, corner and flip from NumPy's global random numbers, which the loader seeds per sample.

    Args:
        height, width: of the image.
        size: side of the crop, S.
        scales: one of them is drawn.
        flip: mirror with probability 1/2.
        keep: x0, y0, x1, y1 in the image: the crop holds as much of it as it can.
    """
    scale = scales[np.random.randint(len(scales))]
    x0, y0, x1, y1 = keep or (0.0, 0.0, 0.0, 0.0)
    left, part_width, out_width = _random_span(width, size, scale, (x0, x1) if keep else None)
    top, part_height, out_height = _random_span(height, size, scale, (y0, y1) if keep else None)
    mirrored = flip and bool(np.random.rand() < 0.5)
    return CropWindow(left, top, part_width, part_height, out_width, out_height, mirrored)


def _random_span(length: int, size: int, scale: float, keep: tuple[float, float] | None) -> tuple[int, int, int]:
    """Start and length of a span in the image along one axis, and its length in the crop."""
    if round(length * scale) <= size:
        return 0, length, max(round(length * scale), 1)
    part = min(max(round(size / scale), 1), length)
    low, high = 0, length - part
    if keep is not None:
        # Starts from which all of it is inside; where it is longer than the span, those that it fills.
        ends = sorted((int(np.floor(keep[0])), int(np.ceil(keep[1])) - part))
        low, high = (min(max(end, low), high) for end in ends)
    return int(np.random.randint(low, high + 1)), part, size


def crop_image(image: np.ndarray, window: CropWindow, size: int, fill: Sequence[float]) -> np.ndarray:
    """The crop of an image: H×W×C uint8 to C×S×S uint8, contiguous; ``fill``: value of the padding by channel."""
    part = _cut(image, window)
    if part.shape[:2] != (window.out_height, window.out_width):
        # Bilinear, which picks four source pixels however much it shrinks: published, and scales stay above 1/2.
        part = cv2.resize(part, (window.out_width, window.out_height), interpolation=cv2.INTER_LINEAR)
    if window.flip:
        part = cv2.flip(part, 1)
    crop = np.empty((image.shape[2], size, size), np.uint8)
    if (window.out_height, window.out_width) != (size, size):
        crop[:] = np.array([round(value) for value in fill], np.uint8)[:, None, None]
    inside = crop[:, : window.out_height, _columns(window, size)]
    for channel in range(len(crop)):
        # Several times as fast as a transposing copy in NumPy.
        cv2.extractChannel(part, channel, dst=inside[channel])
    return crop


def crop_labels(labels: np.ndarray, window: CropWindow, size: int, fill: int, stride: int = 1) -> np.ndarray:
    """The crop of a mask or label map, reduced by nearest neighbour.

    Args:
        labels: H×W, any type.
        window, size, fill: see :func:`crop_image`.
        stride: keep every stride-th row and column of the crop, the first ones included, as a nearest resize does.

    Returns:
        (S/stride)×(S/stride), rounded up, of the type of ``labels``.
    """
    positions = np.arange(0, size, stride)
    columns = size - 1 - positions if window.flip else positions
    rows, columns = positions[positions < window.out_height], columns[columns < window.out_width]
    crop = np.full((len(positions), len(positions)), fill, labels.dtype)
    # The pixel under the middle of each one, as the image's resize has it: the upper left corner would shift labels.
    rows = window.top + (2 * rows + 1) * window.height // (2 * window.out_height)
    columns = window.left + (2 * columns + 1) * window.width // (2 * window.out_width)
    part = np.take(np.take(labels, rows, axis=0), columns, axis=1)
    # The mirrored padding is on the left.
    crop[: len(rows), len(positions) - len(columns) if window.flip else 0 :][:, : len(columns)] = part
    return crop


def _cut(image: np.ndarray, window: CropWindow) -> np.ndarray:
    return image[window.top : window.top + window.height, window.left : window.left + window.width]


def _columns(window: CropWindow, size: int) -> slice:
    return slice(size - window.out_width, size) if window.flip else slice(0, window.out_width)
