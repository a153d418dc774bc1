"""Evaluation of masks predicted from ground-truth boxes: mIoU*, mean IoU and IoU@k (as published with BoxCaseg).

One evaluator for every box-to-mask method. The mapper decides what the prompts are (the annotated boxes, or the tight
boxes of the true masks): masks are matched with annotations by order, not by box.
"""

import itertools
import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from boxsup_d2.data.formats.coco import read_json
from boxsup_d2.evaluation.ground_truth import ImageTruth, load_ground_truth
from boxsup_d2.evaluation.metrics import IOU_THRESHOLDS, BoxToMaskSummary, mask_iou, summarize_box_to_mask
from boxsup_d2.evaluation.results import gather_on_main, warn_if_partial, write_results
from boxsup_d2.evaluation.tables import format_table
from boxsup_d2.masks.box_masks import BoxMasks

logger = logging.getLogger(__name__)

#: File that :class:`BoxToMaskEvaluator` writes into its output folder.
INSTANCES_FILE = "box_to_mask_instances.json"


class InstanceScore(NamedTuple):
    """IoU of one instance.

    Attributes:
        image_id: As in the data set.
        position: Index among the image's annotations that are no crowd regions.
        class_id: Contiguous class index, 0-based.
        iou: In 0..1.
    """

    image_id: int | str
    position: int
    class_id: int
    iou: float


def score_image(truth: ImageTruth, masks: Sequence[np.ndarray] | np.ndarray | BoxMasks) -> list[InstanceScore]:
    """Score one image: the i-th mask against its i-th annotation.

    Args:
        truth: The image's objects.
        masks: N masks (H, W) bool in the original frame, in prompt order.

    Raises:
        ValueError: If there are not as many masks as annotations, or a mask has another size than the image.
    """
    return _score(truth, len(masks), iter(masks))


def _score(truth: ImageTruth, number: int, masks: Iterable[Any]) -> list[InstanceScore]:
    """:func:`score_image` of so many masks, of which one at a time is in memory."""
    if number != len(truth.annotations):
        raise ValueError(
            f"Image {truth.image_id} ('{truth.file_name}') has {len(truth.annotations)} annotated objects, but "
            f"{number} masks: one per box in the order of the annotations is expected. Are the prompts "
            "of another data set, or filtered differently (DATASETS.VOC_USE_DIFFICULT)?"
        )
    void = truth.void_mask()
    scores = []
    for index, (annotation, mask) in enumerate(zip(truth.annotations, masks, strict=True)):
        iou = float(mask_iou(np.asarray(mask), truth.mask(index), void))
        scores.append(InstanceScore(truth.image_id, index, int(annotation["category_id"]), iou))
    return scores


def score_annotations(
    truth: ImageTruth, annotations: Sequence[Mapping[str, Any]], json_file: str
) -> list[InstanceScore]:
    """Score the masks of a COCO json on one image: the i-th annotation against the image's i-th object.

    Args:
        truth: The image's objects.
        annotations: Of the json, each with a ``segmentation``.
        json_file: For messages.

    Raises:
        ValueError: As :func:`score_image`; an annotation has no mask, or one that does not fit the image.
    """
    for annotation in annotations:
        if not annotation.get("segmentation"):
            raise ValueError(
                f"Annotation {annotation.get('id')} of image {truth.image_id} in '{json_file}' has no mask: the file "
                "is not the result of labelling a whole data set."
            )
    return _score(truth, len(annotations), (truth.decode(annotation["segmentation"]) for annotation in annotations))


