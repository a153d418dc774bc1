"""The masks of one COCO json against those of another: what ``boxsup eval`` computes, and what reports sort by.

No data set is registered and no image opened. For masks against a registered data set, with void pixels, there is
:func:`boxsup_d2.evaluation.box_to_mask.evaluate_mask_json`.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_util

from boxsup_d2.data.datasets.catalog import Problems
from boxsup_d2.data.datasets.coco_checks import is_finite, unused_ids
from boxsup_d2.data.datasets.coco_format import build_dicts, category_tables, coco_segmentation, read_coco_json
from boxsup_d2.evaluation.box_to_mask import score_annotations, summary_table, summary_to_results
from boxsup_d2.evaluation.ground_truth import ImageTruth
from boxsup_d2.evaluation.instance_ap import average_precision
from boxsup_d2.evaluation.metrics import BoxToMaskSummary, summarize_box_to_mask
from boxsup_d2.evaluation.tables import format_table
from boxsup_d2.pseudo_masks.rle import empty_rle

#: Fields that rank masks for AP, the preferred one first.
RANKINGS = ("score", "confidence")
# Box IoU from which on two objects of an image and class are taken for the same, where no id says so.
_SAME_BOX = 0.5


class MaskRow(NamedTuple):
    """A true object and the mask that answers it.

    Attributes:
        annotation_id: Of the predicted mask, in its file.
        truth_id: Of the true one, in its file.
        image_id: Of the image, in the predicted file.
        file_name: Of the image, in the predicted file.
        class_name: Of both.
        iou: In 0..1.
        by_id: Whether the annotation ids matched them; else their boxes.
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
        rows: The matched objects, in the order of the true file's images and objects.
        ap: ``AP``, ``AP25`` ... as fractions; empty where nothing ranks the masks.
        ranking: Field that ranked them, or None.
        unmatched: What was not compared, and how often; only what there is. Objects of images without a partner are
            among the objects without one.
    """

    summary: BoxToMaskSummary
    class_names: list[str]
    rows: list[MaskRow]
    ap: dict[str, float]
    ranking: str | None
    unmatched: dict[str, int]

    def results(self) -> dict[str, float]:
        """All figures in percent, as the evaluators name them."""
        ap = {name: 100 * value for name, value in self.ap.items()}
        return {**ap, **summary_to_results(self.summary, self.class_names)}

    def table(self) -> str:
        """Text tables: per class and in the mean; AP; and what was not compared."""
        parts = [summary_table(self.summary, self.class_names)]
        if self.ap:
            values = [100 * value for value in self.ap.values()]
            parts.append(format_table(["percent", *self.ap], [[f"masks, ranked by {self.ranking}", *values]]))
        if self.unmatched:
            parts.append(format_table(["not compared", "number"], self.unmatched.items()))
        return "\n\n".join(parts)


class _Pair(NamedTuple):
    """Positions of two annotations of an image that are one object."""

    truth: int
    predicted: int
    by_id: bool


@dataclass(frozen=True)
class _MaskFile:
    path: str
    class_names: list[str]
    records: list[dict[str, Any]]  # dataset dicts, crowd regions included


def compare_mask_files(predicted: str, truth: str, *, rank_by: str | None = None) -> MaskFileScores:
    """Score the masks of a COCO json against those of another one.

    Images are the same if their ids are and no other image of the true file has the name; else if their names are,
    with their folders, or without folders and extension. Objects are the same if they are of the same image and class
    (by its name) and their annotation ids agree, for which their boxes have to touch; else, one by one from the most
    similar pair on, if their boxes have an IoU of 0.5. What has no partner is counted in ``unmatched``, and is in no
    mean: a true object that was not found costs nothing there, but does in AP.

    Crowd regions are no objects: predicted ones are left out, and in AP true ones excuse the masks on them, as COCO
    has it, and so do true objects that have a box alone. An object whose prediction has no mask counts with an IoU of
    0. AP is that of the images in both files.

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
    ours, theirs = _read(predicted), _read(truth)
    partners = _match_images(ours, theirs)
    rows = [row for record, partner in partners for row in _score(record, partner, ours, theirs)]
    unmatched = _count_unmatched(ours, theirs, partners, rows)
    if not rows:
        counts = ", ".join(f"{count} {what}" for what, count in unmatched.items()) or "neither holds an object"
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


