"""GrabCut's config keys."""

from detectron2.config import CfgNode as CN

from boxsup_d2.config import register_config


@register_config
def add_grabcut_config(cfg: CN) -> None:
    """Add ``MODEL.GRABCUT``."""
    cfg.MODEL.GRABCUT = CN()
    # Iterations of OpenCV's grabCut.
    cfg.MODEL.GRABCUT.ITERATIONS = 5
    # Context around the box that grabCut sees as certain background, as a share of the box's sides; negative: the
    # whole image (slower on large images, as good).
    cfg.MODEL.GRABCUT.CONTEXT = 0.5
    # A cut whose tight box has a smaller IoU with the box, or that nearly fills it, has failed: the filled box is
    # better, and its quality says so. 0 keeps every cut.
    cfg.MODEL.GRABCUT.MIN_BOX_IOU = 0.7
