"""The field of an annotation that holds its rotated box, and how formats write one.

``bbox`` is then the upright box around it, which every reader understands; masks are cut to the rotated one
(:mod:`boxsup_d2.masks.rotated_boxes`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from boxsup_d2.data.formats.coco_checks import is_finite
from boxsup_d2.masks.rotated_boxes import enclosing_box

#: Where it is: cx, cy, w, h in pixels and degrees counter-clockwise, as Detectron2's ``RotatedBoxes`` has it.
ROTATED_BOX = "rotated_box"
#: What is said of rotated boxes, whatever the format.
TURNED = "rotated boxes: methods see the upright box around each, masks are cut to the rotated one"
# How far, in pixels, the two boxes of an annotation may be apart: written numbers are rounded.
_TOLERANCE = 1.0


def turned_box(box: Sequence[float], clockwise: float) -> list[float]:
    """The rotated box that an upright one, x, y, w, h, becomes around its centre; ``clockwise``: in degrees."""
    x, y, w, h = box
    return [x + w / 2, y + h / 2, w, h, -clockwise]


def box_of_corners(corners: Sequence[float]) -> list[float]:
    """The smallest rotated box around points x0, y0, x1, y1, ...: of the corners of one, itself."""
    (cx, cy), (w, h), clockwise = cv2.minAreaRect(np.array(corners, np.float32).reshape(-1, 2))
    return [cx, cy, w, h, -clockwise]


def corner_of(rotated: Sequence[float]) -> tuple[float, float, float]:
    """Where the upper left corner of a box before its rotation is after it, x and y, and degrees clockwise."""
    cx, cy, w, h, degrees = rotated
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return cx - (w * cos + h * sin) / 2, cy - (h * cos - w * sin) / 2, -degrees


def rotated_fields(rotated: Sequence[float]) -> dict[str, Any]:
    """``bbox`` and ``rotated_box`` of an annotation."""
    x0, y0, x1, y1 = enclosing_box(rotated)
    return {"bbox": [x0, y0, x1 - x0, y1 - y0], ROTATED_BOX: list(rotated)}


def rotated_box_of(annotation: Mapping[str, Any]) -> list[float] | None:
    """The rotated box of an annotation; None where it has none, or one that does not fit its ``bbox``.

    The two are apart where somebody moved ``bbox`` alone. A tight box of the mask lies in the rotated one and fits.
    """
    rotated, box = annotation.get(ROTATED_BOX), annotation.get("bbox")
    for values, count in ((rotated, 5), (box, 4)):
        if not (isinstance(values, list) and len(values) == count and all(map(is_finite, values))):
            return None
    assert isinstance(rotated, list)
    assert isinstance(box, list)
    x0, y0, x1, y1 = enclosing_box(rotated)
    x, y, w, h = box
    fits = x >= x0 - _TOLERANCE and y >= y0 - _TOLERANCE and x + w <= x1 + _TOLERANCE and y + h <= y1 + _TOLERANCE
    return [float(value) for value in rotated] if fits and min(rotated[2:4]) >= 0 else None