def _read(path: str) -> _MaskFile:
    """Read and check a file; annotations without an id get one."""
    data = read_coco_json(path, os.path.basename(path), "Correct the path.")
    new_ids = unused_ids(data["annotations"])
    data["annotations"] = [
        annotation if annotation.get("id") is not None else {**annotation, "id": next(new_ids)}
        for annotation in data["annotations"]
    ]

    def mask_keys(source: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
        where = f"'{path}', annotation {source['id']}"
        fields = {key: value for key, value in source.items() if is_finite(value)}
        return {"segmentation": coco_segmentation(source.get("segmentation"), image, where), "fields": fields}

    records = build_dicts(data, path, "", path, keep_crowds=True, extra_keys=mask_keys, look_up_images=False)
    return _MaskFile(path, category_tables(data, path)[0], records)


def _objects(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [annotation for annotation in record["annotations"] if not annotation["iscrowd"]]


def _class_indices(names: Sequence[str]) -> dict[str, int]:
    """Class index by name; of classes with one name the first stands for all."""
    return {name: index for index, name in reversed(list(enumerate(names)))}


# -------------------------------------------------------------------------------------------------- matching


def _match_images(ours: _MaskFile, theirs: _MaskFile) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Records of the same image, predicted and true, in the order of the true file."""
    by_id = {record["image_id"]: record for record in theirs.records}
    by_name, by_stem = _unique(theirs.records, str), _unique(theirs.records, _stem)
    stems = _unique(ours.records, _stem)
    partners: dict[int, dict[str, Any]] = {}  # by the true image's id
    problems = Problems()
    for record in ours.records:
        named = by_name.get(record["file_name"])
        if named is None and _stem(record["file_name"]) in stems:
            named = by_stem.get(_stem(record["file_name"]))
        partner = by_id.get(record["image_id"])
        if named is not None:
            partner = named
        elif partner is not None and _size(partner) != _size(record):
            partner = None  # only a number in common
        if partner is None or partner["image_id"] in partners:
            continue
        if _size(partner) != _size(record):
            example = f"{record['file_name']}: {_size(record)} and {_size(partner)}"
            problems.add("images of different height and width in the two files", example)
        partners[partner["image_id"]] = record
    problems.raise_if_any(ours.path, f"Its masks must be in the frame of the images of '{theirs.path}'.")
    return [(partners[key], record) for key, record in by_id.items() if key in partners]


def _unique(records: Iterable[dict[str, Any]], key: Callable[[str], str]) -> dict[str, dict[str, Any]]:
    """Records by a key of their file names; without those that share one."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        found[key(record["file_name"])].append(record)
    return {name: same[0] for name, same in found.items() if len(same) == 1}


def _stem(file_name: str) -> str:
    return os.path.splitext(file_name.replace("\\", "/").rsplit("/", 1)[-1])[0]


def _size(record: dict[str, Any]) -> tuple[int, int]:
    return record["height"], record["width"]


def _match_objects(
    ours: list[dict[str, Any]], theirs: list[dict[str, Any]], our_names: Sequence[str], their_names: Sequence[str]
) -> list[_Pair]:
    """Pairs of objects of one image, in the order of the true ones; each is in one pair at most."""
    if not ours or not theirs:
        return []
    overlap = mask_util.iou([a["bbox"] for a in ours], [a["bbox"] for a in theirs], [0] * len(theirs))
    same_class = np.array(
        [[our_names[a["category_id"]] == their_names[b["category_id"]] for b in theirs] for a in ours]
    )
    overlap = np.where(same_class, overlap, 0.0)
    position = {annotation["id"]: index for index, annotation in enumerate(theirs)}
    pairs = []
    for index, annotation in enumerate(ours):
        partner = position.get(annotation["id"])
        if partner is not None and overlap[index, partner] > 0:
            pairs.append(_Pair(partner, index, True))
    for pair in pairs:
        overlap[pair.predicted] = 0
        overlap[:, pair.truth] = 0
    while overlap.max() >= _SAME_BOX:
        index, partner = map(int, np.unravel_index(overlap.argmax(), overlap.shape))
        pairs.append(_Pair(partner, index, False))
        overlap[index] = 0
        overlap[:, partner] = 0
    return sorted(pairs)


# --------------------------------------------------------------------------------------------------- scoring


def _score(record: dict[str, Any], partner: dict[str, Any], ours: _MaskFile, theirs: _MaskFile) -> list[MaskRow]:
    """Rows of one image."""
    predicted, true = _objects(record), _objects(partner)
    pairs = _match_objects(predicted, true, ours.class_names, theirs.class_names)
    pairs = [pair for pair in pairs if true[pair.truth]["segmentation"]]
    height, width = _size(record)
    truth = ImageTruth(
        record["image_id"], record["file_name"], height, width, [true[pair.truth] for pair in pairs], void=None
    )
    answers = [predicted[pair.predicted] for pair in pairs]
    answers = [{**a, "segmentation": a["segmentation"] or empty_rle(height, width)} for a in answers]
    return [
        MaskRow(
            annotation_id=answer["id"],
            truth_id=annotation["id"],
            image_id=record["image_id"],
            file_name=record["file_name"],
            class_name=theirs.class_names[annotation["category_id"]],
            iou=score.iou,
            by_id=pair.by_id,
        )
        for score, answer, annotation, pair in zip(
            score_annotations(truth, answers, ours.path), answers, truth.annotations, pairs, strict=True
        )
    ]


def _count_unmatched(
    ours: _MaskFile,
    theirs: _MaskFile,
    partners: list[tuple[dict[str, Any], dict[str, Any]]],
    rows: list[MaskRow],
) -> dict[str, int]:
    predicted = [annotation for record in ours.records for annotation in _objects(record)]
    true = [annotation for record in theirs.records for annotation in _objects(record)]
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


def _ranking(ours: _MaskFile, rank_by: str | None) -> str | None:
    """The field to rank by."""
    objects = [annotation for record in ours.records for annotation in _objects(record)]
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


def _average_precision(
    partners: list[tuple[dict[str, Any], dict[str, Any]]], ours: _MaskFile, theirs: _MaskFile, ranking: str
) -> dict[str, float]:
    """AP over the images in both files, with ids of its own: scorers know no others than positive ones."""
    class_of = _class_indices(theirs.class_names)
    truth: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": index + 1, "name": name} for name, index in class_of.items()],
    }
    results = []
    for image_id, (record, partner) in enumerate(partners, start=1):
        height, width = _size(record)
        truth["images"].append({"id": image_id, "height": height, "width": width})
        for annotation in partner["annotations"]:
            rle = _rle(annotation["segmentation"] or [_outline(annotation["bbox"])], height, width)
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": class_of[theirs.class_names[annotation["category_id"]]] + 1,
                    "bbox": annotation["bbox"],
                    "area": float(mask_util.area(rle)),
                    "segmentation": rle,
                    # A true object without a mask excuses what is predicted for it, as a crowd region does.
                    "iscrowd": int(annotation["iscrowd"] or not annotation["segmentation"]),
                }
            )
        for annotation in _objects(record):
            name = ours.class_names[annotation["category_id"]]
            if annotation["segmentation"] and name in class_of:
                results.append(
                    {
                        "image_id": image_id,
                        "category_id": class_of[name] + 1,
                        "segmentation": _rle(annotation["segmentation"], height, width),
                        "score": float(annotation["fields"][ranking]),
                    }
                )
    return average_precision(truth, results, "segm")


def _rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    if isinstance(segmentation, dict):
        return segmentation
    rle = mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def _outline(box: Sequence[float]) -> list[float]:
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]
