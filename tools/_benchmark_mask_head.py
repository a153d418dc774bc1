"""``benchmark.py mask-head``: what the confidence-governed mask head adds to a training step."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _benchmark_timing import Result, device_sync, governing, interleaved
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_loss
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

import boxsup_d2


def mask_rcnn(head: str, device: str) -> GeneralizedRCNN:
    """Mask R-CNN R-50-FPN with random weights and a mask head of this name."""
    cfg: CfgNode = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    boxsup_d2.add_boxsup_config(cfg)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = device, ""
    cfg.MODEL.ROI_MASK_HEAD.NAME = head
    torch.manual_seed(0)
    return build_model(cfg).train()


def training_batch(count: int, side: int) -> list[dict[str, Any]]:
    """Images of noise, ``side`` pixels square, with four instances of different confidence each."""
    rng = torch.Generator().manual_seed(0)
    batch = []
    for _ in range(count):
        instances = Instances((side, side))
        corner = torch.rand(4, 2, generator=rng) * side * 0.5
        instances.gt_boxes = Boxes(torch.cat([corner, corner + side * 0.4], dim=1))
        instances.gt_classes = torch.arange(4)
        instances.gt_masks = BitMasks(torch.rand(4, side, side, generator=rng) > 0.5)
        instances.gt_mask_confidence = torch.tensor([1.0, 0.3, 0.6, 0.9])
        image = torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=rng)
        batch.append({"image": image, "instances": instances})
    return batch


def benchmark_mask_head(args: argparse.Namespace) -> Result:
    """Step times with either mask head, and times of the mask losses alone on as many RoIs as a step samples."""
    stock = mask_rcnn("MaskRCNNConvUpsampleHead", args.device)
    ours = mask_rcnn("ConfidenceMaskRCNNConvUpsampleHead", args.device)
    batch = training_batch(args.batch, args.side)
    per_image = 128  # Detectron2 samples 512 RoIs an image, a quarter of them foreground
    sampled = []
    for item in batch:
        instances = item["instances"]
        rois = Instances(instances.image_size, proposal_boxes=instances.gt_boxes, **instances.get_fields())
        sampled.append(rois[torch.arange(per_image) % len(rois)].to(args.device))
    logits = torch.randn(per_image * args.batch, 80, 28, 28, device=args.device, requires_grad=True)

    def step(model: nn.Module) -> None:
        torch.manual_seed(1)  # the same RoIs for both
        model.zero_grad(set_to_none=True)
        with EventStorage(0):
            sum(model(batch).values()).backward()

    def loss(function: Callable[[torch.Tensor, list[Instances]], torch.Tensor]) -> None:
        logits.grad = None
        with EventStorage(0):
            function(logits, sampled).backward()

    sync, repeats = device_sync(args.device), args.repeats or 7
    steps = interleaved({"stock": partial(step, stock), "ours": partial(step, ours)}, repeats, sync)
    # A hundredth of a step each: more repeats cost nothing.
    losses = interleaved(
        {"stock": partial(loss, mask_rcnn_loss), "ours": partial(loss, ours.roi_heads.mask_head.losses)},
        5 * repeats,
        sync,
    )
    rows = []
    for what, timings in (("whole step", steps), ("mask loss alone, forward and backward", losses)):
        added = governing(timings["ours"], args.device) - governing(timings["stock"], args.device)
        rows.append(
            {
                "part": what,
                **{
                    f"{head} {kind} ms": getattr(timings[head], attribute) * 1e3
                    for head in timings
                    for kind, attribute in (("wall", "wall"), ("CPU", "cpu"))
                },
                "added % of a step": 100 * added / governing(steps["stock"], args.device),
                "target %": 2.0 if timings is losses else None,
            }
        )
    remark = (
        f"Mask R-CNN R-50-FPN, {args.batch} images of {args.side} px with four instances, on {args.device}; losses of "
        f"{per_image} RoIs an image. The whole-step difference drowns in noise; the loss alone is what differs."
    )
    return {"rows": rows, "remarks": [remark]}
