"""Detectron2's R-CNN that also takes box prompts, so that a retrained network is measured like its teachers."""

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.layers import paste_masks_in_image
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import Boxes, Instances
from torch.nn import functional as F

from boxsup_d2.masks.box_masks import BoxMasks, frames_at_once
from boxsup_d2.modeling.box_to_mask import BoxToMaskMethod, MethodInfo, box_to_mask_instances, mean_foreground


@META_ARCH_REGISTRY.register()
class PromptableRCNN(BoxToMaskMethod, GeneralizedRCNN):
    """``GeneralizedRCNN`` that predicts the masks of given boxes where the input holds some.

    Training, detection and parameters are Detectron2's. In evaluation, inputs with ``instances.gt_boxes`` (from
    ``BoxPromptDatasetMapper``: image and boxes in the original frame) are box prompts: the mask head runs on exactly
    these boxes and classes.
    """

    needs_prompts = False
    # GeneralizedRCNN's
    roi_heads: Any
    device: Any

    info = MethodInfo(
        summary="a trained Mask R-CNN, asked for the masks of given boxes",
        weights_key="MODEL.WEIGHTS",
        finds_objects=True,
    )

    @configurable
    def __init__(self, *, test_min_size: int, test_max_size: int, **kwargs: Any):
        """
        Args:
            test_min_size: shorter side in pixels that a prompted image is resized to; 0: not resized.
            test_max_size: limit of its longer side.
            kwargs: see Detectron2's ``GeneralizedRCNN``.
        """
        super().__init__(**kwargs)
        self.resize = T.ResizeShortestEdge([test_min_size, test_min_size], test_max_size)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Detectron2's arguments and ``INPUT.{MIN,MAX}_SIZE_TEST``."""
        return {
            **super().from_config(cfg),
            "test_min_size": cfg.INPUT.MIN_SIZE_TEST,
            "test_max_size": cfg.INPUT.MAX_SIZE_TEST,
        }

    @classmethod
    def num_known_classes(cls, cfg: CfgNode) -> int | None:
        """All of ``MODEL.ROI_HEADS.NUM_CLASSES``, where every class has a mask of its own."""
        return None if cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> Any:
        """Masks of box prompts where there are any; otherwise see ``GeneralizedRCNN.inference``."""
        prompts = batched_inputs[0].get("instances")
        if detected_instances is None and prompts is not None and prompts.has("gt_boxes"):
            return self.inference_with_prompts(batched_inputs)
        return super().inference(batched_inputs, detected_instances, do_postprocess)

    def inference_with_prompts(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Masks of given boxes.

        Args:
            batched_inputs: as ``BoxPromptDatasetMapper`` returns them.

        Returns:
            One ``{"instances": Instances}`` per image in prompt order, see :func:`box_to_mask_instances`.

        Raises:
            ValueError: a prompt's class is none of the network's.
            RuntimeError: the network has no mask head.
        """
        if not getattr(self.roi_heads, "mask_on", False):
            raise RuntimeError("A box prompt asks for masks, but this network has no mask head: set MODEL.MASK_ON.")
        asked = [item for item in batched_inputs if len(item["instances"])]
        found: list[Instances] = []
        if asked:
            self._check_classes(asked)
            resized = [self._resized(item) for item in asked]
            images, prompts = [image for image, _ in resized], [boxes for _, boxes in resized]
            found = super().inference(images, prompts, do_postprocess=False)
        remaining = iter(found)
        return [
            {"instances": self._pasted(item, next(remaining) if len(item["instances"]) else None)}
            for item in batched_inputs
        ]

    def _check_classes(self, batched_inputs: list[dict[str, Any]]) -> None:
        for item in batched_inputs:
            largest = int(item["instances"].gt_classes.max())
            if largest >= self.roi_heads.num_classes:
                raise ValueError(
                    f"'{item.get('file_name', 'image')}' has a box of class {largest}, but the network knows "
                    f"{self.roi_heads.num_classes} classes: MODEL.ROI_HEADS.NUM_CLASSES does not fit the data set."
                )

    def _resized(self, item: dict[str, Any]) -> tuple[dict[str, Any], Instances]:
        """The image at test resolution, on the device, and the boxes in its frame."""
        image = item["image"].to(self.device)
        height, width = image.shape[1:]
        # Detectron2 computes the size from an array: this one takes no memory.
        transform = self.resize.get_transform(np.broadcast_to(np.uint8(0), (height, width, 3)))
        new_height, new_width = getattr(transform, "new_h", height), getattr(transform, "new_w", width)
        if (new_height, new_width) != (height, width):
            # Antialiased and rounded like the Pillow resize of the training images.
            image = F.interpolate(image[None].float(), (new_height, new_width), mode="bilinear", antialias=True)[0]
            image = image.round_().clamp_(0, 255)
        prompts = item["instances"]
        boxes = Boxes(prompts.gt_boxes.tensor.to(self.device, copy=True))
        boxes.scale(new_width / width, new_height / height)
        resized = Instances((new_height, new_width), pred_boxes=boxes, pred_classes=prompts.gt_classes)
        return {"image": image}, resized

    def _pasted(self, item: dict[str, Any], found: Instances | None) -> Instances:
        """Paste the mask head's output into the original frame; no box is dropped, unlike ``detector_postprocess``."""
        prompts = item["instances"].to(self.device)
        boxes = prompts.gt_boxes.tensor
        size = (int(item["image"].shape[1]), int(item["image"].shape[2]))
        if found is None:
            return box_to_mask_instances(BoxMasks([], [], size), boxes, prompts.gt_classes, boxes.new_zeros(0), size)
        probability = found.pred_masks[:, 0].float()
        # A box without extent would divide by zero: it gets the pixel that it lies on.
        extent = torch.cat([boxes[:, :2], torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)], dim=1)
        # Detectron2 cannot paste outside of the image: nothing is seen of such a box.
        seen = (extent[:, :2] < extent.new_tensor([size[1], size[0]])).all(dim=1) & (extent[:, 2:] > 0).all(dim=1)
        masks = [BoxMasks([], [], size)]
        for part in torch.arange(len(boxes)).split(frames_at_once(size)):
            frames = torch.zeros((len(part), *size), dtype=torch.bool, device=self.device)
            asked = part[seen[part].cpu()]
            frames[seen[part]] = paste_masks_in_image(probability[asked], extent[asked], size, threshold=0.5).bool()
            masks.append(BoxMasks.of(frames).tight())
        scores = mean_foreground(probability, probability >= 0.5)
        return box_to_mask_instances(BoxMasks.cat(masks), boxes, prompts.gt_classes, scores, size)
