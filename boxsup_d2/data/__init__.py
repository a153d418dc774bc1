"""Data sets, mappers, samplers and loaders."""

from boxsup_d2.data import dataset_mappers, datasets
from boxsup_d2.data.build import build_label_loader, build_test_loader, build_train_loader

__all__ = ["build_label_loader", "build_test_loader", "build_train_loader", "dataset_mappers", "datasets"]
