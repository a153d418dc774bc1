"""BoxCaseg's config keys."""

from detectron2.config import CfgNode as CN

from boxsup_d2.config import register_config


@register_config
def add_boxcaseg_config(cfg: CN) -> None:
    """Add ``MODEL.BOXCASEG``."""
    cfg.MODEL.BOXCASEG = CN()
    # Backbone features; upsampled to the finest and concatenated.
    cfg.MODEL.BOXCASEG.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    # Hidden channels of both heads; 0: as many as the concatenated features have (published).
    cfg.MODEL.BOXCASEG.HEAD_CHANNELS = 0
    # Share of the own FCN branch in the salient head; the rest comes through the weight transfer
    # (0.7 for VOC, 0.6 for COCO).
    cfg.MODEL.BOXCASEG.ALPHA = 0.7
    # Weights of the four losses. The pseudo-label loss exists in the published code, whose recipe leaves it off.
    cfg.MODEL.BOXCASEG.MIL_WEIGHT = 1.0
    cfg.MODEL.BOXCASEG.PAIRWISE_WEIGHT = 0.05
    cfg.MODEL.BOXCASEG.SALIENT_WEIGHT = 1.0
    cfg.MODEL.BOXCASEG.PSEUDO_LABEL_WEIGHT = 0.0
    # Box-head probabilities above / below these are the pseudo labels of that loss.
    cfg.MODEL.BOXCASEG.PSEUDO_LABEL_FG = 0.85
    cfg.MODEL.BOXCASEG.PSEUDO_LABEL_BG = 0.05
    # Which head predicts at inference: "salient" (published), or "box" where no masks were trained on.
    cfg.MODEL.BOXCASEG.TEST_HEAD = "salient"
    # Stretch every crop's probabilities to 0..1 before the threshold (published).
    cfg.MODEL.BOXCASEG.TEST_MINMAX = True
    # Average the probabilities of a crop and its mirror image (ours).
    cfg.MODEL.BOXCASEG.TEST_FLIP = False
    # Foreground above this value.
    cfg.MODEL.BOXCASEG.TEST_THRESHOLD = 0.5
    # Crops that go through the network at once at inference; bounds the memory.
    cfg.MODEL.BOXCASEG.TEST_CROPS_PER_FORWARD = 32
