"""A box-to-mask method as a model of Label Studio: a box that is drawn there comes back as a brush mask."""

from boxsup_d2.serving.backend import LabelStudioBackend
from boxsup_d2.serving.images import TaskImages
from boxsup_d2.serving.server import make_server

__all__ = ["LabelStudioBackend", "TaskImages", "make_server"]
