"""Meta-architectures; importing this package registers all of them with Detectron2."""

from boxsup_d2.modeling.meta_arch.baselines import BoxFill, GrabCut
from boxsup_d2.modeling.meta_arch.boxcaseg import BoxCaseg
from boxsup_d2.modeling.meta_arch.deeplab import DeepLabSegmentor, MultiScaleSegmentor
from boxsup_d2.modeling.meta_arch.lpg import LPG
from boxsup_d2.modeling.meta_arch.rcnn import PromptableRCNN

__all__ = ["LPG", "BoxCaseg", "BoxFill", "DeepLabSegmentor", "GrabCut", "MultiScaleSegmentor", "PromptableRCNN"]
