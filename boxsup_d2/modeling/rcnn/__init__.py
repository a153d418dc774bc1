"""Detectron2's R-CNN with box prompts."""

from boxsup_d2.modeling.rcnn.meta_arch import PromptableRCNN

__all__ = ["PromptableRCNN"]