class BoxToMaskEvaluator(DatasetEvaluator):
    """mIoU*, mean IoU and IoU@k of the masks that a model predicts from the boxes of a data set with masks.

    Results are **percent**, as Detectron2's are:

    * ``mIoU*``: over the classes present; ``mIoU*_published``: over all classes, absent ones counting 0;
    * ``mean IoU`` and ``IoU@25`` ... ``IoU@75``: over instances;
    * ``mIoU*-<class>`` and ``IoU@k-<class>``: of one class, NaN where it has no instance.

    With an output folder, :data:`INSTANCES_FILE` there lists every instance's IoU as a fraction, e.g. for
    :func:`boxsup_d2.evaluation.metrics.bootstrap_interval`.
    """

    def __init__(self, dataset_name: str, output_folder: str | None = None, distributed: bool = True):
        """
        Args:
            dataset_name: Registered data set whose annotations have masks.
            output_folder: Where to write the instances; None writes nothing.
            distributed: Gather the scores of all ranks; False evaluates this process's alone.

        Raises:
            ValueError: If the data set has no classes, or an object without a mask.
        """
        self._dataset_name = dataset_name
        self._output_folder = output_folder
        self._distributed = distributed
        self._class_names = class_names(dataset_name)
        self._truths = load_ground_truth(dataset_name)
        for truth in self._truths.values():  # before hours of inference
            truth.check_has_masks()
        self._scores: list[InstanceScore] = []

    def reset(self) -> None:
        """Forget all scores."""
        self._scores = []

    def process(self, inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]]) -> None:
        """Score a batch.

        Args:
            inputs: Dicts with ``image_id``, and ``annotation_ids`` where the mapper gives them, which must be the data
                set's.
            outputs: Dicts with ``instances``, whose ``pred_masks`` are in the order of the boxes.

        Raises:
            ValueError: If an image is unknown, or its masks do not fit its annotations.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            truth = self._truths.get(sample["image_id"])
            if truth is None:
                raise ValueError(
                    f"Image {sample['image_id']} ('{sample.get('file_name')}') is not in data set "
                    f"'{self._dataset_name}': the loader reads another one."
                )
            _check_ids(truth, sample.get("annotation_ids"))
            self._scores.extend(score_image(truth, BoxMasks.of(output["instances"].pred_masks).to("cpu")))

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Gather, average, log one table.

        Returns:
            ``{"box_to_mask": {metric: percent}}`` on the main process, None on the others.
        """
        gathered = gather_on_main(self._scores, self._distributed)
        if gathered is None:
            return None
        scores = self._in_dataset_order(itertools.chain.from_iterable(gathered))
        summary = summarize_box_to_mask(
            [s.iou for s in scores], [s.class_id for s in scores], num_classes=len(self._class_names)
        )
        results = summary_to_results(summary, self._class_names)
        logger.info("Masks from boxes on %s:\n%s", self._dataset_name, summary_table(summary, self._class_names))
        if self._output_folder:
            self._save(self._output_folder, scores, results)
        return OrderedDict({"box_to_mask": results})

    def _in_dataset_order(self, scores: Iterable[InstanceScore]) -> list[InstanceScore]:
        # A padding sampler may give an image to two ranks: it counts once. In a fixed order, sums do not depend on the
        # number of ranks.
        unique = {(s.image_id, s.position): s for s in scores}
        expected = [(t.image_id, i) for t in self._truths.values() for i in range(len(t.annotations))]
        warn_if_partial(len(unique), len(expected), "instances", self._dataset_name)
        return [unique[key] for key in expected if key in unique]

    def _save(self, folder: str, scores: list[InstanceScore], results: dict[str, float]) -> None:
        instances = []
        for score in scores:
            annotation = self._truths[score.image_id].annotations[score.position]
            x0, y0, x1, y1 = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
            instances.append(
                {
                    "image_id": score.image_id,
                    "position": score.position,
                    "annotation_id": annotation.get("id"),
                    "category_id": score.class_id,
                    "iou": score.iou,
                    "box_area": float((x1 - x0) * (y1 - y0)),
                }
            )
        content = {
            "dataset": self._dataset_name,
            "classes": self._class_names,
            "metrics_percent": results,
            "instances": instances,
        }
        path = write_results(folder, INSTANCES_FILE, content)
        logger.info("Wrote the IoU of %d instances to '%s'.", len(instances), path)


