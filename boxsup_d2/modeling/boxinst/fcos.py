"""Detectron2's FCOS that also tells objects and detections apart by where they are, for heads that build on it.

Shape legend: N images, R locations of all maps, C classes, P parameters that the controller predicts.
"""

from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import batched_nms
from detectron2.modeling import Backbone
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes, Instances
from torch import Tensor

from boxsup_d2.modeling.boxinst.heads import ControlledFCOSHead


@dataclass(frozen=True)
class Dense:
    """What the FCOS head predicts, a tensor of float32 per map: N x R' x C, 4, 1 and P, with the anchors R' x 4."""

    anchors: list[Boxes]
    logits: list[Tensor]
    distances: list[Tensor]
    centerness: list[Tensor]
    parameters: list[Tensor]


def fcos_arguments(cfg: CfgNode, backbone: Backbone, num_parameters: int) -> dict[str, Any]:
    """Arguments of :class:`ControlledFCOS` out of ``MODEL.FCOS`` and Detectron2's shared keys.

    Args:
        cfg: the config.
        backbone: has the maps of ``MODEL.FCOS.IN_FEATURES``.
        num_parameters: P.
    """
    fcos = cfg.MODEL.FCOS
    shapes = backbone.output_shape()
    inputs = [shapes[name] for name in fcos.IN_FEATURES]
    head = ControlledFCOSHead(
        input_shape=inputs,
        num_classes=fcos.NUM_CLASSES,
        conv_dims=[inputs[0].channels] * fcos.NUM_CONVS,
        norm=fcos.NORM,
        prior_prob=fcos.PRIOR_PROB,
        num_parameters=num_parameters,
    )
    return {
        "backbone": backbone,
        "head": head,
        "head_in_features": list(fcos.IN_FEATURES),
        "num_classes": fcos.NUM_CLASSES,
        "center_sampling_radius": fcos.CENTER_SAMPLING_RADIUS,
        "focal_loss_alpha": fcos.FOCAL_LOSS_ALPHA,
        "focal_loss_gamma": fcos.FOCAL_LOSS_GAMMA,
        "test_score_thresh": fcos.SCORE_THRESH_TEST,
        "test_topk_candidates": fcos.TOPK_CANDIDATES_TEST,
        "test_nms_thresh": fcos.NMS_THRESH_TEST,
        "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
    }


class ControlledFCOS(FCOS):
    """FCOS with a :class:`ControlledFCOSHead`; arguments as of Detectron2's ``FCOS``."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        # Detectron2 keeps the average number of positives that its losses are divided by, from 300 on, as an attribute.
        # In a buffer it is part of a checkpoint, so that a resumed training goes on with the same losses.
        self.register_buffer("loss_normalizer", torch.tensor(300.0))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # Published checkpoints, and those of before, lack it.
        state_dict.setdefault(prefix + "loss_normalizer", self.loss_normalizer)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def dense_predictions(self, features: list[Tensor]) -> Dense:
        """Predictions of the FCOS head on its maps, in float32: half precision cannot count 1,300 pixels."""
        found = self.head(features)
        found = self._transpose_dense_predictions(found, [maps[0].shape[1] for maps in found])
        return Dense(self.anchor_generator(features), *([x.float() for x in level] for level in found))

    @torch.no_grad()
    def match(self, anchors: list[Boxes], targets: list[Instances]) -> tuple[list[Tensor], list[Any], Tensor]:
        """Which object every location belongs to, by FCOS's rules.

        Args:
            anchors: of every map.
            targets: of every image, with ``gt_boxes`` and ``gt_classes``.

        Returns:
            Per image R classes (C: background) and R boxes, as ``FCOS.losses`` takes them, and N x R positions of the
            object in the batch, -1 without.
        """
        # Detectron2 tells the class of a location and not its object: so the objects pass for classes.
        first = self.num_classes + 1
        marked = []
        for x in targets:
            boxes, marks = x.gt_boxes, torch.arange(first, first + len(x), device=x.gt_classes.device)
            if not len(x):  # 0.6 cannot match nothing; no location lies in a box of no extent
                boxes, marks = Boxes(boxes.tensor.new_zeros(1, 4)), marks.new_full((1,), self.num_classes)
            marked.append(Instances(x.image_size, gt_boxes=boxes, gt_classes=marks))
            first += len(x)
        found, matched_boxes = self.label_anchors(anchors, marked)
        objects = torch.stack(found) - self.num_classes - 1
        classes = torch.cat([x.gt_classes for x in targets])
        # The last one, at -1, is that of background.
        labels = torch.cat([classes, classes.new_full((1,), self.num_classes)])[objects]
        return list(labels), matched_boxes, objects

    def detect(self, dense: Dense, position: int, image_size: tuple[int, int]) -> Instances:
        """Boxes of one image after non-maximum suppression.

        Args:
            dense: predictions of a batch.
            position: of the image in it.
            image_size: its height and width, without padding.

        Returns:
            ``pred_boxes``, ``scores`` (root of class probability times centreness), ``pred_classes`` and ``locations``
            (positions in 0..R-1), best first.
        """
        levels, first = [], 0
        for anchors, logits, distances, centerness in zip(
            dense.anchors, dense.logits, dense.distances, dense.centerness, strict=True
        ):
            scores = (logits[position].sigmoid() * centerness[position].sigmoid()).flatten()
            kept = (scores > self.test_score_thresh).nonzero()[:, 0]
            scores, order = scores[kept].sort(descending=True)
            scores, kept = scores[: self.test_topk_candidates], kept[order[: self.test_topk_candidates]]
            location = kept // self.num_classes
            boxes = self.box2box_transform.apply_deltas(distances[position][location], anchors.tensor[location])
            levels.append(
                Instances(
                    image_size,
                    pred_boxes=Boxes(boxes),
                    scores=scores.sqrt(),
                    pred_classes=kept % self.num_classes,
                    locations=first + location,
                )
            )
            first += len(anchors)
        found = Instances.cat(levels)
        kept = batched_nms(found.pred_boxes.tensor, found.scores, found.pred_classes, self.test_nms_thresh)
        return found[kept[: self.max_detections_per_image]]
