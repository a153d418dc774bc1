"""Training samples of BoxMask: a box with its surroundings, where the box is, and its mask where there is one.

Images are read and cached whole, other samples' objects are pasted in, and only then the window is cut, so that box,
mask and pixels always agree. Random numbers are NumPy's global ones, which the loader seeds per sample.

Shape legend: H x W an image, S the side of a sample.
"""

import sys
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable

from boxsup_d2.data.dataset_mappers.build import DATASET_MAPPER_REGISTRY, SampleMapper
from boxsup_d2.data.dataset_mappers.marks import surface_with_mark
from boxsup_d2.data.dataset_mappers.mask_crop_loader import build_mask_crop_train_loader
from boxsup_d2.data.images import ImageCache, read_image
from boxsup_d2.masks.rle import decode, union
from boxsup_d2.masks.windows import Box, Window, box_coverage, box_window, clip_box, cut_window

# An object of which less than this is left by what was pasted over it is no longer that object.
_MIN_VISIBLE = 0.5


@DATASET_MAPPER_REGISTRY.register()
class MaskCropDatasetMapper(SampleMapper):
    """One box, with or without a mask, to one square sample."""

    @configurable
    def __init__(
        self,
        *,
        image_format: str,
        ignore_void: bool = True,
        size: int = 128,
        margin: float = 0.25,
        max_aspect: float = 2.0,
        margin_jitter: float = 0.0,
        box_jitter: float = 0.15,
        jitter_prob: float = 0.5,
        paste_prob: float = 0.35,
        turn_prob: float = 0.0,
        coarse_prob: float = 0.0,
        color_jitter: float = 0.4,
        camera_prob: float = 0.0,
        mark_prob: float = 0.0,
        plain_view: bool = False,
        min_side: float = 8,
        cache_mb: int = 0,
    ) -> None:
        """
        Args:
            image_format: channel order, "RGB" or "BGR".
            ignore_void: False: pixels of unknown label are background.
            size: side of the samples, pixels.
            margin, max_aspect: see :func:`boxsup_d2.masks.windows.box_window`.
            margin_jitter: largest relative change of the margin, of each side by itself.
            box_jitter: largest move of an edge of the box, as a share of its side.
            jitter_prob: how often the box is jittered at all.
            paste_prob: how often another sample's object is pasted in.
            turn_prob: how often a sample is turned by a quarter or a half.
            coarse_prob: how often the pixels, not the mask, lose their detail, see :func:`coarsen`.
            color_jitter: largest relative change of brightness, contrast and saturation.
            camera_prob: how often a sample looks as if taken by another kind of camera, see :func:`other_camera`.
            mark_prob: how often a sample is a mark on a surface instead, see
                :func:`boxsup_d2.data.dataset_mappers.marks.surface_with_mark`.
            plain_view: also give the sample before its colours are changed.
            min_side: an object that pasting leaves smaller than this, in pixels, is left as it was.
            cache_mb: memory for decoded images, in MiB.
        """
        self.image_format = image_format
        self.ignore_void = ignore_void
        self.size = size
        self.margin = margin
        self.max_aspect = max_aspect
        self.margin_jitter = margin_jitter
        self.box_jitter = box_jitter
        self.jitter_prob = jitter_prob
        self.paste_prob = paste_prob
        self.turn_prob = turn_prob
        self.coarse_prob = coarse_prob
        self.color_jitter = color_jitter
        self.camera_prob = camera_prob
        self.mark_prob = mark_prob
        self.plain_view = plain_view
        self.min_side = min_side
        self.cache_mb = cache_mb
        self._read: ImageCache | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """
        Raises:
            ValueError: asked for evaluation, which takes whole images (BoxPromptDatasetMapper).
        """
        if not is_train:
            raise ValueError("MaskCropDatasetMapper is for training; evaluation uses BoxPromptDatasetMapper")
        node = cfg.INPUT.MASK_CROP
        return {
            "image_format": cfg.INPUT.FORMAT,
            "ignore_void": cfg.INPUT.IGNORE_VOID,
            "size": node.SIZE,
            "margin": node.MARGIN,
            "max_aspect": node.MAX_ASPECT,
            "margin_jitter": node.MARGIN_JITTER,
            "box_jitter": node.BOX_JITTER,
            "jitter_prob": node.JITTER_PROB,
            "paste_prob": node.PASTE_PROB,
            "turn_prob": node.TURN_PROB,
            "coarse_prob": node.COARSE_PROB,
            "color_jitter": node.COLOR_JITTER,
            "camera_prob": node.CAMERA_PROB,
            "mark_prob": node.MARK_PROB,
            "plain_view": node.PLAIN_VIEW,
            "min_side": node.MIN_SIDE,
            "cache_mb": node.CACHE_MB,
        }

    def build_train_loader(self, cfg: CfgNode, seed: int) -> Any:
        """See :func:`boxsup_d2.data.dataset_mappers.mask_crop_loader.build_mask_crop_train_loader`."""
        return build_mask_crop_train_loader(cfg, self, seed)

    def __call__(self, sample: dict[str, Any], donor: dict[str, Any] | None = None) -> dict[str, Any]:
        """
        Args:
            sample: of :func:`boxsup_d2.data.dataset_mappers.mask_crop_loader.mask_samples`.
            donor: another one, whose object may be pasted in where it has a mask; its image and the mask's outline may
                become marks.

        Returns:
            ``image`` (3 x S x S uint8), ``box`` (S x S uint8, coverage by the box in 0..255), ``mask`` (S x S uint8,
            in 0..255; zeros without one), ``void`` (S x S uint8, coverage by pixels of unknown label), ``has_mask`` and
            ``confidence`` (0..1: of a predicted mask; 1 of any other). With ``plain_view`` also ``plain``, the image
            before its colours were changed, and ``seen`` (S x S uint8, coverage by the image).

        Raises:
            FileNotFoundError, ValueError: the image or mask is missing, damaged, or their sizes differ.
        """
        image = self._image(sample["file_name"])
        mask: np.ndarray | None
        if donor is not None and self.mark_prob > 0 and np.random.rand() < self.mark_prob:
            other = self._image(donor["file_name"])
            image, mask = surface_with_mark(image, other, self._mask(donor, *other.shape[:2]))
            sample, void = {"file_name": sample["file_name"]}, None
        else:
            mask, void = self._mask(sample, *image.shape[:2]), self._void(sample, *image.shape[:2])
        confidence, box = sample.get("confidence", 1.0), sample.get("box")
        if mask is not None and confidence >= 1 and (box is None or "segmentations" in sample):
            box = tight_box(mask)
        if box is None:
            # An empty mask has no box: the whole image then is background.
            box = (0.0, 0.0, float(image.shape[1]), float(image.shape[0]))
        if mask is not None and confidence >= 1 and donor is not None and np.random.rand() < self.paste_prob:
            image, mask, void, box = self._paste(image, mask, void, box, donor)
        if np.random.rand() < self.jitter_prob:
            box = self.jitter(box)
        box = clip_box(box, *image.shape[:2])
        window = self.window(box)
        crop = cut_window(image, window, self.size)
        cover = np.rint(box_coverage(box, window, self.size) * 255).astype(np.uint8)
        maps = [np.zeros_like(cover) if m is None else cut_mask(m, window, self.size) for m in (mask, void)]
        arrays = {"image": crop, "box": cover, **dict(zip(("mask", "void"), maps, strict=True))}
        if self.plain_view:
            whole = (0.0, 0.0, float(image.shape[1]), float(image.shape[0]))
            arrays["seen"] = np.rint(box_coverage(whole, window, self.size) * 255).astype(np.uint8)
        if np.random.rand() < 0.5:
            arrays = {key: a[:, ::-1] for key, a in arrays.items()}
        if np.random.rand() < self.turn_prob:
            quarters = np.random.randint(1, 4)
            arrays = {key: np.rot90(a, quarters) for key, a in arrays.items()}
        if np.random.rand() < self.coarse_prob:
            arrays["image"] = coarsen(arrays["image"], np.random.uniform(0.2, 0.6))
        if self.plain_view:
            arrays["plain"] = arrays["image"]
        arrays["image"] = jitter_colors(arrays["image"], self.color_jitter)
        if np.random.rand() < self.camera_prob:
            arrays["image"] = other_camera(arrays["image"])
        tensors = {
            key: torch.from_numpy(np.ascontiguousarray(a.transpose(2, 0, 1) if a.ndim == 3 else a))
            for key, a in arrays.items()
        }
        return {**tensors, "has_mask": mask is not None, "confidence": confidence}

    def window(self, box: Box) -> Window:
        """What is seen of a box: the margin of each side is drawn by itself."""
        if self.margin_jitter <= 0:
            return box_window(box, self.margin, self.max_aspect)
        left, top, right, bottom = self.margin * np.random.uniform(1 - self.margin_jitter, 1 + self.margin_jitter, 4)
        width, height = box[2] - box[0], box[3] - box[1]
        around = box[0] - left * width, box[1] - top * height, box[2] + right * width, box[3] + bottom * height
        return box_window(around, 0.0, self.max_aspect)

    def jitter(self, box: Box) -> Box:
        """The box with every edge moved by up to the same random share of its side."""
        most = np.random.uniform(0, self.box_jitter)
        x0, y0, x1, y1 = np.random.uniform(-most, most, 4)
        width, height = box[2] - box[0], box[3] - box[1]
        return box[0] + x0 * width, box[1] + y0 * height, box[2] + x1 * width, box[3] + y1 * height

    def _paste(
        self, image: np.ndarray, mask: np.ndarray, void: np.ndarray | None, box: Box, donor: dict[str, Any]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, Box]:
        """Another sample's object over the object of this one, or beside and behind it."""
        unchanged = image, mask, void, box
        other = self._image(donor["file_name"])
        other_mask = self._mask(donor, *other.shape[:2])
        other_box = None if other_mask is None else tight_box(other_mask)
        if other_mask is None or other_box is None:
            return unchanged
        left, top, right, bottom = (int(v) for v in other_box)
        piece, shape = other[top:bottom, left:right], other_mask[top:bottom, left:right]
        # Its longer side is 0.3 to 1.2 of the box's; its centre lies in the box or a quarter of it beyond.
        width, height = box[2] - box[0], box[3] - box[1]
        scale = np.random.uniform(0.3, 1.2) * max(width, height) / max(piece.shape[:2])
        sides = max(round(piece.shape[1] * scale), 2), max(round(piece.shape[0] * scale), 2)
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        piece, shape = cv2.resize(piece, sides, interpolation=way), cv2.resize(shape, sides, interpolation=way)
        if np.random.rand() < 0.5:
            piece, shape = piece[:, ::-1], shape[:, ::-1]
        x = int(box[0] + np.random.uniform(-0.25, 1.25) * width - sides[0] / 2)
        y = int(box[1] + np.random.uniform(-0.25, 1.25) * height - sides[1] / 2)
        x0, y0 = max(x, 0), max(y, 0)
        x1, y1 = min(x + sides[0], image.shape[1]), min(y + sides[1], image.shape[0])
        if x0 >= x1 or y0 >= y1:
            return unchanged
        place, part = np.s_[y0:y1, x0:x1], np.s_[y0 - y : y1 - y, x0 - x : x1 - x]
        alpha = shape[part].astype(np.float32) / 255
        behind = np.random.rand() < 0.5
        visible = mask.copy()
        if behind:
            # Void may be the object as well: what is pasted stays behind both.
            front = mask[place] if void is None else np.maximum(mask[place], void[place])
            alpha = alpha * (1 - front.astype(np.float32) / 255)
        else:
            visible[place] = np.rint(visible[place] * (1 - alpha)).astype(np.uint8)
        new_box = tight_box(visible)
        if new_box is None or (visible > 127).sum() < _MIN_VISIBLE * (mask > 127).sum():
            return unchanged
        if min(new_box[2] - new_box[0], new_box[3] - new_box[1]) < self.min_side:
            return unchanged
        pasted = image.copy()
        alpha = alpha[:, :, None]
        pasted[place] = np.rint(image[place] * (1 - alpha) + piece[part] * alpha).astype(np.uint8)
        if void is not None:
            void = void.copy()
            void[place] = np.rint(void[place] * (1 - alpha[:, :, 0])).astype(np.uint8)
        return pasted, visible, void, box if behind else new_box

    def _image(self, file_name: str) -> np.ndarray:
        if self._read is None:
            # Made on first use, in the worker process, which then has a cache of its own.
            self._read = ImageCache(self.image_format, sys.maxsize, self.cache_mb << 20)
        return self._read(file_name)

    def _mask(self, sample: dict[str, Any], height: int, width: int) -> np.ndarray | None:
        """H x W uint8, 0 or 255; None where the sample has no mask."""
        if "mask_file_name" in sample:
            mask = read_image(sample["mask_file_name"], "L")[:, :, 0]
            if mask.shape != (height, width):
                raise ValueError(
                    f"mask '{sample['mask_file_name']}' is {mask.shape[1]}x{mask.shape[0]} pixels, but its image "
                    f"'{sample['file_name']}' {width}x{height}"
                )
            return np.where(mask > 127, np.uint8(255), np.uint8(0))
        segmentations = sample.get("segmentations")
        if not segmentations:
            return None
        try:
            mask = union(segmentations, height, width)
        except ValueError as error:
            raise ValueError(f"A mask of '{sample['file_name']}' cannot be used: {error}") from error
        return mask * np.uint8(255)

    def _void(self, sample: dict[str, Any], height: int, width: int) -> np.ndarray | None:
        """H x W uint8, 255 where the label is unknown; None where it nowhere is."""
        if not self.ignore_void or "void" not in sample:
            return None
        return np.where(decode(sample["void"], height, width).T, np.uint8(255), np.uint8(0))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_read": None}


