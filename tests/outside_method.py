"""A box-to-mask method as somebody else would write it: one module that the package does not know.

``test_outside_method.py`` installs it through the entry-point group ``boxsup_d2.methods``.
"""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from boxsup_d2.config import register_config
from boxsup_d2.modeling.box_to_mask import (
    BoxToMaskMethod,
    MethodInfo,
    box_to_mask_instances,
    fill_boxes,
    mean_foreground,
)


@register_config
def add_config(cfg: CfgNode) -> None:
    """Add ``MODEL.OUTSIDE``."""
    cfg.MODEL.OUTSIDE = CfgNode()
    # Hidden channels.
    cfg.MODEL.OUTSIDE.CHANNELS = 4
    # Foreground above it.
    cfg.MODEL.OUTSIDE.CUT = 0.5
    # Images at once.
    cfg.MODEL.OUTSIDE.AT_ONCE = 1


@META_ARCH_REGISTRY.register()
class Outside(BoxToMaskMethod):
    """Two convolutions that learn which pixels are a box's."""

    info = MethodInfo(
        name="outside",
        summary="two convolutions",
        config={"INPUT.FORMAT": "RGB"},
        weights_key="MODEL.WEIGHTS",
        inference_keys=("MODEL.OUTSIDE.CUT",),
        neutral_keys=("MODEL.OUTSIDE.AT_ONCE",),
    )
    labelled = 0

    @configurable
    def __init__(self, *, channels: int, cut: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, 1, 1))
        self.cut = cut

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"channels": cfg.MODEL.OUTSIDE.CHANNELS, "cut": cfg.MODEL.OUTSIDE.CUT}

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        if self.training:
            masks = torch.stack([item["mask"] for item in batched_inputs]).float()
            logits = self.logits(torch.stack([item["image"] for item in batched_inputs]))
            return {"loss_mask": F.binary_cross_entropy_with_logits(logits, masks)}
        return [{"instances": self.predict(item)} for item in batched_inputs]

    def logits(self, images: Tensor) -> Tensor:
        """N×H×W of N×3×H×W uint8."""
        return self.layers(images.float() / 255 - 0.5)[:, 0]

    @torch.no_grad()
    def predict(self, item: dict[str, Any]) -> Any:
        prompts = item["instances"]
        size = (int(item["image"].shape[1]), int(item["image"].shape[2]))
        probs = self.logits(item["image"][None]).sigmoid().expand(len(prompts), -1, -1)
        masks = fill_boxes(prompts.gt_boxes.tensor, size) & (probs > self.cut)
        Outside.labelled += 1
        return box_to_mask_instances(
            masks, prompts.gt_boxes.tensor, prompts.gt_classes, mean_foreground(probs, masks), size
        )
