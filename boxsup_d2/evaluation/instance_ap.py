"""Instance AP: Detectron2's COCOEvaluator with a fast exact scorer and more IoU thresholds.

The installable Detectron2 0.6 has no compiled scorer. hotcoco (Rust) gives pycocotools' precision arrays to the last
bit, 22 to 37 times as fast on masks; ultrafast-pycocotools was 15 to 21 times as fast, faster-coco-eval 3 to 5 times.
Without hotcoco, pycocotools gives the same numbers.
"""

import contextlib
import copy
import importlib.util
import io
import itertools
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Instances
from detectron2.utils.file_io import PathManager

from boxsup_d2.evaluation.ground_truth import ImageTruth, load_ground_truth
from boxsup_d2.evaluation.metrics import IOU_THRESHOLDS
from boxsup_d2.utils.files import strict_json

logger = logging.getLogger(__name__)

# The ten thresholds over which COCO's AP is the mean, computed as pycocotools computes them.
_COCO_IOUS = np.linspace(0.5, 0.95, 10)
_AREAS = ("all", "small", "medium", "large")


class InstanceAPEvaluator(COCOEvaluator):
    """Box and mask AP in percent, with ``AP<k>`` at further IoU thresholds where they are given.

    What differs from Detectron2's evaluator:

    * The fast scorer gives pycocotools' numbers exactly; ``use_fast_impl=False`` uses pycocotools itself.
    * A data set without a json file is converted for every evaluator anew: Detectron2 would use the conversion of an
      earlier run, even when the data have changed since.
    * A model that predicts nothing has an AP of 0, not NaN, as with a single wrong prediction. Classes without ground
      truth are NaN and do not count.
    * Void pixels of a data set (``void_mask`` of its dicts) are taken out of the predicted masks, so that they count
      for neither side. A COCO json has no void: in VOC as such a json, as the BoxCaseg authors published it, void is
      background. On small images that makes a large difference (filled boxes on VOC images of 320 px: AP50 51.4 with
      void ignored, 34.5 with void as background). ``ignore_void=False`` (``TEST.AP_IGNORE_VOID False``) scores that
      way.
    * An image that two ranks have seen counts once. Keypoints are not evaluated.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: tuple[str, ...] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        iou_thresholds: Sequence[int] = (),
        ignore_void: bool = True,
    ):
        """
        Args:
            dataset_name: Registered data set, with or without a ``json_file`` in its metadata.
            tasks: Out of "bbox" and "segm"; None takes those that the predictions and the ground truth have.
            distributed: Gather the predictions of all ranks.
            output_dir: Where predictions are saved as Detectron2 does; None saves nothing.
            max_dets_per_image: See :class:`COCOEvaluator`; None is COCO's 100.
            use_fast_impl: False scores with pycocotools.
            iou_thresholds: Further thresholds in percent, each reported as ``AP<k>``.
            ignore_void: False: void pixels are background, as in a COCO json of VOC.

        Raises:
            ValueError: If a task is unknown.
        """
        unknown = set(tasks or ()) - {"bbox", "segm"}
        if unknown:
            raise ValueError(f"Unknown tasks {sorted(unknown)}: instance AP is that of 'bbox' and 'segm'.")
        self._iou_thresholds = tuple(iou_thresholds)
        self._void: dict[int | str, ImageTruth] = {}
        with _json_file_of(dataset_name) as converted:
            super().__init__(
                dataset_name,
                tasks,
                distributed,
                output_dir,
                max_dets_per_image=max_dets_per_image,
                use_fast_impl=use_fast_impl,
            )
        # Detectron2's main branch sets its own attribute to False where its C++ scorer is not built.
        self._use_hotcoco = use_fast_impl
        if converted and ignore_void:
            # A COCO json has no void.
            self._void = {i: truth for i, truth in load_ground_truth(dataset_name).items() if truth.void is not None}

    def process(self, inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]]) -> None:
        """Store the predictions of a batch without void pixels; see :class:`COCOEvaluator`."""
        inputs, outputs = list(inputs), list(outputs)
        super().process(inputs, [self._without_void(i, o) for i, o in zip(inputs, outputs, strict=True)])

    def _without_void(self, sample: Mapping[str, Any], output: Mapping[str, Any]) -> Mapping[str, Any]:
        truth = self._void.get(sample["image_id"])
        void = None if truth is None else truth.void_mask()
        if void is None or "instances" not in output or not output["instances"].has("pred_masks"):
            return output
        instances: Instances = output["instances"].to(self._cpu_device)
        known = torch.from_numpy(~void)
        # A new object: other evaluators are given the same output.
        fields = dict(instances.get_fields())
        fields["pred_masks"] = fields["pred_masks"].bool() & known
        return {**output, "instances": Instances(instances.image_size, **fields)}

    def _tasks_from_predictions(self, predictions: list[dict[str, Any]]) -> list[str]:
        # Without a prediction: every task that the ground truth allows.
        tasks = {"bbox"}
        predicted = not predictions or any("segmentation" in p for p in predictions)
        if predicted and self._truth_has_masks():
            tasks.add("segm")
        return sorted(tasks)

    def _truth_has_masks(self) -> bool:
        return any("segmentation" in a for a in self._coco_api.dataset.get("annotations", ()))

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: list[int] | None = None) -> None:
        """Save and score the predictions; replaces Detectron2's, which has its scorers built in."""
        by_image = {p["image_id"]: p["instances"] for p in predictions}
        coco_results = list(itertools.chain.from_iterable(by_image.values()))
        self._to_dataset_categories(coco_results)
        if self._output_dir:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            with PathManager.open(path, "w") as f:
                f.write(strict_json(coco_results))
            logger.info("Saved %d predictions to '%s'.", len(coco_results), path)
        if not self._do_evaluation:
            logger.info("%s has no annotations to evaluate with.", self._metadata.name)
            return
        if not coco_results:
            logger.warning("The model predicted nothing on %s: its AP is 0.", self._metadata.name)

        for task in sorted(self._tasks or self._tasks_from_predictions(coco_results)):
            if task == "segm":
                self._check_masks(coco_results)
            precision = average_precision_array(
                self._coco_api.dataset,
                coco_results,
                task,
                thresholds=self._all_thresholds(),
                max_dets=self._max_dets_per_image,
                image_ids=img_ids,
                use_fast_impl=self._use_hotcoco,
            )
            self._results[task] = self._derive_results(precision, task)

    def _derive_results(self, precision: np.ndarray, task: str) -> dict[str, float]:
        """Detectron2's names, tables and per-class APs, then the further thresholds."""
        position = {round(100 * t): i for i, t in enumerate(self._all_thresholds())}
        coco = precision[[position[round(100 * t)] for t in _COCO_IOUS]]
        stats = [_ap(coco), _ap(coco[:1]), _ap(coco[5:6])]  # .50 and .75 are the first and the sixth
        stats += [_ap(coco, area) for area in range(1, len(_AREAS))]
        scored = SimpleNamespace(stats=stats, eval={"precision": coco})
        results = self._derive_coco_results(scored, task, class_names=self._metadata.get("thing_classes"))
        extra = {f"AP{k}": 100 * _ap(precision[[position[k]]]) for k in self._iou_thresholds}
        extra = {name: (value if value >= 0 else float("nan")) for name, value in extra.items()}
        if extra:
            logger.info("%s AP in percent on %s: %s", task, self._metadata.name, _listed(extra))
        # Averages first, then the classes.
        averages = {name: value for name, value in results.items() if "-" not in name}
        return {**averages, **extra, **results}

    def _all_thresholds(self) -> np.ndarray:
        return _with_coco_thresholds(self._iou_thresholds)

    def _to_dataset_categories(self, coco_results: list[dict[str, Any]]) -> None:
        """Contiguous class indices → category ids of the data set, in place."""
        mapping = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if mapping is None:
            return
        category_of = {index: category for category, index in mapping.items()}
        for result in coco_results:
            if result["category_id"] not in category_of:
                raise ValueError(
                    f"The model predicts class {result['category_id']}, but {self._metadata.name} has "
                    f"{len(category_of)} classes: check MODEL.ROI_HEADS.NUM_CLASSES."
                )
            result["category_id"] = category_of[result["category_id"]]

    def _check_masks(self, coco_results: list[dict[str, Any]]) -> None:
        if not self._truth_has_masks() and self._coco_api.dataset["annotations"]:
            raise ValueError(
                f"Mask AP needs true masks, and {self._metadata.name} has only boxes: use a set with masks."
            )
        if any("segmentation" not in result for result in coco_results):
            raise ValueError("Mask AP needs masks, and the model predicts only boxes: set MODEL.MASK_ON True.")


