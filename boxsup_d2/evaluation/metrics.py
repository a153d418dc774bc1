"""Quality of masks predicted from ground-truth boxes: pure functions on arrays. All values are fractions in 0..1.

Shape legend: N instances, K classes, I images, H x W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: IoU thresholds in percent, of IoU@k and of VOC's AP (as published with BoxCaseg).
IOU_THRESHOLDS = (25, 50, 70, 75)


def mask_iou(pred: np.ndarray, gt: np.ndarray, void: np.ndarray | None = None) -> np.ndarray:
    """IoU of masks with their ground truth; void pixels count for neither side.

    Args:
        pred: (..., H, W) bool, predicted masks.
        gt: (..., H, W) bool, true masks, broadcastable with ``pred``.
        void: (..., H, W) bool, pixels whose label is unknown; None where there are none.

    Returns:
        (...) float64 in 0..1. Two masks without a pixel outside void have an IoU of 0, as in pycocotools.

    Raises:
        ValueError: If the masks differ in height or width.
    """
    pred, gt = np.asarray(pred, dtype=bool), np.asarray(gt, dtype=bool)
    if pred.shape[-2:] != gt.shape[-2:] or (void is not None and np.shape(void)[-2:] != gt.shape[-2:]):
        raise ValueError(
            f"Masks of different sizes cannot be compared: predicted {pred.shape[-2:]}, ground truth {gt.shape[-2:]}"
            + ("" if void is None else f", void {np.shape(void)[-2:]}")
            + " (height, width). Predictions must be in the frame of the original image."
        )
    if void is not None:
        known = ~np.asarray(void, dtype=bool)
        pred, gt = pred & known, gt & known
    intersection = np.count_nonzero(pred & gt, axis=(-2, -1))
    union = np.count_nonzero(pred | gt, axis=(-2, -1))
    return np.asarray(intersection / np.maximum(union, 1), dtype=np.float64)


@dataclass(frozen=True)
class BoxToMaskSummary:
    """The metrics of masks from boxes, as fractions.

    Attributes:
        miou_present: mIoU* averaged over the classes that have instances; NaN without any instance.
        miou_published: mIoU* averaged over all K classes, where one without instances counts 0 (published).
        mean_iou: mean over all instances; NaN without any.
        iou_at: threshold in percent to the share of all instances with at least that IoU; NaN without any.
        per_class_iou: (K,) mean instance IoU of each class; NaN where a class has no instance.
        per_class_iou_at: threshold in percent to (K,), the share of each class's instances; NaN likewise.
        counts: (K,) int64, instances of each class.
    """

    miou_present: float
    miou_published: float
    mean_iou: float
    iou_at: dict[int, float]
    per_class_iou: np.ndarray
    per_class_iou_at: dict[int, np.ndarray]
    counts: np.ndarray


def summarize_box_to_mask(ious: Sequence[float], classes: Sequence[int], num_classes: int) -> BoxToMaskSummary:
    """Average instance IoUs over classes and over instances.

    Args:
        ious: (N,) in 0..1.
        classes: (N,) class indices in 0..num_classes - 1.
        num_classes: K, the size of the label set; the denominator of the published average.

    Raises:
        ValueError: If the lengths differ, or a class is out of range.
    """
    values, labels = _as_instances(ious, classes, num_classes)
    counts = np.bincount(labels, minlength=num_classes)

    def class_means(x: np.ndarray) -> np.ndarray:
        sums = np.bincount(labels, weights=x, minlength=num_classes)
        return np.divide(sums, counts, out=np.full(num_classes, np.nan), where=counts > 0)

    # k / 100 and not a literal or a product: an IoU of exactly k percent is rounded to the same number.
    reached = {k: (values >= k / 100).astype(np.float64) for k in IOU_THRESHOLDS}
    per_class = class_means(values)
    present = counts > 0
    return BoxToMaskSummary(
        miou_present=_mean(per_class[present]),
        miou_published=float(np.where(present, per_class, 0.0).sum() / num_classes),
        mean_iou=_mean(values),
        iou_at={k: _mean(hit) for k, hit in reached.items()},
        per_class_iou=per_class,
        per_class_iou_at={k: class_means(hit) for k, hit in reached.items()},
        counts=counts,
    )


def bootstrap_interval(
    ious: Sequence[float],
    classes: Sequence[int],
    image_ids: Sequence[int],
    *,
    num: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of mIoU* over the classes present.

    Whole images are drawn with replacement, because the objects of an image are not independent. Classes that a
    resample does not have are left out of its mean.

    Args:
        ious: (N,) in 0..1.
        classes: (N,) class indices, 0-based.
        image_ids: (N,) the image of each instance.
        num: Number of resamples.
        seed: Seed of the resampling; the same seed gives the same interval.
        level: Coverage in 0..1.

    Returns:
        Lower and upper end, in 0..1; NaN without any instance.
    """
    values, labels = _as_instances(ious, classes, None)
    if len(image_ids) != len(values):
        raise ValueError(f"{len(values)} IoUs, but {len(image_ids)} image ids.")
    if len(values) == 0:
        return float("nan"), float("nan")
    unique_images, image_index = np.unique(np.asarray(image_ids), return_inverse=True)
    unique_classes, class_index = np.unique(labels, return_inverse=True)
    shape = (len(unique_images), len(unique_classes))
    sums, counts = np.zeros(shape), np.zeros(shape)  # per image and class
    np.add.at(sums, (image_index, class_index), values)
    np.add.at(counts, (image_index, class_index), 1)

    # A resample is how often each image was drawn: the class sums of all resamples are one matrix product.
    draws = np.random.default_rng(seed).multinomial(shape[0], np.full(shape[0], 1 / shape[0]), size=num)
    drawn_sums, drawn_counts = draws @ sums, draws @ counts
    present = drawn_counts > 0
    class_means = np.divide(drawn_sums, drawn_counts, out=np.zeros_like(drawn_sums), where=present)
    scores = class_means.sum(axis=1) / present.sum(axis=1)
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _as_instances(
    ious: Sequence[float], classes: Sequence[int], num_classes: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Check and convert: (N,) float64 values and (N,) int64 labels."""
    values = np.asarray(ious, dtype=np.float64).reshape(-1)
    labels = np.asarray(classes, dtype=np.int64).reshape(-1)
    if len(values) != len(labels):
        raise ValueError(f"{len(values)} IoUs, but {len(labels)} classes.")
    if len(labels) and (labels.min() < 0 or (num_classes is not None and labels.max() >= num_classes)):
        raise ValueError(
            f"Class indices {labels.min()}..{labels.max()} do not fit {num_classes} classes: they are 0-based."
        )
    return values, labels


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
