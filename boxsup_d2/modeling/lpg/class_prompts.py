"""Box prompts by class, and how the masks of classes become a label map: what a semantic box-to-mask method needs.

Shape legend: B the boxes and K the classes present in one image of H×W.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boxsup_d2.masks.label_map import covering_boxes
from boxsup_d2.modeling.lpg.windows import Window


@dataclass(frozen=True)
class ClassPrompts:
    """The boxes of one image by class.

    Attributes:
        item: the evaluation input.
        corners: B whole-pixel boxes (x0, y0, x1, y1; exclusive ends) inside the image; some may be empty.
        classes: the K classes present, in order of first appearance.
        slots: of every box, the index of its class in ``classes``.
    """

    item: dict[str, Any]
    corners: list[list[int]]
    classes: list[int]
    slots: list[int]

    @classmethod
    def of(cls, item: dict[str, Any]) -> "ClassPrompts":
        """Prompts of an evaluation input, see :meth:`LPG.forward`.

        Raises:
            ValueError: a box has a class that the data set does not have.
        """
        prompt = item["instances"]
        labels: list[int] = prompt.gt_classes.tolist()
        classes = list(dict.fromkeys(labels))
        known = item.get("num_classes") or len(item.get("class_names") or ())
        if known and classes and not 0 <= min(classes) <= max(classes) < known:
            raise ValueError(
                f"'{item.get('file_name', 'image')}' has boxes of the classes {sorted(classes)}, but its data set has "
                f"{known} classes: correct its annotations or its metadata thing_classes"
            )
        height, width = item["image"].shape[-2:]
        return cls(
            item=item,
            corners=covering_boxes(prompt.gt_boxes.tensor, (height, width)).tolist(),
            classes=classes,
            slots=[classes.index(label) for label in labels],
        )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        height, width = self.item["image"].shape[-2:]
        return int(height), int(width)

    def unions(self, size: tuple[int, int], device: torch.device) -> Tensor:
        """K×h×w bool: the union of every class's boxes, in a frame of ``size`` whose first corner is the image's."""
        masks = torch.zeros((len(self.classes), *size), dtype=torch.bool, device=device)
        for slot, (x0, y0, x1, y1) in zip(self.slots, self.corners, strict=True):
            masks[slot, y0:y1, x0:x1] = True
        return masks

    def windows(self, size: tuple[int, int], stride: int = 4) -> list[Window]:
        """Per class, the part of a map of this stride that decides on the pixels inside its boxes.

        Args:
            size: of the padded image, whose corner pixels are those of the map (align_corners=True).
            stride: of the map.

        Returns:
            K windows, each of a pixel at least.
        """
        windows = []
        for slot in range(len(self.classes)):
            boxes = [
                c for s, c in zip(self.slots, self.corners, strict=True) if s == slot and c[0] < c[2] and c[1] < c[3]
            ]
            if not boxes:
                windows.append(Window(0, 0, 1, 1))
                continue
            lows = [min(box[axis] for box in boxes) for axis in (1, 0)]
            highs = [max(box[axis] for box in boxes) - 1 for axis in (3, 2)]
            # Pixel p lies between the map's pixels floor(q) and floor(q) + 1, q = p * (short - 1) / (long - 1).
            ends = [(long // stride, (long // stride - 1) / (long - 1)) for long in size]
            top, left = (max(int(low * ratio - 0.01), 0) for low, (_, ratio) in zip(lows, ends, strict=True))
            bottom, right = (
                min(int(high * ratio + 0.01) + 2, short) for high, (short, ratio) in zip(highs, ends, strict=True)
            )
            windows.append(Window(top, left, bottom, right))
        return windows


def first_claim_labels(masks: Tensor, classes: Sequence[int]) -> Tensor:
    """The label map in which the first class to claim a pixel keeps it.

    Args:
        masks: K×H×W bool, what each class claims.
        classes: K of them, 0-based, the first to claim first.

    Returns:
        H×W int32: 0 what nobody claims, else 1 + class.
    """
    labels = masks.new_zeros(masks.shape[-2:], dtype=torch.int32)
    for mask, label in zip(masks.flip(0), reversed(classes), strict=True):
        labels.masked_fill_(mask, label + 1)
    return labels
