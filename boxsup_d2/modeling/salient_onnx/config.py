"""Config keys of salient-object networks in ONNX's format."""

from detectron2.config import CfgNode as CN

from boxsup_d2.config import register_config


@register_config
def add_salient_onnx_config(cfg: CN) -> None:
    """Add ``MODEL.SALIENT_ONNX``."""
    # Images and their normalisation are INPUT.FORMAT, MODEL.PIXEL_MEAN and MODEL.PIXEL_STD, as everywhere.
    cfg.MODEL.SALIENT_ONNX = CN()
    # The network (.onnx), which is no checkpoint of MODEL.WEIGHTS: a path, or one of package://.
    cfg.MODEL.SALIENT_ONNX.NETWORK = ""
    # Context around the box that the network sees, as a share of the box's sides on each side: an object that fills the
    # image has no background to stand out from.
    cfg.MODEL.SALIENT_ONNX.CONTEXT = 0.1
    # Side in pixels of the network's input where the graph leaves it open (U2-Net: 320).
    cfg.MODEL.SALIENT_ONNX.SIZE = 320
    # Foreground above this value of the stretched map.
    cfg.MODEL.SALIENT_ONNX.THRESHOLD = 0.5
    # Crops that go through the network at once, where the graph allows it; bounds the memory.
    cfg.MODEL.SALIENT_ONNX.CROPS_PER_FORWARD = 8
