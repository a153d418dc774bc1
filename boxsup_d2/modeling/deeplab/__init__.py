"""DeepLab's semantic segmenters, which learn from label maps, and their test-time augmentation."""

from boxsup_d2.modeling.deeplab.meta_arch import DeepLabSegmenter, SemanticSegmenterWithTTA

__all__ = ["DeepLabSegmenter", "SemanticSegmenterWithTTA"]
