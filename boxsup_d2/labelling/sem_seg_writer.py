"""Turn the predictions of a box-to-mask method into a data set of semantic pseudo labels."""

import contextlib
import math
import os
import shutil
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from boxsup_d2.data.formats.pseudo_masks import label_map_folder, labels_path, write_pseudo_masks
from boxsup_d2.data.images import encode_label_map
from boxsup_d2.labelling.shards import ShardIndex
from boxsup_d2.labelling.writer import LabelTask, LabelWriter, label_task, labelled_rows
from boxsup_d2.masks.label_map import MAX_CLASSES, covering_boxes, paint_known, prompted_label_map
from boxsup_d2.utils.files import atomic_write


class SemSegShardIndex(ShardIndex[dict[str, Any]]):
    """Statistics of the label maps in a ``folder``'s shards; the maps themselves are files of their own."""

    def __init__(self, folder: str):
        self.boxes = 0
        self.empty = 0
        self.foreground = array("d")
        super().__init__(folder)

    def note(self, result: dict[str, Any]) -> None:
        self.boxes += result["boxes"]
        self.empty += result["empty"]
        self.foreground.append(result["foreground"])

    def read(self, record: dict[str, Any]) -> dict[str, Any]:
        return {"boxes": record["boxes"], "empty": record["empty"], "foreground": record["foreground"]}


