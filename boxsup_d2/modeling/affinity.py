"""Which neighbouring pixels belong together, by their colours or by a mask; mean field over such neighbours; which
colours are a box's own.

All of it makes targets for losses: no gradient, float32, any device, no loop over images or pixels.

Shape legend: N images or instances, H x W the sides of a map. K = 8 neighbours of a pixel, at the offsets of
``HALF_NEIGHBOURS`` times the dilation and then, in the same order, opposite to these.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: One (row, column) of each pair (d, -d) of the 8 neighbour offsets: what is symmetric is computed once per pair.
HALF_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))

# CIE XYZ of the sRGB primaries, each row over the D65 white point of the 2 degree observer: white is (1, 1, 1).
_XYZ_OF_RGB = (
    (0.412453 / 0.95047, 0.357580 / 0.95047, 0.180423 / 0.95047),
    (0.212671, 0.715160, 0.072169),
    (0.019334 / 1.08883, 0.119193 / 1.08883, 0.950227 / 1.08883),
)

_Index = tuple[Any, slice, slice]


def neighbour_pairs(dilation: int) -> Iterator[tuple[_Index, _Index]]:
    """The pairs of pixels at the offsets of ``HALF_NEIGHBOURS``, as indices into the last two dimensions.

    Args:
        dilation: distance in pixels, at least 1.

    Yields:
        ``here`` and ``there``: ``x[there]`` are the neighbours, at this offset, of the pixels ``x[here]``. Pixels whose
        neighbour lies outside of the map are in no pair.
    """
    for offset in HALF_NEIGHBOURS:
        (top, bottom), (left, right) = (_shifted(step * dilation) for step in offset)
        yield (..., top, left), (..., bottom, right)


def _shifted(step: int) -> tuple[slice, slice]:
    if step >= 0:
        return slice(None, -step or None), slice(step, None)
    return slice(-step, None), slice(None, step)


def neighbours(x: Tensor, dilation: int) -> Tensor:
    """The neighbours of all pixels at the offsets of ``HALF_NEIGHBOURS``.

    All four at once, here and below: on a GPU a few large steps take less time than many small ones.

    Args:
        x: N x ... x H x W numbers of any kind.
        dilation: distance in pixels, at least 1.

    Returns:
        N x 4 x ... x H x W, 0 where the neighbour lies outside of the map.
    """
    return torch.stack(_moved(x, dilation, 1), dim=1)


def at_first_ends(pairs: Tensor, dilation: int) -> Tensor:
    """N x 4 x H x W numbers of pairs, each at its second pixel (:func:`neighbours`), moved to its first one; else 0."""
    return torch.stack([x[:, k] for k, x in enumerate(_moved(pairs, dilation, 1))], dim=1)


def at_second_ends(pairs: Tensor, dilation: int) -> Tensor:
    """The same the other way round: from their first pixels to their second ones."""
    return torch.stack([x[:, k] for k, x in enumerate(_moved(pairs, dilation, -1))], dim=1)


def _moved(x: Tensor, dilation: int, sign: int) -> list[Tensor]:
    """What lies at the offsets of ``HALF_NEIGHBOURS`` times ``sign``, one map of the size of ``x`` for each."""
    height, width = x.shape[-2:]
    padded = F.pad(x, [dilation] * 4)
    starts = [[dilation * (1 + sign * step) for step in offset] for offset in HALF_NEIGHBOURS]
    return [padded[..., top : top + height, left : left + width] for top, left in starts]


@torch.no_grad()
def rgb_to_lab(images: Tensor) -> Tensor:
    """sRGB to CIE L*a*b* (D65, 2 degrees).

    Args:
        images: N x 3 x H x W, channels R, G, B in 0..255.

    Returns:
        N x 3 x H x W float32: L* in 0..100, a* and b* about -128..127.
    """
    rgb = images.float() / 255
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    matrix = linear.new_tensor(_XYZ_OF_RGB)
    # Three weighted sums and no matrix product, which mixed precision and TF32 would round.
    xyz = (matrix[:, :, None, None] * linear[:, None]).sum(2)
    f = torch.where(xyz > 0.008856, xyz.clamp(min=1e-8) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


@torch.no_grad()
def color_similarity(images: Tensor, valid: Tensor, *, dilation: int = 2) -> Tensor:
    """How alike the colours of pixels and of their neighbours are (BoxInst).

    Args:
        images: N x 3 x H x W, channels R, G, B in 0..255.
        valid: N x 1 x H x W, 1 where a pixel may be a neighbour, 0 in padding for instance.
        dilation: distance of the neighbours in pixels.

    Returns:
        N x K x H x W float32 in 0..1: exp(-|Lab - Lab'| / 2), 0 where the neighbour is invalid or outside.
    """
    lab = rgb_to_lab(images)
    return _both_ways((-(lab[:, None] - neighbours(lab, dilation)).norm(dim=2) / 2).exp(), valid, dilation)


@torch.no_grad()
def mask_similarity(masks: Tensor, valid: Tensor, *, dilation: int = 2) -> Tensor:
    """Probability that pixels and their neighbours are on one side of a mask (BoxTeacher).

    The mask is first averaged with its 3 x 3 mean (outside of the map it is 0), which makes its border uncertain.

    Args:
        masks: N x 1 x H x W in 0..1.
        valid: N x 1 x H x W, as of :func:`color_similarity`.
        dilation: distance of the neighbours in pixels.

    Returns:
        N x K x H x W float32 in 0..1, 0 where the neighbour is invalid or outside.
    """
    masks = masks.float()
    soft = ((masks + F.avg_pool2d(masks, 3, stride=1, padding=1)) / 2)[:, 0] if len(masks) else masks[:, 0]
    here, there = soft[:, None], neighbours(soft, dilation)
    return _both_ways(here * there + (1 - here) * (1 - there), valid, dilation)


def _both_ways(pairs: Tensor, valid: Tensor, dilation: int) -> Tensor:
    """N x 4 x H x W numbers of pairs, at their first ends, as N x K x H x W: of either end where the other is valid."""
    valid = valid[:, 0].float()
    first = pairs * neighbours(valid, dilation)
    return torch.cat([first, at_second_ends(pairs * valid[:, None], dilation)], dim=1)


@torch.no_grad()
def mean_field(
    prob: Tensor, images: Tensor, boxes: Tensor, *, iterations: int = 100, sigma: float = 0.1, clip: float = 0.1
) -> Tensor:
    """Spread foreground along like colours, inside the boxes alone (Mask Auto-Labeler).

    There is no unary term: pixels without a neighbour of their colour keep what they start from.

    Args:
        prob: N x 1 x H x W in 0..1, the start.
        images: N x 3 x H x W normalised pictures, in standard deviations.
        boxes: N x 1 x H x W, 1 inside the box and 0 outside.
        iterations: of the mean field.
        sigma: of the colour kernel, in standard deviations of the pictures.
        clip: probabilities are kept within clip .. 1 - clip.

    Returns:
        N x 1 x H x W float32 probabilities. Above 0.5 is foreground.
    """
    images, inside = images.float(), boxes[:, 0].float()
    q = (prob[:, 0].float() * inside).clamp(clip, 1 - clip)
    pairs = list(neighbour_pairs(1))
    kernels = [
        ((images[here] - images[there]).square().sum(1, keepdim=True) / (-2 * sigma**2)).exp() for here, there in pairs
    ]
    for _ in range(iterations):
        log_x = torch.stack([1 - q, q], dim=1).log()
        # A pixel is its own neighbour, with weight 1.
        energy = log_x.clone()
        for kernel, (here, there) in zip(kernels, pairs, strict=True):
            energy[here] += kernel * log_x[there]
            energy[there] += kernel * log_x[here]
        background, foreground = energy.exp().unbind(1)
        foreground = foreground * inside
        q = (foreground / (1e-6 + foreground + background)).clamp(clip, 1 - clip)
    return q[:, None]


@torch.no_grad()
def box_contrast(images: Tensor, boxes: Tensor, valid: Tensor, *, background: float = 0.5, bins: int = 12) -> Tensor:
    """Probability that a pixel is the object's, by how much commoner its colour is in the box than around it.

    The histograms of both are smoothed; of a pixel's neighbours nothing counts.

    Args:
        images: N x 3 x H x W, channels R, G, B in 0..255.
        boxes: N x 1 x H x W, 1 inside the box and 0 outside.
        valid: N x 1 x H x W, 1 where a pixel of the surroundings counts, 0 in padding for instance.
        background: share of the box that is expected to look like its surroundings.
        bins: of a histogram along each axis of CIE L*a*b*.

    Returns:
        N x 1 x H x W float32 in 0..1, 0 outside of the box.
    """
    lab = rgb_to_lab(images) + images.new_tensor([0.0, 50.0, 50.0])[:, None, None]
    light, red, yellow = (lab / 100 * bins).long().clamp(0, bins - 1).unbind(1)
    color = ((light * bins + red) * bins + yellow).flatten(1)

    def shares(counted: Tensor) -> Tensor:
        counts = torch.zeros(len(images), bins**3, device=images.device).scatter_add_(1, color, counted.flatten(1))
        cube = counts.view(-1, 1, bins, bins, bins)
        if len(images):
            cube = (cube + F.avg_pool3d(cube, 3, stride=1, padding=1, count_include_pad=False)) / 2
        counts = cube.flatten(1)
        return (counts / counts.sum(1, keepdim=True).clamp(min=1)).gather(1, color)

    inside = boxes.float()
    around = shares((1 - inside) * valid.float())
    prob = 1 - background * around / shares(inside).clamp(min=1e-6)
    return prob.clamp(0, 1).view_as(inside) * inside
