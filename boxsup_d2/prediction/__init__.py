"""Objects or classes in images without boxes, by a trained network: which one, of which images, and what is written."""

from boxsup_d2.prediction.driver import predict_images, prediction_identity
from boxsup_d2.prediction.images import image_list
from boxsup_d2.prediction.network import TrainedNetwork, trained_network
from boxsup_d2.prediction.writer import dataset_path

__all__ = [
    "TrainedNetwork",
    "dataset_path",
    "image_list",
    "predict_images",
    "prediction_identity",
    "trained_network",
]
