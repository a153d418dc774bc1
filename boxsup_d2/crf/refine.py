"""DenseCRF (Krähenbühl & Koltun, NIPS 2011) of class probabilities, and a wrapper that refines any method's masks."""

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from itertools import islice, repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.structures import Instances
from torch import nn

from boxsup_d2.crf.workers import default_workers, explain_dead_worker, start_workers
from boxsup_d2.masks.box_masks import BoxMasks
from boxsup_d2.masks.paste import MaskPatch
from boxsup_d2.masks.rotated_boxes import cut_to_rotated_boxes


class CRFParams(NamedTuple):
    """Potts weights and kernel widths: ``*_xy`` in pixels, ``bilateral_rgb`` in grey values of 0..255."""

    gaussian_weight: float
    gaussian_xy: float
    bilateral_weight: float
    bilateral_xy: float
    bilateral_rgb: float
    iterations: int = 10


# As published with DeepLab: version 1 (VGG16) and version 2 (ResNet-101).
CRF_VGG16 = CRFParams(3, 3, 5, 140, 5)
CRF_RESNET101 = CRFParams(3, 1, 4, 67, 3)

# Probabilities below this count as this: its logarithm stays finite.
_MIN_PROB = 1e-5
# Probability that a mask is right at a pixel. On GrabCut masks of VOC, values below 0.8 cost IoU, and so do the wide
# kernels of CRF_VGG16.
_CERTAINTY = 0.9
# Width of the band around a box in the CRF's window, as a share of the box's sides.
_MARGIN = 0.25
# Masks that a refined model refines before it starts workers, which takes seconds.
_BEFORE_WORKERS = 32


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


class _MaskWindow(NamedTuple):
    """The CRF's input for one mask.

    Attributes:
        row: of the mask.
        box: rows and columns of the image that the refined mask may cover.
        inside: the same in the window.
        pixels: h×w×3 uint8.
        prob: h×w float32 of the foreground.
    """

    row: int
    box: tuple[slice, slice]
    inside: tuple[slice, slice]
    pixels: np.ndarray
    prob: np.ndarray


def _mask_patches(masks: BoxMasks, boxes: torch.Tensor) -> list[MaskPatch]:
    """Masks in their boxes N×4 (corners truncated), as probabilities."""
    height, width = masks.image_size
    limit = torch.tensor([width, height])
    low = boxes.to("cpu", torch.int64)[:, :2].clamp(min=0).minimum(limit)
    high = boxes.to("cpu", torch.int64)[:, 2:].minimum(limit).maximum(low)
    own = masks.crop(torch.cat([low, high], dim=1).tolist())
    return [
        MaskPatch(left, top, part.float() * (2 * _CERTAINTY - 1) + (1 - _CERTAINTY))
        for part, (left, top) in zip(own.parts, own.corners, strict=True)
    ]