def evaluate_mask_json(json_file: str, dataset_name: str) -> BoxToMaskSummary:
    """Score the masks of a COCO json, e.g. a pseudo-mask file, against a registered data set with true masks.

    Images are matched by id, objects by their order in the image, without crowd regions. Images that only one of them
    has are skipped and their number is logged.

    Args:
        json_file: COCO json whose annotations have a ``segmentation``.
        dataset_name: Registered data set with masks.

    Returns:
        Fractions in 0..1, void pixels ignored.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the objects of an image differ in number, or one of the json has no mask.
    """
    if not PathManager.isfile(json_file):
        raise FileNotFoundError(f"No mask file '{json_file}': label the data set first, or check the path.")
    content = read_json(PathManager.get_local_path(json_file), dataset_name)
    by_image: dict[int | str, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        if not annotation.get("iscrowd", 0):
            by_image[annotation["image_id"]].append(annotation)

    truths = load_ground_truth(dataset_name)
    scores: list[InstanceScore] = []
    shared = [truth for image_id, truth in truths.items() if image_id in by_image]
    for truth in shared:
        scores.extend(score_annotations(truth, by_image[truth.image_id], json_file))
    logger.info(
        "Scored %d masks of '%s' on the %d images that it shares with %s (%d of the file's and %d of the data set's "
        "images have no partner).",
        len(scores),
        json_file,
        len(shared),
        dataset_name,
        len(by_image) - len(shared),
        len(truths) - len(shared),
    )
    return summarize_box_to_mask(
        [s.iou for s in scores], [s.class_id for s in scores], num_classes=len(class_names(dataset_name))
    )


def class_names(dataset_name: str) -> list[str]:
    """Class names of a registered data set, by contiguous class index.

    Raises:
        ValueError: If it has none.
    """
    names = MetadataCatalog.get(dataset_name).get("thing_classes")
    if not names:
        raise ValueError(f"Data set '{dataset_name}' has no thing_classes: is it registered as an instance data set?")
    return list(names)


def summary_to_results(summary: BoxToMaskSummary, names: Sequence[str]) -> dict[str, float]:
    """Flatten a summary to ``{metric: percent}``.

    A metric of one class has a hyphen: Detectron2 leaves these out of the line that it prints for copying.
    """
    results = {
        "mIoU*": 100 * summary.miou_present,
        "mIoU*_published": 100 * summary.miou_published,
        "mean IoU": 100 * summary.mean_iou,
    }
    results.update({f"IoU@{k}": 100 * summary.iou_at[k] for k in IOU_THRESHOLDS})
    results.update({f"mIoU*-{name}": 100 * float(v) for name, v in zip(names, summary.per_class_iou, strict=True)})
    for k in IOU_THRESHOLDS:
        per_class = summary.per_class_iou_at[k]
        results.update({f"IoU@{k}-{name}": 100 * float(v) for name, v in zip(names, per_class, strict=True)})
    return results


def summary_table(summary: BoxToMaskSummary, names: Sequence[str]) -> str:
    """The figures as a text table in percent: one row per class present, then the averages."""
    headers = ["percent", "instances", "mIoU*", *(f"IoU@{k}" for k in IOU_THRESHOLDS)]
    rows: list[list[Any]] = []
    for index in map(int, np.flatnonzero(summary.counts)):
        at = [100 * summary.per_class_iou_at[k][index] for k in IOU_THRESHOLDS]
        rows.append([names[index], int(summary.counts[index]), 100 * summary.per_class_iou[index], *at])
    total = int(summary.counts.sum())
    blank = [None] * len(IOU_THRESHOLDS)
    at = [100 * summary.iou_at[k] for k in IOU_THRESHOLDS]
    rows.append([f"mean of the {np.count_nonzero(summary.counts)} classes present", total, 100 * summary.miou_present])
    rows.append([f"mean of all {len(names)} classes (published)", total, 100 * summary.miou_published])
    rows[-2] += blank
    rows[-1] += blank
    rows.append(["mean of all instances", total, 100 * summary.mean_iou, *at])
    return format_table(headers, rows)


def _check_ids(truth: ImageTruth, ids: Sequence[Any] | None) -> None:
    """Annotation ids must agree where both sides have them: the order alone would hide a mix-up."""
    known = [annotation.get("id") for annotation in truth.annotations]
    if ids is not None and None not in known and list(ids) != known:
        raise ValueError(
            f"The prompts of image {truth.image_id} ('{truth.file_name}') are annotations {list(ids)}, those of the "
            f"data set {known}: load and evaluate the same data set."
        )
