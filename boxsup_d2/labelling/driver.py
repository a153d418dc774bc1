"""Label data sets with a box-to-mask model: one ``inference_on_dataset`` per data set of ``PSEUDO_MASKS.DATASETS``.

The same command resumes what a crash stopped: finished files are left alone, and of the others only images without a
result go through the network.
"""

import datetime
import hashlib
import json
import os
from collections import OrderedDict
from typing import Any

import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from boxsup_d2.crf.refine import CRFRefinedModel
from boxsup_d2.data import build_label_loader
from boxsup_d2.data.datasets import dataset_source, dataset_to_coco
from boxsup_d2.data.formats.pseudo_masks import labels_path
from boxsup_d2.data.formats.rotated_boxes import ROTATED_BOX
from boxsup_d2.labelling.instance_writer import PseudoMaskWriter
from boxsup_d2.labelling.report import write_label_report
from boxsup_d2.labelling.sem_seg_writer import SemSegLabelWriter
from boxsup_d2.labelling.writer import LabelWriter, run_writer
from boxsup_d2.modeling.box_to_mask import method_info
from boxsup_d2.same_work import labelling_identity, weights_path, weights_sha256
from boxsup_d2.utils.files import file_sha256
from boxsup_d2.utils.processes import run_on_main


def broadcast_buffers(model: nn.Module) -> None:
    """Give every rank the buffers of rank 0; all ranks call it together.

    In training each rank keeps batch-norm statistics of its own share of the batches, and the checkpoint holds rank
    0's. Without this, what a rank predicts for an image would depend on which rank the image falls to.
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def pseudo_mask_path(output_dir: str, dataset_name: str, label_format: str = "instances") -> str:
    """Path of the file that a run with this ``OUTPUT_DIR`` writes for a source data set.

    Args:
        output_dir: ``OUTPUT_DIR``.
        dataset_name: of the source.
        label_format: ``PSEUDO_MASKS.FORMAT``.

    Raises:
        ValueError: there is no such format.
    """
    return labels_path(os.path.join(output_dir, "pseudo_masks"), dataset_name, label_format)


def label_datasets(
    cfg: CfgNode, model: nn.Module, checkpoint: str | None = None, progress: bool = True
) -> "OrderedDict[str, dict]":
    """Label every data set of ``PSEUDO_MASKS.DATASETS``, sharded over the ranks; all ranks call it together.

    Args:
        cfg: full config.
        model: box-to-mask meta-architecture, may be wrapped in DDP; its training mode is restored.
        checkpoint: file that the model's weights are in, for the provenance; default: the one that the config names.
            Where it is "", the weights themselves are hashed.
        progress: show a progress bar.

    Returns:
        Data set name → ``{"pseudo_masks": {metric: value}}``, see the writers' ``evaluate``.

    Raises:
        FileNotFoundError, ValueError: an image or the data set is missing or damaged; named. What was labelled before
            is kept.
        OSError: the disk is full; what was labelled is kept.
        ImportError: ``PSEUDO_MASKS.CRF`` without ``pydensecrf``.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module
    broadcast_buffers(model)
    checkpoint = weights_path(cfg) if checkpoint is None else checkpoint
    results: OrderedDict[str, dict] = OrderedDict()
    was_training = model.training
    try:
        for name in cfg.PSEUDO_MASKS.DATASETS:
            results[name] = _label_dataset(cfg, model, name, checkpoint, progress)
    finally:
        model.train(was_training)  # inference_on_dataset leaves it in evaluation mode where it fails
    return results


def _label_dataset(
    cfg: CfgNode, model: nn.Module, name: str, checkpoint: str, progress: bool
) -> dict[str, dict[str, float]]:
    dataset_dicts = DatasetCatalog.get(name)
    provenance = run_on_main(lambda: build_provenance(cfg, model, name, dataset_dicts, checkpoint))
    writer = _build_writer(cfg, name, dataset_dicts, provenance, progress)
    known = writer.finished

    def start(pending: list[dict[str, Any]]) -> tuple[nn.Module, Any]:
        refined = CRFRefinedModel(model, workers=cfg.PSEUDO_MASKS.CRF_WORKERS) if cfg.PSEUDO_MASKS.CRF else model
        return refined, build_label_loader(cfg, name, pending)

    results = run_writer(writer, dataset_dicts, start)
    if comm.is_main_process():
        write_label_report(cfg.PSEUDO_MASKS.REPORT_IMAGES, writer.path, provenance, anew=not known)
    return results


