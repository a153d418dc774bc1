"""What writers of pseudo labels share: labelling an image at a time, over any number of ranks, runs and crashes."""

import logging
import os
import shutil
import time
from abc import abstractmethod
from collections.abc import Callable, Collection
from typing import Any, ClassVar, NamedTuple

from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.structures import BoxMode
from detectron2.utils import comm
from torch import nn

from boxsup_d2.data.formats.pseudo_masks import provenance_digest, read_provenance
from boxsup_d2.labelling.shards import ShardIndex, ShardWriter
from boxsup_d2.masks.rle import has_mask
from boxsup_d2.utils.processes import run_on_main
from boxsup_d2.utils.progress import ProgressBar

__all__ = ["LabelTask", "LabelWriter", "label_task", "labelled_rows", "run_writer"]

logger = logging.getLogger(__name__)


class LabelTask(NamedTuple):
    """What is to be done for one image.

    Attributes:
        prompts: box x, y, w, h of each annotation to label, by its id. Boxes are read here and not off the inputs,
            whose float32 corners would move a truncation.
        kept: annotations that keep the mask they have, ``bbox`` as x, y, w, h.
        crowds: crowd regions.
    """

    prompts: dict[Any, list[float]]
    kept: list[dict[str, Any]]
    crowds: list[dict[str, Any]]


def label_task(record: dict[str, Any], dataset_name: str, overwrite: bool) -> LabelTask:
    """Sort the annotations of a dataset dict.

    Args:
        record: the dict.
        dataset_name: for messages.
        overwrite: also label annotations that have a mask.

    Raises:
        ValueError: an annotation has no id.
    """
    task = LabelTask({}, [], [])
    for annotation in record.get("annotations", ()):
        if annotation.get("iscrowd", 0):
            task.crowds.append(annotation)
            continue
        if "id" not in annotation:
            raise ValueError(
                f"An annotation of '{record['file_name']}' in '{dataset_name}' has no \"id\", so its mask "
                "could not be written back. Register the data set as a box data set of boxsup_d2."
            )
        box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYWH_ABS)
        box = [float(value) for value in box]
        if not overwrite and has_mask(annotation.get("segmentation")):
            task.kept.append({**annotation, "bbox": box, "bbox_mode": BoxMode.XYWH_ABS})
        else:
            task.prompts[annotation["id"]] = box
    return task


def labelled_rows(item: dict[str, Any], output: dict[str, Any], prompts: Collection[Any]) -> list[int]:
    """Which of an image's predictions are those of the annotations to label.

    Args:
        item: as ``BoxPromptDatasetMapper`` returns it.
        output: ``{"instances": Instances}`` with N ``pred_masks``, in the order of the prompts.
        prompts: ids of the annotations to label.

    Returns:
        Positions in ``item["annotation_ids"]``, in ascending order.

    Raises:
        ValueError: the prediction does not fit the input, or the input the prompts; names the image.
    """
    asked, number = item.get("annotation_ids"), len(output["instances"].pred_masks)
    name = item.get("file_name", item["image_id"])
    if asked is None or len(asked) != number:
        count = "no" if asked is None else len(asked)
        raise ValueError(
            f"{number} masks for {count} annotation ids of '{name}'. The mapper must be BoxPromptDatasetMapper, and "
            "the method must predict a mask for every prompt, in order."
        )
    rows = [row for row, annotation_id in enumerate(asked) if annotation_id in prompts]
    if len(rows) != len(prompts):
        raise ValueError(
            f"'{name}' was prompted for {len(rows)} of its {len(prompts)} boxes: the loader's data set is not the "
            "writer's."
        )
    return rows