class SemSegLabelWriter(LabelWriter):
    """Writes ``<output_dir>/<dataset>_pseudo_sem_seg.json`` and the folder of that stem, a palette PNG per image.

    What is labelled follows the rules of :class:`boxsup_d2.labelling.instance_writer.PseudoMaskWriter`:
    masks that are there are painted over the predicted ones. Crowd regions with a mask are ignored (255) where no class
    was found. Images without a box to label are background but for these.

    Label maps are collected beside the shards and moved to their folder when all of them are there; the manifest is
    written last, so that one that exists is whole. A mark in the folder says whose maps it holds in between.
    """

    def __init__(
        self,
        dataset_name: str,
        dataset_dicts: list[dict[str, Any]],
        output_dir: str,
        provenance: dict[str, Any],
        class_names: Sequence[str],
        *,
        overwrite: bool = False,
        progress: bool = True,
    ):
        """
        Args:
            dataset_name: name of the source data set.
            dataset_dicts: its dicts, with ``height`` and ``width``; annotations need ``id``.
            output_dir: folder of the manifest; shared by all machines.
            provenance: see :mod:`boxsup_d2.data.formats.pseudo_masks`; equal on all ranks.
            class_names: of the data set, in the order of ``category_id``.
            overwrite: also label annotations that have a mask.
            progress: show a progress bar, on rank 0.

        Raises:
            ValueError: there are more classes than a label map can tell apart.
        """
        if len(class_names) > MAX_CLASSES:
            raise ValueError(
                f"'{dataset_name}' has {len(class_names)} classes, a label map has room for {MAX_CLASSES}. Write "
                "instance masks: PSEUDO_MASKS.FORMAT instances."
            )
        self._dicts = dataset_dicts
        self._class_names = list(class_names)
        self._names = png_names(dataset_dicts)
        self._tasks: dict[Any, LabelTask] = {
            record["image_id"]: label_task(record, dataset_name, overwrite) for record in dataset_dicts
        }
        path = labels_path(output_dir, dataset_name, "sem_seg")
        prompted = [image_id for image_id, task in self._tasks.items() if task.prompts]
        super().__init__(dataset_name, path, provenance, prompted, progress=progress)

    @property
    def _collected(self) -> str:
        """Folder of this labelling's label maps: the final one if a run ended after moving them there."""
        final = label_map_folder(self.path)
        return final if os.path.exists(os.path.join(final, self._mark)) else os.path.join(self._folder, "png")

    @property
    def _mark(self) -> str:
        return f".{self._digest}"

    def _open_index(self) -> SemSegShardIndex:
        return SemSegShardIndex(self._folder)

    def _labelled(self, index: ShardIndex) -> set[Any]:
        # Label maps are not forced to the disk one by one, which takes longer than making them: after a power failure
        # some may be empty although they are noted.
        if not os.path.isdir(self._collected):
            return set()
        with os.scandir(self._collected) as entries:
            whole = {entry.name for entry in entries if entry.stat().st_size > 0}
        return {image_id for image_id in index.image_ids if self._names.get(image_id) in whole}

    def _label(self, item: dict[str, Any], output: dict[str, Any]) -> dict[str, Any]:
        """Write the label map of an image."""
        task = self._tasks[item["image_id"]]
        rows = labelled_rows(item, output, task.prompts)
        labels = prompted_label_map(item, output, rows)
        self._paint_known(labels, task, item.get("file_name", item["image_id"]))
        self._save(item["image_id"], labels)
        instances = item["instances"]
        corners = covering_boxes(instances.gt_boxes.tensor, instances.image_size).tolist()
        found = [
            bool((labels[corners[row][1] : corners[row][3], corners[row][0] : corners[row][2]] == int(c) + 1).any())
            for row, c in zip(rows, instances.gt_classes[rows], strict=True)
        ]
        return {"boxes": len(rows), "empty": len(rows) - sum(found), "foreground": float(_is_class(labels).mean())}

    def _paint_known(self, labels: np.ndarray, task: LabelTask, name: Any) -> None:
        try:
            paint_known(labels, task.kept, task.crowds)
        except ValueError as error:
            raise ValueError(f"'{name}' in '{self.dataset_name}': {error}") from error

    def _save(self, image_id: Any, labels: np.ndarray) -> None:
        folder = self._collected
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, self._names[image_id])
        with atomic_write(path, "Images that are already labelled are not labelled again.", binary=True) as file:
            file.write(encode_label_map(labels))

    def _write(self, index: SemSegShardIndex) -> dict[str, float]:
        """Complete the label maps, move them and write the manifest; the summary holds ``images`` and ``boxes`` that
        were labelled, ``kept`` masks, ``mean_foreground``, the mean share of an image's pixels that have a class, and
        ``share_empty``, the share of boxes without a pixel of their class."""
        for record in self._dicts:
            if record["image_id"] not in self._image_ids:
                labels = np.zeros((record["height"], record["width"]), np.uint8)
                self._paint_known(labels, self._tasks[record["image_id"]], record["file_name"])
                self._save(record["image_id"], labels)
        summary = {
            "images": len(self._image_ids),
            "boxes": index.boxes,
            "kept": sum(len(task.kept) for task in self._tasks.values()),
            # fsum: the same to the last digit whatever the order of the shards.
            "mean_foreground": math.fsum(index.foreground) / max(len(index.foreground), 1),
            "share_empty": index.empty / max(index.boxes, 1),
        }
        final = label_map_folder(self.path)
        self._move(final)
        write_pseudo_masks(
            self.path,
            {"stuff_classes": ["background", *self._class_names], "images": self._entries(os.path.basename(final))},
            {**self._provenance, "summary": summary},
            hint=f"The {len(self._image_ids)} labelled images are kept in '{final}'.",
        )
        os.unlink(os.path.join(final, self._mark))
        return summary

    def _move(self, final: str) -> None:
        if self._collected == final:
            return
        os.makedirs(self._collected, exist_ok=True)  # of a data set without images there are no maps either
        for name in os.listdir(self._collected):
            if name.endswith(".tmp"):  # of a run that was killed
                os.unlink(os.path.join(self._collected, name))
        with open(os.path.join(self._collected, self._mark), "w"):
            pass
        # The labels before, if there are any, end here: their manifest first.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        if os.path.isdir(final):
            shutil.rmtree(final)
        os.rename(os.path.join(self._folder, "png"), final)

    def _entries(self, folder: str) -> list[dict[str, Any]]:
        image_root = self._provenance.get("image_root")
        return [
            {
                "id": record["image_id"],
                "file_name": os.path.relpath(record["file_name"], image_root) if image_root else record["file_name"],
                "height": record["height"],
                "width": record["width"],
                "png": f"{folder}/{self._names[record['image_id']]}",
            }
            for record in self._dicts
        ]


def png_names(dataset_dicts: Sequence[dict[str, Any]]) -> dict[Any, str]:
    """Names of label maps by image id: those of the images, or numbers where images of several folders share one."""
    stems = [os.path.splitext(os.path.basename(record["file_name"]))[0] for record in dataset_dicts]
    if len({stem.casefold() for stem in stems}) < len(stems):  # not every file system tells A from a
        stems = [f"{number:08d}" for number in range(1, len(stems) + 1)]
    return {record["image_id"]: f"{stem}.png" for record, stem in zip(dataset_dicts, stems, strict=True)}


def _is_class(labels: np.ndarray) -> np.ndarray:
    return (labels > 0) & (labels <= MAX_CLASSES)
