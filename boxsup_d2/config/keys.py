"""The config keys that boxsup_d2 adds to Detectron2's, but for those of single methods, which stand in their folders.

Each key is commented with its unit and its reason; ``tests/test_repository.py`` checks that every one is read.
"""

import contextlib
from collections.abc import Callable, Iterator

from detectron2.config import CfgNode as CN

_EXTENSIONS: list[Callable[[CN], None]] = []


def register_config(add: Callable[[CN], None]) -> Callable[[CN], None]:
    """Decorator: let a function add keys of its own to every config of this package.

    For methods, in this package and outside of it. The function gets a config that has Detectron2's and this package's
    shared keys.
    """
    _EXTENSIONS.append(add)
    return add


@contextlib.contextmanager
def undone_on_error() -> Iterator[None]:
    """Forget what :func:`register_config` was given inside if an error leaves the block."""
    before = len(_EXTENSIONS)
    try:
        yield
    except BaseException:
        del _EXTENSIONS[before:]
        raise


def add_boxsup_config(cfg: CN) -> None:
    """Add boxsup_d2's keys, with defaults that leave stock Detectron2 configs unchanged."""
    _add_shared_config(cfg)
    for add in _EXTENSIONS:
        add(cfg)


def _add_shared_config(cfg: CN) -> None:
    # ---------------------------------------------------------------- input
    # The class (DATASET_MAPPER_REGISTRY) that turns a dataset dict into a training sample.
    cfg.INPUT.TRAIN_MAPPER = "PseudoMaskDatasetMapper"

    # Pixels of unknown label (``void_mask`` of a data set, such as VOC's borders) count for neither side when masks are
    # learnt. False takes them for background.
    cfg.INPUT.IGNORE_VOID = True

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
    # once per window and not once per box; up to four windows are open at a time. 0: one shuffle over all boxes, one
    # decode per box.
    cfg.DATALOADER.IMAGE_WINDOW = 64

    # Synchronise every batch norm of the model over ranks (BoxCaseg's recipe). Without effect in one process or on
    # the CPU, where torch has no synchronised batch norm.
    cfg.MODEL.SYNC_BN = False

    # ---------------------------------------------------------------- mean teacher
    # An exponential average of the weights, of any network. It is what is evaluated, labels data sets, and is the
    # "model" of checkpoints, which keep the trained weights beside it to resume from.
    cfg.MODEL.EMA = CN()
    # It costs the memory of the network once more.
    cfg.MODEL.EMA.ENABLED = False
    # Share of the average that update i = 0, 1, ... keeps: min(DECAY, i / (i + RAMP)). With RAMP 1 (BoxTeacher) a young
    # average is the plain mean of all weights so far; with 10, that of about the last tenth: for short trainings.
    cfg.MODEL.EMA.DECAY = 0.999
    cfg.MODEL.EMA.RAMP = 1.0
    # Average the statistics of batch norms as well, instead of copying the network's last ones.
    cfg.MODEL.EMA.AVERAGE_BUFFERS = False
    # Share, below 1, of the weights that training began with in what it leaves: MODEL.WEIGHTS of a whole network. A
    # fine-tuned one, averaged with itself of before, keeps what it knew and is often better at the new as well
    # (Wortsman et al., CVPR 2022, section 3).
    cfg.MODEL.EMA.INITIAL_SHARE = 0.0

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

    # ---------------------------------------------------------------- semantic segmentation networks
    # The stem's max-pool of build_resnet_deeplab_backbone: with it the output stride is the paper's 8; the code
    # published with LPG leaves it out (4), and its checkpoints need that.
    cfg.MODEL.RESNETS.STEM_MAX_POOL = True
    # Scales beside 1 that DeepLabSegmenter runs an image at, joined by the maximum (DeepLabV2: 0.5, 0.75); empty: none.
    cfg.MODEL.SEM_SEG_HEAD.MSC_SCALES = ()
    # Learning rate of the last layer, the only one that starts from noise, as a multiple of SOLVER.BASE_LR (DeepLab).
    cfg.MODEL.SEM_SEG_HEAD.LR_FACTOR = 10.0
    # DeepLabSegmenter pads images to this side in pixels at inference (published), so that all of VOC have one size; 0
    # pads only as far as the backbone needs. Larger images are taken as they are.
    cfg.MODEL.SEM_SEG_HEAD.TEST_PAD = 513
    # Registered data set whose stuff_classes name the outputs: a generator that uses this network as its segmenter
    # matches classes by name.
    cfg.MODEL.SEM_SEG_HEAD.CLASSES_OF = ""

    # ---------------------------------------------------------------- mask head of the retrained network
    # Mask losses of instances with a confidence below this are dropped (0 keeps all); see docs/boxcaseg.md.
    cfg.MODEL.ROI_MASK_HEAD.CONFIDENCE_THRESHOLD = 0.0
    # Weight the mask loss of the kept ones by their confidence.
    cfg.MODEL.ROI_MASK_HEAD.CONFIDENCE_WEIGHTING = False
    # Which number of the pseudo-mask file governs: "confidence" (published, +1 box convention), "confidence_exact"
    # (exact box IoU, fair to small objects) or "quality" (predicted IoU of the mask, which ranks masks far better).
    cfg.MODEL.ROI_MASK_HEAD.CONFIDENCE_KEY = "confidence"

    # ---------------------------------------------------------------- solver
    # "SGD" (Detectron2's), "ADAM" (weight decay as an L2 penalty: LPG's generator), or "ADAMW", which gets further in
    # few iterations.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Power of the polynomial decay of LR_SCHEDULER_NAME "WarmupPolyLR".
    cfg.SOLVER.POLY_LR_POWER = 0.9
    # Iterations between two steps of WarmupPolyLR (LPG's generator: 50); warm-up steps every iteration.
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
    # Of a mask that loses pixels to others in the merge, pieces go that are smaller than this share of its largest one;
    # 0: none, as published.
    cfg.PSEUDO_MASKS.SPECKS = 0.0
    # Images, spread from worst to best mask, that the page beside each written file shows (docs/report.md); 0 writes
    # none. Labels do not depend on it, so a change makes nothing again.
    cfg.PSEUDO_MASKS.REPORT_IMAGES = 200

    # ---------------------------------------------------------------- evaluation
    # What DATASETS.TEST is evaluated on, one or more of "instances" (detection and mask AP), "box_to_mask" (mIoU* and
    # IoU@k of the masks that the model predicts for ground-truth boxes), "box_to_sem_seg" (mIoU of the label maps that
    # these masks make) and "sem_seg" (mIoU of a semantic segmentation network).
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
    # Steps that one train_net.py run executes in order; see boxsup_d2/rounds/runner.py for the fields.
    cfg.ROUNDS = []
