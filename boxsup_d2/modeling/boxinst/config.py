"""Configuration keys of BoxInst and of the FCOS detector below it, each with its unit and its why."""

from detectron2.config import CfgNode as CN

from boxsup_d2.config import register_config


@register_config
def add_boxinst_config(cfg: CN) -> None:
    """Add ``MODEL.FCOS``, ``MODEL.BOXINST`` and ``MODEL.BOXTEACHER``; ``MODEL.MASK_ON`` is explained there."""
    # Detectron2 has FCOS as a class, without keys of its own.
    cfg.MODEL.FCOS = CN()
    # Of the data set; COCO's.
    cfg.MODEL.FCOS.NUM_CLASSES = 80
    # Maps of the feature pyramid that objects are found on, finest first. An object belongs to the map whose stride is
    # 1/8 to 1/4 of the longest way from a location to its sides; the first takes all smaller ones, the last all larger.
    cfg.MODEL.FCOS.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # 3 x 3 convolutions of each of both towers, and their norm.
    cfg.MODEL.FCOS.NUM_CONVS = 4
    cfg.MODEL.FCOS.NORM = "GN"
    # Class probability that training starts from: most locations are background.
    cfg.MODEL.FCOS.PRIOR_PROB = 0.01
    # Locations at most this many strides from the centre of a box, along each axis, learn its object.
    cfg.MODEL.FCOS.CENTER_SAMPLING_RADIUS = 1.5
    # Of the focal loss.
    cfg.MODEL.FCOS.FOCAL_LOSS_ALPHA = 0.25
    cfg.MODEL.FCOS.FOCAL_LOSS_GAMMA = 2.0
    # Detections with a class probability times centreness below this are dropped (their score is its root) ...
    cfg.MODEL.FCOS.SCORE_THRESH_TEST = 0.05
    # ... of the others so many are kept on every map, and of these what overlaps no better one of its class by more
    # than this IoU.
    cfg.MODEL.FCOS.TOPK_CANDIDATES_TEST = 1000
    cfg.MODEL.FCOS.NMS_THRESH_TEST = 0.6

    # The mask head is CondInst's. With MODEL.MASK_ON False data sets are read without masks and the losses need none:
    # BoxInst. With True it learns from masks, weighted as MODEL.ROI_MASK_HEAD.CONFIDENCE_* say: CondInst.
    cfg.MODEL.BOXINST = CN()
    # Maps of the feature pyramid that masks are made of, finest first.
    cfg.MODEL.BOXINST.IN_FEATURES = ["p3", "p4", "p5"]
    # 3 x 3 convolutions of the mask branch after the maps are added up, their channels and norm.
    cfg.MODEL.BOXINST.BRANCH_CONVS = 4
    cfg.MODEL.BOXINST.BRANCH_CHANNELS = 128
    cfg.MODEL.BOXINST.BRANCH_NORM = "BN"
    # Channels that the masks of all instances are made of (CondInst: 8).
    cfg.MODEL.BOXINST.MASK_CHANNELS = 16
    # 1 x 1 layers that are predicted for every instance, and the channels between them.
    cfg.MODEL.BOXINST.HEAD_LAYERS = 3
    cfg.MODEL.BOXINST.HEAD_CHANNELS = 8
    # Side in pixels of a cell of the mask, in losses and before masks are resized to the image. It divides the stride
    # of the first of IN_FEATURES. Small images need small cells.
    cfg.MODEL.BOXINST.MASK_STRIDE = 4
    # Locations per image whose masks are learnt, shared among its objects, at least one each.
    cfg.MODEL.BOXINST.SAMPLES_PER_IMAGE = 64
    # Weights of both losses.
    cfg.MODEL.BOXINST.PROJECTION_WEIGHT = 1.0
    cfg.MODEL.BOXINST.PAIRWISE_WEIGHT = 1.0
    # Share of SOLVER.MAX_ITER over which the weight of the pairwise loss rises from 0: masks that fill no box yet have
    # nothing to smooth. Published are 10,000 iterations whatever the schedule, of which the shortest has 90,000.
    cfg.MODEL.BOXINST.PAIRWISE_WARMUP = 1 / 9
    # Distance of the neighbours, in cells.
    cfg.MODEL.BOXINST.PAIRWISE_DILATION = 2
    # Neighbours belong together where exp(-difference / 2) of their colours (CIE L*a*b*) is at least this: 0.3 is a
    # difference of 2.4, six grey levels.
    cfg.MODEL.BOXINST.COLOR_THRESHOLD = 0.3
    # Lowest rows, in pixels of the original image, whose cells are nobody's neighbours (published for COCO: 10, whose
    # annotations there are said to be wrong).
    cfg.MODEL.BOXINST.IGNORED_BOTTOM = 0
    # At test a score is the root of FCOS's times the mean probability inside the mask (BoxTeacher does so): a sure
    # detection with an unsure mask comes later.
    cfg.MODEL.BOXINST.RESCORE_TEST = False

    # What BoxTeacher adds. Its teacher is the average of MODEL.EMA, and sees images of INPUT.MIN_SIZE_TEST.
    cfg.MODEL.BOXTEACHER = CN()
    # Weights of the dice with the teacher's masks, and of neighbours that these have on one side.
    cfg.MODEL.BOXTEACHER.MASK_WEIGHT = 0.5
    cfg.MODEL.BOXTEACHER.AFFINITY_WEIGHT = 0.1
    # Neighbours belong together where the teacher has them on one side with at least this probability.
    cfg.MODEL.BOXTEACHER.AFFINITY_THRESHOLD = 0.5
    # Share of SOLVER.MAX_ITER over which both weights rise from 0 (published: 10,000 of at least 90,000 iterations).
    cfg.MODEL.BOXTEACHER.WARMUP = 1 / 9
    # A detection of the teacher is an object's from this IoU of their boxes on ...
    cfg.MODEL.BOXTEACHER.MATCH_IOU = 0.5
    # ... and if it is of its class, which the published code does not ask.
    cfg.MODEL.BOXTEACHER.MATCH_CLASSES = True
    # The student sees other colours than the teacher: with JITTER_PROB brightness, contrast, saturation and hue are
    # changed by up to JITTER (the first three relative to 1, hue in turns of the circle), GREY_PROB takes the colours
    # away, BLUR_PROB blurs (published for the 3x schedule: 0.5).
    cfg.MODEL.BOXTEACHER.JITTER_PROB = 0.8
    cfg.MODEL.BOXTEACHER.JITTER = [0.4, 0.4, 0.4, 0.1]
    cfg.MODEL.BOXTEACHER.GREY_PROB = 0.2
    cfg.MODEL.BOXTEACHER.BLUR_PROB = 0.0
