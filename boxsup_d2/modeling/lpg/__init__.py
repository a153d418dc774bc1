"""LPG (arXiv 2103.05463): a generator of class masks from boxes, learned on classes that have masks."""

from boxsup_d2.modeling.lpg.config import add_lpg_config
from boxsup_d2.modeling.lpg.hourglass import HourglassBackbone, build_hourglass_backbone
from boxsup_d2.modeling.lpg.meta_arch import LPG

__all__ = ["LPG", "HourglassBackbone", "add_lpg_config", "build_hourglass_backbone"]
