"""The masks of the boxes of one image, to use, to look at, and to keep."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from boxsup_d2.data.formats.rotated_boxes import ROTATED_BOX
from boxsup_d2.masks.box_masks import BoxMasks
from boxsup_d2.masks.confidence import mask_confidence
from boxsup_d2.masks.rle import encode_window
from boxsup_d2.report.overlays import DrawnObject, draw_objects

__all__ = ["Prediction", "to_xywh"]


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """The masks of the N boxes of one image of H×W, in the order of the boxes.

    Attributes:
        box_masks: the masks in their boxes. Not merged: masks of boxes that overlap may share pixels; BoxMask's do only
            where one box lies in another.
        scores: N, 0..1, how sure the method is; 1 for those that know no probabilities.
        confidence: N, 0..1, the IoU of the given box and the smallest one, as it lies, around the mask; 0 for an empty
            mask.
        quality: N, 0..1, the IoU with the true mask to be expected of the mask; 0 for an empty one.
        boxes: N×4, x0, y0, x1, y1 in pixels, as they were given; around rotated boxes.
        image: H×W×3 uint8, R, G, B, that was asked about; needed to look at the masks alone.
        rotated_boxes: N×5, cx, cy, w, h, degrees counter-clockwise, where such were given.
    """

    box_masks: BoxMasks
    scores: np.ndarray
    confidence: np.ndarray
    quality: np.ndarray
    boxes: np.ndarray
    image: np.ndarray | None = None
    rotated_boxes: np.ndarray | None = None

    @cached_property
    def masks(self) -> np.ndarray:
        """The masks as N×H×W bool, made when first asked for; of many masks or a large image this is much memory."""
        return self.box_masks.full().numpy()

    def __repr__(self) -> str:
        height, width = self.box_masks.image_size
        quality = f", mean quality {self.quality.mean():.2f}" if len(self) else ""
        return f"Prediction({len(self)} masks on {width}×{height} pixels{quality})"

    def __len__(self) -> int:
        return len(self.box_masks)

    def to_coco(
        self, image_id: int = 1, category_ids: Sequence[int] | None = None, first_id: int = 1
    ) -> list[dict[str, Any]]:
        """The masks as annotations of a COCO json.

        Args:
            image_id: of the image.
            category_ids: N ids; None: 1 for all.
            first_id: id of the first annotation; the others count on.

        Returns:
            Annotations with ``id``, ``image_id``, ``category_id``, ``bbox`` (x, y, width, height), ``iscrowd`` 0,
            ``segmentation`` (compressed RLE with str counts), ``area``, ``score``, and ``confidence``,
            ``confidence_exact`` and ``quality`` with the meaning that they have in the files of :func:`label`; of
            rotated boxes also ``rotated_box``. All are plain Python values, ready for ``json.dump``.

        Raises:
            ValueError: there are not as many categories as masks.
        """
        if category_ids is not None and len(category_ids) != len(self):
            raise ValueError(f"{len(category_ids)} category_ids for {len(self)} masks: give one per mask, or None.")
        height, width = self.box_masks.image_size
        boxes = to_xywh(self.boxes)
        # Published is one of upright boxes alone.
        published = mask_confidence(self.box_masks, boxes) if self.rotated_boxes is None else self.confidence
        areas = self.box_masks.areas()
        return [
            {
                "id": first_id + index,
                "image_id": image_id,
                "category_id": 1 if category_ids is None else int(category_ids[index]),
                "bbox": boxes[index],
                "iscrowd": 0,
                "segmentation": encode_window(part.numpy().T, *corner, height, width),
                "area": areas[index],
                "score": float(self.scores[index]),
                "confidence": float(published[index]),
                "confidence_exact": float(self.confidence[index]),
                "quality": float(self.quality[index]),
                **({} if self.rotated_boxes is None else {ROTATED_BOX: self.rotated_boxes[index].tolist()}),
            }
            for index, (part, corner) in enumerate(zip(self.box_masks.parts, self.box_masks.corners, strict=True))
        ]

    def plot(self) -> Image.Image:
        """The image with its masks, boxes and qualities over it.

        Raises:
            ValueError: there is no image.
        """
        if self.image is None:
            raise ValueError("This prediction was made without its image: there is nothing to draw on.")
        boxes = to_xywh(self.boxes) if self.rotated_boxes is None else self.rotated_boxes
        objects = (
            DrawnObject(mask.numpy(), box, number, f"{quality:.2f}")
            for number, (mask, box, quality) in enumerate(zip(self.box_masks, boxes, self.quality, strict=True))
        )
        return Image.fromarray(draw_objects(self.image[:, :, ::-1], objects)[:, :, ::-1])

    def save(self, path: str | os.PathLike) -> None:
        """Write :meth:`plot` to a file, in the format that its ending says."""
        self.plot().save(path)

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: the picture, where there is an image."""
        if self.image is None:
            return None
        buffer = io.BytesIO()
        self.plot().save(buffer, format="PNG")
        return buffer.getvalue()


def to_xywh(boxes: np.ndarray) -> list[list[float]]:
    """N×4 corners as x, y, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
