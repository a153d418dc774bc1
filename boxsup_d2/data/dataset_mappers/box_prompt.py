"""Mapper of every box-to-mask method in evaluation and labelling: the image as it is, the boxes as prompts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils
from detectron2.structures import Boxes, BoxMode, Instances

from boxsup_d2.data.dataset_mappers.build import DATASET_MAPPER_REGISTRY
from boxsup_d2.data.formats.rotated_boxes import ROTATED_BOX
from boxsup_d2.data.images import read_image
from boxsup_d2.masks.rle import tight_box


@DATASET_MAPPER_REGISTRY.register()
class BoxPromptDatasetMapper:
    """Dataset dict → input of a box-to-mask meta-architecture, see :mod:`boxsup_d2.modeling.box_to_mask`.

    The result holds every key of the dataset dict but ``annotations``, and

    * ``image``: uint8 tensor C×H×W in the channel order of ``INPUT.FORMAT``, original frame, upright;
    * ``height``, ``width``: of that image;
    * ``instances``: :class:`Instances` with ``gt_boxes`` (N×4, x0, y0, x1, y1 in pixels, x1 and y1 exclusive) and
      ``gt_classes`` (N, int64) of the annotations that are no crowd regions, in their order; N may be 0; where one of
      them has a rotated box, ``gt_rotated_boxes`` (N×5: cx, cy, w, h, degrees counter-clockwise);
    * ``annotation_ids``: the ids of these annotations, where all of them have one;
    * ``class_names`` (list of str) and ``num_classes``: what ``gt_classes`` count, where the data set is known.
    """

    @configurable
    def __init__(self, *, image_format: str, box_prompt: str = "xml", class_names: Sequence[str] | None = None):
        """
        Args:
            image_format: channel order, see :func:`boxsup_d2.data.images.read_image`.
            box_prompt: ``"xml"``: the annotated box; ``"tight"``: the tight box of the annotated mask, for
                evaluation on data sets that have masks.
            class_names: of the data set; None where it is not known.
        """
        if box_prompt not in ("xml", "tight"):
            raise ValueError(f'TEST.BOX_PROMPT is "{box_prompt}": use "xml" (annotated box) or "tight" (of the mask).')
        self.image_format = image_format
        self.box_prompt = box_prompt
        self.class_names = None if class_names is None else list(class_names)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = False) -> dict[str, Any]:
        """Prompts are the same in training and evaluation: nothing here is augmented."""
        del is_train
        return {"image_format": cfg.INPUT.FORMAT, "box_prompt": cfg.TEST.BOX_PROMPT}

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """
        Raises:
            FileNotFoundError, ValueError: the image is missing or damaged, or has another size than the dict says.
        """
        sample = {key: value for key, value in dataset_dict.items() if key != "annotations"}
        image = read_image(sample["file_name"], self.image_format)
        detection_utils.check_image_size(sample, image)
        height, width = image.shape[:2]

        annotations = [obj for obj in dataset_dict.get("annotations", ()) if not obj.get("iscrowd", 0)]
        boxes = [self._box(obj, height, width, sample["file_name"]) for obj in annotations]
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.gt_classes = torch.tensor([obj["category_id"] for obj in annotations], dtype=torch.int64)
        if self.box_prompt == "xml" and any(ROTATED_BOX in obj for obj in annotations):
            rotated = [
                obj.get(ROTATED_BOX, [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0, 0])
                for obj, (x0, y0, x1, y1) in zip(annotations, boxes, strict=True)
            ]
            instances.gt_rotated_boxes = torch.tensor(rotated, dtype=torch.float32)

        sample["image"] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        sample["instances"] = instances
        if all("id" in obj for obj in annotations):
            sample["annotation_ids"] = [obj["id"] for obj in annotations]
        if self.class_names is not None:
            sample["class_names"], sample["num_classes"] = self.class_names, len(self.class_names)
        return sample

    def _box(self, annotation: dict[str, Any], height: int, width: int, file_name: str) -> list[float]:
        box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
        if self.box_prompt == "xml":
            return box
        if "segmentation" not in annotation:
            raise ValueError(
                f'TEST.BOX_PROMPT is "tight", but an annotation of \'{file_name}\' has no mask. Use "xml", or a data '
                "set with masks."
            )
        try:
            tight = tight_box(annotation["segmentation"], height, width)
        except ValueError as error:
            raise ValueError(f"A mask of '{file_name}' cannot be used: {error}") from error
        return box if tight is None else tight
