"""Evaluators: masks from given boxes, instance AP, semantic mIoU, and which one serves which data set."""

from boxsup_d2.evaluation.box_to_mask import BoxToMaskEvaluator, evaluate_mask_json
from boxsup_d2.evaluation.build import build_evaluator, find_builder, register_evaluator
from boxsup_d2.evaluation.instance_ap import InstanceAPEvaluator
from boxsup_d2.evaluation.metrics import bootstrap_interval
from boxsup_d2.evaluation.sem_seg import BoxToSemSegEvaluator, SemanticEvaluator

__all__ = [
    "BoxToMaskEvaluator",
    "BoxToSemSegEvaluator",
    "InstanceAPEvaluator",
    "SemanticEvaluator",
    "bootstrap_interval",
    "build_evaluator",
    "evaluate_mask_json",
    "find_builder",
    "register_evaluator",
]
