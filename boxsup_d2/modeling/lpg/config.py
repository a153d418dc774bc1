"""LPG's config keys."""

from detectron2.config import CfgNode as CN

from boxsup_d2.config import register_config


@register_config
def add_lpg_config(cfg: CN) -> None:
    """Add ``MODEL.HOURGLASS`` and ``MODEL.LPG``."""
    cfg.MODEL.HOURGLASS = CN()
    # Channels of the 7x7 stem, of each level from stride 4 inwards with the innermost last, and of the output; residual
    # blocks per branch of each level and innermost. As published; tests take a fraction.
    cfg.MODEL.HOURGLASS.STEM_CHANNELS = 48
    cfg.MODEL.HOURGLASS.WIDTHS = [96, 96, 128, 128, 128, 192]
    cfg.MODEL.HOURGLASS.MODULES = [2, 2, 2, 2, 2, 4]
    cfg.MODEL.HOURGLASS.OUT_CHANNELS = 256

    cfg.MODEL.LPG = CN()
    # Backbone features that the generator's head sees; upsampled to the first, which has stride 4, and concatenated.
    cfg.MODEL.LPG.IN_FEATURES = ["res2"]
    # Hidden channels of its head (published: 96).
    cfg.MODEL.LPG.HEAD_CHANNELS = 96
    # Config (yaml) of the previous round's segmenter, whose class probability is one more input channel; empty: none,
    # as in the first round.
    cfg.MODEL.LPG.SEGMENTER_CONFIG = ""
    # Its trained weights: never those that its own config starts from.
    cfg.MODEL.LPG.SEGMENTER_WEIGHTS = ""
    # Samples, one per image and class, that go through the network at once at inference; fewer where they are larger
    # than 512x512 pixels, so that it bounds the memory.
    cfg.MODEL.LPG.TEST_SAMPLES_PER_FORWARD = 8
    # Average the logits of a sample and its mirror image (ours).
    cfg.MODEL.LPG.TEST_FLIP = False
