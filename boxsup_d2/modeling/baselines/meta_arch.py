"""Box-to-mask methods without parameters, run by the same commands as the learned ones.

``BoxFill`` is what box supervision gives away for nothing; ``GrabCut`` is the classical colour model (Rother et al.,
SIGGRAPH 2004; OpenCV's implementation).
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY

from boxsup_d2.masks.box_masks import BoxMasks, tight_box
from boxsup_d2.masks.confidence import exact_confidence
from boxsup_d2.modeling.box_to_mask import MethodInfo, UntrainedBoxToMask, filled_boxes, truncate_boxes
from boxsup_d2.utils.processes import usable_cores

# Quality of a filled box: what its IoU is on average (VOC val .56, COCO val .57; where GrabCut fails .57 and .51).
_FILLED_QUALITY = 0.55
# A cut with more than this share of its box has found no background in it.
_NEARLY_FULL = 0.95
# Pixels of a box, evenly taken, that tell its quality: more change its third digit.
_QUALITY_PIXELS = 10_000


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

    def predict_with_quality(
        self, image: torch.Tensor, boxes: torch.Tensor
    ) -> tuple[BoxMasks, torch.Tensor, torch.Tensor]:
        """The truncated boxes, filled, all of one quality: nothing is known of any."""
        masks = filled_boxes(boxes, (int(image.shape[1]), int(image.shape[2])))
        return masks, torch.ones(len(boxes)), torch.full((len(boxes),), _FILLED_QUALITY)


@META_ARCH_REGISTRY.register()
class GrabCut(UntrainedBoxToMask):
    """OpenCV's GrabCut, started from each box; the filled box where it fails.

    It fails where nothing is left in the foreground, where what is left does not reach the box's sides, and where it
    nearly fills the box. The quality of a cut is the box IoU of its mask times the mean probability that its two colour
    models give to the side that a pixel of the box is on; a filled box has that of :class:`BoxFill`.
    """

    info = MethodInfo(
        name="grabcut",
        summary="OpenCV's colour model",
        config={"INPUT.FORMAT": "RGB"},
        inference_keys=("MODEL.GRABCUT.",),
    )

    @configurable
    def __init__(self, *, iterations: int, context: float, min_box_iou: float = 0.7) -> None:
        """
        Args:
            iterations: rounds of colour-model fitting and graph cut, >= 1.
            context: band around the box that is certain background, as a share of the box's sides; negative: the
                whole image.
            min_box_iou: cuts whose tight box has a smaller IoU with the box, and those that nearly fill it, are
                replaced by the filled box; 0: only empty ones are.
        """
        super().__init__()
        if iterations < 1:
            raise ValueError(f"MODEL.GRABCUT.ITERATIONS is {iterations}: it must be at least 1.")
        if not 0 <= min_box_iou <= 1:
            raise ValueError(f"MODEL.GRABCUT.MIN_BOX_IOU is {min_box_iou}: it must be in 0..1.")
        self.iterations = iterations
        self.context = context
        self.min_box_iou = min_box_iou

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read ``MODEL.GRABCUT``."""
        node = cfg.MODEL.GRABCUT
        return {"iterations": node.ITERATIONS, "context": node.CONTEXT, "min_box_iou": node.MIN_BOX_IOU}

    def predict_with_quality(
        self, image: torch.Tensor, boxes: torch.Tensor
    ) -> tuple[BoxMasks, torch.Tensor, torch.Tensor]:
        """GrabCut per box; OpenCV releases the interpreter lock, so the boxes of an image run in parallel."""
        size = (int(image.shape[1]), int(image.shape[2]))
        masks = filled_boxes(boxes.cpu(), size)
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
        corners = truncate_boxes(boxes, size).tolist()
        quality = torch.full((len(boxes),), _FILLED_QUALITY)

        def cut(index: int) -> Cut | None:
            found = grabcut(pixels, corners[index], self.iterations, self.context)
            return None if found is None or self._failed(found) else found

        with ThreadPoolExecutor(max_workers=min(8, usable_cores())) as pool:
            for index, found in enumerate(pool.map(cut, range(len(corners)))):
                if found is not None:
                    masks.parts[index] = torch.from_numpy(found.mask)
                    quality[index] = found.box_iou * found.certainty
        return masks.to(self.device), torch.ones(len(boxes)), quality

    def _failed(self, cut: "Cut") -> bool:
        return self.min_box_iou > 0 and (cut.box_iou < self.min_box_iou or cut.share > _NEARLY_FULL)


class Cut(NamedTuple):
    """What GrabCut made of a box.

    Attributes:
        mask: h×w bool, of the box's pixels; not empty.
        box_iou: IoU of the mask's tight box and the box, 0..1.
        share: of the box's pixels that are in the mask, 0..1.
        certainty: mean over the box's pixels of the probability that the two colour models, taken as equally likely,
            give to the side of the cut that a pixel is on, 0..1.
    """

    mask: np.ndarray
    box_iou: float
    share: float
    certainty: float


def grabcut(image: np.ndarray, box: list[int], iterations: int, context: float) -> Cut | None:
    """GrabCut of one box.

    Args:
        image: H×W×3 uint8.
        box: x0, y0, x1, y1 in whole pixels inside the image, exclusive ends.
        iterations: see :class:`GrabCut`.
        context: see :class:`GrabCut`.

    Returns:
        The cut, or None where there is nothing to learn colours from (no background around the box, hardly any pixel in
        it) or nothing is left in the foreground.
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
    mask = labels[y0 - top : y1 - top, x0 - left : x1 - left] == cv2.GC_PR_FGD
    if not mask.any():
        return None
    chosen = mask.reshape(-1)
    step = -(-inside // _QUALITY_PIXELS)
    colors = image[y0:y1, x0:x1].reshape(-1, 3)[::step].astype(np.float64)
    front, back = (_mixture_density(model[0], colors) for model in (foreground, background))
    # A colour that is far from both models says nothing.
    front = (front + 1e-12) / (front + back + 2e-12)
    return Cut(
        mask=mask,
        box_iou=exact_confidence(tight_box(mask, x0, y0), (x0, y0, x1 - x0, y1 - y0)),
        share=float(chosen.mean()),
        certainty=float(np.where(chosen[::step], front, 1 - front).mean()),
    )


def _mixture_density(model: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Densities (N, up to a common factor) of colours (N×3) in a colour model as OpenCV stores it (65 numbers)."""
    weights, means, covariances = model[:5], model[5:20].reshape(5, 3), model[20:].reshape(5, 3, 3)
    density = np.zeros(len(colors))
    for weight, mean, covariance in zip(weights, means, covariances, strict=True):
        if weight > 0:
            covariance = covariance + 0.01 * np.eye(3)  # OpenCV's own remedy where all pixels have one colour
            distance = colors - mean
            exponent = np.einsum("ni,ij,nj->n", distance, np.linalg.inv(covariance), distance)
            density += weight * np.exp(-exponent / 2) / np.sqrt(np.linalg.det(covariance))
    return density
