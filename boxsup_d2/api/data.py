"""Whole data sets and folders in Python: label boxes, predict images, register a json."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from boxsup_d2.api.box_to_mask import BoxToMask, load
from boxsup_d2.data.datasets import register_coco_masks
from boxsup_d2.data.formats.inspection import inspect_coco
from boxsup_d2.labelling.driver import label_datasets, pseudo_mask_path
from boxsup_d2.prediction import dataset_path, image_list, predict_images, trained_network

__all__ = ["label", "predict", "register"]


def label(
    model: BoxToMask | CfgNode,
    dataset: str,
    output_dir: str | os.PathLike,
    *,
    overwrite: bool = False,
    crf: bool = False,
) -> str:
    """Give every box of a data set a mask, and write them as a COCO json.

    The labelling of the training engine: masks of an image are merged, images are noted one by one, and the same call
    again goes on where a former one was stopped, or finds that nothing is left to do.

    Args:
        model: of :func:`load`, or a complete config.
        dataset: a registered data set with boxes, see :func:`register`.
        output_dir: folder for the json and for what is half done.
        overwrite: also label annotations that have a mask; else they keep it, with a confidence of 1.
        crf: refine every mask by a dense CRF, which needs pydensecrf2.

    Returns:
        Path of the json, ``<output_dir>/pseudo_masks/<dataset>_pseudo.json``. See docs/architecture.md for what is in
        it.

    Raises:
        ValueError, FileNotFoundError: the data set is not registered, missing or damaged.
        OSError: the disk is full; what was labelled is kept.
        ImportError: ``crf`` without pydensecrf2.
    """
    if dataset not in DatasetCatalog:
        raise ValueError(f"There is no data set '{dataset}': register it first, e.g. by boxsup_d2.register().")
    loaded = model if isinstance(model, BoxToMask) else load(model)
    cfg = loaded.cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = os.path.abspath(os.path.expanduser(output_dir))
    cfg.PSEUDO_MASKS.DATASETS, cfg.PSEUDO_MASKS.FORMAT = (dataset,), "instances"
    cfg.PSEUDO_MASKS.OVERWRITE, cfg.PSEUDO_MASKS.CRF = overwrite, crf
    # Worker processes would run the caller's script again, up to its `if __name__ == "__main__"`, if it has one.
    cfg.PSEUDO_MASKS.CRF_WORKERS = 1
    cfg.freeze()
    label_datasets(cfg, loaded.model)
    return pseudo_mask_path(cfg.OUTPUT_DIR, dataset)


def predict(
    model: str | os.PathLike,
    images: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike = "predictions.json",
    *,
    weights: str | os.PathLike | None = None,
    device: str | None = None,
    names: str | os.PathLike | None = None,
    image_root: str | None = None,
    min_score: float = 0.5,
    classes: Sequence[str] = (),
    batch_size: int = 1,
    opts: Sequence[Any] = (),
    keep_going: bool = False,
) -> str:
    """Find objects in images without boxes by a trained network, as ``boxsup predict`` does; interrupted, it resumes.

    Args:
        model, weights, device, names, opts: see :func:`boxsup_d2.prediction.trained_network`.
        images: folder, file, pattern or json, or several; see :func:`boxsup_d2.prediction.image_list`.
        out: json to write, a bare list of COCO's results.
        image_root: folder that the file names of a json are relative to; None: the json's.
        min_score, classes, batch_size: see :func:`boxsup_d2.prediction.predict_images`.
        keep_going: leave images out that cannot be read.

    Returns:
        Path of a COCO json beside ``out`` that has the images and classes as well.

    Raises:
        FileNotFoundError: model, weights or images are missing.
        ValueError: the model needs boxes, a class is none of its, or images cannot be used.
    """
    inputs = [images] if isinstance(images, str | os.PathLike) else list(images)
    name, root, data = image_list(inputs, image_root)
    inspection = inspect_coco(data, root, path=name)
    if not keep_going:
        inspection.raise_if_any()
    network = trained_network(model, weights, names=names, opts=opts, device=device)
    results = os.path.abspath(os.path.expanduser(os.fspath(out)))
    predict_images(
        network,
        inspection.usable,
        root,
        results,
        min_score=min_score,
        classes=classes,
        batch_size=batch_size,
        keep_going=keep_going,
    )
    return dataset_path(results)


def register(json: str | os.PathLike, images: str | os.PathLike, name: str | None = None) -> str:
    """Register a COCO json as a data set, with the masks that it has; its content is read when it is used.

    Args:
        json: the file. Its annotations need ids and boxes; crowd regions and unknown fields go through a labelling
            unchanged.
        images: folder that the json's file names are relative to.
        name: to register it under, a former data set of that name is replaced; None: the file's stem.

    Returns:
        The name, for :func:`label` and for ``DatasetCatalog`` and ``MetadataCatalog`` of Detectron2.

    Raises:
        FileNotFoundError: the file or the folder does not exist.
        ValueError: the stem is the name of another data set.
    """
    path, folder = Path(json).expanduser().absolute(), Path(images).expanduser().absolute()
    if not path.is_file():
        raise FileNotFoundError(f"There is no json '{path}'.")
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder of images '{folder}'.")
    if name is None:
        name = path.stem
        if name in DatasetCatalog and MetadataCatalog.get(name).get("json_file") != str(path):
            raise ValueError(f"There is a data set '{name}' already: register '{path}' with a name of its own.")
    register_coco_masks(name, str(path), str(folder))
    return name
