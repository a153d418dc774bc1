"""Quality of label maps: pure functions on arrays. All values are fractions in 0..1.

Shape legend: C classes with the background, H x W pixels.
"""

from dataclasses import dataclass

import numpy as np

from boxsup_d2.masks.label_map import IGNORE_LABEL


def confusion_matrix(
    pred: np.ndarray, gt: np.ndarray, num_classes: int, ignore_label: int = IGNORE_LABEL
) -> np.ndarray:
    """Count pixels by their true and their predicted class.

    Args:
        pred: (H, W) integer, predicted classes; a value of C or more is no class, and always wrong.
        gt: (H, W) integer, true classes; ``ignore_label`` where a pixel does not count.
        num_classes: C.
        ignore_label: of ``gt``.

    Returns:
        (C, C + 1) int64: row the true class, column the predicted one, the last column for no class.

    Raises:
        ValueError: the maps differ in size, or ``gt`` has a label that is neither a class nor ``ignore_label``.
    """
    pred, gt = np.asarray(pred), np.asarray(gt)
    if pred.shape != gt.shape:
        raise ValueError(
            f"Label maps of different sizes cannot be compared: predicted {pred.shape}, ground truth {gt.shape} "
            "(height, width). Predictions must be in the frame of the original image."
        )
    counts = gt != ignore_label
    gt, pred = gt[counts].astype(np.int64), pred[counts].astype(np.int64)
    if gt.size and (gt.min() < 0 or gt.max() >= num_classes):
        wrong = sorted(set(np.unique(gt).tolist()) - set(range(num_classes)))
        raise ValueError(f"The ground truth has the labels {wrong}, but there are {num_classes} classes.")
    pred = np.where((pred < 0) | (pred > num_classes), num_classes, pred)
    columns = num_classes + 1
    return np.bincount(gt * columns + pred, minlength=num_classes * columns).reshape(num_classes, columns)


@dataclass(frozen=True)
class SemanticSummary:
    """The metrics of a confusion matrix, as fractions; NaN where there is nothing to average.

    Attributes:
        miou: mean IoU over the classes in the ground truth.
        fwiou: IoU of the classes, weighted by their true pixels.
        pixel_accuracy: share of all pixels that are right.
        mean_accuracy: mean of ``class_accuracy`` over the classes in the ground truth.
        class_iou, class_accuracy: (C,), NaN for classes without a true pixel.
        pixels: (C,) int64, true pixels of each class.
    """

    miou: float
    fwiou: float
    pixel_accuracy: float
    mean_accuracy: float
    class_iou: np.ndarray
    class_accuracy: np.ndarray
    pixels: np.ndarray


def summarize_semantic(confusion: np.ndarray) -> SemanticSummary:
    """Metrics of a (C, C + 1) matrix of :func:`confusion_matrix`, or of the sum of several."""
    right = confusion.diagonal().astype(np.float64)
    pixels = confusion.sum(axis=1)
    # Wrong predictions of a class count against it on every pixel that counts.
    union = pixels + confusion[:, : len(pixels)].sum(axis=0) - right
    occurs = pixels > 0
    if not occurs.any():
        nan, nothing = float("nan"), np.full(len(pixels), np.nan)
        return SemanticSummary(nan, nan, nan, nan, nothing, nothing, pixels)
    iou = np.where(occurs, right / np.maximum(union, 1), np.nan)
    accuracy = np.where(occurs, right / np.maximum(pixels, 1), np.nan)
    return SemanticSummary(
        miou=float(np.nanmean(iou)),
        fwiou=float((iou[occurs] * pixels[occurs]).sum() / pixels.sum()),
        pixel_accuracy=float(right.sum() / pixels.sum()),
        mean_accuracy=float(np.nanmean(accuracy)),
        class_iou=iou,
        class_accuracy=accuracy,
        pixels=pixels,
    )
