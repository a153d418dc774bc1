"""Configuration keys of BoxMask, each with its unit and its why."""

from detectron2.config import CfgNode as CN

from boxsup_d2.config import register_config


@register_config
def add_boxmask_config(cfg: CN) -> None:
    """Add ``MODEL.BOXMASK``, ``INPUT.MASK_CROP`` and the keys of its loader."""
    _add_samples(cfg)
    _add_network(cfg)


def _add_samples(cfg: CN) -> None:
    cfg.INPUT.MASK_CROP = CN()
    # Side in pixels of the square training samples.
    cfg.INPUT.MASK_CROP.SIZE = 128
    # What is seen around the box, as a share of its sides on each side: without it the network cannot tell an object
    # that fills its box from what lies behind it, with too much of it the object is small.
    cfg.INPUT.MASK_CROP.MARGIN = 0.25
    # Windows longer than this many times their width are widened to it before they are squeezed into the square: an
    # encoder knows things of natural shapes.
    cfg.INPUT.MASK_CROP.MAX_ASPECT = 2.0
    # In training the margin of each side is drawn from MARGIN times 1 +- this. A network that does not see the box
    # (BOX_CHANNEL) then cannot know where it is but by what is in it: the filled box is no way out.
    cfg.INPUT.MASK_CROP.MARGIN_JITTER = 0.0
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
    # Probability that a sample looks as if taken by another kind of camera: grey, in other colours, pale or dim, a
    # negative, noisy, some of it or rarely nothing. Training sets are photographs by day.
    cfg.INPUT.MASK_CROP.CAMERA_PROB = 0.0
    # Probability that a sample is a stain, crack or spot, or one of several, on a part of its image instead: what users
    # bring is not always a thing.
    cfg.INPUT.MASK_CROP.MARK_PROB = 0.0
    # Where boxes teach by colours: also give the sample before its colours are changed.
    cfg.INPUT.MASK_CROP.PLAIN_VIEW = False
    # Predicted masks of a lower quality teach nothing, their boxes do. Where GrabCut fails, on half of VOC's boxes, its
    # mask is the filled box, at 0.55: a student of these fills its boxes as well.
    cfg.INPUT.MASK_CROP.MIN_QUALITY = 0.0
    # Boxes with a side below this many pixels teach nothing.
    cfg.INPUT.MASK_CROP.MIN_SIDE = 8
    # Memory in MiB that each loader worker gives to decoded images: a picture is decoded once and not once per object.
    cfg.INPUT.MASK_CROP.CACHE_MB = 1024

    # How often each of DATASETS.TRAIN is drawn, relative to the others; empty: by its number of images.
    cfg.DATALOADER.SOURCE_WEIGHTS = ()


