"""DeepLab's semantic segmenters and their test-time augmentation."""

from boxsup_d2.modeling.deeplab import checkpoints
from boxsup_d2.modeling.deeplab.meta_arch import DeepLabSegmenter, SemanticSegmenterWithTTA

__all__ = ["DeepLabSegmenter", "SemanticSegmenterWithTTA", "checkpoints"]
