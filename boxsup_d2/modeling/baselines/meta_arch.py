"""Box-to-mask methods without parameters, run by the same commands as the learned ones.

``BoxFill`` is what box supervision gives away for nothing; ``GrabCut`` is the classical colour model (Rother et al.,
SIGGRAPH 2004; OpenCV's implementation).
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY

from boxsup_d2.modeling.box_to_mask import MethodInfo, UntrainedBoxToMask, fill_boxes, truncate_boxes
from boxsup_d2.utils.processes import usable_cores


@META_ARCH_REGISTRY.register()
class BoxFill(UntrainedBoxToMask):
    """Every box is its own mask."""

    info = MethodInfo(name="box", summary="every box is its own mask", config={"INPUT.FORMAT": "RGB"})

    @configurable
    def __init__(self) -> None:
        super().__init__()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Nothing to configure."""
        del cfg
        return {}

    def predict_masks(self, image: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """The truncated boxes, filled."""
        return fill_boxes(boxes, (int(image.shape[1]), int(image.shape[2])))


@META_ARCH_REGISTRY.register()
class GrabCut(UntrainedBoxToMask):
    """OpenCV's GrabCut, started from each box; the filled box where it finds nothing."""

    info = MethodInfo(
        name="grabcut",
        summary="OpenCV's colour model",
        config={"INPUT.FORMAT": "RGB"},
        inference_keys=("MODEL.GRABCUT.",),
    )

    @configurable
    def __init__(self, *, iterations: int, context: float) -> None:
        """
        Args:
            iterations: rounds of colour-model fitting and graph cut, >= 1.
            context: band around the box that is certain background, as a share of the box's sides; negative: the
                whole image.
        """
        super().__init__()
        if iterations < 1:
            raise ValueError(f"MODEL.GRABCUT.ITERATIONS is {iterations}: it must be at least 1.")
        self.iterations = iterations
        self.context = context

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read ``MODEL.GRABCUT``."""
        return {"iterations": cfg.MODEL.GRABCUT.ITERATIONS, "context": cfg.MODEL.GRABCUT.CONTEXT}

    def predict_masks(self, image: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """GrabCut per box; OpenCV releases the interpreter lock, so the boxes of an image run in parallel."""
        size = (int(image.shape[1]), int(image.shape[2]))
        masks = fill_boxes(boxes, size).cpu()
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
        corners = truncate_boxes(boxes, size).tolist()

        def cut(index: int) -> np.ndarray | None:
            return grabcut(pixels, corners[index], self.iterations, self.context)

        with ThreadPoolExecutor(max_workers=min(8, usable_cores())) as pool:
            for mask, found in zip(masks, pool.map(cut, range(len(corners))), strict=True):
                if found is not None:
                    mask.copy_(torch.from_numpy(found))
        return masks.to(self.device)


def grabcut(image: np.ndarray, box: list[int], iterations: int, context: float) -> np.ndarray | None:
    """GrabCut of one box.

    Args:
        image: H×W×3 uint8.
        box: x0, y0, x1, y1 in whole pixels inside the image, exclusive ends.
        iterations: see :class:`GrabCut`.
        context: see :class:`GrabCut`.

    Returns:
        H×W bool mask inside the box, or None where there is nothing to learn colours from (no background around the
        box, hardly any pixel in it) or nothing is left in the foreground.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = box
    pad_x, pad_y = (width, height) if context < 0 else (int(context * (x1 - x0)) + 1, int(context * (y1 - y0)) + 1)
    left, top = max(x0 - pad_x, 0), max(y0 - pad_y, 0)
    right, bottom = min(x1 + pad_x, width), min(y1 + pad_y, height)
    window = np.ascontiguousarray(image[top:bottom, left:right])
    labels = np.full(window.shape[:2], cv2.GC_BGD, np.uint8)
    labels[y0 - top : y1 - top, x0 - left : x1 - left] = cv2.GC_PR_FGD
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    # OpenCV's k-means asks for as many pixels as a colour model has components: 5 on either side.
    inside = (x1 - x0) * (y1 - y0)
    if inside < 5 or labels.size - inside < 5:
        return None
    cv2.setRNGSeed(0)  # of this thread: its k-means is seeded, so that the mask depends on the box alone
    no_rectangle = (0, 0, 0, 0)  # the labels say it
    cv2.grabCut(window, labels, no_rectangle, background, foreground, iterations, cv2.GC_INIT_WITH_MASK)
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = labels == cv2.GC_PR_FGD
    return mask if mask.any() else None