def average_precision(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    task: str,
    iou_thresholds: Sequence[int] = IOU_THRESHOLDS,
) -> dict[str, float]:
    """Average precision of results against a COCO json, over its classes with ground truth.

    Args:
        ground_truth, results, task: see :func:`average_precision_array`.
        iou_thresholds: in percent, each reported as ``AP<k>``.

    Returns:
        ``AP`` (COCO's, the mean over .50 ... .95) and ``AP<k>``, as fractions in 0..1; NaN without any ground truth.
    """
    thresholds = _with_coco_thresholds(iou_thresholds)
    precision = average_precision_array(ground_truth, results, task, thresholds=thresholds)
    percent = [round(100 * t) for t in thresholds]
    coco = [percent.index(round(100 * t)) for t in _COCO_IOUS]
    values = {"AP": _ap(precision[coco]), **{f"AP{k}": _ap(precision[[percent.index(k)]]) for k in iou_thresholds}}
    return {name: value if value >= 0 else float("nan") for name, value in values.items()}


def _with_coco_thresholds(further: Sequence[int]) -> np.ndarray:
    """COCO's ten thresholds and further ones, ascending."""
    coco = {round(100 * t) for t in _COCO_IOUS}
    return np.sort(np.concatenate([_COCO_IOUS, [k / 100 for k in set(further) - coco]]))