def _add_network(cfg: CN) -> None:
    cfg.MODEL.BOXMASK = CN()
    # Configs of before: the average is MODEL.EMA's, and TEST_FLIP_BELOW and TEST_AGAIN_BELOW say what is looked at
    # again.
    cfg.register_deprecated_key("MODEL.BOXMASK.EMA_DECAY")
    cfg.register_deprecated_key("MODEL.BOXMASK.TEST_FLIP")
    cfg.register_deprecated_key("MODEL.BOXMASK.TEST_PASSES")
    # Backbone features, finest first, of strides 2 to 32.
    cfg.MODEL.BOXMASK.IN_FEATURES = ["res1", "res2", "res3", "res4", "res5"]
    # Channels of the decoder at strides 4 and more, and at stride 2.
    cfg.MODEL.BOXMASK.DECODER_CHANNELS = 64
    cfg.MODEL.BOXMASK.FINE_CHANNELS = 24
    # Tell the network where the box is, by a channel in front of the image's.
    cfg.MODEL.BOXMASK.BOX_CHANNEL = True
    # Weights of the losses: pixels and overlap where there is a mask; where only a box is true, its projections, like
    # colours on one side of the mask (BoxInst's pairwise loss), and what the averaged network (MODEL.EMA) teaches; the
    # predicted quality.
    cfg.MODEL.BOXMASK.PIXEL_WEIGHT = 1.0
    cfg.MODEL.BOXMASK.OVERLAP_WEIGHT = 1.0
    cfg.MODEL.BOXMASK.PROJECTION_WEIGHT = 0.5
    cfg.MODEL.BOXMASK.PAIRWISE_WEIGHT = 0.0
    cfg.MODEL.BOXMASK.TEACHER_WEIGHT = 0.5
    cfg.MODEL.BOXMASK.QUALITY_WEIGHT = 0.5
    # How much more a pixel at a boundary counts than one amid object or background (0: the same).
    cfg.MODEL.BOXMASK.BOUNDARY_WEIGHT = 3.0
    # How far a mask's projections are from the box's: "cross_entropy" of their lines, or "dice" (BoxInst, Mask
    # Auto-Labeler), which pulls hard while a mask is empty and little when it nearly fills its box.
    cfg.MODEL.BOXMASK.PROJECTION_LOSS = "cross_entropy"
    # Share of SOLVER.MAX_ITER over which the weight of the pairwise loss rises from 0; distance of the neighbours in
    # pixels of the logits, which have half the sample's side; likeness of colours from which on neighbours belong
    # together, see MODEL.BOXINST.COLOR_THRESHOLD.
    cfg.MODEL.BOXMASK.PAIRWISE_WARMUP = 0.3
    cfg.MODEL.BOXMASK.PAIRWISE_DILATION = 1
    cfg.MODEL.BOXMASK.COLOR_THRESHOLD = 0.3
    # The averaged network teaches from this iteration, and this share of SOLVER.MAX_ITER, on: before, it knows too
    # little. Its weight rises over TEACHER_WARMUP of the schedule, and that of predicted masks (pseudo masks of another
    # method) meanwhile falls to PREDICTED_MASKS_END of theirs.
    cfg.MODEL.BOXMASK.TEACHER_START = 500
    cfg.MODEL.BOXMASK.TEACHER_START_SHARE = 0.0
    cfg.MODEL.BOXMASK.TEACHER_WARMUP = 0.0
    cfg.MODEL.BOXMASK.PREDICTED_MASKS_END = 1.0
    # Confidence of the masks that boxes without any get: their colours that their surroundings lack (0: none). These
    # cost a millisecond and keep a training from filling its boxes: VOC val, crops of 64 px, mIoU* 69.8, as GrabCut's,
    # where filled boxes have 55.4.
    cfg.MODEL.BOXMASK.CONTRAST_WEIGHT = 0.0
    # What it teaches: "certain": its own prediction where that is certain; "mean_field" (Mask Auto-Labeler): what is
    # left of its and the network's mean prediction after foreground was spread along like colours, which a root of the
    # summed squares of 1.4 times MEAN_FIELD_COLOR grey values of difference weakens to a third.
    cfg.MODEL.BOXMASK.TEACHER_LABELS = "certain"
    cfg.MODEL.BOXMASK.MEAN_FIELD_STEPS = 100
    cfg.MODEL.BOXMASK.MEAN_FIELD_COLOR = 5.8
    # With "certain", snap what it teaches to the image's edges: the network learns what refinement would add.
    cfg.MODEL.BOXMASK.TEACHER_EDGES = False
    # Learning rate of the pretrained backbone, as a multiple of SOLVER.BASE_LR.
    cfg.MODEL.BOXMASK.BACKBONE_LR_FACTOR = 0.5
    # Sides in pixels that training samples are shrunk to, and the iteration from which each counts: small ones first
    # learn the same from fewer pixels. Empty: as they are.
    cfg.MODEL.BOXMASK.TRAIN_SIZES = []
    cfg.MODEL.BOXMASK.TRAIN_SIZE_STEPS = []
    # Sides in pixels that windows are resized to at inference; the probabilities of several are averaged.
    cfg.MODEL.BOXMASK.TEST_SIZES = [128]
    # A box is seen a second time, mirrored and moved towards its mask, and both masks are averaged, where the predicted
    # IoU is at most the first (0: nowhere, 1: everywhere), or the IoU of the mask's tight box with the box is below the
    # second (0: nowhere). Elsewhere it changes little but the time.
    cfg.MODEL.BOXMASK.TEST_FLIP_BELOW = 0.75
    cfg.MODEL.BOXMASK.TEST_AGAIN_BELOW = 0.95
    # A mask may leave its box by this share of the box's sides: users' boxes may be too tight.
    cfg.MODEL.BOXMASK.TEST_OVERRUN = 0.1
    # Pixels of two masks go to the one that is surer of them: no pixel is of two objects. A box of which at least this
    # share lies in another one (of rotated boxes: the upright ones) may be a part of what that is about, and both keep
    # what they share (0: all do).
    cfg.MODEL.BOXMASK.TEST_NESTED_FROM = 0.9
    # Pieces and holes of less than this share of a mask's largest piece go (0: none do); pieces also where a mask lost
    # pixels to another one.
    cfg.MODEL.BOXMASK.TEST_SPECKS = 0.02
    # Mean-field steps that snap masks to the image's edges (0: none); what like-coloured neighbours add to a pixel's
    # logit at most, and the difference in grey values that is not like any more.
    cfg.MODEL.BOXMASK.EDGE_STEPS = 3
    cfg.MODEL.BOXMASK.EDGE_WEIGHT = 6.0
    cfg.MODEL.BOXMASK.EDGE_COLOR = 12.0
    # Boxes that are predicted at once, a window each; bounds the memory. 0: 8 on a CPU, where more are no faster, 32 on
    # a GPU.
    cfg.MODEL.BOXMASK.TEST_WINDOWS_PER_FORWARD = 0
