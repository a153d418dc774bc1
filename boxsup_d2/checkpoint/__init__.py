"""Checkpoints: Detectron2's format, the published systems', and weights that come inside Python packages."""

from boxsup_d2.checkpoint.checkpointer import BoxSupCheckpointer, PackagePathHandler, WholeCheckpointer, load_trained
from boxsup_d2.checkpoint.formats import (
    convert_efficientnet_lite,
    convert_published_boxcaseg,
    convert_published_hourglass,
    grow_input_channels,
)

__all__ = [
    "BoxSupCheckpointer",
    "PackagePathHandler",
    "WholeCheckpointer",
    "convert_efficientnet_lite",
    "convert_published_boxcaseg",
    "convert_published_hourglass",
    "grow_input_channels",
    "load_trained",
]
