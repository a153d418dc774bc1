"""Small pictures of masks over images: arrays in, JPEG out.

A page has two of every mask, so drawing one goes by the pixels of the mask, not by those of its image.

Shape legend: H×W the image; a window is a part of it, x0, y0, x1, y1 in whole pixels with exclusive ends.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from boxsup_d2.data.images import voc_palette

Window = tuple[int, int, int, int]

# B, G, R; bright, and of different lightness.
COLORS = (
    (28, 159, 255), (240, 201, 76), (80, 220, 124), (60, 220, 255), (171, 89, 247), (255, 130, 160), (71, 99, 255),
)  # fmt: skip
# Drawn below every line, so that it shows on an image of its colour.
_DARK = (20, 20, 20)
_QUALITY = 80
_OPACITY = 0.5
# Corners of rotated boxes that lie farther out, in pixels, are moved: large floats do not fit OpenCV's integers.
_FAR = 10**7
# Limit of enlarging small crops.
_MAX_ZOOM = 6.0
# Coverage, of 255, from which on a pixel of a smaller picture shows a mask: a third, so that small objects stay.
_COVERED = 85
# Pixels of a picture among which one is looked for that begins where a pixel of the image does.
_ALIGNMENT = 16


def crop_window(box: Sequence[float], height: int, width: int, context: float = 0.3) -> Window:
    """The window of an object: its box and a band around it.

    Args:
        box: x, y, w, h in pixels; may reach outside the image.
        height: H.
        width: W.
        context: band around the box, as a share of its longer side; 4 pixels at least.

    Returns:
        A window of at least one pixel inside the image.
    """
    x, y, w, h = box
    band = max(context * max(w, h), 4.0)
    x0, y0 = (int(min(max(v - band, 0), limit - 1)) for v, limit in ((x, width), (y, height)))
    x1, y1 = (int(min(max(v + band, 1), limit)) for v, limit in ((x + w, width), (y + h, height)))
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


class _Span(NamedTuple):
    """What is resized along one axis to draw a mask.

    Attributes:
        first, last: the mask, in pixels of the window; the end is exclusive, here and below.
        start, end: what is resized, in pixels of the window: the mask and a little around it.
        place: where it starts in the picture.
        ratio: pixels of the picture per pixel of the window.
    """

    first: int
    last: int
    start: int
    end: int
    place: int
    ratio: float

    @classmethod
    def of(cls, first: int, last: int, length: int, size: int, *, whole: bool) -> "_Span":
        """
        Args:
            first, last: the mask; may reach outside the window.
            length: of the window.
            size: of the picture.
            whole: resize all of the window.
        """
        first, last, scale = max(first, 0), min(last, length), length / size
        if whole:
            return cls(first, last, 0, length, 0, size / length)
        # A pixel of the picture seldom begins where one of the image does. One near the mask that almost does keeps
        # what is drawn where it would be if all of the image was resized.
        nearest = int(first / scale)
        place = min(
            range(nearest, max(nearest - _ALIGNMENT, -1), -1), key=lambda at: abs(at * scale - round(at * scale))
        )
        return cls(first, last, round(place * scale), min(math.ceil(last + scale), length), place, size / length)


class Canvas:
    """A window of an image, resized for the page; masks and boxes of the image are drawn on it."""

    def __init__(self, image: np.ndarray, window: Window, side: int):
        """
        Args:
            image: H×W×3 uint8, BGR.
            window: what to show of it.
            side: longer side of the picture in pixels; only crops are enlarged, whole images are not.
        """
        x0, y0, x1, y1 = window
        self._window = window
        whole = (x1 - x0, y1 - y0) == (image.shape[1], image.shape[0])
        zoom = min(side / max(x1 - x0, y1 - y0), 1.0 if whole else _MAX_ZOOM)
        self._size = (max(round((x1 - x0) * zoom), 1), max(round((y1 - y0) * zoom), 1))
        method = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
        self.pixels = cv2.resize(image[y0:y1, x0:x1], self._size, interpolation=method)

    def copy(self) -> "Canvas":
        """A copy, to draw something else on."""
        other = object.__new__(Canvas)
        other._window, other._size, other.pixels = self._window, self._size, self.pixels.copy()
        return other

    def mask(self, mask: np.ndarray, color: Sequence[int], corner: tuple[int, int] = (0, 0)) -> None:
        """Lay a mask over the picture, half transparent (rounded down) and outlined.

        Args:
            mask: h×w bool; outside of it there is nothing.
            color: B, G, R.
            corner: column and row of its first pixel in the image.
        """
        x0, y0, x1, y1 = self._window
        x, y, w, h = cv2.boundingRect(mask.view(np.uint8))
        left, top = corner[0] + x - x0, corner[1] + y - y0
        enlarged = self._size[0] > x1 - x0 or self._size[1] > y1 - y0
        across = _Span.of(left, left + w, x1 - x0, self._size[0], whole=enlarged)
        down = _Span.of(top, top + h, y1 - y0, self._size[1], whole=enlarged)
        if across.first >= across.last or down.first >= down.last:
            return
        part = np.zeros((down.end - down.start, across.end - across.start), np.uint8)
        inner = mask[y - top + down.first : y - top + down.last, x - left + across.first : x - left + across.last]
        part[
            down.first - down.start : down.last - down.start, across.first - across.start : across.last - across.start
        ] = inner.view(np.uint8) * 255
        how = cv2.INTER_NEAREST if enlarged else cv2.INTER_AREA
        shares = cv2.resize(part, None, fx=across.ratio, fy=down.ratio, interpolation=how)
        small = (shares > _COVERED).view(np.uint8)
        x, y, (h, w) = across.place, down.place, small.shape
        pixels: np.ndarray = self.pixels[y : y + h, x : x + w]
        rows, tint = pixels.reshape(h, 3 * w), np.tile(np.array(color, np.uint8), w)
        # The mean of two bytes without a ninth bit. For all pixels around the mask, which is several times as fast as
        # picking out its own.
        tinted = (rows & tint) + ((rows ^ tint) >> 1)
        cv2.copyTo(tinted.reshape(h, w, 3), small, pixels)
        contours, _ = cv2.findContours(small, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y))
        cv2.drawContours(self.pixels, contours, -1, _DARK, 3)
        cv2.drawContours(self.pixels, contours, -1, tuple(color), 1)

    def box(self, box: Sequence[float], color: Sequence[int] = (255, 255, 255)) -> None:
        """Draw a box of the image: x, y, w, h, or cx, cy, w, h and degrees counter-clockwise."""
        x0, y0, x1, y1 = self._window
        ratio = self._size[0] / (x1 - x0), self._size[1] / (y1 - y0)
        if len(box) == 5:
            corners = cv2.boxPoints(((box[0], box[1]), (box[2], box[3]), -box[4]))
            points = np.rint((corners - (x0, y0)) * ratio - 0.5).clip(-_FAR, _FAR).astype(np.int32)
            cv2.polylines(self.pixels, [points], True, _DARK, 3)
            cv2.polylines(self.pixels, [points], True, tuple(color), 1)
            return
        # Clipped a little outside the picture: large floats do not fit OpenCV's integers.
        ends = [
            (min(max((v - start) * r, -9), size + 9))
            for v, start, r, size in zip(
                (box[0], box[1], box[0] + box[2], box[1] + box[3]), (x0, y0) * 2, ratio * 2, self._size * 2, strict=True
            )
        ]
        first, last = (round(ends[0]), round(ends[1])), (round(ends[2]) - 1, round(ends[3]) - 1)
        cv2.rectangle(self.pixels, first, last, _DARK, 3)
        cv2.rectangle(self.pixels, first, last, tuple(color), 1)

    def labels(self, labels: np.ndarray) -> None:
        """Lay a label map (H×W uint8) over the picture in VOC's colours; the background stays as it is."""
        x0, y0, x1, y1 = self._window
        small = cv2.resize(labels[y0:y1, x0:x1], self._size, interpolation=cv2.INTER_NEAREST)
        known = small > 0
        colors = _palette()[small[known]][:, ::-1]
        self.pixels[known] = (self.pixels[known] * (1 - _OPACITY) + colors * _OPACITY).astype(np.uint8)

    def jpeg(self) -> bytes:
        """The picture as JPEG."""
        return encode_jpeg(self.pixels)


def label_colors(number: int) -> list[str]:
    """The colours ("#rrggbb") of labels 1 to ``number`` in :meth:`Canvas.labels`."""
    return [f"#{bytes(color).hex()}" for color in _palette()[1 : number + 1]]


def _palette() -> np.ndarray:
    """256×3 uint8, RGB."""
    return np.array(voc_palette(), np.uint8).reshape(256, 3)


def encode_jpeg(pixels: np.ndarray) -> bytes:
    """H×W×3 uint8 BGR as JPEG."""
    _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return data.tobytes()


def blank_jpeg(side: int) -> bytes:
    """A grey square, for an image that cannot be read."""
    return encode_jpeg(np.full((side, side, 3), 128, np.uint8))
