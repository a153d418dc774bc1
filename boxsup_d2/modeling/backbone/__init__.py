"""Backbones that Detectron2 does not have."""

from boxsup_d2.modeling.backbone.hourglass import HourglassBackbone, build_hourglass_backbone
from boxsup_d2.modeling.backbone.timm_backbone import TimmBackbone, build_timm_backbone, build_timm_fpn_backbone

__all__ = [
    "HourglassBackbone",
    "TimmBackbone",
    "build_hourglass_backbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
]
