"""Training samples of generators of class masks: one class of one image, its boxes, and the mask of all its objects."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils, get_detection_dataset_dicts
from detectron2.structures import BoxMode

from boxsup_d2.data.dataset_mappers.build import DATASET_MAPPER_REGISTRY, SampleMapper
from boxsup_d2.data.dataset_mappers.scaled_crop import check_crop, crop_image, crop_labels, random_window
from boxsup_d2.data.images import read_image
from boxsup_d2.masks.label_map import IGNORE_LABEL, rasterize_boxes
from boxsup_d2.masks.rle import union

logger = logging.getLogger(__name__)

#: Stride of the target: that of the generator's output.
TARGET_STRIDE = 4


@DATASET_MAPPER_REGISTRY.register()
class ClassMaskDatasetMapper(SampleMapper):
    """One class of one image to one square crop: scaled, padded at the bottom and right, cropped, flipped.

    The crop is drawn so that it can hold the union of the class's boxes. Masks are rasterised here, out of the
    annotations; nothing is kept on the disk for it.
    """

    one_size = True

    @configurable
    def __init__(
        self,
        *,
        image_format: str,
        pixel_mean: Sequence[float],
        size: int = 512,
        scales: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5),
        flip: bool = True,
    ) -> None:
        """
        Args:
            image_format: channel order, "RGB" or "BGR".
            pixel_mean: what images are padded with, in that order, 0..255.
            size: side S of the crops in pixels, a multiple of 4.
            scales: the image is resized by one of them.
            flip: mirror horizontally with probability 1/2.
        """
        check_crop("CLASS_CROP", size, scales, TARGET_STRIDE)
        self.image_format = image_format
        self.pixel_mean = tuple(pixel_mean)
        self.size = size
        self.scales = tuple(scales)
        self.flip = flip

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """
        Raises:
            ValueError: asked for evaluation, which takes whole images (BoxPromptDatasetMapper).
        """
        if not is_train:
            raise ValueError("ClassMaskDatasetMapper is for training; evaluation uses BoxPromptDatasetMapper")
        return {
            "image_format": cfg.INPUT.FORMAT,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "size": cfg.INPUT.CLASS_CROP.SIZE,
            "scales": cfg.INPUT.CLASS_CROP.SCALES,
            "flip": cfg.INPUT.CLASS_CROP.FLIP,
        }

    def training_samples(self, cfg: CfgNode) -> list[dict[str, Any]]:
        """See :func:`class_samples`."""
        return class_samples(get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False))

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            sample: of :func:`class_samples`: ``class_id``, and the ``annotations`` of that class.

        Returns:
            ``image`` (C×S×S uint8), ``box_mask`` (S×S bool: the union of the class's boxes), ``target`` (S/4×S/4
            uint8: 1 the class, 0 what it is not, padding included, 255 crowd regions of the class), ``class_id``,
            ``image_id`` and ``file_name``.

        Raises:
            FileNotFoundError, ValueError: the image is missing or damaged, or has another size than the dict says; a
                mask is damaged.
        """
        image = read_image(sample["file_name"], self.image_format)
        detection_utils.check_image_size(sample, image)
        height, width = image.shape[:2]
        objects = [obj for obj in sample["annotations"] if not obj.get("iscrowd", 0)]
        boxes = [BoxMode.convert(list(obj["bbox"]), obj["bbox_mode"], BoxMode.XYXY_ABS) for obj in objects]
        corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        union = (*corners[:, :2].amin(dim=0).tolist(), *corners[:, 2:].amax(dim=0).tolist())
        window = random_window(height, width, self.size, self.scales, self.flip, union)

        inside = rasterize_boxes(corners, (height, width)).numpy()
        try:
            target = class_target(sample["annotations"], height, width)
        except ValueError as error:
            raise ValueError(f"A mask of '{sample['file_name']}' cannot be used: {error}") from error
        target = crop_labels(target, window, self.size, 0, TARGET_STRIDE)
        return {
            "image": torch.from_numpy(crop_image(image, window, self.size, self.pixel_mean)),
            "box_mask": torch.from_numpy(crop_labels(inside, window, self.size, 0)),
            "target": torch.from_numpy(target),
            "class_id": sample["class_id"],
            "image_id": sample["image_id"],
            "file_name": sample["file_name"],
        }


def class_samples(dataset_dicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One sample per image and class that it holds, out of Detectron2 dataset dicts with masks.

    Returns:
        Dicts of ``file_name``, ``height``, ``width``, ``image_id``, ``class_id`` and the ``annotations`` of that class,
        crowd regions included; a crowd region alone makes no sample. Classes of an image are in order of appearance.

    Raises:
        ValueError: an object has no mask, or there is no object at all.
    """
    samples = []
    for record in dataset_dicts:
        by_class: dict[int, list[dict[str, Any]]] = {}
        for annotation in record.get("annotations", ()):
            by_class.setdefault(annotation["category_id"], []).append(annotation)
        for class_id, annotations in by_class.items():
            objects = [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]
            if not all(annotation.get("segmentation") for annotation in objects):
                raise ValueError(
                    f"An object of '{record['file_name']}' has no mask, but ClassMaskDatasetMapper learns from masks. "
                    "Name data sets with masks in DATASETS.TRAIN, e.g. coco60_2017_train and not coco60_2017_train_box."
                )
            if objects:
                keys = ("file_name", "height", "width", "image_id")
                samples.append({**{key: record[key] for key in keys}, "class_id": class_id, "annotations": annotations})
    if not samples:
        raise ValueError("The training data sets hold no object with a mask: check DATASETS.TRAIN.")
    logger.info("Training on %d pairs of an image and a class of %d images", len(samples), len(dataset_dicts))
    return samples


def class_target(annotations: Sequence[dict[str, Any]], height: int, width: int) -> np.ndarray:
    """Mask of all objects among the annotations.

    Args:
        annotations: with ``segmentation`` as polygons or compressed RLE; crowd regions may be among them.
        height, width: of the image.

    Returns:
        H×W uint8: 1 objects, 255 crowd regions outside of them, 0 the rest.
    """
    target = union([obj["segmentation"] for obj in annotations if not obj.get("iscrowd", 0)], height, width)
    crowds = [obj["segmentation"] for obj in annotations if obj.get("iscrowd", 0) and obj.get("segmentation")]
    if crowds:
        target[(union(crowds, height, width) > 0) & (target == 0)] = IGNORE_LABEL
    return target