class LabelWriter(DatasetEvaluator):
    """Base of the writers: labels the images of a data set, and writes one file when all of them are done.

    Finished images are noted in ``<path without .json>.partial/<digest>/``; the digest is the provenance's, so results
    of another checkpoint are neither mixed in nor lost. All ranks create the writer and call its methods together.
    """

    #: What is done to an image, for the progress bar.
    verb: ClassVar[str] = "label"

    def __init__(
        self,
        dataset_name: str,
        path: str,
        provenance: dict[str, Any],
        image_ids: Collection[Any],
        *,
        progress: bool = True,
    ):
        """
        Args:
            dataset_name: name of the source data set.
            path: of the file, in a folder that all machines share.
            provenance: see :mod:`boxsup_d2.data.formats.pseudo_masks`; equal on all ranks.
            image_ids: of the images that the network has to label.
            progress: show a progress bar, on rank 0.
        """
        self.dataset_name = dataset_name
        self.path = path
        self._provenance = provenance
        self._image_ids = set(image_ids)
        self._progress = progress
        self._digest = provenance_digest(provenance)
        self._folder = os.path.join(f"{os.path.splitext(path)[0]}.partial", self._digest)
        self.finished, self._done, self._run = run_on_main(self._look_up)
        self._shard: ShardWriter | None = None
        self._bar: ProgressBar | None = None
        self._started = time.perf_counter()

    # ------------------------------------------------------------------------------------------ for subclasses

    @abstractmethod
    def _open_index(self) -> ShardIndex:
        """Index of the results in ``self._folder``."""

    @abstractmethod
    def _label(self, item: dict[str, Any], output: dict[str, Any]) -> dict[str, Any]:
        """The record of one image, to be noted; what does not go into it is on the disk when this returns."""

    @abstractmethod
    def _write(self, index: Any) -> dict[str, float]:
        """Write ``self.path`` out of all results, atomically and last; returns the summary. Called on rank 0."""

    def _labelled(self, index: ShardIndex) -> set[Any]:
        """Ids of the images whose results are there."""
        return index.image_ids

    # ------------------------------------------------------------------------------------------ as an evaluator

    def _look_up(self) -> tuple[bool, set[Any], int]:
        """Whether the file is there already, the images that are done, and the number of this run."""
        provenance = read_provenance(self.path)
        if provenance is not None and provenance_digest(provenance) == self._digest:
            return True, set(self._image_ids), 0
        done = self._labelled(self._open_index()) & self._image_ids
        runs = [name[:4] for name in os.listdir(self._folder)] if os.path.isdir(self._folder) else []
        return False, done, max((int(run) for run in runs if run.isdigit()), default=0) + 1

    def pending(self, dataset_dicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The dicts whose images still need the network; images without a box to label do not."""
        return [
            record
            for record in dataset_dicts
            if record["image_id"] in self._image_ids and record["image_id"] not in self._done
        ]

    def reset(self) -> None:
        """Start the clock and the progress bar; what is labelled stays."""
        self._started = time.perf_counter()
        self.close()
        if self._progress and comm.is_main_process() and not self.finished:
            self._bar = ProgressBar(f"{self.verb} {self.dataset_name}", len(self._image_ids), done=len(self._done))

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Make the labels of each image and store them.

        Args:
            inputs: as ``BoxPromptDatasetMapper`` returns them.
            outputs: of a box-to-mask method for them, see :class:`boxsup_d2.modeling.box_to_mask.BoxToMaskMethod`.

        Raises:
            ValueError: inputs and outputs do not fit each other or the data set; names the image.
            OSError: the disk is full.
        """
        if self._shard is None:
            self._shard = ShardWriter(self._folder, f"{self._run:04d}-rank{comm.get_rank():04d}")
        for item, output in zip(inputs, outputs, strict=True):
            self._shard.append(item["image_id"], self._label(item, output))
        if self._bar is not None:
            # Ranks run side by side: rank 0 counts for all of them.
            ahead = len(inputs) * comm.get_world_size()
            self._bar.update(min(ahead, self._bar.total - self._bar.done))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Wait for all ranks and write the file, unless it is there already.

        Returns:
            ``{"pseudo_masks": {...}}`` on every rank: the summary, and ``seconds`` of this run.

        Raises:
            RuntimeError: results of some images are missing.
            OSError: the file cannot be written, e.g. on a full disk; results are kept for the next run.
        """
        self.close()
        comm.synchronize()
        summary = run_on_main(self._finish)
        self.finished = True
        return {"pseudo_masks": {**summary, "seconds": time.perf_counter() - self._started}}

    def close(self) -> None:
        """Close the files and the progress bar of this run; may be called twice."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._shard is not None:
            self._shard.close()
            self._shard = None
            self._run += 1

    def _finish(self) -> dict[str, float]:
        if self.finished:
            logger.info("'%s' has been written before, by the same labelling: left as it is", self.path)
            return (read_provenance(self.path) or {}).get("summary", {})
        index = self._open_index()
        missing = self._image_ids - self._labelled(index)
        if missing:
            raise RuntimeError(
                f"{len(missing)} of {len(self._image_ids)} images of '{self.dataset_name}' have no result in "
                f"'{self._folder}' (first: image id {min(missing, key=str)}). Run the same command again to label "
                "them; with several machines, OUTPUT_DIR must be a folder that all of them share."
            )
        summary = self._write(index)
        shutil.rmtree(self._folder, ignore_errors=True)
        partial = os.path.dirname(self._folder)
        if os.path.isdir(partial) and not os.listdir(partial):
            os.rmdir(partial)
        logger.info("Wrote '%s': %s", self.path, summary)
        return summary


def run_writer(
    writer: LabelWriter,
    dataset_dicts: list[dict[str, Any]],
    start: Callable[[list[dict[str, Any]]], tuple[nn.Module, Any]],
) -> dict[str, dict[str, float]]:
    """Give a writer what it still needs, and let it write its file; all ranks call it together.

    Args:
        writer: of these images.
        dataset_dicts: of all images.
        start: of the dicts that are left, if any, the network and the loader.

    Returns:
        See :meth:`LabelWriter.evaluate`.
    """
    pending = writer.pending(dataset_dicts)
    logger.info(
        "%s %s: %d of %d images to do -> %s",
        writer.verb.capitalize(), writer.dataset_name, len(pending), len(dataset_dicts), writer.path,
    )  # fmt: skip
    if not pending:  # a sampler needs at least one image
        writer.reset()
        return writer.evaluate()
    try:
        model, loader = start(pending)
        return inference_on_dataset(model, loader, writer)
    finally:  # messages and the next bar would be drawn into an open one
        writer.close()
