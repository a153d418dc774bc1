"""Turn the answers of a box-to-mask method into a pseudo-mask data set, as Detectron2 turns outputs into metrics."""

import logging
import math
import os
import shutil
import time
from collections.abc import Callable
from typing import Any, TypeVar

from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm
from tqdm import tqdm

from boxsup_d2.pseudo_masks.format import provenance_digest, read_provenance, write_pseudo_masks
from boxsup_d2.pseudo_masks.merge import MergedInstance, merge_image
from boxsup_d2.pseudo_masks.rle import empty_rle, has_mask
from boxsup_d2.pseudo_masks.shards import ShardIndex, ShardWriter

logger = logging.getLogger(__name__)

T = TypeVar("T")


def run_on_main(function: Callable[[], T]) -> T:
    """Run a function on rank 0; every rank returns its result, or raises its error instead of waiting for ever."""
    outcome: tuple[Any, Exception | None] = (None, None)
    if comm.is_main_process():
        try:
            outcome = (function(), None)
        except Exception as error:
            outcome = (None, error)
    result, failure = comm.all_gather(outcome)[0]
    if failure is not None:
        raise failure
    return result


class PseudoMaskWriter(DatasetEvaluator):
    """Writes ``<output_dir>/<dataset>_pseudo.json`` from the outputs of ``inference_on_dataset``.

    Which annotations are labelled is read off the data set's dicts: crowd regions are not, nor annotations that
    already have a mask there (a box-only data set's have none, whatever its json holds). Finished images
    are appended to ``<output_dir>/<dataset>_pseudo.partial/<digest>/``; the digest is the provenance's, so results of
    another checkpoint are neither mixed in nor lost. All ranks create the writer and call its methods together.
    """

    def __init__(
        self,
        dataset_name: str,
        dataset_dicts: list[dict[str, Any]],
        output_dir: str,
        provenance: dict[str, Any],
        load_source: Callable[[], dict[str, Any]],
        *,
        overwrite: bool = False,
        progress: bool = True,
    ):
        """
        Args:
            dataset_name: name of the source data set.
            dataset_dicts: its dicts; annotations need ``id``.
            output_dir: folder of the file; shared by all machines.
            provenance: see :mod:`boxsup_d2.pseudo_masks.format`; equal on all ranks.
            load_source: returns the source as COCO json; called on rank 0 at the end.
            overwrite: also label annotations that have a mask.
            progress: show a progress bar on rank 0.
        """
        self.dataset_name = dataset_name
        self.path = os.path.join(output_dir, f"{dataset_name}_pseudo.json")
        self._provenance = provenance
        self._load_source = load_source
        self._progress = progress
        self._folder = os.path.join(output_dir, f"{dataset_name}_pseudo.partial", provenance_digest(provenance))
        # Per image the annotations to label (id → x, y, w, h) and the masks that are kept. Boxes are read here and
        # not off the inputs, whose float32 corners would move a truncation.
        self._prompts: dict[Any, dict[Any, list[float]]] = {}
        self._kept: dict[Any, list[Any]] = {}
        self._kept_ids: set[Any] = set()
        self._collect(dataset_dicts, overwrite)
        self.finished, self._done, self._run = run_on_main(self._look_up)
        self._shard: ShardWriter | None = None
        self._bar: Any = None
        self._started = time.perf_counter()

    def _collect(self, dataset_dicts: list[dict[str, Any]], overwrite: bool) -> None:
        for record in dataset_dicts:
            image_id = record["image_id"]
            for annotation in record.get("annotations", ()):
                if annotation.get("iscrowd", 0):
                    continue
                if "id" not in annotation:
                    raise ValueError(
                        f"An annotation of '{record['file_name']}' in '{self.dataset_name}' has no \"id\", so its mask "
                        "could not be written back. Register the data set as a box data set of boxsup_d2."
                    )
                if not overwrite and has_mask(annotation.get("segmentation")):
                    self._kept.setdefault(image_id, []).append(annotation["segmentation"])
                    self._kept_ids.add(annotation["id"])
                else:
                    box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYWH_ABS)
                    self._prompts.setdefault(image_id, {})[annotation["id"]] = [float(value) for value in box]

    def _look_up(self) -> tuple[bool, set[Any], int]:
        """Whether the file is there already, the images that are done, and the number of this run."""
        provenance = read_provenance(self.path)
        if provenance is not None and provenance_digest(provenance) == provenance_digest(self._provenance):
            return True, set(self._prompts), 0
        done = ShardIndex(self._folder).image_ids & set(self._prompts)
        runs = [name[:4] for name in os.listdir(self._folder)] if os.path.isdir(self._folder) else []
        return False, done, max((int(run) for run in runs if run.isdigit()), default=0) + 1

    def pending(self, dataset_dicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The dicts whose images still need the network; images without a box to label do not."""
        return [
            record
            for record in dataset_dicts
            if record["image_id"] in self._prompts and record["image_id"] not in self._done
        ]

    def reset(self) -> None:
        """Start the clock and the progress bar; what is labelled stays."""
        self._started = time.perf_counter()
        self._close()
        if self._progress and comm.is_main_process() and not self.finished:
            self._bar = tqdm(
                desc=f"label {self.dataset_name}",
                total=len(self._prompts),
                initial=len(self._done),
                unit="image",
                mininterval=0.5,
            )

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Merge the masks of each image and store them.

        Args:
            inputs: as ``BoxPromptDatasetMapper`` returns them.
            outputs: ``[{"instances": Instances}]`` with ``pred_masks`` N×H×W bool, in the order of the prompts.

        Raises:
            ValueError: inputs and outputs do not fit each other or the data set; names the image.
            OSError: the disk is full.
        """
        if self._shard is None:
            self._shard = ShardWriter(self._folder, f"{self._run:04d}-rank{comm.get_rank():04d}")
        for item, output in zip(inputs, outputs, strict=True):
            ids, instances = self._merge(item, output)
            self._shard.append(item["image_id"], ids, instances)
        if self._bar is not None:
            # Ranks run side by side: rank 0 counts for all of them.
            ahead = len(inputs) * comm.get_world_size()
            self._bar.update(min(ahead, self._bar.total - self._bar.n))

    def _merge(self, item: dict[str, Any], output: dict[str, Any]) -> tuple[list[Any], list[MergedInstance]]:
        image_id, masks = item["image_id"], output["instances"].pred_masks
        prompts = self._prompts.get(image_id, {})
        asked = item.get("annotation_ids")
        if asked is None or len(asked) != len(masks):
            count = "no" if asked is None else len(asked)
            raise ValueError(
                f"{len(masks)} masks for {count} annotation ids of '{item.get('file_name', image_id)}'. The mapper "
                "must be BoxPromptDatasetMapper, and the method must answer every prompt in order."
            )
        rows = [row for row, annotation_id in enumerate(asked) if annotation_id in prompts]
        ids = [asked[row] for row in rows]
        if len(ids) != len(prompts):
            raise ValueError(
                f"'{item.get('file_name', image_id)}' was prompted for {len(ids)} of its {len(prompts)} boxes: the "
                "loader's data set is not the writer's."
            )
        try:
            merged = merge_image(
                masks if len(rows) == len(asked) else masks[rows],
                [prompts[annotation_id] for annotation_id in ids],
                kept=self._kept.get(image_id, ()),
            )
        except ValueError as error:
            raise ValueError(f"'{item.get('file_name', image_id)}' in '{self.dataset_name}': {error}") from error
        return ids, merged

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Wait for all ranks and write the file, unless it is there already.

        Returns:
            ``{"pseudo_masks": {...}}`` on every rank: ``images`` and ``instances`` that were labelled, ``kept`` masks,
            ``mean_confidence``, ``mean_confidence_exact``, ``share_empty``, ``seconds`` of this run.

        Raises:
            RuntimeError: results of some images are missing.
            OSError: the file cannot be written, e.g. on a full disk; results are kept for the next run.
        """
        self._close()
        comm.synchronize()
        summary = run_on_main(self._finish)
        self.finished = True
        return {"pseudo_masks": {**summary, "seconds": time.perf_counter() - self._started}}

    def _close(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._shard = None
            self._run += 1
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _finish(self) -> dict[str, float]:
        if self.finished:
            logger.info("'%s' has been written before, by the same labelling: left as it is", self.path)
            return (read_provenance(self.path) or {}).get("summary", {})
        index = ShardIndex(self._folder)
        missing = self._prompts.keys() - index.image_ids
        if missing:
            raise RuntimeError(
                f"{len(missing)} of {len(self._prompts)} images of '{self.dataset_name}' have no result in "
                f"'{self._folder}' (first: image id {min(missing, key=str)}). Run the same command again to label "
                "them; with several machines, OUTPUT_DIR must be a folder that all of them share."
            )
        summary = self._summary(index)
        source = self._load_source()
        sizes = {image["id"]: (image["height"], image["width"]) for image in source["images"]}
        write_pseudo_masks(
            self.path,
            source,
            {**self._provenance, "summary": summary},
            self._annotator(index, sizes),
            f"About {index.bytes / 1e6:.0f} MB and the size of the source json are needed; the {len(self._prompts)} "
            f"labelled images are kept in '{self._folder}'.",
        )
        shutil.rmtree(self._folder, ignore_errors=True)
        partial = os.path.dirname(self._folder)
        if os.path.isdir(partial) and not os.listdir(partial):
            os.rmdir(partial)
        logger.info("Wrote '%s': %s", self.path, summary)
        return summary

    def _summary(self, index: ShardIndex) -> dict[str, float]:
        instances = len(index.confidences)
        # fsum: the same to the last digit whatever the order of the shards.
        return {
            "images": len(self._prompts),
            "instances": instances,
            "kept": len(self._kept_ids),
            "mean_confidence": math.fsum(index.confidences) / max(instances, 1),
            "mean_confidence_exact": math.fsum(index.confidences_exact) / max(instances, 1),
            "share_empty": index.empty / max(instances, 1),
        }

    def _annotator(
        self, index: ShardIndex, sizes: dict[Any, tuple[int, int]]
    ) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """Maps an annotation of the source to the one of the file; ``sizes``: height and width by image id."""

        def annotate(annotation: dict[str, Any]) -> dict[str, Any]:
            if annotation.get("iscrowd"):
                return annotation
            if annotation["id"] in self._kept_ids:
                return {"confidence": 1.0, "confidence_exact": 1.0, **annotation}
            merged = index.get(annotation["image_id"]).get(annotation["id"])
            if merged is None:  # its box is empty, so no method was asked for its mask
                merged = MergedInstance(empty_rle(*sizes[annotation["image_id"]]), 0, 0.0, 0.0)
            return {
                **annotation,
                "segmentation": merged.segmentation,
                # The source's may be its true mask's. Many readers drop annotations of area 0, box and all.
                "area": merged.area or annotation["bbox"][2] * annotation["bbox"][3],
                "confidence": merged.confidence,
                "confidence_exact": merged.confidence_exact,
            }

        return annotate