def tight_box(mask: np.ndarray) -> Box | None:
    """Box of what is above 127 in an H x W mask; None where nothing is."""
    x, y, width, height = cv2.boundingRect((mask > 127).astype(np.uint8))
    return (float(x), float(y), float(x + width), float(y + height)) if width else None


def cut_mask(mask: np.ndarray, window: tuple[int, int, int, int], size: int) -> np.ndarray:
    """size x size uint8 of an H x W mask; nothing is beyond the image."""
    three = cut_window(cv2.merge([mask, mask, mask]), window, size)[:, :, 0]
    left, top, right, bottom = window
    height, width = mask.shape
    if left < 0 or top < 0 or right > width or bottom > height:
        # cut_window's grey beyond the image is no half mask.
        inside = box_coverage((0.0, 0.0, float(width), float(height)), window, size)
        three = np.clip(three - 127 * (1 - inside), 0, 255).astype(np.uint8)
    return three


def coarsen(image: np.ndarray, share: float) -> np.ndarray:
    """S x S x 3 image as it looks where only ``share`` of its side was photographed."""
    side = max(round(share * image.shape[0]), 2)
    small = cv2.resize(np.ascontiguousarray(image), (side, side), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)


def jitter_colors(image: np.ndarray, most: float) -> np.ndarray:
    """H x W x 3 uint8 with brightness, contrast and saturation changed by up to ``most``; rarely grey or blurred."""
    if most <= 0:
        return image
    contrast, brightness, saturation = np.random.uniform(1 - most, 1 + most, 3)
    if np.random.rand() < 0.1:
        saturation = 0.0
    pixels = image.astype(np.float32)
    grey = pixels.mean(axis=2, keepdims=True)
    pixels = grey + (pixels - grey) * np.float32(saturation)
    mean = np.float32(grey.mean())
    pixels = ((pixels - mean) * np.float32(contrast) + mean) * np.float32(brightness)
    pixels *= np.random.uniform(0.9, 1.1, 3).astype(np.float32)
    if np.random.rand() < 0.15:
        pixels = cv2.GaussianBlur(pixels, (0, 0), np.random.uniform(0.5, 1.5))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def other_camera(image: np.ndarray) -> np.ndarray:
    """H x W x 3 uint8 as of another camera or light: grey or in other colours, pale, dim or a negative, noisy."""
    pixels: np.ndarray = image.astype(np.float32)
    tone, light = np.random.rand(2)
    if light < 0.2:
        pixels = 255 - pixels
    elif light < 0.6:
        gamma, low, span = np.exp(np.random.uniform(-1, 1)), np.random.uniform(0, 100), np.random.uniform(60, 155)
        pixels = np.float32(low) + np.float32(span) * (pixels / 255) ** np.float32(gamma)
    if np.random.rand() < 0.5:
        pixels = pixels + np.random.normal(0, np.random.uniform(3, 20), pixels.shape).astype(np.float32)
    if tone < 0.4:
        pixels = np.repeat(pixels @ np.random.dirichlet((1, 1, 1)).astype(np.float32)[:, None], 3, axis=2)
    elif tone < 0.6:
        pixels = pixels[:, :, np.random.permutation(3)]
    return pixels.clip(0, 255).astype(np.uint8)
