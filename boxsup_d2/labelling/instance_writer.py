"""Turn the predictions of a box-to-mask method into a pseudo-mask data set, as evaluators make metrics."""

import glob
import json
import logging
import math
import os
from collections.abc import Callable
from operator import itemgetter
from typing import Any

from detectron2.data import MetadataCatalog

from boxsup_d2.data.formats.pseudo_masks import labels_path, provenance_digest, provenance_of, write_pseudo_masks
from boxsup_d2.data.formats.rotated_boxes import ROTATED_BOX
from boxsup_d2.labelling.shards import MaskShardIndex, mask_record
from boxsup_d2.labelling.writer import LabelWriter, label_task, labelled_rows
from boxsup_d2.masks.confidence import DOUBTFUL_QUALITY
from boxsup_d2.masks.merge import MergedInstance, merge_image
from boxsup_d2.masks.rle import empty_rle
from boxsup_d2.modeling.box_to_mask import predicted_quality
from boxsup_d2.utils.files import atomic_write, json_sha256

logger = logging.getLogger(__name__)

# Key of a noted result: the hash of what it was made of.
_OF = "of"


class PseudoMaskWriter(LabelWriter):
    """Writes ``<output_dir>/<dataset>_pseudo.json`` from the outputs of ``inference_on_dataset``.

    Which annotations are labelled is read off the data set's dicts: crowd regions are not, nor annotations that
    already have a mask there (a box-only data set's have none, whatever its json holds).

    Results of a labelling that was not finished are taken over by another one, of other boxes, where nothing that an
    image's masks depend on is another: whoever leaves a damaged image out need not label the rest again.
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
        specks: float = 0.0,
        progress: bool = True,
    ):
        """
        Args:
            dataset_name: name of the source data set.
            dataset_dicts: its dicts; annotations need ``id``.
            output_dir: folder of the file; shared by all machines.
            provenance: see :mod:`boxsup_d2.data.formats.pseudo_masks`; equal on all ranks.
            load_source: returns the source as COCO json; called on rank 0 at the end.
            overwrite: also label annotations that have a mask.
            specks: see :func:`boxsup_d2.masks.merge.merge_image`.
            progress: show a progress bar, on rank 0.
        """
        self._load_source, self._specks = load_source, specks
        self._prompts: dict[Any, dict[Any, list[float]]] = {}
        self._kept: dict[Any, list[Any]] = {}
        self._kept_ids: set[Any] = set()
        self._records = {record["image_id"]: record for record in dataset_dicts}
        self._rotated = {
            obj["id"]: obj[ROTATED_BOX]
            for record in dataset_dicts
            for obj in record.get("annotations", ())
            if obj.get(ROTATED_BOX) and "id" in obj
        }
        names = list(MetadataCatalog.get(dataset_name).get("thing_classes", ()))
        self._method = provenance_digest({**provenance, "source_sha256": names})
        for record in dataset_dicts:
            task = label_task(record, dataset_name, overwrite)
            if task.prompts:
                self._prompts[record["image_id"]] = task.prompts
            if task.kept:
                self._kept[record["image_id"]] = [annotation["segmentation"] for annotation in task.kept]
                self._kept_ids.update(annotation["id"] for annotation in task.kept)
        path = labels_path(output_dir, dataset_name)
        super().__init__(dataset_name, path, provenance, self._prompts, progress=progress)

    def _open_index(self) -> MaskShardIndex:
        return MaskShardIndex(self._folder)

    def _look_up(self) -> tuple[bool, set[Any], int]:
        if not os.path.isdir(self._folder):
            self._take_over()
        return super()._look_up()

    def _take_over(self) -> None:
        """Copy what other labellings have noted of the images that are the same here."""
        partial = os.path.dirname(self._folder)
        taken: dict[Any, str] = {}
        for path in sorted(glob.glob(os.path.join(glob.escape(partial), "*", "*.jsonl"))):
            with open(path, encoding="utf-8") as file:
                for line in file:
                    try:
                        image_id, noted = itemgetter("image_id", _OF)(json.loads(line))
                    except (ValueError, KeyError, TypeError):  # torn
                        continue
                    if image_id in self._prompts and image_id not in taken and noted == self._content(image_id):
                        taken[image_id] = line
        if taken:
            logger.info("%d images were labelled alike before: '%s'", len(taken), partial)
            os.makedirs(self._folder)
            with atomic_write(os.path.join(self._folder, "0000-before.jsonl")) as file:
                file.writelines(taken.values())

    def _content(self, image_id: Any) -> str:
        """Hash of all that the masks of an image depend on; of its file the size."""
        record = self._records[image_id]
        path = record["file_name"]
        # All objects are prompts, whether they get a mask or keep one.
        prompts = [
            (obj.get("id"), obj["category_id"], list(obj["bbox"]), obj.get(ROTATED_BOX))
            for obj in record["annotations"]
            if not obj.get("iscrowd")
        ]
        size = os.path.getsize(path) if os.path.isfile(path) else None
        facts = [os.path.basename(path), size, prompts, self._prompts[image_id], self._kept.get(image_id)]
        return json_sha256([self._method, repr(facts)])[:16]

    def _label(self, item: dict[str, Any], output: dict[str, Any]) -> dict[str, Any]:
        """Merge the masks of an image."""
        image_id, masks = item["image_id"], output["instances"].pred_masks
        prompts = self._prompts.get(image_id, {})
        rows = labelled_rows(item, output, prompts)
        quality = predicted_quality(output["instances"])
        ids = [item["annotation_ids"][row] for row in rows]
        try:
            merged = merge_image(
                masks if len(rows) == len(masks) else masks[rows],
                [prompts[annotation_id] for annotation_id in ids],
                kept=self._kept.get(image_id, ()),
                quality=[quality[row] for row in rows],
                rotated=[self._rotated.get(annotation_id) for annotation_id in ids] if self._rotated else None,
                specks=self._specks,
            )
        except ValueError as error:
            raise ValueError(f"'{item.get('file_name', image_id)}' in '{self.dataset_name}': {error}") from error
        return {_OF: self._content(image_id), **mask_record(ids, merged)}

    def _write(self, index: MaskShardIndex) -> dict[str, float]:
        """Write the file; the summary holds ``images`` and ``instances`` that were labelled, ``kept`` masks,
        ``mean_confidence``, ``mean_confidence_exact``, ``mean_quality``, ``doubtful`` masks (those whose quality is
        below :data:`DOUBTFUL_QUALITY`) and ``share_empty``."""
        summary = self._summary(index)
        source = self._load_source()
        sizes = {image["id"]: (image["height"], image["width"]) for image in source["images"]}
        write_pseudo_masks(
            self.path,
            source,
            {**self._provenance, "summary": summary},
            self._annotator(index, sizes, earlier=provenance_of(source) is not None),
            f"About {index.bytes / 1e6:.0f} MB and the size of the source json are needed; the {len(self._prompts)} "
            f"labelled images are kept in '{self._folder}'.",
        )
        return summary

    def _summary(self, index: MaskShardIndex) -> dict[str, float]:
        instances = len(index.confidences)
        # fsum: the same to the last digit whatever the order of the shards.
        return {
            "images": len(self._prompts),
            "instances": instances,
            "kept": len(self._kept_ids),
            "mean_confidence": math.fsum(index.confidences) / max(instances, 1),
            "mean_confidence_exact": math.fsum(index.confidences_exact) / max(instances, 1),
            "mean_quality": math.fsum(index.qualities) / max(instances, 1),
            "doubtful": sum(quality < DOUBTFUL_QUALITY for quality in index.qualities),
            "share_empty": index.empty / max(instances, 1),
        }

    def _annotator(
        self, index: MaskShardIndex, sizes: dict[Any, tuple[int, int]], *, earlier: bool
    ) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """Maps an annotation of the source to the one of the file; ``sizes``: height and width by image id.

        ``earlier``: an earlier labelling wrote the source, and says what the masks that it made are worth. Without,
        masks were drawn, and fields of these names mean something else.
        """

        def annotate(annotation: dict[str, Any]) -> dict[str, Any]:
            if annotation.get("iscrowd"):
                return annotation
            if annotation["id"] in self._kept_ids:
                worth = {"confidence": 1.0, "confidence_exact": 1.0, "quality": 1.0}
                if not earlier:
                    return {**annotation, **worth}
                return {**worth, "quality": annotation.get("confidence", 1.0), **annotation}
            merged = index.get(annotation["image_id"]).get(annotation["id"])
            if merged is None:  # its box is empty, so no method was asked for its mask
                merged = MergedInstance(empty_rle(*sizes[annotation["image_id"]]), 0, 0.0, 0.0, 0.0)
            return {
                **annotation,
                "segmentation": merged.segmentation,
                # The source's may be its true mask's. Many readers drop annotations of area 0, box and all.
                "area": merged.area or annotation["bbox"][2] * annotation["bbox"][3],
                "confidence": merged.confidence,
                "confidence_exact": merged.confidence_exact,
                "quality": merged.quality,
            }

        return annotate
