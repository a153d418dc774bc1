"""Predict a list of images with a trained network: loading, batches, and images that turn out to be damaged."""

import datetime
import difflib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.utils.data
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data import transforms as T
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import InferenceSampler
from torch import nn

from boxsup_d2.data.images import read_image
from boxsup_d2.labelling.writer import run_writer
from boxsup_d2.methods import load_model
from boxsup_d2.prediction.network import TrainedNetwork
from boxsup_d2.prediction.writer import PredictionWriter
from boxsup_d2.same_work import labelling_identity, weights_sha256
from boxsup_d2.utils.files import json_sha256, seen_from

__all__ = ["predict_images", "prediction_identity"]


def prediction_identity(
    network: TrainedNetwork,
    images: dict[str, Any],
    image_root: str,
    *,
    min_score: float = 0.5,
    classes: Sequence[str] = (),
) -> dict[str, Any]:
    """What decides the predictions: two calls with the same one write the same files.

    Args:
        network: see :func:`boxsup_d2.prediction.trained_network`.
        images: COCO dict with ``images`` and ``categories``.
        image_root: folder that their file names are relative to. The sizes of the files count, not where they lie.
        min_score, classes: see :func:`predict_images`.

    Raises:
        ValueError: a class is none of the network's.
    """
    unknown = [name for name in classes if name not in network.class_names]
    if unknown:
        near = difflib.get_close_matches(unknown[0], network.class_names, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ValueError(
            f"The network knows no class {', '.join(map(repr, unknown))}, but {', '.join(network.class_names)}.{hint}"
        )
    sizes = [os.path.getsize(os.path.join(image_root, image["file_name"])) for image in images["images"]]
    return {
        **labelling_identity(network.cfg, json_sha256([images["images"], images["categories"], sizes])),
        "checkpoint_sha256": weights_sha256(network.cfg.MODEL.WEIGHTS),
        "class_names": list(network.class_names),
        "min_score": min_score,
        "classes": sorted(classes),
    }


def predict_images(
    network: TrainedNetwork,
    images: dict[str, Any],
    image_root: str,
    results: str,
    *,
    min_score: float = 0.5,
    classes: Sequence[str] = (),
    batch_size: int = 1,
    keep_going: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Predict images and write what was found, see :class:`PredictionWriter`; all ranks call it together.

    Interrupted, it goes on when it is called again.

    Args:
        network: see :func:`boxsup_d2.prediction.trained_network`.
        images: COCO dict with ``images``, which have sizes, and ``categories``: classes of these names get their ids.
        image_root: folder that their file names are relative to.
        results: path of the results.
        min_score: objects with a lower score are left out; 0..1.
        classes: names of the classes to predict; none: all of them.
        batch_size: images that go through the network at once.
        keep_going: leave images out that cannot be read.
        progress: show a progress bar, on rank 0.

    Returns:
        The summary, see :meth:`PredictionWriter._write`.

    Raises:
        ValueError: an image cannot be read, and not ``keep_going``; a class is none of the network's. What was
            predicted is kept.
        OSError: the disk is full; what was predicted is kept.
    """
    identity = prediction_identity(network, images, image_root, min_score=min_score, classes=classes)
    provenance = {
        **identity,
        "request": identity,
        "checkpoint": seen_from(results, network.cfg.MODEL.WEIGHTS),
        "image_root": seen_from(results, image_root),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    categories, category_ids = _categories(network, images["categories"], classes)
    writer = PredictionWriter(
        results,
        {**images, "categories": categories},
        provenance,
        category_ids,
        min_score=min_score,
        progress=progress,
    )
    records = [{**image, "image_id": image["id"]} for image in images["images"]]
    for record in records:
        record["file_name"] = os.path.join(image_root, record["file_name"])

    def start(pending: list[dict[str, Any]]) -> tuple[nn.Module, Any]:
        cfg = network.cfg.clone()
        cfg.defrost()
        # What is left out is not worth a mask; a lower limit than the config's asks for more.
        for section in (cfg.MODEL.ROI_HEADS, cfg.MODEL.RETINANET, cfg.MODEL.FCOS):
            section.SCORE_THRESH_TEST = min_score
        return _Skipping(load_model(cfg)), _loader(cfg, pending, batch_size, keep_going)

    return run_writer(writer, records, start)["pseudo_masks"]


def _categories(
    network: TrainedNetwork, known: Sequence[dict[str, Any]], classes: Sequence[str]
) -> tuple[list[dict[str, Any]], list[int | None]]:
    """Categories of the output, those that are known first, and the id of each of the network's classes."""
    ids = {category["name"]: category["id"] for category in known}
    wanted: list[int | None] = []
    categories = list(known)
    for number, name in enumerate(network.class_names):
        if (classes and name not in classes) or (number == 0 and network.background):
            wanted.append(None)
            continue
        if name not in ids:
            ids[name] = max((category["id"] for category in categories), default=0) + 1
            categories.append({"id": ids[name], "name": name})
        wanted.append(ids[name])
    return categories, wanted


class _ImageMapper:
    """A record with ``file_name`` → input of a network, as Detectron2's ``DefaultPredictor`` makes it.

    Networks that are not tested as detectors see the image as it is. With ``keep_going`` an image that cannot be read
    becomes an ``error``.
    """

    def __init__(self, cfg: CfgNode, keep_going: bool):
        self._format = cfg.INPUT.FORMAT
        self._keep_going = keep_going
        # A side of 0, which the others have, leaves the size.
        side = cfg.INPUT.MIN_SIZE_TEST if cfg.TEST.TASKS[0] == "instances" else 0
        self._resize = T.ResizeShortestEdge([side, side], cfg.INPUT.MAX_SIZE_TEST)

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        try:
            image = read_image(record["file_name"], self._format)
        except (FileNotFoundError, ValueError) as error:
            if not self._keep_going:
                raise
            return {**record, "error": str(error)}
        height, width = image.shape[:2]
        image = self._resize.get_transform(image).apply_image(image)
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return {**record, "image": pixels, "height": height, "width": width}


class _Skipping(nn.Module):
    """A network that is not asked for images which could not be read: these are their own outputs."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        readable = [item for item in batched_inputs if "error" not in item]
        found = iter(self.model(readable) if readable else ())
        return [item if "error" in item else next(found) for item in batched_inputs]


def _loader(cfg: CfgNode, records: list[dict[str, Any]], batch_size: int, keep_going: bool) -> Any:
    """Loader of this rank's share of the records."""
    dataset = MapDataset(DatasetFromList(records, copy=False), _ImageMapper(cfg, keep_going))
    return torch.utils.data.DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=InferenceSampler(len(dataset)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
    )
