"""From box-to-mask answers to a pseudo-mask data set: pure functions, the file format and its writer."""

from boxsup_d2.pseudo_masks.confidence import box_iou_exact, exact_confidence, mask_confidence, published_confidence
from boxsup_d2.pseudo_masks.merge import MergedInstance, merge_image, merge_masks
from boxsup_d2.pseudo_masks.paste import min_max_normalize, paste_masks

__all__ = [
    "MergedInstance",
    "box_iou_exact",
    "exact_confidence",
    "mask_confidence",
    "merge_image",
    "merge_masks",
    "min_max_normalize",
    "paste_masks",
    "published_confidence",
]
