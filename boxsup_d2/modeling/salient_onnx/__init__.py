"""Salient-object networks in ONNX's format as a box-to-mask method."""

from boxsup_d2.modeling.salient_onnx.config import add_salient_onnx_config
from boxsup_d2.modeling.salient_onnx.meta_arch import SalientONNX

__all__ = ["SalientONNX", "add_salient_onnx_config"]
