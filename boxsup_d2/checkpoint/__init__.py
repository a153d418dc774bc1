"""Checkpoints: Detectron2's format, the published systems', and weights that come inside Python packages."""

from boxsup_d2.checkpoint.checkpointer import BoxSupCheckpointer, PackagePathHandler, WholeCheckpointer, load_trained
from boxsup_d2.checkpoint.formats import CheckpointFormat, grow_input_channels, register_checkpoint_format

__all__ = [
    "BoxSupCheckpointer",
    "CheckpointFormat",
    "PackagePathHandler",
    "WholeCheckpointer",
    "grow_input_channels",
    "load_trained",
    "register_checkpoint_format",
]
