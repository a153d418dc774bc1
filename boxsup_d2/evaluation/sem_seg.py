"""Evaluation of label maps of segmenters (with a DenseCRF or without) and of box-to-mask methods: mIoU."""

import logging
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from boxsup_d2.crf.pool import CRFPool
from boxsup_d2.crf.refine import CRF_RESNET101, CRF_VGG16, CRFParams, check_densecrf
from boxsup_d2.data.images import read_label_map
from boxsup_d2.evaluation.results import gather_on_main, warn_if_partial, write_results
from boxsup_d2.evaluation.semantic_metrics import SemanticSummary, confusion_matrix, summarize_semantic
from boxsup_d2.evaluation.tables import format_table
from boxsup_d2.masks.label_map import IGNORE_LABEL, prompted_label_map

logger = logging.getLogger(__name__)

#: File that :class:`SemanticEvaluator` writes into its output folder.
RESULTS_FILE = "{task}_evaluation.json"

#: Published CRF settings by the names that TEST.SEM_SEG_CRF takes.
CRF_SETTINGS: dict[str, CRFParams | None] = {"": None, "vgg16": CRF_VGG16, "resnet101": CRF_RESNET101}


class SemanticEvaluator(DatasetEvaluator):
    """mIoU and accuracies of label maps on a data set with ``sem_seg_file_name``.

    Results are **percent**: ``mIoU`` (over the classes in the ground truth), ``fwIoU``, ``pACC``, ``mACC``,
    ``IoU-<class>`` and ``ACC-<class>`` (NaN for classes that are not in the ground truth). Detectron2's own evaluator
    (0.6) averages also over classes that are only predicted, and keeps every prediction in memory.
    """

    def __init__(
        self,
        dataset_name: str,
        output_folder: str | None = None,
        *,
        task: str = "sem_seg",
        crf: CRFParams | None = None,
        crf_workers: int = 0,
        distributed: bool = True,
    ) -> None:
        """
        Args:
            dataset_name: Registered data set with ``stuff_classes`` and ``ignore_label``.
            output_folder: Where to write the metrics and the confusion matrix; None writes nothing.
            task: Key of the results.
            crf: Refine the probabilities before the label map is taken.
            crf_workers: Processes for that; 0: this rank's share of the machine's cores.
            distributed: Sum over all ranks; False evaluates this process's images alone.

        Raises:
            ValueError: The data set has no classes, or an image without a label map.
            ImportError: ``crf`` without ``pydensecrf``.
        """
        self._dataset_name = dataset_name
        self._output_folder = output_folder
        self._task = task
        self._crf = crf
        self._crf_workers = crf_workers
        self._distributed = distributed
        if crf is not None:
            check_densecrf()  # before hours of inference
        metadata = MetadataCatalog.get(dataset_name)
        names = metadata.get("stuff_classes")
        self._truths = {d["file_name"]: d.get("sem_seg_file_name") for d in DatasetCatalog.get(dataset_name)}
        missing = next((name for name, truth in self._truths.items() if truth is None), None)
        if not names or missing is not None:
            raise ValueError(
                f"Data set '{dataset_name}' cannot be evaluated for {task}: "
                + ("it has no stuff_classes." if not names else f"image '{missing}' has no sem_seg_file_name.")
            )
        self._class_names = list(names)
        self._ignore_label = metadata.get("ignore_label", IGNORE_LABEL)
        self._pool: CRFPool | None = None
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        # The nonzero cells of each image's confusion matrix. By image, because a padding sampler may give one to two
        # ranks, and it must count once.
        self._cells: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._close_pool()

    def label_map(self, sample: Mapping[str, Any], output: Mapping[str, Any]) -> np.ndarray:
        """The predicted (H, W) integer label map.

        Args:
            sample: The model's input dict.
            output: The model's output; here ``sem_seg``, C x H x W scores, of which the largest wins.
        """
        del sample
        return output["sem_seg"].argmax(dim=0).cpu().numpy()

    def process(self, inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]]) -> None:
        """Score a batch.

        Args:
            inputs: Dicts with ``file_name``; with a CRF also ``image``, 3 x H x W uint8 of the original size.
            outputs: See :meth:`label_map`; with a CRF, ``sem_seg`` are probabilities.

        Raises:
            FileNotFoundError: A label map is missing.
            ValueError: An image is not of the data set, or its label map has another size, or is damaged; named.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            name = sample["file_name"]
            if name not in self._truths:
                raise ValueError(
                    f"Image '{name}' is not in data set '{self._dataset_name}': the loader reads another one."
                )
            if self._crf is None:
                self._count(name, self.label_map(sample, output))
                continue
            if self._pool is None:
                self._pool = CRFPool(self._crf, self._crf_workers)
            image = sample["image"].permute(1, 2, 0).contiguous().cpu().numpy()
            for ready in self._pool.submit(name, image, output["sem_seg"].float().cpu().numpy()):
                self._count(*ready)

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Sum over the ranks, average, log one table.

        Returns:
            ``{task: {metric: percent}}`` on the main process, None on the others.
        """
        for ready in self._pool.drain() if self._pool is not None else ():
            self._count(*ready)
        self._close_pool()
        gathered = gather_on_main(self._cells, self._distributed)
        if gathered is None:
            return None
        cells = {name: own for part in gathered for name, own in part.items()}
        warn_if_partial(len(cells), len(self._truths), "images", self._dataset_name)
        confusion = np.zeros((len(self._class_names), len(self._class_names) + 1), dtype=np.int64)
        for positions, counts in cells.values():
            confusion.flat[positions] += counts
        summary = summarize_semantic(confusion)
        results = semantic_results(summary, self._class_names)
        table = semantic_table(summary, self._class_names)
        logger.info("Semantic segmentation (%s) on %s:\n%s", self._task, self._dataset_name, table)
        if self._output_folder:
            content = {
                "dataset": self._dataset_name,
                "images": len(cells),
                "classes": self._class_names,
                "metrics_percent": results,
                "confusion_true_by_predicted": confusion.tolist(),
            }
            path = write_results(self._output_folder, RESULTS_FILE.format(task=self._task), content)
            logger.info("Wrote the confusion matrix of %d images to '%s'.", len(cells), path)
        return OrderedDict({self._task: results})

    def _count(self, file_name: Hashable, pred: np.ndarray) -> None:
        path = self._truths[str(file_name)]
        truth = read_label_map(path)
        try:
            matrix = confusion_matrix(pred, truth, len(self._class_names), self._ignore_label)
        except ValueError as error:
            raise ValueError(f"Label map '{path}' of image '{file_name}': {error}") from error
        positions = np.flatnonzero(matrix)
        self._cells[str(file_name)] = positions, matrix.flat[positions]

    def _close_pool(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None


class BoxToSemSegEvaluator(SemanticEvaluator):
    """:class:`SemanticEvaluator` of the label maps that labelling by a box-to-mask method would write.

    Takes the dicts of ``BoxPromptDatasetMapper`` and the method's outputs for them.
    """

    def __init__(self, dataset_name: str, output_folder: str | None = None, *, distributed: bool = True) -> None:
        super().__init__(dataset_name, output_folder, task="box_to_sem_seg", distributed=distributed)

    def label_map(self, sample: Mapping[str, Any], output: Mapping[str, Any]) -> np.ndarray:
        """The label map that :class:`boxsup_d2.labelling.sem_seg_writer.SemSegLabelWriter` would write."""
        return prompted_label_map(sample, output)


def semantic_results(summary: SemanticSummary, names: Sequence[str]) -> dict[str, float]:
    """Flatten a summary to ``{metric: percent}``; a metric of one class has a hyphen."""
    results = {
        "mIoU": 100 * summary.miou,
        "fwIoU": 100 * summary.fwiou,
        "pACC": 100 * summary.pixel_accuracy,
        "mACC": 100 * summary.mean_accuracy,
    }
    results.update({f"IoU-{name}": 100 * float(v) for name, v in zip(names, summary.class_iou, strict=True)})
    results.update({f"ACC-{name}": 100 * float(v) for name, v in zip(names, summary.class_accuracy, strict=True)})
    return results


def semantic_table(summary: SemanticSummary, names: Sequence[str]) -> str:
    """A text table in percent: one row per class in the ground truth, then the averages."""
    occurring = list(map(int, np.flatnonzero(summary.pixels)))
    rows: list[list[Any]] = [
        [names[i], int(summary.pixels[i]), 100 * float(summary.class_iou[i]), 100 * float(summary.class_accuracy[i])]
        for i in occurring
    ]
    total = int(summary.pixels.sum())
    rows.append(
        [f"mean of the {len(occurring)} classes present", total, 100 * summary.miou, 100 * summary.mean_accuracy]
    )
    rows.append(["by pixels", total, 100 * summary.fwiou, 100 * summary.pixel_accuracy])
    return format_table(["percent", "pixels", "IoU", "accuracy"], rows)
