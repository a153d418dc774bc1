"""DenseCRF (Krähenbühl & Koltun, NIPS 2011) on class probabilities or instance masks; needs ``pydensecrf``.

Functions on tensors, and a wrapper that puts them behind any box-to-mask method.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.structures import Instances
from torch import nn


class CRFParams(NamedTuple):
    """Potts weights and kernel widths: ``*_xy`` in pixels, ``bilateral_rgb`` in grey values of 0..255."""

    gaussian_weight: float
    gaussian_xy: float
    bilateral_weight: float
    bilateral_xy: float
    bilateral_rgb: float
    iterations: int = 10


# The published settings (methods B6), by the segmentation network that they were made for.
CRF_VGG16 = CRFParams(3, 3, 5, 140, 5)
CRF_RESNET101 = CRFParams(3, 1, 4, 67, 3)

# Probabilities below this count as this: its logarithm stays finite.
_MIN_PROB = 1e-5


def dense_crf(
    image: torch.Tensor | np.ndarray, prob: torch.Tensor | np.ndarray, params: CRFParams = CRF_VGG16
) -> torch.Tensor:
    """Mean-field inference in a fully connected CRF over one image.

    Args:
        image: H×W×3 uint8; the order of its channels does not matter.
        prob: C×H×W, sums to 1 over the classes.
        params: kernels.

    Returns:
        C×H×W float32 probabilities, on the CPU.

    Raises:
        ImportError: ``pydensecrf`` is not installed.
        ValueError: image and probabilities differ in size.
    """
    densecrf = _import_densecrf()
    pixels = np.ascontiguousarray(_to_numpy(image), dtype=np.uint8)
    probs = np.ascontiguousarray(_to_numpy(prob), dtype=np.float32)
    classes, height, width = probs.shape
    if pixels.shape != (height, width, 3):
        raise ValueError(f"DenseCRF: image {pixels.shape} for probabilities {probs.shape}; expected H×W×3 and C×H×W.")
    if probs.size == 0:
        return torch.from_numpy(probs)
    crf = densecrf.DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(-np.log(np.maximum(probs, _MIN_PROB)).reshape(classes, -1))
    crf.addPairwiseGaussian(sxy=params.gaussian_xy, compat=params.gaussian_weight)
    crf.addPairwiseBilateral(
        sxy=params.bilateral_xy, srgb=params.bilateral_rgb, rgbim=pixels, compat=params.bilateral_weight
    )
    result = np.array(crf.inference(params.iterations), dtype=np.float32)
    return torch.from_numpy(result.reshape(classes, height, width))


def refine_instance_masks(
    image: torch.Tensor | np.ndarray,
    masks: torch.Tensor,
    boxes: torch.Tensor,
    params: CRFParams = CRF_RESNET101,
    *,
    certainty: float = 0.9,
    margin: float = 0.25,
) -> torch.Tensor:
    """Snap instance masks to the image's edges, each in a window around its box.

    What lies outside the box is certain background and stays so; the band of it in the window tells the CRF its
    colours. A mask that the CRF would erase is left as it is.

    Args:
        image: H×W×3 uint8.
        masks: N×H×W; bool, or float foreground probabilities in 0..1.
        boxes: N×4, x0, y0, x1, y1 in pixels, exclusive ends; corners are truncated.
        params: kernels.
        certainty: probability that a bool mask is right at a pixel, 0.5..1. On GrabCut masks of VOC both the wide
            kernels of :data:`CRF_VGG16` and values below 0.8 cost IoU.
        margin: width of the band, as a share of the box's sides.

    Returns:
        N×H×W bool on the device of ``masks``.

    Raises:
        ImportError: ``pydensecrf`` is not installed.
    """
    pixels = _to_numpy(image)
    height, width = pixels.shape[:2]
    if masks.dtype == torch.bool:
        refined, probs = masks.clone(), masks.float() * (2 * certainty - 1) + (1 - certainty)
    else:
        refined, probs = masks > 0.5, masks.float()
    for mask, prob, (x0, y0, x1, y1) in zip(refined, probs.cpu(), boxes.to("cpu", torch.int64).tolist(), strict=True):
        band_x, band_y = int(margin * (x1 - x0)) + 1, int(margin * (y1 - y0)) + 1
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
        left, top = max(x0 - band_x, 0), max(y0 - band_y, 0)
        right, bottom = min(x1 + band_x, width), min(y1 + band_y, height)
        if x0 >= x1 or y0 >= y1 or not bool(mask.any()):
            continue
        foreground = torch.zeros((bottom - top, right - left))
        foreground[y0 - top : y1 - top, x0 - left : x1 - left] = prob[y0:y1, x0:x1]
        window = pixels[top:bottom, left:right]
        answer = dense_crf(window, torch.stack([1 - foreground, foreground]), params).argmax(dim=0).bool()
        inside = answer[y0 - top : y1 - top, x0 - left : x1 - left]
        if inside.any():
            mask.zero_()
            mask[y0:y1, x0:x1] = inside.to(mask.device)
    return refined


class CRFRefinedModel(nn.Module):
    """A box-to-mask method whose masks are refined by :func:`refine_instance_masks` in evaluation.

    Args:
        model: any box-to-mask meta-architecture.
        params: kernels.
    """

    def __init__(self, model: nn.Module, params: CRFParams = CRF_RESNET101):
        super().__init__()
        check_densecrf()  # before hours of inference
        self.model = model
        self.params = params

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """The method's answer; in evaluation with refined ``pred_masks`` on the CPU.

        Its ``label_map``, if it has one, is left out: label maps are then made of the refined masks.
        """
        outputs = self.model(batched_inputs)
        if self.training:
            return outputs
        return [self._refine(item, output) for item, output in zip(batched_inputs, outputs, strict=True)]

    def _refine(self, item: dict[str, Any], output: dict[str, Any]) -> dict[str, Any]:
        instances: Instances = output["instances"].to("cpu")
        image = item["image"].permute(1, 2, 0)
        instances.pred_masks = refine_instance_masks(
            image, instances.pred_masks, item["instances"].gt_boxes.tensor, self.params
        )
        return {**{key: value for key, value in output.items() if key != "label_map"}, "instances": instances}


def _to_numpy(array: torch.Tensor | np.ndarray) -> np.ndarray:
    return array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else array


def check_densecrf() -> None:
    """Fail early where ``pydensecrf`` is missing.

    Raises:
        ImportError: it is not installed.
    """
    _import_densecrf()


def _import_densecrf() -> Any:
    try:
        from pydensecrf import densecrf
    except ImportError as error:
        raise ImportError(
            "DenseCRF needs pydensecrf, which is not installed: run `pip install pydensecrf2` (it is compiled, about a "
            "minute), or leave PSEUDO_MASKS.CRF and TEST.SEM_SEG_CRF off."
        ) from error
    return densecrf