def _build_writer(
    cfg: CfgNode,
    name: str,
    dataset_dicts: list[dict[str, Any]],
    provenance: dict[str, Any],
    progress: bool,
) -> LabelWriter:
    """The writer of ``PSEUDO_MASKS.FORMAT``."""
    folder = os.path.dirname(pseudo_mask_path(cfg.OUTPUT_DIR, name, cfg.PSEUDO_MASKS.FORMAT))
    options: dict[str, Any] = {"overwrite": cfg.PSEUDO_MASKS.OVERWRITE, "progress": progress}
    if cfg.PSEUDO_MASKS.FORMAT == "sem_seg":
        class_names = MetadataCatalog.get(name).get("thing_classes")
        if class_names is None:
            raise ValueError(f"PSEUDO_MASKS.DATASETS: '{name}' has no classes, so it cannot be labelled with them.")
        return SemSegLabelWriter(name, dataset_dicts, folder, provenance, class_names, **options)
    options["specks"] = cfg.PSEUDO_MASKS.SPECKS
    if not 0 <= options["specks"] < 1:
        raise ValueError(f"PSEUDO_MASKS.SPECKS is {options['specks']}: it must be 0 or more, and less than 1.")
    return PseudoMaskWriter(name, dataset_dicts, folder, provenance, lambda: dataset_to_coco(name), **options)


def build_provenance(
    cfg: CfgNode, model: nn.Module, name: str, dataset_dicts: list[dict[str, Any]], checkpoint: str
) -> dict[str, Any]:
    """Everything that decides what the masks are, and where they come from.

    Args:
        cfg: full config.
        model: without DDP.
        name: of the source data set.
        dataset_dicts: its dicts.
        checkpoint: path of the weights, anything that Detectron2's path manager knows, or "".

    Raises:
        FileNotFoundError: the checkpoint is missing.
    """
    metadata = MetadataCatalog.get(name)
    return {
        "source_dataset": name,
        **labelling_identity(cfg, _source_sha256(name, dataset_dicts)),
        # A step's output folder bears its name; a config does not know the file that it was read from.
        "config_name": os.path.basename(os.path.abspath(cfg.OUTPUT_DIR)),
        "checkpoint": checkpoint,
        "checkpoint_sha256": weights_sha256(checkpoint, model, on_hub=method_info(cfg).weights_on_hub),
        "step": cfg.PSEUDO_MASKS.STEP,
        "image_root": _image_root(metadata, dataset_dicts),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _source_sha256(name: str, dataset_dicts: list[dict[str, Any]]) -> str:
    """Hash of the source's json, where it has one, and of its prompts, which switches may change."""
    digest = hashlib.sha256()
    json_file = dataset_source(name).json_file
    if json_file:
        digest.update(file_sha256(PathManager.get_local_path(json_file)).encode())
    for record in dataset_dicts:
        prompts = [
            (
                *(obj.get("id"), [float(v) for v in obj["bbox"]], int(obj["bbox_mode"]), obj["category_id"]),
                *([obj[ROTATED_BOX]] if ROTATED_BOX in obj else []),
            )
            for obj in record.get("annotations", ())
        ]
        line = json.dumps([record["image_id"], os.path.basename(record["file_name"]), prompts])
        digest.update(line.encode())
    return digest.hexdigest()


def _image_root(metadata: Any, dataset_dicts: list[dict[str, Any]]) -> str:
    root = metadata.get("image_root")
    if root is None and dataset_dicts:
        root = os.path.commonpath([os.path.dirname(os.path.abspath(record["file_name"])) for record in dataset_dicts])
    return os.path.abspath(root) if root else ""
