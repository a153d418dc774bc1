"""Configuration keys of BoxMask, each with its unit and its why."""

from detectron2.config import CfgNode as CN

from boxsup_d2.config import register_config


@register_config
def add_boxmask_config(cfg: CN) -> None:
    """Add ``MODEL.BOXMASK``, ``INPUT.MASK_CROP`` and the keys of its loader."""
    cfg.INPUT.MASK_CROP = CN()
    # Side in pixels of the square training samples.
    cfg.INPUT.MASK_CROP.SIZE = 128
    # What is seen around the box, as a share of its sides on each side: without it the network cannot tell an object
    # that fills its box from what lies behind it, with too much of it the object is small.
    cfg.INPUT.MASK_CROP.MARGIN = 0.25
    # Windows longer than this many times their width are widened to it before they are squeezed into the square: an
    # encoder knows things of natural shapes.
    cfg.INPUT.MASK_CROP.MAX_ASPECT = 2.0
    # Users' boxes are not tight: with JITTER_PROB every edge of a box is moved by up to BOX_JITTER of its side.
    cfg.INPUT.MASK_CROP.BOX_JITTER = 0.15
    cfg.INPUT.MASK_CROP.JITTER_PROB = 0.5
    # Probability that another sample's object is pasted over the object or beside and behind it: touching neighbours
    # and occluders are what single salient objects never show.
    cfg.INPUT.MASK_CROP.PASTE_PROB = 0.35
    # Probability that one sample stands for all objects of its image together, for the data sets in UNION_DATASETS:
    # those whose objects are the parts of one thing, as garments are of a person.
    cfg.INPUT.MASK_CROP.UNION_PROB = 0.5
    cfg.INPUT.MASK_CROP.UNION_DATASETS = ()
    # Probability that a sample is turned by a quarter or a half: things seen from above and through a microscope have
    # no upright.
    cfg.INPUT.MASK_CROP.TURN_PROB = 0.0
    # Probability that a sample is shrunk to a fifth to three fifths of its side and enlarged again: small objects are
    # blurred, and training sets show mostly large ones.
    cfg.INPUT.MASK_CROP.COARSE_PROB = 0.0
    # Largest relative change of brightness, contrast and saturation.
    cfg.INPUT.MASK_CROP.COLOR_JITTER = 0.4
    # Boxes with a side below this many pixels teach nothing.
    cfg.INPUT.MASK_CROP.MIN_SIDE = 8
    # Memory in MiB that each loader worker gives to decoded images: a picture is decoded once and not once per object.
    cfg.INPUT.MASK_CROP.CACHE_MB = 1024

    # How often each of DATASETS.TRAIN is drawn, relative to the others; empty: by its number of images.
    cfg.DATALOADER.SOURCE_WEIGHTS = ()

    cfg.MODEL.BOXMASK = CN()
    # Backbone features, finest first, of strides 2 to 32.
    cfg.MODEL.BOXMASK.IN_FEATURES = ["res1", "res2", "res3", "res4", "res5"]
    # Channels of the decoder at strides 4 and more, and at stride 2.
    cfg.MODEL.BOXMASK.DECODER_CHANNELS = 64
    cfg.MODEL.BOXMASK.FINE_CHANNELS = 24
    # Tell the network where the box is, by a channel in front of the image's.
    cfg.MODEL.BOXMASK.BOX_CHANNEL = True
    # Weights of the losses: pixels and overlap where there is a mask; projections where there is only a box, and the
    # averaged network's own prediction there; the predicted quality.
    cfg.MODEL.BOXMASK.PIXEL_WEIGHT = 1.0
    cfg.MODEL.BOXMASK.OVERLAP_WEIGHT = 1.0
    cfg.MODEL.BOXMASK.PROJECTION_WEIGHT = 0.5
    cfg.MODEL.BOXMASK.TEACHER_WEIGHT = 0.5
    cfg.MODEL.BOXMASK.QUALITY_WEIGHT = 0.5
    # How much more a pixel at a boundary counts than one amid object or background (0: the same).
    cfg.MODEL.BOXMASK.BOUNDARY_WEIGHT = 3.0
    # The averaged network teaches from this update on: before, it knows too little.
    cfg.MODEL.BOXMASK.TEACHER_START = 500
    # Snap what it teaches to the image's edges: the network learns what refinement would add.
    cfg.MODEL.BOXMASK.TEACHER_EDGES = False
    # Decay per update of the exponential average of the weights, which predicts at inference; 0 averages nothing.
    cfg.MODEL.BOXMASK.EMA_DECAY = 0.998
    # Learning rate of the pretrained backbone, as a multiple of SOLVER.BASE_LR.
    cfg.MODEL.BOXMASK.BACKBONE_LR_FACTOR = 0.5
    # Sides in pixels that training samples are shrunk to, and the update from which each counts: small ones first
    # learn the same from fewer pixels. Empty: as they are.
    cfg.MODEL.BOXMASK.TRAIN_SIZES = []
    cfg.MODEL.BOXMASK.TRAIN_SIZE_STEPS = []
    # Sides in pixels that windows are resized to at inference; the probabilities of several are averaged.
    cfg.MODEL.BOXMASK.TEST_SIZES = [128]
    # Average with the mirrored window where the predicted IoU is at most this (0: nowhere, 1: everywhere): where the
    # network is sure, mirroring changes nothing but the time.
    cfg.MODEL.BOXMASK.TEST_FLIP_BELOW = 0.75
    # How often a box is looked at: the second time the window lies around the mask that was found, and is mirrored.
    # Better for boxes that are 10 % off, worse for tight ones.
    cfg.MODEL.BOXMASK.TEST_PASSES = 1
    # A mask may leave its box by this share of the box's sides: users' boxes may be too tight.
    cfg.MODEL.BOXMASK.TEST_OVERRUN = 0.1
    # Mean-field steps that snap masks to the image's edges (0: none); what like-coloured neighbours add to a pixel's
    # logit at most, and the difference in grey values that is not like any more.
    cfg.MODEL.BOXMASK.EDGE_STEPS = 3
    cfg.MODEL.BOXMASK.EDGE_WEIGHT = 6.0
    cfg.MODEL.BOXMASK.EDGE_COLOR = 12.0
    # Windows that go through the network at once; bounds the memory.
    cfg.MODEL.BOXMASK.TEST_WINDOWS_PER_FORWARD = 32
