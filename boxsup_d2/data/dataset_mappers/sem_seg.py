"""Training samples of semantic segmentation: a crop of an image and of its label map."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog, get_detection_dataset_dicts

from boxsup_d2.data.dataset_mappers.build import DATASET_MAPPER_REGISTRY, SampleMapper
from boxsup_d2.data.dataset_mappers.scaled_crop import check_crop, crop_image, crop_labels, random_window
from boxsup_d2.data.images import read_image, read_label_map
from boxsup_d2.masks.label_map import IGNORE_LABEL


@DATASET_MAPPER_REGISTRY.register()
class SemSegDatasetMapper(SampleMapper):
    """One image to one square crop: scaled, padded at the bottom and right, cropped anywhere, flipped."""

    one_size = True

    @configurable
    def __init__(
        self,
        *,
        image_format: str,
        pixel_mean: Sequence[float],
        size: int = 321,
        scales: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5),
        flip: bool = True,
    ) -> None:
        """
        Args:
            image_format: channel order, "RGB" or "BGR".
            pixel_mean: what images are padded with, in that order, 0..255.
            size: side S of the crops in pixels.
            scales: the image is resized by one of them.
            flip: mirror horizontally with probability 1/2.
        """
        check_crop("SEM_SEG_CROP", size, scales)
        self.image_format = image_format
        self.pixel_mean = tuple(pixel_mean)
        self.size = size
        self.scales = tuple(scales)
        self.flip = flip

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """
        Raises:
            ValueError: asked for evaluation, which takes whole images.
        """
        if not is_train:
            raise ValueError("SemSegDatasetMapper is for training; evaluation uses Detectron2's DatasetMapper")
        return {
            "image_format": cfg.INPUT.FORMAT,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "size": cfg.INPUT.SEM_SEG_CROP.SIZE,
            "scales": cfg.INPUT.SEM_SEG_CROP.SCALES,
            "flip": cfg.INPUT.SEM_SEG_CROP.FLIP,
        }

    def training_samples(self, cfg: CfgNode) -> list[dict[str, Any]]:
        """See :func:`sem_seg_dicts`."""
        return sem_seg_dicts(cfg.DATASETS.TRAIN, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            dataset_dict: with ``file_name`` and ``sem_seg_file_name``, a PNG of class indices and 255.

        Returns:
            ``image`` (C×S×S uint8), ``sem_seg`` (S×S int64, 255 where it is to be ignored, padding included),
            ``image_id`` and ``file_name``.

        Raises:
            FileNotFoundError, ValueError: image or label map are missing, damaged, or of different sizes.
        """
        image = read_image(dataset_dict["file_name"], self.image_format)
        labels = read_label_map(dataset_dict["sem_seg_file_name"])
        if labels.shape != image.shape[:2]:
            raise ValueError(
                f"label map '{dataset_dict['sem_seg_file_name']}' is {labels.shape[1]}x{labels.shape[0]} pixels, but "
                f"its image '{dataset_dict['file_name']}' {image.shape[1]}x{image.shape[0]}"
            )
        window = random_window(labels.shape[0], labels.shape[1], self.size, self.scales, self.flip)
        sem_seg = crop_labels(labels, window, self.size, IGNORE_LABEL).astype(np.int64)
        return {
            "image": torch.from_numpy(crop_image(image, window, self.size, self.pixel_mean)),
            "sem_seg": torch.from_numpy(sem_seg),
            "image_id": dataset_dict["image_id"],
            "file_name": dataset_dict["file_name"],
        }


def sem_seg_dicts(names: tuple[str, ...], num_classes: int) -> list[dict[str, Any]]:
    """Dicts of data sets with label maps: those of the data sets, without annotations.

    Args:
        names: of registered data sets.
        num_classes: outputs of the network.

    Raises:
        ValueError: one of them has no label maps, or they do not have the same classes, as many as the network.
    """
    if not names:
        raise ValueError("DATASETS.TRAIN is empty: name at least one data set.")
    classes = {name: MetadataCatalog.get(name).get("stuff_classes") for name in names}
    records = []
    for name in names:
        dicts = get_detection_dataset_dicts(name, filter_empty=False, check_consistency=False)
        if classes[name] is None or not all("sem_seg_file_name" in record for record in dicts):
            raise ValueError(
                f"Data set '{name}' of DATASETS.TRAIN has no label maps, which SemSegDatasetMapper learns from: use a "
                "..._sem_seg set, such as voc_2012_train_aug_sem_seg."
            )
        if list(classes[name]) != list(classes[names[0]]):
            raise ValueError(
                f"DATASETS.TRAIN: '{name}' and '{names[0]}' have different classes ({len(classes[name])} and "
                f"{len(classes[names[0]])}, background included): their label maps do not fit together."
            )
        if len(classes[name]) != num_classes:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}, but '{name}' of DATASETS.TRAIN has "
                f"{len(classes[name])} classes, background included: set it to that."
            )
        records += [{key: value for key, value in record.items() if key != "annotations"} for record in dicts]
    return records
