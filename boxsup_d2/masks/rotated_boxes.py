"""Rotated boxes: the upright box around one, its pixels, and masks cut to them. Pure functions.

A rotated box is (cx, cy, w, h, angle): its centre and sides in pixels, and degrees counter-clockwise as the image is
looked at, as in Detectron2's ``RotatedBoxes``.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boxsup_d2.masks.box_masks import BoxMasks
from boxsup_d2.masks.label_map import rasterize_boxes
from boxsup_d2.masks.paste import MaskPatch

# Degrees that a box may be off a right angle and still be upright: corners that were written with few digits.
_UPRIGHT = 0.01


def enclosing_box(rotated: Sequence[float]) -> list[float]:
    """The upright box x0, y0, x1, y1 around a rotated one."""
    cx, cy, w, h, degrees = rotated
    angle = math.radians(degrees)
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    width, height = w * cos + h * sin, w * sin + h * cos
    return [cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2]


def is_upright(rotated: Sequence[float]) -> bool:
    """Whether a rotated box is the upright box around it."""
    off = rotated[4] % 90
    return min(off, 90 - off) < _UPRIGHT


def inside_rotated_box(rotated: Sequence[float], left: int, top: int, height: int, width: int) -> np.ndarray:
    """Pixels of a window whose centres lie in a rotated box.

    Args:
        rotated: the box; a side below a pixel counts as one, so that a thin box is a line and not dust.
        left, top: first column and row of the window in the image.
        height, width: of the window.

    Returns:
        height×width bool.
    """
    cx, cy, w, h, degrees = rotated
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x = np.arange(left, left + width) + 0.5 - cx
    y = (np.arange(top, top + height) + 0.5 - cy)[:, None]
    return (abs(x * cos - y * sin) <= max(w, 1) / 2) & (abs(x * sin + y * cos) <= max(h, 1) / 2)


def cut_to_rotated_boxes(prompts: Any, output: Mapping[str, Any]) -> dict[str, Any]:
    """What a box-to-mask method predicts for one image, without what lies outside of the rotated boxes.

    Args:
        prompts: ``Instances``, perhaps with ``gt_rotated_boxes`` (N×5, the boxes that were annotated; ``gt_boxes`` are
            the upright ones around them), ``gt_boxes`` and ``gt_classes``.
        output: see :class:`boxsup_d2.modeling.box_to_mask.BoxToMaskMethod`; it is not changed.

    Returns:
        The output; with rotated boxes its ``pred_masks``, ``patches`` and ``label_map`` are cut.
    """
    if not prompts.has("gt_rotated_boxes"):
        return dict(output)
    boxes: list[list[float]] = prompts.gt_rotated_boxes.tolist()
    found = dict(output)
    predicted = output["instances"]
    instances = found["instances"] = type(predicted)(predicted.image_size, **predicted.get_fields())
    masks = BoxMasks.of(predicted.pred_masks)
    whole = zip(masks.parts, masks.corners, boxes, strict=True)
    parts = [cut_patch(part, box, *corner) for part, corner, box in whole]
    instances.pred_masks = BoxMasks(parts, masks.corners, masks.image_size)
    if output.get("patches") is not None:
        found["patches"] = cut_patches_to_rotated_boxes(output["patches"], boxes)
    if output.get("label_map") is not None:
        labels = output["label_map"]
        kept = torch.zeros_like(labels)
        for box, upright, number in zip(boxes, prompts.gt_boxes.tensor, prompts.gt_classes.tolist(), strict=True):
            touched = rasterize_boxes(upright[None], prompts.image_size).to(labels.device)
            kept += cut_patch(torch.where(touched & (kept == 0) & (labels == number + 1), labels, 0), box, 0, 0)
        found["label_map"] = kept
    return found


def cut_patches_to_rotated_boxes(patches: Sequence[MaskPatch], rotated: Sequence[Sequence[float]]) -> list[MaskPatch]:
    """N patches without what lies outside of their N rotated boxes."""
    pairs = zip(patches, rotated, strict=True)
    return [patch._replace(prob=cut_patch(patch.prob, box, patch.left, patch.top)) for patch, box in pairs]


def cut_patch(patch: Tensor, rotated: Sequence[float], left: int, top: int) -> Tensor:
    """A mask, or its probabilities, with nothing outside of a rotated box.

    Args:
        patch: h×w, at a place of the image.
        rotated: the box; of an upright one nothing is cut, for methods round its sides in their own ways.
        left, top: first column and row of the patch in the image.

    Returns:
        h×w; the patch itself, or a copy.
    """
    if is_upright(rotated):
        return patch
    height, width = patch.shape
    x0, y0, x1, y1 = enclosing_box(rotated)
    # A pixel more on each side, for boxes thinner than one.
    x0, x1 = (min(max(x - left, 0), width) for x in (math.floor(x0) - 1, math.ceil(x1) + 1))
    y0, y1 = (min(max(y - top, 0), height) for y in (math.floor(y0) - 1, math.ceil(y1) + 1))
    inside = inside_rotated_box(rotated, left + x0, top + y0, y1 - y0, x1 - x0)
    cut = torch.zeros_like(patch)
    cut[y0:y1, x0:x1] = patch[y0:y1, x0:x1] * torch.from_numpy(inside).to(patch.device)
    return cut
