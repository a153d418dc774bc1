"""Pixels that masks of several boxes share: of two objects only one can be there. Pure functions."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from boxsup_d2.masks.paste import MaskPatch
from boxsup_d2.masks.pieces import specks_and_pinholes


def settle_shared_pixels(
    patches: Sequence[MaskPatch], boxes: Tensor, nested_from: float, specks: float = 0.0
) -> tuple[list[MaskPatch], Tensor]:
    """Give every pixel of two masks to the one that is surer of it, pair by pair, as the masks were given.

    Args:
        patches: N, of the masks of one image.
        boxes: N×4, theirs; the upright ones around rotated boxes.
        nested_from: a box of which at least this share lies in another one may be a part of what that is about, and
            both keep what they share; 0: all do.
        specks: of a mask that lost pixels, pieces that are smaller than this share of its largest one go; 0: none does.

    Returns:
        N patches, those given where nothing changes, in which lost pixels have the probability that they are not the
        other's; and the N shares of its pixels that each mask keeps, on the CPU (1 of an empty one).
    """
    if not len(patches):
        return [], torch.ones(0)
    corners = boxes.detach().cpu().double().numpy().reshape(-1, 4)
    areas = (corners[:, 2:] - corners[:, :2]).clip(min=1).prod(1)
    starts = np.array([(patch.left, patch.top) for patch in patches])
    ends = starts + [patch.prob.shape[::-1] for patch in patches]
    masks, settled = [patch.prob > 0.5 for patch in patches], list(patches)
    for i in range(len(settled)):
        # Row by row: the pairs of ten thousand boxes would fill the memory. Masks may leave their boxes, so that those
        # of boxes that only touch can meet.
        meet = ((starts[i + 1 :] < ends[i]) & (ends[i + 1 :] > starts[i])).all(1)
        sides = np.minimum(corners[i, 2:], corners[i + 1 :, 2:]) - np.maximum(corners[i, :2], corners[i + 1 :, :2])
        nested = sides.clip(min=0).prod(1) >= nested_from * np.minimum(areas[i], areas[i + 1 :])
        for j in ((meet & ~nested).nonzero()[0] + i + 1).tolist():
            here, there = _common(patches[i], patches[j])
            both = masks[i][here] & masks[j][there]
            if not both.any():
                continue
            first, second = patches[i].prob[here], patches[j].prob[there]
            lost = second > first
            for k, place, loses, other in ((i, here, both & lost, second), (j, there, both & ~lost, first)):
                if not loses.any():
                    continue
                if settled[k] is patches[k]:
                    settled[k] = patches[k]._replace(prob=patches[k].prob.clone())
                part = settled[k].prob[place]
                part.copy_(torch.where(loses, torch.minimum(part, 1 - other), part))
    for given, left in zip(patches, settled, strict=True):
        if specks > 0 and left is not given:
            small, _ = specks_and_pinholes((left.prob > 0.5).cpu().numpy(), specks)
            left.prob[torch.from_numpy(small).to(left.prob.device)] = 0
    before = torch.stack([mask.sum() for mask in masks]).cpu()
    after = torch.stack([(patch.prob > 0.5).sum() for patch in settled]).cpu()
    return settled, torch.where(before > 0, after / before, 1.0)


def _common(first: MaskPatch, second: MaskPatch) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """What two patches have in common, as rows and columns of each."""
    (rows, columns), (other_rows, other_columns) = first.window, second.window
    top, bottom = max(rows.start, other_rows.start), min(rows.stop, other_rows.stop)
    left, right = max(columns.start, other_columns.start), min(columns.stop, other_columns.stop)
    bottom, right = max(bottom, top), max(right, left)
    here, there = (
        (slice(top - patch.top, bottom - patch.top), slice(left - patch.left, right - patch.left))
        for patch in (first, second)
    )
    return here, there
