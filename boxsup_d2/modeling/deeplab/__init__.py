"""DeepLab's semantic segmenters, which learn from label maps, and their test-time augmentation."""

from boxsup_d2.modeling.deeplab import checkpoints
from boxsup_d2.modeling.deeplab.meta_arch import DeepLabSegmentor, MultiScaleSegmentor

__all__ = ["DeepLabSegmentor", "MultiScaleSegmentor", "checkpoints"]
