"""Networks: one folder a method, and the backbones, heads and losses that several share.

Importing this package registers all of them with Detectron2.
"""

from boxsup_d2.modeling import backbone, roi_heads, sem_seg_heads
from boxsup_d2.modeling.baselines import BoxFill, GrabCut
from boxsup_d2.modeling.boxcaseg import BoxCaseg
from boxsup_d2.modeling.boxmask import BoxMask
from boxsup_d2.modeling.deeplab import DeepLabSegmenter, SemanticSegmenterWithTTA
from boxsup_d2.modeling.lpg import LPG
from boxsup_d2.modeling.rcnn import PromptableRCNN
from boxsup_d2.modeling.salient_onnx import SalientONNX
from boxsup_d2.modeling.sam import SAM

__all__ = [
    "LPG",
    "SAM",
    "BoxCaseg",
    "BoxFill",
    "BoxMask",
    "DeepLabSegmenter",
    "GrabCut",
    "PromptableRCNN",
    "SalientONNX",
    "SemanticSegmenterWithTTA",
    "backbone",
    "roi_heads",
    "sem_seg_heads",
]
