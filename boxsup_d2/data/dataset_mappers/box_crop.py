"""Training samples of box-to-mask networks: a jittered crop around a box, maybe with its mask, or a salient image."""

import math
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import get_detection_dataset_dicts
from detectron2.structures import BoxMode

from boxsup_d2.data.dataset_mappers.build import DATASET_MAPPER_REGISTRY, SampleMapper
from boxsup_d2.data.dataset_mappers.joint import build_joint_train_loader
from boxsup_d2.data.images import ImageCache, read_image
from boxsup_d2.data.samplers import LANES
from boxsup_d2.masks.rle import decode

_FLIP_CODES = {"none": None, "horizontal": 1, "vertical": 0}


@DATASET_MAPPER_REGISTRY.register()
class BoxCropDatasetMapper(SampleMapper):
    """One box, or one salient image, to one square crop with its mask (BoxCaseg, section 3.1).

    All augmentation is OpenCV's, on uint8; random numbers are NumPy's global ones, which the loader seeds per sample.
    """

    one_size = True

    @configurable
    def __init__(
        self,
        *,
        image_format: str,
        size: int = 288,
        salient_size: int = 320,
        center_jitter: float = 0.25,
        scale_jitter: float = 0.5,
        box_flip: str = "none",
        salient_flip: str = "horizontal",
        salient_crop: str = "random",
        antialias: bool = False,
        cached_images: int = 0,
    ) -> None:
        """
        Args:
            image_format: channel order, "RGB" or "BGR".
            size: side of the crops, pixels.
            salient_size: side of a salient image before its random crop, pixels, >= size.
            center_jitter: largest shift of a box's centre, in half-sides.
            scale_jitter: largest relative change of a box's half-sides.
            box_flip, salient_flip: "none", "horizontal" or "vertical", each with probability 1/2.
            salient_crop: "random": a random window of the salient image (published); "box": a jittered crop around
                the tight box of its mask, so that these samples look like the boxes that are asked at inference.
            antialias: average the pixels that a shrinking resize merges.
            cached_images: decoded images to keep, for samplers that put the boxes of an image close together.
        """
        for key, value in (("BOX_FLIP", box_flip), ("SALIENT_FLIP", salient_flip)):
            if value not in _FLIP_CODES:
                raise ValueError(f"INPUT.BOX_CROP.{key} must be one of {', '.join(_FLIP_CODES)}, not '{value}'")
        if salient_crop not in ("random", "box"):
            raise ValueError(f"INPUT.BOX_CROP.SALIENT_CROP must be 'random' or 'box', not '{salient_crop}'")
        if salient_size < size:
            raise ValueError(f"INPUT.BOX_CROP.SALIENT_SIZE ({salient_size}) is smaller than TRAIN_SIZE ({size})")
        self.image_format = image_format
        self.size = size
        self.salient_size = salient_size
        self.center_jitter = center_jitter
        self.scale_jitter = scale_jitter
        self.box_flip = _FLIP_CODES[box_flip]
        self.salient_flip = _FLIP_CODES[salient_flip]
        self.crop_salient_box = salient_crop == "box"
        self.antialias = antialias
        self.cached_images = cached_images
        self._read: ImageCache | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """
        Raises:
            ValueError: asked for evaluation, which takes whole images (BoxPromptDatasetMapper).
        """
        if not is_train:
            raise ValueError("BoxCropDatasetMapper is for training; evaluation uses BoxPromptDatasetMapper")
        node = cfg.INPUT.BOX_CROP
        return {
            "image_format": cfg.INPUT.FORMAT,
            "size": node.TRAIN_SIZE,
            "salient_size": node.SALIENT_SIZE,
            "center_jitter": node.CENTER_JITTER,
            "scale_jitter": node.SCALE_JITTER,
            "box_flip": node.BOX_FLIP,
            "salient_flip": node.SALIENT_FLIP,
            "salient_crop": node.SALIENT_CROP,
            "antialias": node.ANTIALIAS,
            # Those of the windows that one worker meets.
            "cached_images": cfg.DATALOADER.IMAGE_WINDOW * math.ceil(LANES / max(cfg.DATALOADER.NUM_WORKERS, 1)),
        }

    def training_samples(self, cfg: CfgNode) -> list[dict[str, Any]]:
        """See :func:`box_samples`."""
        dicts = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False, check_consistency=False)
        return box_samples(dicts)

    def build_train_loader(self, cfg: CfgNode, seed: int) -> Any:
        """See :func:`~boxsup_d2.data.dataset_mappers.joint.build_joint_train_loader`."""
        return build_joint_train_loader(cfg, self, seed)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            sample: of :func:`box_samples`: ``file_name`` and ``box`` (x0, y0, x1, y1), with or
                without ``segmentation``; or of a salient data set: ``file_name`` and ``mask_file_name``.

        Returns:
            ``image`` (3 x S x S uint8), ``mask`` (S x S uint8, 0 or 1: inside the box; or the object, where there is a
            mask) and ``is_salient``: whether ``mask`` is an object's.

        Raises:
            FileNotFoundError, ValueError: the image or mask is missing, damaged, or their sizes differ.
        """
        is_salient = "mask_file_name" in sample or "segmentation" in sample
        image, mask = self._salient(sample) if "mask_file_name" in sample else self._box_crop(sample)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "mask": torch.from_numpy(np.ascontiguousarray(mask)),
            "is_salient": is_salient,
        }

    def _box_crop(self, sample: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        image = self._image(sample["file_name"])
        height, width = image.shape[:2]
        left, top, right, bottom = self.jitter(sample["box"], height, width)
        if "segmentation" in sample:
            inside = self._mask(sample, height, width)[top:bottom, left:right]
        else:
            x0, y0, x1, y1 = clip_box(sample["box"], height, width)
            inside = np.zeros((bottom - top, right - left), np.uint8)
            inside[max(y0 - top, 0) : max(y1 - top, 0), max(x0 - left, 0) : max(x1 - left, 0)] = 1
        crop = self._resize(image[top:bottom, left:right], self.size)
        mask = cv2.resize(inside, (self.size, self.size), interpolation=cv2.INTER_NEAREST)
        return random_flip(self.box_flip, crop, mask)

    @staticmethod
    def _mask(sample: dict[str, Any], height: int, width: int) -> np.ndarray:
        """The object's mask, H×W uint8."""
        try:
            return decode(sample["segmentation"], height, width).T.view(np.uint8)
        except ValueError as error:
            raise ValueError(f"A mask of '{sample['file_name']}' cannot be used: {error}") from error

    def jitter(self, box: tuple[float, float, float, float], height: int, width: int) -> tuple[int, int, int, int]:
        """Randomly shifted and scaled box, clipped to the image, at least 1 px: (left, top, right, bottom)."""
        half_w, half_h = (box[2] - box[0]) / 2, (box[3] - box[1]) / 2
        shift = np.random.uniform(-self.center_jitter, self.center_jitter, 2)
        scale = np.random.uniform(1 - self.scale_jitter, 1 + self.scale_jitter, 2)
        center_x, center_y = (box[0] + box[2]) / 2 + shift[0] * half_w, (box[1] + box[3]) / 2 + shift[1] * half_h
        half_w, half_h = half_w * scale[0], half_h * scale[1]
        return clip_box((center_x - half_w, center_y - half_h, center_x + half_w, center_y + half_h), height, width)

    def _salient(self, sample: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        image = read_image(sample["file_name"], self.image_format)
        mask = read_image(sample["mask_file_name"], "L")[:, :, 0]
        if mask.shape != image.shape[:2]:
            raise ValueError(
                f"mask '{sample['mask_file_name']}' is {mask.shape[1]}x{mask.shape[0]} pixels, but its image "
                f"'{sample['file_name']}' {image.shape[1]}x{image.shape[0]}"
            )
        mask = (mask > 127).astype(np.uint8)
        if self.crop_salient_box:
            x, y, width, height = cv2.boundingRect(mask)
            # An empty mask has no box: the whole image then is background.
            box = (x, y, x + width, y + height) if width else (0, 0, mask.shape[1], mask.shape[0])
            left, top, right, bottom = self.jitter(box, *mask.shape)
            crop = self._resize(image[top:bottom, left:right], self.size)
            mask = cv2.resize(mask[top:bottom, left:right], (self.size, self.size), interpolation=cv2.INTER_NEAREST)
            return random_flip(self.salient_flip, crop, mask)
        image = self._resize(image, self.salient_size)
        mask = cv2.resize(mask, (self.salient_size, self.salient_size), interpolation=cv2.INTER_NEAREST)
        top, left = np.random.randint(0, self.salient_size - self.size + 1, 2)
        window = np.s_[top : top + self.size, left : left + self.size]
        return random_flip(self.salient_flip, image[window], mask[window])

    def _resize(self, image: np.ndarray, size: int) -> np.ndarray:
        # OpenCV's bilinear picks four source pixels however much the image shrinks. INTER_AREA averages all of them,
        # but only where no axis grows, so the axes that shrink go first.
        if self.antialias:
            height, width = image.shape[:2]
            image = cv2.resize(image, (min(width, size), min(height, size)), interpolation=cv2.INTER_AREA)
        return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)

    def _image(self, file_name: str) -> np.ndarray:
        if self._read is None:
            # Made on first use, in the worker process, which then has a cache of its own.
            self._read = ImageCache(self.image_format, self.cached_images)
        return self._read(file_name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_read": None}


def clip_box(box: tuple[float, ...], height: int, width: int) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) truncated to integers and clipped to the image, at least 1 px wide and high."""
    x0, y0 = min(max(int(box[0]), 0), width - 1), min(max(int(box[1]), 0), height - 1)
    return x0, y0, min(max(int(box[2]), x0 + 1), width), min(max(int(box[3]), y0 + 1), height)


def random_flip(code: int | None, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flip both with probability 1/2; ``code`` is OpenCV's (1: horizontal, 0: vertical), None never flips."""
    if code is None or np.random.rand() < 0.5:
        return image, mask
    return cv2.flip(image, code), cv2.flip(mask, code)


def box_samples(dataset_dicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One sample per box and one per salient image, out of Detectron2 dataset dicts.

    Masks are read off dicts that are ``fully_supervised`` (:func:`boxsup_d2.data.datasets.register_coco_masks`) and off
    no others: a data set with masks in its dicts still counts as boxes, unless it was registered for its masks.

    Returns:
        Dicts of ``file_name``, ``image`` (position of the dict, the same for all boxes of an image), and either
        ``box`` (x0, y0, x1, y1 in pixels) or ``mask_file_name``. A box whose mask may be learned from also has
        ``segmentation`` (polygons or RLE). Crowd regions are left out.
    """
    samples = []
    for image, d in enumerate(dataset_dicts):
        if "mask_file_name" in d:
            samples.append({"file_name": d["file_name"], "image": image, "mask_file_name": d["mask_file_name"]})
            continue
        for annotation in d["annotations"]:
            if annotation.get("iscrowd", 0):
                continue
            box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
            sample = {"file_name": d["file_name"], "image": image, "box": tuple(box)}
            if d.get("fully_supervised", False) and annotation.get("segmentation"):
                sample["segmentation"] = annotation["segmentation"]
            samples.append(sample)
    return samples
