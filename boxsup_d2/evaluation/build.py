"""Which evaluator serves a data set and a task."""

import os
from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from boxsup_d2.evaluation.box_to_mask import BoxToMaskEvaluator
from boxsup_d2.evaluation.instance_ap import InstanceAPEvaluator
from boxsup_d2.evaluation.metrics import IOU_THRESHOLDS
from boxsup_d2.evaluation.sem_seg import CRF_SETTINGS, BoxToSemSegEvaluator, SemanticEvaluator

#: Builder of one (task, evaluator_type): (cfg, dataset_name, output_folder) -> evaluator.
EvaluatorBuilder = Callable[[CfgNode, str, str], DatasetEvaluator]

# The evaluator type "*" serves every data set of the task.
_BUILDERS: dict[tuple[str, str], EvaluatorBuilder] = {}


def register_evaluator(task: str, evaluator_type: str = "*") -> Callable[[EvaluatorBuilder], EvaluatorBuilder]:
    """Decorator: let a function build the evaluator of ``task`` for data sets of ``evaluator_type``.

    Args:
        task: A name for TEST.TASKS.
        evaluator_type: ``MetadataCatalog`` entry of the data set; "*" for those without a builder of their own.

    Raises:
        ValueError: If the pair has a builder already.
    """

    def register(builder: EvaluatorBuilder) -> EvaluatorBuilder:
        if (task, evaluator_type) in _BUILDERS:
            raise ValueError(f"Task '{task}' has an evaluator for data sets of type '{evaluator_type}' already.")
        _BUILDERS[task, evaluator_type] = builder
        return builder

    return register


def build_evaluator(cfg: CfgNode, dataset_name: str, task: str, output_folder: str | None = None) -> DatasetEvaluator:
    """Evaluator of one registered data set for one task.

    Args:
        cfg: Config with boxsup_d2's keys; OUTPUT_DIR, TEST.AP_IGNORE_VOID and TEST.SEM_SEG_CRF are read.
        dataset_name: Registered data set.
        task: One of TEST.TASKS: "instances" (detection and mask AP), "box_to_mask" (masks from true boxes),
            "box_to_sem_seg" (mIoU of label maps of these) or "sem_seg" (mIoU of a segmenter's label maps).
        output_folder: Where results are saved; None: ``<OUTPUT_DIR>/inference/<dataset_name>``.

    Raises:
        ValueError: If the task is unknown, or does not serve this type of data set.
    """
    builder = find_builder(dataset_name, task)
    return builder(cfg, dataset_name, output_folder or os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name))


def find_builder(dataset_name: str, task: str) -> EvaluatorBuilder:
    """The function that builds the evaluator of a registered data set for a task.

    Raises:
        ValueError: If the task is unknown, or does not serve this type of data set.
    """
    tasks = sorted({known for known, _ in _BUILDERS})
    if task not in tasks:
        raise ValueError(f"TEST.TASKS has '{task}', which is no task: use {', '.join(tasks)}.")
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type", "")
    builder = _BUILDERS.get((task, evaluator_type)) or _BUILDERS.get((task, "*"))
    if builder is None:
        served = ", ".join(sorted(kind for known, kind in _BUILDERS if known == task))
        raise ValueError(
            f"Task '{task}' cannot be evaluated on '{dataset_name}': its evaluator_type is '{evaluator_type}', and "
            f"there are evaluators for {served}. Choose another data set in DATASETS.TEST, or another task in "
            "TEST.TASKS."
        )
    return builder


@register_evaluator("box_to_mask")
def _build_box_to_mask(_cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    return BoxToMaskEvaluator(dataset_name, output_folder)


@register_evaluator("instances", "coco")
def _build_coco_instances(_cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    return InstanceAPEvaluator(dataset_name, output_dir=output_folder)


@register_evaluator("instances", "voc_instance")
def _build_voc_instances(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    return InstanceAPEvaluator(
        dataset_name, output_dir=output_folder, iou_thresholds=IOU_THRESHOLDS, ignore_void=cfg.TEST.AP_IGNORE_VOID
    )


@register_evaluator("instances", "box")
def _build_box_instances(_cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    # Explicitly boxes: the json of such a data set may have masks, which it promises not to use.
    return InstanceAPEvaluator(dataset_name, ("bbox",), output_dir=output_folder)


@register_evaluator("sem_seg", "sem_seg")
def _build_sem_seg(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    if cfg.TEST.SEM_SEG_CRF not in CRF_SETTINGS:
        known = ", ".join(f"'{name}'" for name in CRF_SETTINGS)
        raise ValueError(f"TEST.SEM_SEG_CRF is '{cfg.TEST.SEM_SEG_CRF}': use one of {known}.")
    return SemanticEvaluator(dataset_name, output_folder, crf=CRF_SETTINGS[cfg.TEST.SEM_SEG_CRF])


@register_evaluator("box_to_sem_seg", "sem_seg")
def _build_box_to_sem_seg(_cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    return BoxToSemSegEvaluator(dataset_name, output_folder)
