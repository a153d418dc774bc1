"""Meta-architectures; importing this package registers all of them with Detectron2."""

from boxsup_d2.modeling.boxmask.meta_arch import BoxMask
from boxsup_d2.modeling.meta_arch.baselines import BoxFill, GrabCut
from boxsup_d2.modeling.meta_arch.boxcaseg import BoxCaseg
from boxsup_d2.modeling.meta_arch.deeplab import DeepLabSegmentor, MultiScaleSegmentor
from boxsup_d2.modeling.meta_arch.lpg import LPG
from boxsup_d2.modeling.meta_arch.rcnn import PromptableRCNN
from boxsup_d2.modeling.meta_arch.salient_onnx import SalientONNX
from boxsup_d2.modeling.meta_arch.sam import SAM

__all__ = [
    "LPG",
    "SAM",
    "BoxCaseg",
    "BoxFill",
    "BoxMask",
    "DeepLabSegmentor",
    "GrabCut",
    "MultiScaleSegmentor",
    "PromptableRCNN",
    "SalientONNX",
]
