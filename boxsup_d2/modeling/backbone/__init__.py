"""Backbones that Detectron2 does not have."""

from boxsup_d2.modeling.backbone import efficientnet_lite
from boxsup_d2.modeling.backbone.fcos_fpn import build_fcos_resnet_fpn_backbone
from boxsup_d2.modeling.backbone.resnet_deeplab import DilatedResNet, build_resnet_deeplab_backbone
from boxsup_d2.modeling.backbone.timm_backbone import TimmBackbone, build_timm_backbone, build_timm_fpn_backbone
from boxsup_d2.modeling.backbone.vgg import VGG16LargeFOV, build_vgg16_largefov_backbone

__all__ = [
    "DilatedResNet",
    "TimmBackbone",
    "VGG16LargeFOV",
    "build_fcos_resnet_fpn_backbone",
    "build_resnet_deeplab_backbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
    "build_vgg16_largefov_backbone",
    "efficientnet_lite",
]
