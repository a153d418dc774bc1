"""From the probability map of a box crop to a mask in the image (BoxCaseg, section 3.4).

Tensors in, tensors out. Shapes: N boxes, h×w probability maps, H×W image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F

from boxsup_d2.masks.box_masks import BoxMasks


class MaskPatch(NamedTuple):
    """The probabilities of a mask before the threshold.

    Attributes:
        left, top: first column and row of the image that it covers.
        prob: h×w float foreground probabilities in 0..1; h or w may be 0. Outside of the patch is background.
    """

    left: int
    top: int
    prob: torch.Tensor

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the image."""
        height, width = self.prob.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def mean_patch(first: MaskPatch, second: MaskPatch) -> MaskPatch:
    """The mean of two patches, of the smallest window that holds both."""
    if not first.prob.numel() or not second.prob.numel():  # which may lie anywhere
        whole = first if first.prob.numel() else second
        return whole._replace(prob=whole.prob / 2)
    left, top = min(first.left, second.left), min(first.top, second.top)
    (rows, columns), (other_rows, other_columns) = first.window, second.window
    height, width = max(rows.stop, other_rows.stop) - top, max(columns.stop, other_columns.stop) - left
    mean = MaskPatch(left, top, first.prob.new_zeros((height, width)))
    for patch in (first, second):
        row, column = patch.top - top, patch.left - left
        mean.prob[row : row + patch.prob.shape[0], column : column + patch.prob.shape[1]] += patch.prob / 2
    return mean


def min_max_normalize(prob: torch.Tensor) -> torch.Tensor:
    """Stretch every map to 0..1 (BoxCaseg, section 3.4).

    Args:
        prob: ...×h×w float; each map is stretched on its own.

    Returns:
        Same shape. A constant map (0/0 in the published code) becomes all ones, the filled box. A map with NaN stays
        NaN and gives an empty mask: a broken network must not look like a filled box.
    """
    if prob.numel() == 0:
        return prob.clone()
    low = prob.amin(dim=(-2, -1), keepdim=True)
    span = prob.amax(dim=(-2, -1), keepdim=True) - low
    return torch.where(span == 0, torch.ones_like(prob), (prob - low) / span)


def paste_patches(probs: torch.Tensor, boxes: torch.Tensor, height: int, width: int) -> list[MaskPatch]:
    """Resize every map to its box in one step.

    The resize is bilinear, antialiased along an axis on which the box is smaller than the map. Published is Pillow's
    resize of an 8-bit map, which does the same; without antialiasing the IoU of small boxes falls to 0.91. Only
    what is inside the image is computed, so a box may reach far beyond it.

    Args:
        probs: N×h×w float in 0..1.
        boxes: N×4, x0, y0, x1, y1 in pixels, exclusive ends. Corners are truncated to integers; a box has at least
            one pixel.
        height: H of the image.
        width: W of the image.

    Returns:
        N patches of float32: the part of each box that is inside the image.

    Raises:
        ValueError: there are not as many maps as boxes.
    """
    if len(probs) != len(boxes):
        raise ValueError(f"{len(probs)} probability maps for {len(boxes)} boxes: one map per box is needed.")
    probs = probs.float()  # half precision moves the threshold by up to 5e-4
    corners: list[list[int]] = boxes.detach().to("cpu", torch.int64).tolist()
    patches = []
    for prob, (x0, y0, x1, y1) in zip(probs, corners, strict=True):
        x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
        left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
        if left >= right or top >= bottom:
            patches.append(MaskPatch(0, 0, prob[:0, :0]))
            continue
        if (left, top, right, bottom) == (x0, y0, x1, y1):
            # Antialiasing widens the filter only along axes that shrink; along others this is plain bilinear.
            resized = F.interpolate(prob[None, None], size=(y1 - y0, x1 - x0), mode="bilinear", antialias=True)[0, 0]
        else:
            rows = resize_matrix(prob.shape[0], y1 - y0, top - y0, bottom - y0, prob.device)
            columns = resize_matrix(prob.shape[1], x1 - x0, left - x0, right - x0, prob.device)
            resized = rows @ prob @ columns.T
        patches.append(MaskPatch(left, top, resized))
    return patches


def cut_patches(patches: Sequence[MaskPatch], height: int, width: int, threshold: float = 0.5) -> BoxMasks:
    """Masks of patches: where they are above the threshold."""
    parts = [patch.prob > threshold for patch in patches]
    return BoxMasks(parts, [(patch.left, patch.top) for patch in patches], (height, width))


def paste_masks(probs: torch.Tensor, boxes: torch.Tensor, height: int, width: int, threshold: float = 0.5) -> BoxMasks:
    """:func:`cut_patches` of :func:`paste_patches`."""
    return cut_patches(paste_patches(probs, boxes, height, width), height, width, threshold)


def resize_matrix(in_size: int, out_size: int, start: int, stop: int, device: torch.device) -> torch.Tensor:
    """Rows ``start`` to ``stop`` of the matrix that resizes ``in_size`` samples to ``out_size``.

    Used for boxes that reach beyond the image: only the rows inside it are built. The filter is a triangle, as wide as
    an output sample where the resize shrinks, else as an input sample: the same as Pillow's ``BILINEAR`` and torch's
    ``interpolate(antialias=True)``.

    Returns:
        (stop − start)×in_size float32 whose rows sum to 1.
    """
    scale = in_size / out_size
    centers = (torch.arange(start, stop, device=device, dtype=torch.float64) + 0.5) * scale
    samples = torch.arange(in_size, device=device, dtype=torch.float64) + 0.5
    weights = (1 - (samples - centers[:, None]).abs() / max(scale, 1.0)).clamp(min=0)
    return (weights / weights.sum(dim=1, keepdim=True)).float()
