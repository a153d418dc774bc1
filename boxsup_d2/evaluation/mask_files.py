"""The masks of one COCO json against those of another, as ``boxsup eval`` compares them. No image is opened.

For a registered data set, with void pixels, there is :func:`boxsup_d2.evaluation.box_to_mask.evaluate_mask_json`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from boxsup_d2.evaluation.box_to_mask import score_annotations, summary_to_results
from boxsup_d2.evaluation.ground_truth import ImageTruth
from boxsup_d2.evaluation.instance_ap import average_precision
from boxsup_d2.evaluation.mask_matching import (
    MaskFile,
    image_frame,
    match_objects,
    match_records,
    objects_of,
    read_mask_file,
)
from boxsup_d2.evaluation.metrics import BoxToMaskSummary, summarize_box_to_mask
from boxsup_d2.masks.rle import area, empty_rle
from boxsup_d2.masks.segmentation import to_rle

#: Fields that rank masks for AP, the preferred one first.
RANKINGS = ("score", "quality", "confidence")


class MaskRow(NamedTuple):
    """A true object and the mask that was predicted for it.

    Attributes:
        annotation_id: Of the predicted mask, in its file.
        truth_id: Of the true one, in its file.
        image_id: Of the image, in the predicted file.
        file_name: Of the image, in the predicted file.
        class_name: Of both.
        iou: In 0..1.
        by_id: Whether they were matched by annotation id; else by box.
    """

    annotation_id: int
    truth_id: int
    image_id: int
    file_name: str
    class_name: str
    iou: float
    by_id: bool


@dataclass(frozen=True)
class MaskFileScores:
    """What :func:`compare_mask_files` found.

    Attributes:
        summary: mIoU*, mean IoU and IoU@k of the matched objects, as fractions.
        class_names: Of the true file, in the order of its category ids; what the summary's arrays count.
        rows: The matched objects, in the order of the true file.
        ap: ``AP``, ``AP25`` ... as fractions; empty where nothing ranks the masks.
        ranking: Field that ranked them, or None.
        unmatched: What was not compared, and how often. Objects of images without a partner are among the objects
            without a partner.
    """

    summary: BoxToMaskSummary
    class_names: list[str]
    rows: list[MaskRow]
    ap: dict[str, float]
    ranking: str | None
    unmatched: dict[str, int]

    def results(self) -> dict[str, float]:
        """All metrics in percent, named as by the evaluators."""
        ap = {name: 100 * value for name, value in self.ap.items()}
        return {**ap, **summary_to_results(self.summary, self.class_names)}


def compare_mask_files(predicted: str, truth: str, *, rank_by: str | None = None) -> MaskFileScores:
    """Score the masks of a COCO json against those of another one.

    Images and their objects are matched by :mod:`boxsup_d2.evaluation.mask_matching`. What has no partner is counted in
    ``unmatched`` and is in no mean: a true object that was not found lowers AP alone.

    Predicted crowd regions are left out. In AP, masks on true crowd regions are no errors, as in COCO, and neither are
    masks of true objects that have only a box. An object whose prediction has no mask counts with an IoU of 0. AP is
    that of the images in both files.

    Args:
        predicted: Path of the json with the masks to score.
        truth: Path of the json with the true masks.
        rank_by: Field of the predicted annotations to rank them by for AP; None takes the first of :data:`RANKINGS`
            that all of them have, and without one there is no AP.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, its masks do not fit its images, images of one name differ in size, nothing is
            in both files, or ``rank_by`` is missing somewhere.
    """
    ours, theirs = read_mask_file(predicted), read_mask_file(truth)
    objects = [annotation for record in ours.records for annotation in objects_of(record)]
    if objects and not any(annotation["segmentation"] for annotation in objects):
        raise ValueError(f"'{predicted}' holds {len(objects)} boxes and no mask: 'boxsup label' makes masks of boxes.")
    if not objects:
        raise ValueError(f"'{predicted}' holds no object: there is nothing to compare with '{truth}'.")
    true = [annotation for record in theirs.records for annotation in objects_of(record)]
    if true and not any(annotation["segmentation"] for annotation in true):
        raise ValueError(f"'{truth}' holds {len(true)} boxes and no mask: there is nothing to compare with.")
    partners = match_records(ours, theirs)
    rows = [row for record, partner in partners for row in _score(record, partner, ours, theirs)]
    unmatched = _count_unmatched(ours, theirs, partners, rows)
    if not rows:
        counts = ", ".join(f"{count} {what}" for what, count in unmatched.items()) or "neither has an object"
        raise ValueError(
            f"No object of '{predicted}' is in '{truth}' ({counts}). Are the files about the same images, and their "
            "classes named alike?"
        )
    ranking = _ranking(ours, rank_by)
    class_of = _class_indices(theirs.class_names)
    return MaskFileScores(
        summary=summarize_box_to_mask(
            [row.iou for row in rows], [class_of[row.class_name] for row in rows], len(theirs.class_names)
        ),
        class_names=theirs.class_names,
        rows=rows,
        ap=_average_precision(partners, ours, theirs, ranking) if ranking else {},
        ranking=ranking,
        unmatched=unmatched,
    )


def _score(record: dict[str, Any], partner: dict[str, Any], ours: MaskFile, theirs: MaskFile) -> list[MaskRow]:
    predicted, true = objects_of(record), objects_of(partner)
    pairs = match_objects(
        predicted,
        true,
        [ours.class_names[annotation["category_id"]] for annotation in predicted],
        [theirs.class_names[annotation["category_id"]] for annotation in true],
    )
    pairs = [pair for pair in pairs if true[pair.theirs]["segmentation"]]
    height, width = image_frame(record)
    truth = ImageTruth(
        record["image_id"], record["file_name"], height, width, [true[pair.theirs] for pair in pairs], void=None
    )
    masks = [predicted[pair.ours] for pair in pairs]
    masks = [{**mask, "segmentation": mask["segmentation"] or empty_rle(height, width)} for mask in masks]
    return [
        MaskRow(
            annotation_id=mask["id"],
            truth_id=annotation["id"],
            image_id=record["image_id"],
            file_name=record["file_name"],
            class_name=theirs.class_names[annotation["category_id"]],
            iou=score.iou,
            by_id=pair.by_id,
        )
        for score, mask, annotation, pair in zip(
            score_annotations(truth, masks, ours.path), masks, truth.annotations, pairs, strict=True
        )
    ]


def _count_unmatched(
    ours: MaskFile,
    theirs: MaskFile,
    partners: list[tuple[dict[str, Any], dict[str, Any]]],
    rows: list[MaskRow],
) -> dict[str, int]:
    predicted = [annotation for record in ours.records for annotation in objects_of(record)]
    true = [annotation for record in theirs.records for annotation in objects_of(record)]
    without_truth = sum(not annotation["segmentation"] for annotation in true)
    scored = {row.annotation_id for row in rows}
    counts = {
        "predicted images without a partner": len(ours.records) - len(partners),
        "true images without a partner": len(theirs.records) - len(partners),
        "predicted objects without a partner": len(predicted) - len(rows),
        "true objects without a partner": len(true) - len(rows) - without_truth,
        "true objects without a mask": without_truth,
        "predicted objects without a mask, scored 0": sum(
            not annotation["segmentation"] and annotation["id"] in scored for annotation in predicted
        ),
    }
    return {what: count for what, count in counts.items() if count}


def _ranking(ours: MaskFile, rank_by: str | None) -> str | None:
    objects = [annotation for record in ours.records for annotation in objects_of(record)]
    for field in RANKINGS if rank_by is None else (rank_by,):
        if all(field in annotation["fields"] for annotation in objects):
            return field
    if rank_by is not None:
        missing = [annotation["id"] for annotation in objects if rank_by not in annotation["fields"]]
        raise ValueError(
            f"'{ours.path}': {len(missing)} annotations have no number '{rank_by}' to rank them by, first id "
            f"{missing[0]}. Rank by another field, e.g. {' or '.join(RANKINGS)}."
        )
    return None


def _class_indices(names: Sequence[str]) -> dict[str, int]:
    """Class index by name; classes of the same name share the first index."""
    return {name: index for index, name in reversed(list(enumerate(names)))}


def _average_precision(
    partners: list[tuple[dict[str, Any], dict[str, Any]]], ours: MaskFile, theirs: MaskFile, ranking: str
) -> dict[str, float]:
    """AP over the images in both files, with new ids: scorers need positive ones."""
    class_of = _class_indices(theirs.class_names)
    truth: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": index + 1, "name": name} for name, index in class_of.items()],
    }
    results = []
    for image_id, (record, partner) in enumerate(partners, start=1):
        height, width = image_frame(record)
        truth["images"].append({"id": image_id, "height": height, "width": width})
        for annotation in partner["annotations"]:
            rle = to_rle(annotation["segmentation"] or [_outline(annotation["bbox"], height, width)], height, width)
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": class_of[theirs.class_names[annotation["category_id"]]] + 1,
                    "bbox": annotation["bbox"],
                    "area": float(area(rle, height, width)),
                    "segmentation": rle,
                    # Masks predicted for a true object without a mask are no errors.
                    "iscrowd": int(annotation["iscrowd"] or not annotation["segmentation"]),
                }
            )
        for annotation in objects_of(record):
            name = ours.class_names[annotation["category_id"]]
            if annotation["segmentation"] and name in class_of:
                results.append(
                    {
                        "image_id": image_id,
                        "category_id": class_of[name] + 1,
                        "segmentation": to_rle(annotation["segmentation"], height, width),
                        "score": float(annotation["fields"][ranking]),
                    }
                )
    return average_precision(truth, results, "segm")


def _outline(box: Sequence[float], height: int, width: int) -> list[float]:
    """The box as a polygon, cut off at the image."""
    x, y, w, h = map(float, box)
    x0, x1 = (min(max(value, 0.0), width) for value in (x, x + w))
    y0, y1 = (min(max(value, 0.0), height) for value in (y, y + h))
    return [x0, y0, x1, y0, x1, y1, x0, y1]
