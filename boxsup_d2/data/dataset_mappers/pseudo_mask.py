"""Training mapper of networks that are retrained on pseudo masks (BoxCaseg, third step)."""

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances

from boxsup_d2.data.dataset_mappers.build import DATASET_MAPPER_REGISTRY
from boxsup_d2.masks.rle import decode


@DATASET_MAPPER_REGISTRY.register()
class PseudoMaskDatasetMapper(DatasetMapper):
    """Detectron2's ``DatasetMapper``, for instances whose mask is a guess or missing.

    Three things are added, all only where the model has a mask head (``MODEL.MASK_ON``):

    * ``instances`` gain ``gt_mask_confidence`` (N, float32, 0..1), which ``ConfidenceMaskRCNNConvUpsampleHead`` reads:
      the annotation's ``MODEL.ROI_MASK_HEAD.CONFIDENCE_KEY``, else its ``confidence``, 1 where it has neither, 0 where
      there is no mask to learn from: none given, or empty, or nothing left of it after augmentation.
    * An instance with a pseudo mask (an annotation with a confidence) or without any mask keeps its box and class
      whatever becomes of its mask: Detectron2 drops instances with empty masks, boxes and all, and takes new boxes
      from the masks after a random crop. Pseudo masks are not trusted with either.
    * ``instances`` gain ``gt_void`` (N equal masks) where the image has pixels of unknown label (``void_mask``), such
      as VOC's borders: as background they would teach masks that end inside their objects.

    Annotations with a true mask are treated exactly as Detectron2 does.
    """

    @configurable
    def __init__(self, is_train: bool, *, confidence_key: str, ignore_void: bool = True, **kwargs: Any):
        """
        Args:
            is_train: whether samples are augmented and carry ``instances``.
            confidence_key: annotation key that governs, such as "quality".
            ignore_void: False: no ``gt_void``, void pixels are background.
            kwargs: see Detectron2's ``DatasetMapper``.
        """
        super().__init__(is_train, **kwargs)
        self.confidence_key = confidence_key
        self.ignore_void = ignore_void

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Detectron2's arguments, ``MODEL.ROI_MASK_HEAD.CONFIDENCE_KEY`` and ``INPUT.IGNORE_VOID``."""
        return {
            **super().from_config(cfg, is_train),
            "confidence_key": cfg.MODEL.ROI_MASK_HEAD.CONFIDENCE_KEY,
            "ignore_void": cfg.INPUT.IGNORE_VOID,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """See ``DatasetMapper``; the dataset dict is left as it is.

        Raises:
            FileNotFoundError: the image is missing.
            ValueError: the image is damaged, or has another size than the dict says.
        """
        try:
            return super().__call__(dataset_dict)
        except FileNotFoundError:
            raise
        except OSError as error:  # Pillow's message on a truncated file does not say which one
            raise ValueError(
                f"Image '{dataset_dict['file_name']}' is damaged or no image ({error}). Replace or remove it."
            ) from error

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: T.TransformList, image_shape: tuple[int, int]
    ) -> None:
        """Called by Detectron2 (0.6 and main) with a copy of the dataset dict; sets its ``instances``."""
        if not self.use_instance_mask:
            super()._transform_annotations(dataset_dict, transforms, image_shape)
            return
        void = _void(dataset_dict, transforms) if self.ignore_void else None
        annotations = [obj for obj in dataset_dict.pop("annotations") if not obj.get("iscrowd", 0)]
        confidences = [mask_confidence(obj, self.confidence_key, dataset_dict["file_name"]) for obj in annotations]
        for obj in annotations:
            if not obj.get("segmentation"):
                obj.pop("segmentation", None)
            if not self.use_keypoint:
                obj.pop("keypoints", None)
            detection_utils.transform_instance_annotations(
                obj, transforms, image_shape, keypoint_hflip_indices=self.keypoint_hflip_indices
            )
        has_mask = torch.tensor(["segmentation" in obj for obj in annotations], dtype=torch.bool)
        is_true = torch.tensor([value is None for value in confidences], dtype=torch.bool) & has_mask
        for obj in annotations:
            obj.setdefault("segmentation", np.zeros(image_shape, np.uint8))
        # A missing or emptied mask has no polygon form.
        mask_format = self.instance_mask_format if bool(is_true.all()) else "bitmask"
        instances = detection_utils.annotations_to_instances(annotations, image_shape, mask_format=mask_format)
        if annotations:
            instances.gt_mask_confidence = torch.tensor([1.0 if value is None else value for value in confidences])
            if void is not None:
                instances.gt_void = BitMasks(void.expand(len(annotations), -1, -1))
            self._settle_boxes(instances, is_true)
            instances = _filter(instances, is_true)
        else:
            instances.gt_mask_confidence = torch.zeros(0)
        dataset_dict["instances"] = instances

    def _settle_boxes(self, instances: Instances, is_true: torch.Tensor) -> None:
        # After a random crop only true masks say where the rest of their object is.
        if self.recompute_boxes:
            tight = instances.gt_masks.get_bounding_boxes().tensor
            instances.gt_boxes.tensor[is_true] = tight[is_true].to(instances.gt_boxes.tensor.dtype)


def _void(dataset_dict: dict[str, Any], transforms: T.TransformList) -> torch.Tensor | None:
    """The image's void pixels after augmentation, H x W bool; None where it has none."""
    if "void_mask" not in dataset_dict:
        return None
    void = decode(dataset_dict["void_mask"], dataset_dict["height"], dataset_dict["width"]).T
    return torch.from_numpy(transforms.apply_segmentation(void.astype(np.uint8)).copy()).bool()


def mask_confidence(annotation: dict[str, Any], key: str, file_name: str) -> float | None:
    """Confidence of an annotation's pseudo mask, in 0..1; None where it has none, which means a true mask.

    Raises:
        ValueError: it is not in 0..1.
    """
    # Older files have no quality; a predicted mask must not pass for a true one there.
    key = key if annotation.get(key) is not None else "confidence"
    value = annotation.get(key)
    if value is None:
        return None
    if not 0.0 <= float(value) <= 1.0:
        raise ValueError(f"An annotation of '{file_name}' has {key} {value}: it must be between 0 and 1.")
    return float(value)


def _filter(instances: Instances, is_true: torch.Tensor) -> Instances:
    """Drop empty boxes, and true masks of which nothing is left; empty other masks lose their confidence only."""
    mask_nonempty = torch.as_tensor(instances.gt_masks.nonempty())
    instances.gt_mask_confidence = instances.gt_mask_confidence * mask_nonempty
    _, keep_box = detection_utils.filter_empty_instances(instances, by_mask=False, return_mask=True)
    return instances[keep_box & (mask_nonempty | ~is_true)]
