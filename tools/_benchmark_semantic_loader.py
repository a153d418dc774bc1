"""``benchmark.py semantic-loader``: samples of class masks and of label maps, ours and a plain loader's."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _benchmark_loader import HEIGHT, WIDTH, write_images
from _benchmark_timing import Result, governing, interleaved
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as mask_util

from boxsup_d2.data.dataset_mappers import ClassMaskDatasetMapper, SemSegDatasetMapper
from boxsup_d2.data.dataset_mappers.class_mask import class_samples, class_target
from boxsup_d2.data.images import encode_label_map
from boxsup_d2.masks.label_map import IGNORE_LABEL

CLASS_SIZE, LABEL_SIZE = 512, 321  # sides of the crops of LPG's generator and of its segmenters
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)
MEAN = (104.008, 116.669, 122.675)


def add_masks(dicts: list[dict[str, Any]], folder: Path) -> None:
    """Give every box the polygon of its ellipse, and every image a label map of these."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)  # about as many points as COCO's polygons have
    for index, record in enumerate(dicts):
        record["image_id"] = index
        for obj in record["annotations"]:
            x, y, w, h = obj["bbox"]
            points = np.stack([x + w / 2 * (1 + np.cos(angles)), y + h / 2 * (1 + np.sin(angles))], axis=1)
            obj["segmentation"] = [points.ravel().round(2).tolist()]
        path = folder / f"{index:06d}.png"
        path.write_bytes(encode_label_map(class_target(record["annotations"], HEIGHT, WIDTH)))
        record["sem_seg_file_name"] = str(path)


def plain_sample(
    file_name: str, masks: list[np.ndarray], fills: list[int], size: int, rng: np.random.Generator
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A sample of a plain Pillow loader: resize the whole image and its masks, to floating point, pad, crop, flip.

    Args:
        file_name: of the image.
        masks: H x W uint8 each.
        fills: what each of them is padded with.
        size: side S of the crop.
        rng: for scale, corner and flip.

    Returns:
        3 x S x S float32, the mean subtracted, and the S x S masks.
    """
    image = Image.open(file_name).convert("RGB")
    scale = rng.choice(SCALES)
    sides = round(image.width * scale), round(image.height * scale)
    pixels = np.asarray(image.resize(sides, Image.Resampling.BILINEAR), np.float32)[:, :, ::-1] - np.array(
        MEAN, np.float32
    )
    layers = [np.asarray(Image.fromarray(mask).resize(sides, Image.Resampling.NEAREST)) for mask in masks]
    below, right = max(size - sides[1], 0), max(size - sides[0], 0)
    pixels = np.pad(pixels, ((0, below), (0, right), (0, 0)))
    layers = [
        np.pad(layer, ((0, below), (0, right)), constant_values=fill) for layer, fill in zip(layers, fills, strict=True)
    ]
    top, left = (rng.integers(0, side - size + 1) for side in pixels.shape[:2])
    window = np.s_[top : top + size, left : left + size]
    step = rng.choice([1, -1])
    crop = np.ascontiguousarray(pixels[window][:, ::step].transpose(2, 0, 1))
    return torch.from_numpy(crop), [torch.from_numpy(layer[window][:, ::step].copy()) for layer in layers]


def plain_class_masks(sample: dict[str, Any]) -> list[np.ndarray]:
    """The mask of a class's boxes and that of its objects, each object decoded by itself."""
    inside, target = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    for obj in sample["annotations"]:
        x0, y0, x1, y1 = (int(value) for value in BoxMode.convert(obj["bbox"], obj["bbox_mode"], BoxMode.XYXY_ABS))
        inside[y0 : y1 + 1, x0 : x1 + 1] = 1
        rle = mask_util.merge(mask_util.frPyObjects(obj["segmentation"], HEIGHT, WIDTH))
        target |= mask_util.decode(rle)
    return [inside, target]


def benchmark_semantic_loader(args: argparse.Namespace) -> Result:
    """ms per sample of semantic box-to-mask training and of semantic segmentation."""
    with tempfile.TemporaryDirectory() as name:
        dicts = write_images(Path(name), args.images, args.boxes)
        add_masks(dicts, Path(name))
        kilobytes = sum(Path(d["file_name"]).stat().st_size for d in dicts) / len(dicts) / 1000
        samples = class_samples(dicts)
        class_masks = ClassMaskDatasetMapper(image_format="BGR", pixel_mean=MEAN, size=CLASS_SIZE, scales=SCALES)
        label_maps = SemSegDatasetMapper(image_format="BGR", pixel_mean=MEAN, size=LABEL_SIZE, scales=SCALES)
        rng = np.random.default_rng(0)

        def plain_classes() -> None:
            for sample in samples:
                _, (_, target) = plain_sample(sample["file_name"], plain_class_masks(sample), [0, 0], CLASS_SIZE, rng)
                target[::4, ::4].contiguous()

        def plain_labels() -> None:
            for record in dicts:
                labels = np.asarray(Image.open(record["sem_seg_file_name"]))
                _, (crop,) = plain_sample(record["file_name"], [labels], [IGNORE_LABEL], LABEL_SIZE, rng)
                crop.long()

        runs: dict[str, Callable[[], Any]] = {
            "class masks, plain": plain_classes,
            "class masks, ours": lambda: [class_masks(sample) for sample in samples],
            "label maps, plain": plain_labels,
            "label maps, ours": lambda: [label_maps(record) for record in dicts],
        }
        timings = interleaved(runs, args.repeats or 5)
    rows = []
    for what, timing in timings.items():
        plain = timings[what.split(",")[0] + ", plain"]
        rows.append(
            {
                "sample": what,
                "wall ms": timing.wall / len(dicts) * 1e3,
                "CPU ms": timing.cpu / len(dicts) * 1e3,
                "times as fast": governing(plain, "cpu") / governing(timing, "cpu"),
                "target ms": 5.0 if what == "class masks, ours" else None,
            }
        )
    remark = (
        f"{len(dicts)} JPEGs of {WIDTH}x{HEIGHT} and {kilobytes:.0f} kB, one class of {args.boxes} objects each; crops "
        f"of {CLASS_SIZE} px for class masks and {LABEL_SIZE} px for label maps, at scales {SCALES[0]} to "
        f"{SCALES[-1]}. Plain: Pillow, whole images in floating point."
    )
    return {"rows": rows, "remarks": [remark]}
