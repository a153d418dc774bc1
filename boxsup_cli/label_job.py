"""What each process of ``boxsup label`` does, and what tells one labelling from another."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from detectron2.config import CfgNode

from boxsup_cli.console import quiet_libraries
from boxsup_d2.config import use_available_device
from boxsup_d2.data.datasets import register_listed
from boxsup_d2.data.formats.coco import coco_header
from boxsup_d2.data.formats.problems import brief
from boxsup_d2.labelling.driver import label_datasets, pseudo_mask_path
from boxsup_d2.methods import file_config, load_model, method_config
from boxsup_d2.modeling.box_to_mask import box_to_mask_classes, method_info
from boxsup_d2.same_work import labelling_identity, weights_path, weights_sha256

# Name of the data set while it is labelled.
_NAME = "boxes"


@dataclass(frozen=True)
class LabelJob:
    """A labelling; paths are absolute.

    Attributes:
        json_file: COCO json of the boxes.
        image_root: folder of its images.
        output_dir: ``OUTPUT_DIR`` of the labelling.
        method: name of a method, or None: that of ``config``.
        config: a config file, or None.
        weights: a checkpoint, or None: the config's own.
        opts: config overrides, in pairs.
        crf: refine masks by a dense CRF.
        overwrite: label annotations that have a mask, too.
        device: "cpu", "cuda" or None: what there is.
        processes: as ``--num-gpus`` says.
    """

    json_file: str
    image_root: str
    output_dir: str
    method: str | None = None
    config: str | None = None
    weights: str | None = None
    opts: tuple[Any, ...] = ()
    crf: bool = False
    overwrite: bool = False
    device: str | None = None
    processes: int = 1

    @property
    def result(self) -> str:
        """The file that the engine writes."""
        return pseudo_mask_path(self.output_dir, _NAME)


def job_config(job: LabelJob) -> CfgNode:
    """The whole config of a job, frozen.

    Raises:
        ValueError, FileNotFoundError: there is no such method, config or key; weights are missing.
    """
    if job.method:
        cfg = method_config(job.method, job.weights, job.config, job.opts, job.device)
    else:
        cfg = file_config(job.config or "", job.weights, job.opts, job.device)
    cfg.defrost()
    cfg.OUTPUT_DIR = job.output_dir
    # A config of a training names its own data; here there is one data set to label and nothing to measure.
    masks = {"NAME": _NAME, "JSON": job.json_file, "IMAGES": job.image_root, "MASKS": "kept"}
    cfg.DATASETS.REGISTER, cfg.DATASETS.TEST, cfg.DATASETS.PSEUDO_MASKS = [masks], (), ()
    cfg.PSEUDO_MASKS.DATASETS, cfg.PSEUDO_MASKS.FORMAT = (_NAME,), "instances"
    cfg.PSEUDO_MASKS.CRF = job.crf or cfg.PSEUDO_MASKS.CRF
    cfg.PSEUDO_MASKS.OVERWRITE = job.overwrite
    cfg.PSEUDO_MASKS.STEP = "label"
    cfg.PSEUDO_MASKS.REPORT_IMAGES = 0  # --report writes the page, of the output
    use_available_device(cfg, job.processes)
    cfg.freeze()
    return cfg


def check_classes(job: LabelJob, categories: Sequence[dict[str, Any]]) -> None:
    """See to it that a network with a mask per class, which is asked by its number, knows the classes of a json.

    Args:
        job: the labelling.
        categories: of the json.

    Raises:
        ValueError: they are others, or in another order.
    """
    if job.method:
        return
    cfg = file_config(job.config or "", job.weights, job.opts, job.device)
    kind = box_to_mask_classes().get(cfg.MODEL.META_ARCHITECTURE)
    number = kind.num_known_classes(cfg) if kind is not None else None
    if number is None:
        return
    names = [category["name"] for category in sorted(categories, key=itemgetter("id"))]
    jsons = [entry["JSON"] for entry in cfg.DATASETS.REGISTER if os.path.isfile(entry.get("JSON", ""))]
    trained = coco_header(jsons[0], "training")["thing_classes"] if jsons else names
    if len(names) != number or names != trained:
        raise ValueError(
            f"The network of '{job.config}' knows {number} classes by their numbers"
            f"{f' ({brief(trained)})' if jsons else ''}, and the boxes are of {len(names)} ({brief(names)}). Give the "
            "json the categories of the training, all of them and in the order of its ids."
        )


def request_of(
    job: LabelJob,
    cfg: CfgNode,
    source_sha256: str,
    *,
    polygons: bool,
    simplify: float = 0.0,
    min_quality: float | None = None,
) -> dict[str, Any]:
    """What decides what the output holds; two commands with the same one write the same file.

    Args:
        job, cfg: the labelling, and its config.
        source_sha256: hash of the boxes.
        polygons, simplify, min_quality: see :func:`boxsup_cli.label_output.finish`.

    Raises:
        FileNotFoundError: the weights are missing.
    """
    identity = labelling_identity(cfg, source_sha256)
    if job.method:
        identity["method"] = job.method
    request = {
        **identity,
        "weights_sha256": weights_sha256(weights_path(cfg), on_hub=method_info(cfg).weights_on_hub),
        "polygons": polygons,
    }
    if simplify:
        request["simplify"] = simplify
    return request if min_quality is None else {**request, "min_quality": min_quality}


def move_earlier_work(job: LabelJob, work: str) -> None:
    """Put what commands of other boxes left unfinished where the writer looks for images that are labelled already.

    Args:
        job: the labelling that is about to start.
        work: folder of the unfinished work of all commands of the same output.
    """
    own = f"{os.path.splitext(job.result)[0]}.partial"
    inner = os.path.relpath(own, os.path.dirname(os.path.dirname(job.output_dir)))
    for source in os.scandir(work):
        partial = os.path.join(source.path, *inner.split(os.sep)[1:])
        if partial == own or not os.path.isdir(partial):
            continue
        for labelling in os.scandir(partial):
            # Under another name, for it is not to be resumed: images of one name may be others.
            target = os.path.join(own, f"{source.name}-{labelling.name}")
            if labelling.is_dir() and not os.path.exists(target):
                os.makedirs(own, exist_ok=True)
                os.rename(labelling.path, target)


def label(job: LabelJob) -> None:
    """Label this process's share of the images; rank 0 writes :attr:`LabelJob.result`. All ranks call it together."""
    quiet_libraries()
    cfg = job_config(job)
    register_listed(cfg.DATASETS.REGISTER)
    try:
        model = load_model(cfg)
    except ValueError as error:  # of values in the config, which does not know its file
        raise ValueError(f"{f'{job.config}: ' if job.config else ''}{error}") from error
    label_datasets(cfg, model)
