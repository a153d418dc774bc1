"""Connected pieces of a mask that are too small to be meant. Pure functions on numpy."""

import cv2
import numpy as np


def specks_and_pinholes(mask: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Small pieces of a mask, and small holes in it.

    Args:
        mask: h×w bool. Pixels that touch at a corner are one piece, and of two holes. A gap that reaches the border is
            no hole.
        share: of the largest piece's area, in 0..1: what is smaller is small.

    Returns:
        The pixels of either, h×w bool each.
    """
    inside = mask.astype(np.uint8)
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(inside, connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    least = share * areas.max(initial=0)
    _, gaps, stats, _ = cv2.connectedComponentsWithStats(1 - inside, connectivity=4)
    x, y, w, h, area = stats.T
    inner = (x > 0) & (y > 0) & (x + w < mask.shape[1]) & (y + h < mask.shape[0])
    return np.r_[False, areas < least][pieces], (inner & (area < least))[gaps] & ~mask
