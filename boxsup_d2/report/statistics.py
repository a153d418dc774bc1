"""Tables and histograms of what was measured on the masks of a report. Numbers in, numbers out."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from boxsup_d2.evaluation.metrics import IOU_THRESHOLDS, summarize_box_to_mask
from boxsup_d2.masks.confidence import DOUBTFUL_QUALITY
from boxsup_d2.report.render import Measured

#: Ends of the bins of object sizes in pixels; 32 and 96 are COCO's between small, medium and large.
SIZE_EDGES = (0, 16, 32, 64, 96, 128, 192, 256, 384, math.inf)
_BINS = 20
_MEANS = ("quality", "confidence", "box_iou", "agreement", "share")


@dataclass(frozen=True)
class Measure:
    """A number of each object (of label maps: of each image).

    Attributes:
        key: attribute of :class:`Measured`, or "size".
        label: its name on the page.
        meaning: one sentence about it.
        per_set: each set has its own value.
    """

    key: str
    label: str
    meaning: str
    per_set: bool = True


@dataclass(frozen=True)
class Histogram:
    """Counts of a measure.

    Attributes:
        measure: what is counted.
        labels: of the bins.
        counts: of each set (one where the measure is not per set), per bin.
    """

    measure: Measure
    labels: list[str]
    counts: list[list[int]]


MEASURES = (
    Measure("iou", "IoU with truth", "Intersection over union of the mask and the true mask."),
    Measure("quality", "Quality", "The IoU with the truth that the method expects of the mask."),
    Measure("confidence", "Confidence", "How well the mask fills its box, as the mask file says."),
    Measure("box_iou", "Box–mask IoU", "IoU of the smallest box around the mask and the annotated box."),
    Measure("agreement", "Agreement", "IoU of the mask and the mask of the first set."),
    Measure("size", "Size", "Square root of the annotated box's area, in pixels.", per_set=False),
)
SEMANTIC_MEASURES = (
    Measure("share", "Labelled share", "Share of the image's pixels that have a class."),
    Measure("agreement", "Agreement", "Share of pixels with the same label as in the first set."),
)

#: What makes a mask of an object suspicious, in words.
SUSPICIONS = ("low quality", "nearly empty", "nearly the whole box")
# Shares of a box below and above which its mask is nearly empty, or nearly all of it.
_NEARLY_EMPTY, _NEARLY_ALL = 0.05, 0.95


def suspicions(mask: Measured) -> list[bool]:
    """Which of :data:`SUSPICIONS` a mask is under. Without a quality its confidence counts."""
    worth = mask.quality if mask.quality is not None else mask.confidence
    return [
        worth is not None and worth < DOUBTFUL_QUALITY,
        mask.fill is not None and mask.fill < _NEARLY_EMPTY,
        mask.fill is not None and mask.fill > _NEARLY_ALL,
    ]


def present_measures(rows: Sequence[Sequence[Measured]], semantic: bool) -> list[Measure]:
    """The measures that at least one object has."""
    candidates = SEMANTIC_MEASURES if semantic else MEASURES
    return [
        measure
        for measure in candidates
        if not measure.per_set or any(getattr(one, measure.key) is not None for row in rows for one in row)
    ]


def histogram(measure: Measure, series: Sequence[Iterable[float | None]]) -> Histogram:
    """Counts of a measure in 20 bins of 0..1, or in :data:`SIZE_EDGES`.

    Args:
        measure: what is counted.
        series: values of each set; None is left out.
    """
    edges = SIZE_EDGES if measure.key == "size" else tuple(np.linspace(0, 1, _BINS + 1))
    counts = [np.histogram([v for v in values if v is not None], bins=edges)[0].tolist() for values in series]
    if measure.key == "size":
        labels = [f"{low}–{high} px" if math.isfinite(high) else f"from {low} px" for low, high in _pairs(edges)]
    else:
        labels = [f"{low:.2f}–{high:.2f}" for low, high in _pairs(edges)]
    return Histogram(measure, labels, counts)


def _pairs(edges: Sequence[float]) -> Iterable[tuple[float, float]]:
    return itertools.pairwise(edges)


def summary_rows(rows: Sequence[Sequence[Measured]], classes: Sequence[int], num_classes: int) -> list[dict[str, Any]]:
    """The metrics of each set.

    Args:
        rows: of each object the measures of each set's mask.
        classes: of each object, in 0..num_classes - 1.
        num_classes: of the first file.

    Returns:
        Per set the numbers of ``objects``, of ``masks`` that can be read, of those that are ``empty``, and of those
        ``compared`` with the truth; the means of ``quality``, ``confidence``, ``box_iou``, ``agreement`` and ``share``;
        and ``miou`` (over the classes present), ``mean_iou`` and ``at`` (IoU@k by k). Fractions, NaN where nothing was
        measured.
    """
    number_of_sets = len(rows[0]) if rows else 0
    return [_summary([row[number] for row in rows], classes, num_classes) for number in range(number_of_sets)]


def class_rows(
    rows: Sequence[Sequence[Measured]], classes: Sequence[int], names: Sequence[str]
) -> list[dict[str, Any]]:
    """``name``, ``objects`` and ``sets`` (see :func:`summary_rows`) of every class with objects."""
    members: dict[int, list[Sequence[Measured]]] = {}
    for label, row in zip(classes, rows, strict=True):
        members.setdefault(label, []).append(row)
    return [
        {
            "name": names[label],
            "objects": len(members[label]),
            "sets": summary_rows(members[label], [0] * len(members[label]), 1),
        }
        for label in sorted(members)
    ]


def _summary(column: Sequence[Measured], classes: Sequence[int], num_classes: int) -> dict[str, Any]:
    compared = [(one.iou, label) for one, label in zip(column, classes, strict=True) if one.iou is not None]
    scores = summarize_box_to_mask([iou for iou, _ in compared], [label for _, label in compared], max(num_classes, 1))
    return {
        "objects": len(column),
        "masks": sum(one.area is not None for one in column),
        "empty": sum(one.area == 0 for one in column),
        **{key: _mean(getattr(one, key) for one in column) for key in _MEANS},
        "compared": len(compared),
        "miou": scores.miou_present,
        "mean_iou": scores.mean_iou,
        "at": {k: scores.iou_at[k] for k in IOU_THRESHOLDS},
    }


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else math.nan
