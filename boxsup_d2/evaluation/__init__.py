"""Evaluators: masks from given boxes, instance AP, semantic mIoU, and which one serves which data set."""

from boxsup_d2.evaluation.box_to_mask import BoxToMaskEvaluator, InstanceScore, evaluate_mask_json, score_image
from boxsup_d2.evaluation.build import build_evaluator, register_evaluator
from boxsup_d2.evaluation.ground_truth import ImageTruth, load_ground_truth
from boxsup_d2.evaluation.instance_ap import VOC_IOUS, InstanceAPEvaluator
from boxsup_d2.evaluation.mask_files import MaskFileScores, MaskRow, compare_mask_files
from boxsup_d2.evaluation.metrics import (
    IOU_THRESHOLDS,
    BoxToMaskSummary,
    bootstrap_interval,
    mask_iou,
    summarize_box_to_mask,
)
from boxsup_d2.evaluation.sem_seg import SemanticEvaluator, read_label_map
from boxsup_d2.evaluation.semantic_metrics import SemanticSummary, confusion_matrix, summarize_semantic
from boxsup_d2.evaluation.tables import format_table

__all__ = [
    "IOU_THRESHOLDS",
    "VOC_IOUS",
    "BoxToMaskEvaluator",
    "BoxToMaskSummary",
    "ImageTruth",
    "InstanceAPEvaluator",
    "InstanceScore",
    "MaskFileScores",
    "MaskRow",
    "SemanticEvaluator",
    "SemanticSummary",
    "bootstrap_interval",
    "build_evaluator",
    "compare_mask_files",
    "confusion_matrix",
    "evaluate_mask_json",
    "format_table",
    "load_ground_truth",
    "mask_iou",
    "read_label_map",
    "register_evaluator",
    "score_image",
    "summarize_box_to_mask",
    "summarize_semantic",
]
