"""boxsup_d2 in a few lines of Python: masks for boxes, objects in images, a data set labelled, a json registered.

``boxsup_d2.load``, ``label``, ``predict`` and ``register`` are these functions. There is nothing here that the command
line and the engine do not do as well; docs/python_api.md shows each of them at work.
"""

from boxsup_d2.api.box_to_mask import BoxToMask, load
from boxsup_d2.api.data import label, predict, register
from boxsup_d2.api.prediction import Prediction

__all__ = ["BoxToMask", "Prediction", "label", "load", "predict", "register"]