def _mask_windows(pixels: np.ndarray, patches: Iterable[MaskPatch]) -> list[_MaskWindow]:
    """Windows of all patches (of an image H×W×3) with foreground."""
    height, width = pixels.shape[:2]
    windows = []
    for row, patch in enumerate(patches):
        # NaN is background, as it is where masks are decided.
        own = np.nan_to_num(patch.prob.float().cpu().numpy(), nan=0.0).clip(0, 1)
        if not (own > 0.5).any():
            continue
        rows, columns = patch.window
        band_y, band_x = (int(_MARGIN * side) + 1 for side in own.shape)
        top, bottom = max(rows.start - band_y, 0), min(rows.stop + band_y, height)
        left, right = max(columns.start - band_x, 0), min(columns.stop + band_x, width)
        inside = np.s_[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        prob = np.zeros((bottom - top, right - left), np.float32)
        prob[inside] = own
        windows.append(_MaskWindow(row, patch.window, inside, pixels[top:bottom, left:right], prob))
    return windows


def _foreground(pixels: np.ndarray, prob: np.ndarray, params: CRFParams) -> np.ndarray:
    """h×w bool of h×w×3 uint8 and h×w float32; runs in the workers, too."""
    return dense_crf(pixels, np.stack([1 - prob, prob]), params).argmax(dim=0).bool().numpy()


def _replace_masks(masks: BoxMasks, windows: list[_MaskWindow], refined: Iterable[np.ndarray]) -> BoxMasks:
    """The masks; those of which the CRF left something are replaced."""
    parts, corners = list(masks.parts), list(masks.corners)
    for window, foreground in zip(windows, refined, strict=True):
        inside = torch.from_numpy(foreground[window.inside])
        if inside.any():
            rows, columns = window.box
            parts[window.row], corners[window.row] = inside, (columns.start, rows.start)
    return BoxMasks(parts, corners, masks.image_size)


class CRFRefinedModel(nn.Module):
    """A box-to-mask method whose masks are moved to the image's edges by a DenseCRF, each in a window around its box.

    What lies outside the box is background and stays background; the CRF learns its colours from the band of it in the
    window. A mask that the CRF would erase is left as it is.

    Args:
        model: any box-to-mask meta-architecture.
        params: kernels.
        workers: processes that refine the masks of a batch, which need a main module that can be imported without
            harm; 0: this process's share of the machine's cores, 1: none beside this process.

    Raises:
        ValueError: ``workers`` is negative.
        ImportError: ``pydensecrf`` is not installed.
    """

    def __init__(self, model: nn.Module, params: CRFParams = CRF_RESNET101, workers: int = 1) -> None:
        super().__init__()
        if workers < 0:
            raise ValueError(f"PSEUDO_MASKS.CRF_WORKERS is {workers}: it must be 0 or more.")
        check_densecrf()  # before hours of inference
        self.model = model
        self.params = params
        self.workers = workers or default_workers()
        self._executor: ProcessPoolExecutor | None = None
        self._refined = 0
        self.training = model.training  # a new module's mode is that of training, in which nothing is refined

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor] | list[dict[str, Any]]:
        """The method's output; in evaluation its ``instances`` with refined ``pred_masks`` (``BoxMasks``) on the CPU.

        The CRF starts from the method's ``patches`` where it gives them, else from its masks. Its ``label_map`` is left
        out: label maps are then made of the refined masks.

        Raises:
            RuntimeError: a worker process died.
            ValueError: the method does not give one mask per box.
        """
        outputs = self.model(batched_inputs)
        if self.training:
            return outputs
        found: list[Instances] = [output["instances"].to("cpu") for output in outputs]
        for instances in found:
            instances.pred_masks = BoxMasks.of(instances.pred_masks)
        windows = []
        for item, output, instances in zip(batched_inputs, outputs, found, strict=True):
            patches = output.get("patches")
            if patches is None:
                patches = _mask_patches(instances.pred_masks, item["instances"].gt_boxes.tensor)
            if len(patches) != len(instances):
                raise ValueError(f"{type(self.model).__name__}: {len(patches)} patches for {len(instances)} masks.")
            windows.append(_mask_windows(_to_numpy(item["image"].permute(1, 2, 0)), patches))
        # The windows of all images together: one image alone has too few for all workers.
        refined = iter(self._foregrounds([window for own in windows for window in own]))
        for instances, own in zip(found, windows, strict=True):
            instances.pred_masks = _replace_masks(instances.pred_masks, own, islice(refined, len(own)))
        # The method's masks were cut already, but edges have moved since.
        return [
            cut_to_rotated_boxes(item["instances"], {"instances": instances})
            for item, instances in zip(batched_inputs, found, strict=True)
        ]

    def _foregrounds(self, windows: list[_MaskWindow]) -> list[np.ndarray]:
        self._refined += len(windows)
        if self.workers == 1 or self._refined <= _BEFORE_WORKERS:
            return [_foreground(window.pixels, window.prob, self.params) for window in windows]
        if self._executor is None:
            self._executor = start_workers(self.workers)
        pixels, probs = [window.pixels for window in windows], [window.prob for window in windows]
        with explain_dead_worker("set PSEUDO_MASKS.CRF_WORKERS to 1, or leave PSEUDO_MASKS.CRF off"):
            return list(self._executor.map(_foreground, pixels, probs, repeat(self.params)))


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
