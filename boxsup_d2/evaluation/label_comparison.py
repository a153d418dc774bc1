"""Masks of a network against those of what came before it (its teacher, or itself untrained), object by object.

With a json of true masks the measure is the IoU with these; without one, what a box says: its IoU with the tight box of
the mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from boxsup_d2.evaluation.mask_files import compare_mask_files
from boxsup_d2.evaluation.mask_matching import objects_of, read_mask_file
from boxsup_d2.evaluation.metrics import bootstrap_interval

#: Names and lower ends of COCO's size bins, of the area of the box in pixels.
SIZES = (("small", 0), ("medium", 32**2), ("large", 96**2))


@dataclass(frozen=True)
class ComparedObjects:
    """Means over some of the objects, as fractions.

    Attributes:
        name: which objects.
        count: their number.
        before, after: the measure of both.
        low, high: 95 % bootstrap interval, over images, of after minus before.
        agreement: IoU of the masks of both.
    """

    name: str
    count: int
    before: float
    after: float
    low: float
    high: float
    agreement: float


@dataclass(frozen=True)
class _Object:
    before: float
    after: float
    agreement: float
    area: float
    image: Any
    category: int


def compare_labellings(before: str, after: str, truth: str | None = None) -> list[ComparedObjects]:
    """Compare two pseudo-mask files of the same boxes; masks that both kept from these do not count.

    Args:
        before, after: paths of the files.
        truth: path of a json with true masks, of all or some of the objects; None: there is none.

    Returns:
        All objects; those of each of :data:`SIZES` that has some; and, where there are classes, the mean of these
        ("mean of classes": mIoU*). Nothing, if both kept all masks.

    Raises:
        FileNotFoundError, ValueError: see :func:`boxsup_d2.evaluation.mask_files.compare_mask_files`.
    """
    objects = _objects(before, after, truth)
    if not objects:
        return []
    compared = [_means("all", objects)]
    ends = [*(low for _, low in SIZES[1:]), float("inf")]
    for (name, low), high in zip(SIZES, ends, strict=True):
        inside = [x for x in objects if low <= x.area < high]
        compared += [_means(name, inside)] if inside else []
    if len({x.category for x in objects}) > 1:
        compared.append(_means("mean of classes", objects, by_class=True))
    return compared


def _objects(before: str, after: str, truth: str | None) -> list[_Object]:
    ours, theirs = read_mask_file(after), read_mask_file(before)
    predicted = {a["id"]: a for record in theirs.records for a in objects_of(record) if a["fields"].get("quality") != 1}
    agreement = _ious(after, before)
    measures = [_ious(path, truth) for path in (before, after)] if truth else []
    found = []
    for record in ours.records:
        for annotation in objects_of(record):
            other = predicted.get(annotation["id"])
            if other is None:
                continue
            fields = (other["fields"].get("confidence_exact"), annotation["fields"].get("confidence_exact"))
            first, second = (ious.get(annotation["id"]) for ious in measures) if measures else fields
            if first is None or second is None:  # of an object whose true mask is not known
                continue
            width, height = annotation["bbox"][2:]
            found.append(
                _Object(
                    before=first,
                    after=second,
                    agreement=agreement.get(annotation["id"], 0.0),
                    area=width * height,
                    image=record["image_id"],
                    category=annotation["category_id"],
                )
            )
    return found


def _ious(predicted: str, truth: str) -> dict[Any, float]:
    """IoUs of the masks of a file with those of another, by annotation id of the former."""
    return {row.annotation_id: row.iou for row in compare_mask_files(predicted, truth).rows}


def _means(name: str, objects: Sequence[_Object], *, by_class: bool = False) -> ComparedObjects:
    classes = np.array([x.category if by_class else 0 for x in objects])

    def mean(values: Sequence[float]) -> float:
        return float(np.mean([np.asarray(values)[classes == kind].mean() for kind in np.unique(classes)]))

    gains = [x.after - x.before for x in objects]
    low, high = bootstrap_interval(gains, classes.tolist(), [x.image for x in objects])
    return ComparedObjects(
        name=name,
        count=len(objects),
        before=mean([x.before for x in objects]),
        after=mean([x.after for x in objects]),
        low=low,
        high=high,
        agreement=mean([x.agreement for x in objects]),
    )
