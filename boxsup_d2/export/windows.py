"""What of a box-to-mask method can leave it: the network alone, from the windows around boxes to masks.

Cutting windows and pasting masks is arithmetic that a few lines do anywhere; docs/python_api.md has them.

Shape legend: N windows, S their side, h the side of the masks; H×W the image.
"""

from functools import singledispatch
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from boxsup_d2.masks.windows import Box, box_coverage, box_window, cut_window
from boxsup_d2.modeling.boxcaseg import BoxCaseg
from boxsup_d2.modeling.boxmask import BoxMask

__all__ = ["WindowNetwork", "window_network"]


class WindowNetwork(nn.Module):
    """A network from windows, with pixels in 0..255, to the logits of masks.

    Attributes:
        input_names, output_names: of the tensors that it takes and gives, in order.
        facts: what one must know to cut windows, as texts: ``side``, ``margin``, ``max_aspect``, ``channels``.
    """

    input_names: tuple[str, ...] = ("images",)
    output_names: tuple[str, ...] = ("logits",)

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, side: int, margin: float, max_aspect: float, channels: str) -> None:
        """
        Args:
            model: with ``pixel_mean`` and ``pixel_std``.
            side: S.
            margin, max_aspect: see :func:`boxsup_d2.masks.windows.box_window`.
            channels: their order, "RGB" or "BGR".
        """
        super().__init__()
        self.register_buffer("mean", model.pixel_mean.clone())
        self.register_buffer("std", model.pixel_std.clone())
        self.side, self.margin, self.max_aspect = side, margin, max_aspect
        numbers = {"side": side, "margin": margin, "max_aspect": max_aspect}
        self.facts = {**{key: str(value) for key, value in numbers.items()}, "channels": channels}

    def example(self, pixels: np.ndarray, boxes: list[Box]) -> tuple[Tensor, ...]:
        """What it takes for boxes of an H×W×3 uint8 image."""
        windows = [box_window(box, self.margin, self.max_aspect) for box in boxes]
        crops = np.stack([cut_window(pixels, window, self.side) for window in windows])
        images = torch.from_numpy(crops).permute(0, 3, 1, 2).float().contiguous()
        covers = [box_coverage(box, window, self.side) for box, window in zip(boxes, windows, strict=True)]
        return (images, torch.from_numpy(np.stack(covers))[:, None])[: len(self.input_names)]


class _BoxMaskWindows(WindowNetwork):
    """N×3×S×S images and N×1×S×S coverage by the box (0..1) to N×1×h×h logits and N predicted IoUs (0..1)."""

    input_names = ("images", "boxes")
    output_names = ("logits", "quality")

    def __init__(self, model: BoxMask, channels: str) -> None:
        windows = model.windows
        super().__init__(model, max(windows.sizes), windows.margin, windows.max_aspect, channels)
        self.network = model.net

    def forward(self, images: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        logits, quality = self.network((images - self.mean) / self.std, boxes)
        return logits, quality.sigmoid()


class _BoxCasegWindows(WindowNetwork):
    """N×3×S×S images of what is in the boxes, stretched to squares, to N×1×h×h logits."""

    def __init__(self, model: BoxCaseg, channels: str) -> None:
        super().__init__(model, model.test_size, 0.0, float("inf"), channels)
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        features = self.model.features((images - self.mean) / self.std)
        if self.model.test_head == "box":
            return self.model.box_head(features)
        return self.model.salient_head(features, self.model.box_head)


@singledispatch
def window_network(model: nn.Module, channels: str) -> WindowNetwork:
    """The network of a box-to-mask method, in evaluation mode; methods of other packages register theirs.

    Args:
        model: the method.
        channels: order of its images, "RGB" or "BGR".

    Raises:
        ValueError: the method is no network from windows to masks.
    """
    del channels
    raise ValueError(
        f"A {type(model).__name__} cannot be exported: it is no network from windows to masks. Those of 'boxmask' and "
        "'boxcaseg' can, and Mask R-CNNs."
    )


@window_network.register
def _(model: BoxMask, channels: str) -> WindowNetwork:
    return _BoxMaskWindows(model, channels).eval()


@window_network.register
def _(model: BoxCaseg, channels: str) -> WindowNetwork:
    return _BoxCasegWindows(model, channels).eval()
