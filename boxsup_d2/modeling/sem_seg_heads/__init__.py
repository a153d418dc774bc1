"""Semantic segmentation heads; importing this package registers them with Detectron2."""

from boxsup_d2.modeling.sem_seg_heads.deeplab import ASPPSumHead, LargeFOVHead

__all__ = ["ASPPSumHead", "LargeFOVHead"]
