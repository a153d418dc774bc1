"""Every configuration key that boxsup_d2 adds to Detectron2's.

Keys follow Detectron2's idiom: ``cfg = get_cfg(); add_boxsup_config(cfg)``. Each key is commented with its unit
and its reason; ``tests/test_repository.py`` checks that every one of them is read by code.
"""

from detectron2.config import CfgNode as CN


def add_boxsup_config(cfg: CN) -> None:
    """Add boxsup_d2's keys, with defaults that leave stock Detectron2 configs unchanged."""
    # ---------------------------------------------------------------- input
    # The class (DATASET_MAPPER_REGISTRY) that turns a dataset dict into a training sample.
    cfg.INPUT.TRAIN_MAPPER = "PseudoMaskDatasetMapper"

    cfg.INPUT.BOX_CROP = CN()
    # Side in pixels of the square training crops (paper: 288).
    cfg.INPUT.BOX_CROP.TRAIN_SIZE = 288
    # Side in pixels that a box is resized to at inference (paper: 320).
    cfg.INPUT.BOX_CROP.TEST_SIZE = 320
    # Side in pixels of a salient image before the random crop of TRAIN_SIZE (paper: 320).
    cfg.INPUT.BOX_CROP.SALIENT_SIZE = 320
    # Jitter of a training box: its centre moves by at most CENTER_JITTER half-sides, its half-sides are scaled by
    # 1 +- SCALE_JITTER. The published values; 0 crops the box exactly.
    cfg.INPUT.BOX_CROP.CENTER_JITTER = 0.25
    cfg.INPUT.BOX_CROP.SCALE_JITTER = 0.5
    # Boxes cropped from the images are flipped like this with p = 1/2: "none" (published), "horizontal" or "vertical".
    cfg.INPUT.BOX_CROP.BOX_FLIP = "none"
    # The same for salient images: "horizontal" is the published intent, "vertical" what the published code does.
    cfg.INPUT.BOX_CROP.SALIENT_FLIP = "horizontal"
    # What is cut out of a salient image: a "random" window (published), or a jittered "box" around its object, which
    # is what boxes look like at inference (ours; see docs/boxcaseg.md).
    cfg.INPUT.BOX_CROP.SALIENT_CROP = "random"
    # Average the pixels that a shrinking resize merges, instead of picking four of them as the published bilinear
    # resize does. Matters for small TRAIN_SIZE, where most crops shrink.
    cfg.INPUT.BOX_CROP.ANTIALIAS = False

    # Samples of one image and one of its classes (ClassMaskDatasetMapper), which generators of class masks learn from.
    cfg.INPUT.CLASS_CROP = CN()
    # Side in pixels of the square crop, a multiple of 4 (published: 512); what the image does not fill is padding.
    cfg.INPUT.CLASS_CROP.SIZE = 512
    # The image is resized by one of these, drawn at random, before it is cropped.
    cfg.INPUT.CLASS_CROP.SCALES = [0.5, 0.75, 1.0, 1.25, 1.5]
    # Mirror every second sample horizontally.
    cfg.INPUT.CLASS_CROP.FLIP = True

    # The same three for samples of semantic segmentation (SemSegDatasetMapper; published: 321).
    cfg.INPUT.SEM_SEG_CROP = CN()
    # As CLASS_CROP.SIZE, of any value.
    cfg.INPUT.SEM_SEG_CROP.SIZE = 321
    # As CLASS_CROP.SCALES.
    cfg.INPUT.SEM_SEG_CROP.SCALES = [0.5, 0.75, 1.0, 1.25, 1.5]
    # As CLASS_CROP.FLIP.
    cfg.INPUT.SEM_SEG_CROP.FLIP = True

    # ---------------------------------------------------------------- data sets
    # Pseudo-mask files (COCO json) to register, each under its file's stem, e.g. ".../voc_2012_train_pseudo.json"
    # as "voc_2012_train_pseudo"; a file called "..._pseudo_sem_seg.json" is the manifest of semantic labels. Rounds
    # fill this in by step name.
    cfg.DATASETS.PSEUDO_MASKS = ()
    # Data sets of your own to register, so that the other keys can name them. Entries, with paths that are absolute or
    # count from the working folder:
    #   {NAME: mine, JSON: boxes.json, IMAGES: images, MASKS: kept}   a COCO json; "kept" uses the masks that it has,
    #                                                                 "none" (default) never reads one
    #   {NAME: salient, IMAGES: photographs, SALIENT_MASKS: masks}    salient images, paired with masks by file stem
    # A rounds config may list them for all of its steps.
    cfg.DATASETS.REGISTER = []
    # Objects marked difficult in VOC's XML: used for training and labelling (as published) or left out.
    cfg.DATASETS.VOC_USE_DIFFICULT = True

    # ---------------------------------------------------------------- loading
    # Share of box crops in every batch (COCO recipe: 0.6875, 22 of 32); negative: shuffle the union of both (VOC).
    cfg.DATALOADER.BOX_RATIO = -1.0
    # Boxes that overlap another one of their image by more than this IoU ...
    cfg.DATALOADER.OVERLAP_IOU = 0.5
    # ... are left out of an epoch with this probability (COCO recipe: 0.75; 0 keeps all).
    cfg.DATALOADER.OVERLAP_DROP_PROB = 0.0
    # Boxes are shuffled within windows of this many (shuffled) images, so that an image with many boxes is decoded
    # once per window and not once per box. 0: one shuffle over all boxes, one decode per box.
    cfg.DATALOADER.IMAGE_WINDOW = 64

    # Synchronise every batch norm of the model over ranks (BoxCaseg's recipe). Without effect in one process or on
    # the CPU, where torch has no synchronised batch norm.
    cfg.MODEL.SYNC_BN = False

    # ---------------------------------------------------------------- timm backbones
    cfg.MODEL.TIMM = CN()
    # Any timm network that supports features_only.
    cfg.MODEL.TIMM.NAME = "hrnet_w48"
    # Start from timm's own ImageNet weights (downloaded by timm) when MODEL.WEIGHTS names none.
    cfg.MODEL.TIMM.PRETRAINED = False
    # Which of its feature levels to use, finest first; empty: all of stride >= 4. Named res2 (stride 4) ... res5.
    cfg.MODEL.TIMM.OUT_FEATURES = []
    # Momentum of its batch norms (HRNet recipe: 0.01); negative leaves timm's.
    cfg.MODEL.TIMM.BN_MOMENTUM = -1.0
    # Freeze its batch norms (small batches).
    cfg.MODEL.TIMM.FREEZE_BN = False

    # ---------------------------------------------------------------- BoxCaseg (CVPR 2021)
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
    # Which head answers at inference: "salient" (published), or "box" where no masks were trained on.
    cfg.MODEL.BOXCASEG.TEST_HEAD = "salient"
    # Stretch every crop's probabilities to 0..1 before the threshold (published).
    cfg.MODEL.BOXCASEG.TEST_MINMAX = True
    # Average the probabilities of a crop and its mirror image (ours).
    cfg.MODEL.BOXCASEG.TEST_FLIP = False
    # Foreground above this value.
    cfg.MODEL.BOXCASEG.TEST_THRESHOLD = 0.5
    # Crops that go through the network at once at inference; bounds the memory.
    cfg.MODEL.BOXCASEG.TEST_CROPS_PER_FORWARD = 32

    # ---------------------------------------------------------------- semantic segmentation networks
    # The stem's max-pool of build_resnet_deeplab_backbone: with it the output stride is the paper's 8; the code
    # published with LPG leaves it out (4), and its checkpoints need that.
    cfg.MODEL.RESNETS.STEM_MAX_POOL = True
    # Scales beside 1 that DeepLabSegmentor runs an image at, joined by the maximum (DeepLabV2: 0.5, 0.75); empty: none.
    cfg.MODEL.SEM_SEG_HEAD.MSC_SCALES = ()
    # Learning rate of the last layer, the only one that starts from noise, as a multiple of SOLVER.BASE_LR (DeepLab).
    cfg.MODEL.SEM_SEG_HEAD.LR_FACTOR = 10.0
    # DeepLabSegmentor pads images to this side in pixels at inference (published), so that all of VOC have one size; 0
    # pads only as far as the backbone needs. Larger images are taken as they are.
    cfg.MODEL.SEM_SEG_HEAD.TEST_PAD = 513
    # Registered data set whose stuff_classes name the outputs: a generator that uses this network as its segmenter
    # matches classes by name.
    cfg.MODEL.SEM_SEG_HEAD.CLASSES_OF = ""

    # ---------------------------------------------------------------- LPG (arXiv 2103.05463)
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

    # ---------------------------------------------------------------- GrabCut baseline
    cfg.MODEL.GRABCUT = CN()
    # Iterations of OpenCV's grabCut.
    cfg.MODEL.GRABCUT.ITERATIONS = 5
    # Context around the box that grabCut sees as certain background, as a share of the box's sides; negative: the
    # whole image (slower on large images, as good).
    cfg.MODEL.GRABCUT.CONTEXT = 0.5

    # ---------------------------------------------------------------- networks of other libraries
    # Images and their normalisation are INPUT.FORMAT, MODEL.PIXEL_MEAN and MODEL.PIXEL_STD, as everywhere.
    cfg.MODEL.SALIENT_ONNX = CN()
    # The network (.onnx), which is no checkpoint of MODEL.WEIGHTS: a path, or one of package://.
    cfg.MODEL.SALIENT_ONNX.NETWORK = ""
    # Context around the box that the network sees, as a share of the box's sides on each side: an object that fills the
    # image has no background to stand out from.
    cfg.MODEL.SALIENT_ONNX.CONTEXT = 0.1
    # Side in pixels of the network's input where the graph leaves it open (U2-Net: 320).
    cfg.MODEL.SALIENT_ONNX.SIZE = 320
    # Foreground above this value of the stretched answer.
    cfg.MODEL.SALIENT_ONNX.THRESHOLD = 0.5
    # Crops that go through the network at once, where the graph allows it; bounds the memory.
    cfg.MODEL.SALIENT_ONNX.CROPS_PER_FORWARD = 8

    cfg.MODEL.SAM = CN()
    # Folder of a SAM or SAM 2 checkpoint as transformers saves it, or its name on the Hugging Face hub.
    cfg.MODEL.SAM.NETWORK = ""
    # Boxes of an image that are decoded at once; the masks of so many are held as floats in the image's size.
    cfg.MODEL.SAM.BOXES_PER_FORWARD = 16
    # Cut every mask to its box: SAM takes a box as a hint and may answer beyond it, an annotated box is an outer bound.
    cfg.MODEL.SAM.CUT_TO_BOX = True

    # ---------------------------------------------------------------- mask head of the retrained network
    # Mask losses of instances with a confidence below this are dropped (0 keeps all); see docs/boxcaseg.md.
    cfg.MODEL.ROI_MASK_HEAD.CONFIDENCE_THRESHOLD = 0.0
    # Weight the mask loss of the kept ones by their confidence.
    cfg.MODEL.ROI_MASK_HEAD.CONFIDENCE_WEIGHTING = False
    # Which number of the pseudo-mask file governs: "confidence" (published, +1 box convention) or
    # "confidence_exact" (exact box IoU, fair to small objects).
    cfg.MODEL.ROI_MASK_HEAD.CONFIDENCE_KEY = "confidence"

    # ---------------------------------------------------------------- solver
    # "SGD" (Detectron2's), "ADAM" (weight decay as an L2 penalty: LPG's generator), or "ADAMW", which gets further in
    # few iterations.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Power of the polynomial decay of LR_SCHEDULER_NAME "WarmupPolyLR".
    cfg.SOLVER.POLY_LR_POWER = 0.9
    # Iterations between two steps of WarmupPolyLR (LPG's generator: 50); warm-up goes on every iteration.
    cfg.SOLVER.POLY_LR_INTERVAL = 1
    # Batches of SOLVER.IMS_PER_BATCH whose gradients are averaged for one update, where a large batch does not fit into
    # the memory (DeepLabV2: 5 of 2). Iterations count updates everywhere.
    cfg.SOLVER.ACCUMULATE = 1
    # Passes over the training data of BoxCropDatasetMapper; replaces MAX_ITER where positive. One pass shows every
    # sample once; where DATALOADER.BOX_RATIO mixes, every salient image once (BoxCaseg counts so).
    cfg.SOLVER.MAX_EPOCHS = 0

    # ---------------------------------------------------------------- labelling
    cfg.PSEUDO_MASKS = CN()
    # Data sets (with boxes) to label after training and by --eval-only.
    cfg.PSEUDO_MASKS.DATASETS = ()
    # What is written: "instances", a COCO json with a mask per box, or "sem_seg", a palette PNG per image and their
    # manifest, for semantic segmentation.
    cfg.PSEUDO_MASKS.FORMAT = "instances"
    # Images that a process labels at once, where the method can batch; bounds the memory, of large images above all.
    cfg.PSEUDO_MASKS.IMS_PER_BATCH = 4
    # Name of this labelling in the files' provenance.
    cfg.PSEUDO_MASKS.STEP = "label"
    # Relabel annotations that already have a mask (False: they are kept, with confidence 1).
    cfg.PSEUDO_MASKS.OVERWRITE = False
    # Refine every mask by a DenseCRF before the merge; needs pydensecrf (pip install pydensecrf2).
    cfg.PSEUDO_MASKS.CRF = False
    # Processes that do so; 0: a rank's share of the machine's cores, 1: none beside the rank itself, for scripts
    # that do their work outside of `if __name__ == "__main__":`.
    cfg.PSEUDO_MASKS.CRF_WORKERS = 0
    # Images, spread over the confidences, that the page beside each written file shows (docs/report.md); 0 writes none.
    # Only what is looked at depends on it, so changing it makes nothing anew.
    cfg.PSEUDO_MASKS.REPORT_IMAGES = 200

    # ---------------------------------------------------------------- evaluation
    # What DATASETS.TEST is evaluated on, one or more of "instances" (detection and mask AP), "box_to_mask" (mIoU* and
    # IoU@k of the masks that the model answers to ground-truth boxes), "box_to_sem_seg" (mIoU of the label maps that
    # these answers make) and "sem_seg" (mIoU of a semantic segmentation network).
    cfg.TEST.TASKS = ("instances",)
    # Box prompts of VOC evaluation: the annotated box ("xml") or the "tight" box of the true mask.
    cfg.TEST.BOX_PROMPT = "xml"
    # VOC's void pixels count for neither side in instance AP, as in mIoU*. False takes them for background, as
    # every scorer of a COCO json of VOC must, such as the one that the BoxCaseg authors published.
    cfg.TEST.AP_IGNORE_VOID = True

    # Task "sem_seg": scales of the image whose class probabilities are averaged, and whether its mirror image counts.
    cfg.TEST.SEM_SEG_SCALES = (1.0,)
    cfg.TEST.SEM_SEG_FLIP = False
    # Task "sem_seg": refine the probabilities by a DenseCRF, "vgg16" or "resnet101" by the network that its published
    # settings are for; "" does not. Runs on all cores beside the network; needs pydensecrf (pip install pydensecrf2).
    cfg.TEST.SEM_SEG_CRF = ""

    # ---------------------------------------------------------------- rounds
    # Steps that one train_net.py run executes in order; see boxsup_d2/engine/rounds.py for the fields.
    cfg.ROUNDS = []

    # ---------------------------------------------------------------- BoxMask
    from boxsup_d2.modeling.boxmask.config import add_boxmask_config

    add_boxmask_config(cfg)
