"""RoI heads; importing this package registers all of them with Detectron2."""

from boxsup_d2.modeling.roi_heads.mask_head import ConfidenceMaskRCNNConvUpsampleHead, confidence_weights

__all__ = ["ConfidenceMaskRCNNConvUpsampleHead", "confidence_weights"]
