"""Config keys of Segment Anything."""

from detectron2.config import CfgNode as CN

from boxsup_d2.config import register_config


@register_config
def add_sam_config(cfg: CN) -> None:
    """Add ``MODEL.SAM``."""
    cfg.MODEL.SAM = CN()
    # Folder of a SAM or SAM 2 checkpoint as transformers saves it, or its name on the Hugging Face hub.
    cfg.MODEL.SAM.NETWORK = ""
    # Boxes of an image that are decoded at once; the masks of so many are held as floats in the image's size.
    cfg.MODEL.SAM.BOXES_PER_FORWARD = 16
    # Cut every mask to its box: SAM may predict beyond a box, which is an outer bound where people drew it.
    cfg.MODEL.SAM.CUT_TO_BOX = True
