"""Segment Anything networks as a box-to-mask method."""

from boxsup_d2.modeling.sam.config import add_sam_config
from boxsup_d2.modeling.sam.meta_arch import SAM

__all__ = ["SAM", "add_sam_config"]
