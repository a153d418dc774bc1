"""``benchmark.py labels``: labelling by LPG's generator, batched and one image and class at a time."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from _benchmark_timing import Result, device_sync, governing, interleaved
from detectron2.config import CfgNode, get_cfg
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

import boxsup_d2
from boxsup_d2.masks.label_map import rasterize_boxes
from boxsup_d2.modeling.lpg import LPG, HourglassBackbone, build_hourglass_backbone
from boxsup_d2.modeling.lpg.frozen_segmenter import FrozenSegmenter

CLASSES = 60  # of COCO without VOC's
TARGET = 1.5


class ThinSegmenter(nn.Module):
    """As many outputs at the same stride as LPG's LargeFOV, for a hundredth of its arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 64, 8, stride=8), nn.ReLU(), nn.Conv2d(64, 1 + CLASSES, 3, padding=1))

    def class_logits(self, images: Tensor) -> Tensor:
        """N×3×H×W in 0..255 to N×61×H/8×W/8 logits."""
        return self.layers(images / 255)


def default_config() -> CfgNode:
    """The package's defaults, which are the published generator's."""
    cfg = get_cfg()
    boxsup_d2.add_boxsup_config(cfg)
    return cfg


def generator(with_segmenter: bool, device: str) -> LPG:
    """The published generator with random weights, centred so that both of its labels occur."""
    cfg = default_config()
    cfg.MODEL.BACKBONE.NAME = build_hourglass_backbone.__name__
    torch.manual_seed(0)
    arguments = LPG.from_config(cfg)
    if with_segmenter:
        names = ["background", *(f"class {label}" for label in range(CLASSES))]
        arguments["segmenter"] = FrozenSegmenter(ThinSegmenter(), names, "BGR")
        arguments["backbone"] = HourglassBackbone(in_channels=5)
    model = LPG(**arguments).to(device).eval()
    with torch.no_grad():
        noise = torch.randn(1, model.in_channels, 256, 256, device=device)
        model.head[2].bias -= model.logits(noise).mean(dim=(0, 2, 3))  # type: ignore[union-attr, operator]
    return model


def image_prompts(count: int, side: int) -> list[dict[str, Any]]:
    """Images of noise in VOC's shapes, the longer side ``side`` pixels, of one and two classes in turns."""
    rng = torch.Generator().manual_seed(0)
    inputs = []
    for index in range(count):
        height, width = side * 3 // 4, side
        boxes = torch.rand(3, 2, generator=rng) * torch.tensor([width / 2, height / 2])
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.cat([boxes, boxes + torch.tensor([width / 2, height / 2])], dim=1))
        instances.gt_classes = torch.tensor([3, 3, 40 if index % 2 else 3])
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=rng)
        known = {"num_classes": CLASSES, "class_names": [f"class {label}" for label in range(CLASSES)]}
        inputs.append({"image": image, "height": height, "width": width, "instances": instances, **known})
    return inputs


@torch.no_grad()
def label_batched(model: LPG, inputs: list[dict[str, Any]], batch: int) -> list[Tensor]:
    """Label maps as labelling makes them: several images go through the network together."""
    batches = [inputs[start : start + batch] for start in range(0, len(inputs), batch)]
    return [output["label_map"] for part in batches for output in model(part)]


@torch.no_grad()
def label_one_by_one(model: LPG, inputs: list[dict[str, Any]]) -> list[Tensor]:
    """The same by the published procedure: every step for every image and class."""
    side = model.backbone.size_divisibility
    maps = []
    for item in inputs:
        size = (item["height"], item["width"])
        padded = [-(-n // side) * side for n in size]
        image = model.pixel_mean.expand(3, *padded).clone()
        image[:, : size[0], : size[1]] = item["image"].to(model.device)
        labels = torch.zeros(size, dtype=torch.int64, device=model.device)
        boxes, classes = item["instances"].gt_boxes.tensor, item["instances"].gt_classes
        for label in dict.fromkeys(classes.tolist()):
            union = torch.zeros(padded, dtype=torch.bool)
            union[: size[0], : size[1]] = rasterize_boxes(boxes[classes == label], size)
            union = union.to(model.device)
            layers = [union[None].float(), (image - model.pixel_mean) / model.pixel_std]
            if model.segmenter is not None:
                network: Any = model.segmenter.network
                logits = F.interpolate(network.class_logits(image[None]), padded, mode="bilinear", align_corners=True)
                layers.insert(0, logits.softmax(dim=1)[:, label + 1])
            logits = model.logits(torch.cat(layers)[None])
            found = F.interpolate(logits, padded, mode="bilinear", align_corners=True).argmax(dim=1)[0].bool() & union
            labels[found[: size[0], : size[1]] & (labels == 0)] = label + 1
        maps.append(labels)
    return maps


def benchmark_lpg(args: argparse.Namespace) -> Result:
    """Seconds per image of labelling with the published generator of round 1 and, with class probabilities, round 2."""
    rows, remarks = [], []
    inputs = image_prompts(args.labelled, args.label_side)
    batch = default_config().PSEUDO_MASKS.IMS_PER_BATCH
    for what, with_segmenter in (("round 1, boxes", False), ("round 2, boxes and class probability", True)):
        # The layout of our training and labelling, and torch's default, as published.
        batched = generator(with_segmenter, args.device).to(memory_format=torch.channels_last)
        single = generator(with_segmenter, args.device)
        equal = [
            (a == b).float().mean().item()
            for a, b in zip(label_batched(batched, inputs, batch), label_one_by_one(single, inputs), strict=True)
        ]
        runs: dict[str, Callable[[], Any]] = {
            "one by one": partial(label_one_by_one, single, inputs),
            "batched": partial(label_batched, batched, inputs, batch),
        }
        timings = interleaved(runs, args.repeats or 3, device_sync(args.device))
        rows.append(
            {
                "labelling": what,
                **{
                    f"{name} {kind} ms": getattr(timing, attribute) / len(inputs) * 1e3
                    for name, timing in timings.items()
                    for kind, attribute in (("wall", "wall"), ("CPU", "cpu"))
                },
                "times as fast": governing(timings["one by one"], args.device)
                / governing(timings["batched"], args.device),
                "target": TARGET,
                "equal pixels %": 100 * sum(equal) / len(equal),
            }
        )
    remarks.append(
        f"Per image; {len(inputs)} images of {inputs[0]['width']}×{inputs[0]['height']} with 1.5 classes on average, "
        f"{batch} at once, on {args.device}. The segmenter is a thin substitute with {1 + CLASSES} outputs; with a "
        "real one, running it once per image and not per class saves more."
    )
    return {"rows": rows, "remarks": remarks}
