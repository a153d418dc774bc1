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
    """Give every pixel of two masks to the one that is surer of it.

    Args:
        patches: N, of the masks of one image.
        boxes: N×4, theirs.
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
    areas = (corners[:, 2:] - corners[:, :2]).clip(min=0).prod(1)
    settled = list(patches)
    for i in range(len(settled)):
        # Row by row: the pairs of ten thousand boxes would fill the memory.
        sides = np.minimum(corners[i, 2:], corners[i + 1 :, 2:]) - np.maximum(corners[i, :2], corners[i + 1 :, :2])
        shared = sides.clip(min=0).prod(1)
        apart = (shared > 0) & (shared < nested_from * np.minimum(areas[i], areas[i + 1 :]))
        for j in (apart.nonzero()[0] + i + 1).tolist():
            here, there = _common(patches[i], patches[j])
            first, second = patches[i].prob[here], patches[j].prob[there]
            if not first.numel():
                continue
            both, lost = (first > 0.5) & (second > 0.5), second > first
            for k, place, loses, other in ((i, here, both & lost, second), (j, there, both & ~lost, first)):
                if settled[k].prob is patches[k].prob:
                    settled[k] = patches[k]._replace(prob=patches[k].prob.clone())
                part = settled[k].prob[place]
                part.copy_(torch.where(loses, torch.minimum(part, 1 - other), part))
    for given, left in zip(patches, settled, strict=True):
        if specks > 0 and left is not given:
            small, _ = specks_and_pinholes((left.prob > 0.5).cpu().numpy(), specks)
            left.prob[torch.from_numpy(small).to(left.prob.device)] = 0
    before, after = (torch.stack([(p.prob > 0.5).sum() for p in some]).cpu() for some in (patches, settled))
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
