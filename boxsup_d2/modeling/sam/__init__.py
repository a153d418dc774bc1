"""Segment Anything networks as a box-to-mask method."""

from boxsup_d2.modeling.sam.meta_arch import SAM

__all__ = ["SAM"]
