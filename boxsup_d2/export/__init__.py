"""Trained networks as files that run without Detectron2 and this package: ONNX and TorchScript."""

from boxsup_d2.export.write import export_network

__all__ = ["export_network"]