def average_precision_array(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    task: str,
    *,
    thresholds: np.ndarray,
    max_dets: Sequence[int] = (1, 10, 100),
    image_ids: Sequence[int] | None = None,
    use_fast_impl: bool = True,
) -> np.ndarray:
    """COCO's precision array.

    Args:
        ground_truth: COCO json as a dict.
        results: Predictions in COCO's result format; may be empty.
        task: "bbox" or "segm".
        thresholds: (T,) ascending IoU thresholds in 0..1.
        max_dets: (M,) limits on the detections of an image and class.
        image_ids: Evaluate these images alone.
        use_fast_impl: False: pycocotools.

    Returns:
        (T, 101, K, 4, M) precision in 0..1 by threshold, recall, category, area range (all, small, medium, large) and
        limit; -1 where a category has no ground truth. Both implementations give the same array.
    """
    if task == "segm":
        # With a box in the result, COCO's API takes the size class from the box, not from the mask.
        results = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
    if use_fast_impl and importlib.util.find_spec("hotcoco") is not None:
        truth, predicted, scorer = _load_hotcoco(ground_truth, results)
    else:
        truth, predicted, scorer = _load_pycocotools(ground_truth, results)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        evaluation = scorer(truth, predicted, task)
        evaluation.params.iouThrs = np.asarray(thresholds, dtype=np.float64)
        evaluation.params.maxDets = list(max_dets)
        if image_ids is not None:
            evaluation.params.imgIds = list(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])


def _load_hotcoco(truth: dict[str, Any], results: list[dict[str, Any]]) -> tuple[Any, Any, Any]:
    from hotcoco import COCO, COCOeval

    coco = COCO(truth)
    return coco, coco.loadRes(results) if results else COCO({**truth, "annotations": []}), COCOeval


def _load_pycocotools(truth: dict[str, Any], results: list[dict[str, Any]]) -> tuple[Any, Any, Any]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def index(dataset: dict[str, Any]) -> COCO:
        coco = COCO()
        coco.dataset = dataset
        coco.createIndex()
        return coco

    # pycocotools changes the annotations that it is given, and its loadRes fails on an empty list.
    with contextlib.redirect_stdout(io.StringIO()):
        coco = index({**truth, "annotations": copy.deepcopy(truth["annotations"])})
        predicted = coco.loadRes(copy.deepcopy(results)) if results else index({**truth, "annotations": []})
    return coco, predicted, COCOeval


@contextlib.contextmanager
def _json_file_of(dataset_name: str) -> Iterator[bool]:
    """Give a data set a temporary COCO json if it has none; yields whether it had none."""
    metadata = MetadataCatalog.get(dataset_name)
    if hasattr(metadata, "json_file"):
        yield False
        return
    with tempfile.TemporaryDirectory() as folder:
        metadata.json_file = os.path.join(folder, "annotations.json")
        try:
            convert_to_coco_json(dataset_name, metadata.json_file)
            yield True
        finally:
            del metadata.json_file


def _ap(precision: np.ndarray, area: int = 0) -> float:
    """Mean of (T, R, K, A, M) precision in 0..1 over what has ground truth, all detections; -1 where nothing has."""
    selected = precision[:, :, :, area, -1]
    selected = selected[selected > -1]
    return float(selected.mean()) if selected.size else -1.0


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in values.items())
