"""What a network finds, as COCO's results and as a COCO data set that names the images and classes as well."""

import json
import os
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from detectron2.structures import Instances

from boxsup_d2.data.formats.problems import Problems
from boxsup_d2.data.formats.pseudo_masks import write_pseudo_masks
from boxsup_d2.labelling.shards import ShardIndex
from boxsup_d2.labelling.writer import LabelWriter
from boxsup_d2.masks.rle import area, encode_window
from boxsup_d2.utils.files import atomic_write

__all__ = ["PredictionWriter", "dataset_path"]

# An object: class number, score, box x, y, w, h, and its run lengths, if the network predicts masks.
_Object = tuple[int, float, list[float], dict[str, Any] | None]


def dataset_path(results: str) -> str:
    """Path of the COCO data set that stands beside a file of results."""
    return f"{os.path.splitext(results)[0]}.coco.json"


class PredictionWriter(LabelWriter):
    """Writes predictions out of the outputs of ``inference_on_dataset``, resumably (:class:`LabelWriter`).

    Two files: ``results``, a bare list as ``pycocotools``' ``loadRes`` takes it, and :func:`dataset_path` beside it, a
    COCO json with the images and categories, whose annotations have a ``score``. The latter is written last.
    """

    verb: ClassVar[str] = "predict"

    def __init__(
        self,
        results: str,
        images: dict[str, Any],
        provenance: dict[str, Any],
        category_ids: Sequence[int | None],
        *,
        min_score: float = 0.0,
        progress: bool = True,
    ):
        """
        Args:
            results: path of the results.
            images: COCO dict with ``images`` that have sizes, and ``categories``.
            provenance: see :mod:`boxsup_d2.data.formats.pseudo_masks`; equal on all ranks.
            category_ids: per class number the id of its category; None: its objects are left out.
            min_score: objects with a lower score are left out.
            progress: show a progress bar, on rank 0.
        """
        self._results = results
        self._images = images
        self._category_ids = category_ids
        self._min_score = min_score
        ids = [image["id"] for image in images["images"]]
        super().__init__("images", dataset_path(results), provenance, ids, progress=progress)

    def _open_index(self) -> "_ObjectIndex":
        return _ObjectIndex(self._folder)

    def _label(self, item: dict[str, Any], output: dict[str, Any]) -> dict[str, Any]:
        if "error" in output:
            return {"error": output["error"]}
        if "instances" in output:
            found = _objects(output["instances"].to("cpu"), self._min_score, self._category_ids)
        else:
            found = _classes(output["sem_seg"].argmax(dim=0).cpu().numpy(), self._category_ids)
        return {"objects": found}

    def _write(self, index: "_ObjectIndex") -> dict[str, Any]:
        """Write both files; the summary holds ``images``, ``objects``, ``classes`` that were found, and ``unreadable``
        images, which are in neither file."""
        unreadable, images = Problems(), []
        annotations: list[dict[str, Any]] = []
        for image in self._images["images"]:
            record = index.find(image["id"]) or {}
            if "error" in record:
                unreadable.add("images that cannot be read", record["error"])
                continue
            images.append(image)
            for number, score, box, mask in record["objects"]:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image["id"],
                        "category_id": self._category_ids[number],
                        "bbox": box,
                        "area": box[2] * box[3] if mask is None else area(mask, image["height"], image["width"]),
                        "iscrowd": 0,
                        "score": score,
                        **({} if mask is None else {"segmentation": mask}),
                    }
                )
        keys = ("image_id", "category_id", "bbox", "score", "segmentation")
        with atomic_write(self._results) as file:
            lines = (json.dumps({key: found[key] for key in keys if key in found}) for found in annotations)
            file.write("[" + ",\n".join(lines) + "]\n")
        summary = {
            "images": len(images),
            "objects": len(annotations),
            "classes": len({found["category_id"] for found in annotations}),
            "unreadable": [str(unreadable)] if len(unreadable) else [],
        }
        dataset = {"images": images, "annotations": annotations, "categories": self._images["categories"]}
        write_pseudo_masks(self.path, dataset, {**self._provenance, "summary": summary})
        return summary


class _ObjectIndex(ShardIndex[dict[str, Any]]):
    """Records of images: their ``objects``, or the ``error`` of one that cannot be read."""

    def read(self, record: dict[str, Any]) -> dict[str, Any]:
        if "error" not in record:
            record["objects"] = [(int(found[0]), *found[1:]) for found in record["objects"]]
        return record


def _objects(found: Instances, min_score: float, category_ids: Sequence[int | None]) -> list[_Object]:
    """The objects of an image that are asked for, in the network's order, the surest first."""
    scores = found.scores.double().tolist() if found.has("scores") else [1.0] * len(found)
    numbers = found.pred_classes.tolist()
    objects: list[_Object] = []
    for row, (number, score) in enumerate(zip(numbers, scores, strict=True)):
        if score < min_score or _category_id(number, category_ids) is None:
            continue
        mask = _encode(found.pred_masks[row].numpy()) if found.has("pred_masks") else None
        x0, y0, x1, y1 = (round(value, 2) for value in found.pred_boxes.tensor[row].double().tolist())
        box = [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)]
        objects.append((number, round(score, 5), box, mask))
    return objects


def _classes(labels: np.ndarray, category_ids: Sequence[int | None]) -> list[_Object]:
    """A region for each class of a label map (H×W), whose scores are 1."""
    objects: list[_Object] = []
    for number in np.unique(labels).tolist():
        if _category_id(number, category_ids) is None:
            continue
        mask = labels == number
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        x, y = int(columns[0]), int(rows[0])
        box = [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
        objects.append((number, 1.0, [float(value) for value in box], _encode(mask)))
    return objects


def _category_id(number: int, category_ids: Sequence[int | None]) -> int | None:
    if number >= len(category_ids):
        raise ValueError(
            f"The network found a class {number}, but {len(category_ids)} classes have names: give all of them "
            "(--names)."
        )
    return category_ids[number]


def _encode(mask: np.ndarray) -> dict[str, Any]:
    return encode_window(np.ascontiguousarray(mask.T, dtype=bool), 0, 0, *mask.shape)
