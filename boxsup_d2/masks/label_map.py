"""Label maps of semantic segmentation from masks, and the pixels of boxes: pure functions.

Label maps are H×W uint8: 0 is background, 1 + class the pixels of a class, :data:`IGNORE_LABEL` what is unknown.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from boxsup_d2.masks.box_masks import BoxMasks
from boxsup_d2.masks.merge import paint_order
from boxsup_d2.masks.rle import decode

#: Label of pixels that do not count, in label maps, losses and metrics.
IGNORE_LABEL = 255
#: Classes that a label map has room for, without the background.
MAX_CLASSES = IGNORE_LABEL - 1
# A box that reaches into a pixel by less does not touch it: in floating point, x + w rarely is a whole number.
_TOLERANCE = 1e-3


def covering_boxes(boxes: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """The pixels inside the image that boxes touch, as LPG's generator takes them.

    LPG truncates the corners and includes the last row and column, since its ends name a pixel. With exclusive ends
    this gives the same pixels. BoxCaseg's crops follow another rule: they leave out a last pixel that the box covers
    in part, see :func:`boxsup_d2.modeling.box_to_mask.truncate_boxes`.

    Args:
        boxes: N×4 float, x0, y0, x1, y1 in pixels, exclusive ends.
        image_size: height, width.

    Returns:
        N×4 int64 with 0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height. A box without extent touches the pixel that
        it lies on; a box outside the image touches none: x0 = x1 or y0 = y1.
    """
    height, width = image_size
    limit = boxes.new_tensor([width, height])
    low = boxes[:, :2].floor()
    high = (boxes[:, 2:] - _TOLERANCE).ceil().maximum(low + 1).clamp(min=0).minimum(limit)
    # Clipped before the conversion: large floats do not fit integers.
    return torch.cat([low.clamp(min=0).minimum(high), high], dim=1).to(torch.int64)


def rasterize_boxes(boxes: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """Union of boxes.

    Args:
        boxes: N×4, see :func:`covering_boxes`; N may be 0.
        image_size: H, W.

    Returns:
        H×W bool, on the CPU.
    """
    union = torch.zeros(image_size, dtype=torch.bool)
    for x0, y0, x1, y1 in covering_boxes(boxes, image_size).tolist():
        union[y0:y1, x0:x1] = True
    return union


def label_map(
    output: Mapping[str, Any], boxes: torch.Tensor, classes: torch.Tensor, rows: Sequence[int] | None = None
) -> np.ndarray:
    """Label map of a box-to-mask method's output for one image.

    Args:
        output: its ``label_map`` (H×W integers) is taken where it has one. Otherwise the masks of its ``instances``
            (``pred_masks``) are painted by class, in the order of :func:`paint_order`.
        boxes: N×4, the prompts, x0, y0, x1, y1.
        classes: N, their classes, 0-based.
        rows: positions of the instances that are painted; None paints all.

    Returns:
        H×W uint8, the caller's own.

    Raises:
        ValueError: there are not as many masks as prompts, or a class or label that a label map has no room for.
    """
    own = output.get("label_map")
    if own is not None:
        own = own.cpu()
        if own.numel() and not 0 <= int(own.min()) <= int(own.max()) <= MAX_CLASSES:
            raise ValueError(f"Labels from {int(own.min())} to {int(own.max())}: they must be 0 to {MAX_CLASSES}.")
        return own.to(torch.uint8, copy=True).numpy()  # writers paint into it
    masks = BoxMasks.of(output["instances"].pred_masks).to("cpu")
    if not len(masks) == len(boxes) == len(classes):
        raise ValueError(f"{len(masks)} masks for {len(boxes)} boxes: one mask per box is needed.")
    if len(classes) and int(classes.max()) >= MAX_CLASSES:
        raise ValueError(f"Class {int(classes.max())}: a label map has room for {MAX_CLASSES} classes.")
    x0, y0, x1, y1 = boxes.double().cpu().unbind(dim=1)
    order = paint_order(torch.stack([x0, y0, x1 - x0, y1 - y0], dim=1).tolist())
    chosen = set(range(len(masks)) if rows is None else rows)
    labels, windows = np.zeros(masks.image_size, np.uint8), masks.windows
    for row in order:
        if row in chosen:
            left, top, right, bottom = windows[row]
            labels[top:bottom, left:right][masks.parts[row].numpy()] = int(classes[row]) + 1
    return labels


def prompted_label_map(
    sample: Mapping[str, Any], output: Mapping[str, Any], rows: Sequence[int] | None = None
) -> np.ndarray:
    """:func:`label_map` of an input of ``BoxPromptDatasetMapper``: what is written and what is evaluated.

    Args:
        sample: the input, whose ``instances`` are the prompts.
        output: see :func:`label_map`.
        rows: see :func:`label_map`.

    Returns:
        H×W uint8, of the input image's size.

    Raises:
        ValueError: the output does not fit the input; names the image.
    """
    instances = sample["instances"]
    try:
        labels = label_map(output, instances.gt_boxes.tensor, instances.gt_classes, rows)
        if labels.shape != tuple(instances.image_size):
            raise ValueError(f"its label map is {labels.shape}, the image {tuple(instances.image_size)}.")
        known = sample.get("num_classes")
        if known is not None and labels.max(initial=0) > known:
            raise ValueError(f"its label map has class {labels.max() - 1}, the data set has {known} classes.")
    except ValueError as error:
        raise ValueError(f"'{sample.get('file_name', sample.get('image_id'))}': {error}") from error
    return labels


def paint_known(labels: np.ndarray, kept: Sequence[Mapping[str, Any]], crowds: Sequence[Mapping[str, Any]]) -> None:
    """Paint annotated masks over a label map, in place.

    Args:
        labels: H×W uint8.
        kept: annotations with a mask, which goes over predictions: ``segmentation``, ``category_id`` and ``bbox``
            (x, y, w, h), in the order of :func:`paint_order`.
        crowds: crowd regions; their background pixels become :data:`IGNORE_LABEL`.

    Raises:
        ValueError: a segmentation does not fit the image.
    """
    height, width = labels.shape
    for crowd in crowds:
        if crowd.get("segmentation"):
            labels[decode(crowd["segmentation"], height, width).T & (labels == 0)] = IGNORE_LABEL
    for index in paint_order([annotation["bbox"] for annotation in kept]):
        annotation = kept[index]
        labels[decode(annotation["segmentation"], height, width).T] = annotation["category_id"] + 1
