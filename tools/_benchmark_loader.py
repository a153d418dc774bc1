"""``benchmark.py loader``: crops out of JPEG files, ours and a plain loader's."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from _benchmark_timing import Result, device_sync, governing, interleaved
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BoxMode

from boxsup_d2.config import add_boxsup_config
from boxsup_d2.data.dataset_mappers import BoxCropDatasetMapper, BoxPromptDatasetMapper
from boxsup_d2.data.dataset_mappers.box_crop import box_samples, clip_box
from boxsup_d2.data.dataset_mappers.joint import JointOrder
from boxsup_d2.data.samplers import LANES
from boxsup_d2.data.train_loader import TrainLoader
from boxsup_d2.modeling.box_to_mask import truncate_boxes
from boxsup_d2.modeling.boxcaseg.meta_arch import BoxCaseg
from boxsup_d2.toy.scenes import TRAIN_PHOTOS, VAL_PHOTOS
from boxsup_d2.toy.shapes import load_photos

WIDTH, HEIGHT = 500, 375  # of VOC's images
TRAIN_SIZE, TEST_SIZE = 288, 320  # sides of BoxCaseg's crops


def write_images(folder: Path, count: int, boxes_per_image: int, seed: int = 0) -> list[dict[str, Any]]:
    """Write JPEGs cut out of scikit-image's photographs; returns their dataset dicts, with random boxes."""
    rng = np.random.default_rng(seed)
    photos = [photo for photo in load_photos((*TRAIN_PHOTOS, *VAL_PHOTOS)) if min(photo.shape[:2]) >= 200]
    dicts = []
    for index in range(count):
        photo = photos[index % len(photos)]
        height, width = photo.shape[:2]
        share = rng.uniform(0.7, 1.0) * min(width / WIDTH, height / HEIGHT)
        crop_w, crop_h = int(WIDTH * share), int(HEIGHT * share)
        x, y = rng.integers(0, width - crop_w + 1), rng.integers(0, height - crop_h + 1)
        image = cv2.resize(photo[y : y + crop_h, x : x + crop_w], (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        file = folder / f"{index:06d}.jpg"
        cv2.imwrite(str(file), image, [cv2.IMWRITE_JPEG_QUALITY, 97])  # about as large as VOC's
        annotations = [
            {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0} for box in random_boxes(rng, boxes_per_image)
        ]
        dicts.append({"file_name": str(file), "height": HEIGHT, "width": WIDTH, "annotations": annotations})
    return dicts


def random_boxes(rng: np.random.Generator, count: int) -> list[list[float]]:
    """Boxes x, y, w, h of a tenth to nine tenths of the image's sides."""
    sides = rng.uniform(0.1, 0.9, (count, 2)) * (WIDTH, HEIGHT)
    corners = rng.uniform(0, 1, (count, 2)) * ((WIDTH, HEIGHT) - sides)
    return np.concatenate([corners, sides], axis=1).round(1).tolist()


def plain_crop(
    file_name: str, box: tuple[int, int, int, int], region: tuple[int, int, int, int], side: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A sample of a plain scikit-image loader: read, to floating point, crop and resize image and in-box mask.

    Args:
        file_name: of the image.
        box: x0, y0, x1, y1: the ones of the mask.
        region: x0, y0, x1, y1: what is cropped.
        side: of the crop in pixels.

    Returns:
        3 x side x side float32 in 0..1, and side x side float32, 0 or 1.
    """
    from skimage import io, transform

    image = io.imread(file_name) / 255.0
    mask = np.zeros(image.shape[:2])
    mask[box[1] : box[3], box[0] : box[2]] = 1
    window = np.s_[region[1] : region[3], region[0] : region[2]]
    # Four source pixels per pixel, as ours: anti-aliasing would take the plain loader longer still.
    crop = transform.resize(image[window], (side, side), order=1, anti_aliasing=False)
    inside = transform.resize(mask[window], (side, side), order=0, anti_aliasing=False)
    return torch.from_numpy(crop.transpose(2, 0, 1)).float(), torch.from_numpy(inside).float()


def box_cropper(device: str) -> BoxCaseg:
    """A BoxCaseg network, of which only the cropping at inference is used."""
    cfg = get_cfg()
    add_boxsup_config(cfg)
    cfg.MODEL.DEVICE = device
    cfg.MODEL.META_ARCHITECTURE = "BoxCaseg"
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    cfg.INPUT.BOX_CROP.TEST_SIZE = TEST_SIZE
    return build_model(cfg).eval()


def benchmark_loader(args: argparse.Namespace) -> Result:
    """ms per crop, in training and at inference."""
    with tempfile.TemporaryDirectory() as name:
        dicts = write_images(Path(name), args.images, args.boxes)
        kilobytes = sum(Path(d["file_name"]).stat().st_size for d in dicts) / len(dicts) / 1000
        samples = box_samples(dicts)
        jitter = BoxCropDatasetMapper(image_format="RGB").jitter
        prompt_mapper = BoxPromptDatasetMapper(image_format="RGB")
        model = box_cropper(args.device)

        def train(window: int) -> None:
            mapper = BoxCropDatasetMapper(image_format="RGB", size=TRAIN_SIZE, cached_images=LANES * window)
            order = JointOrder(samples, batch_size=1, box_ratio=-1, overlap_iou=0.5, overlap_drop_prob=0, window=window)
            for _ in islice(TrainLoader(samples, mapper, order, seed=0), len(samples)):
                pass

        def train_plain() -> None:
            for sample in samples:
                box = clip_box(sample["box"], HEIGHT, WIDTH)
                plain_crop(sample["file_name"], box, jitter(sample["box"], HEIGHT, WIDTH), TRAIN_SIZE)

        def test() -> None:
            for record in dicts:
                inputs = prompt_mapper(record)
                boxes = truncate_boxes(inputs["instances"].gt_boxes.tensor, (HEIGHT, WIDTH))
                model.crop_boxes(inputs["image"], boxes)

        def test_plain() -> None:
            for sample in samples:
                box = clip_box(sample["box"], HEIGHT, WIDTH)
                plain_crop(sample["file_name"], box, box, TEST_SIZE)

        runs: dict[str, Callable[[], None]] = {
            "training crop, plain": train_plain,
            "training crop, ours, a decode per box": partial(train, 0),
            "training crop, ours": partial(train, 64),
            "test crop, plain": test_plain,
            "test crop, ours": test,
        }
        timings = interleaved(runs, args.repeats or 5, device_sync(args.device))
    rows = []
    for what, timing in timings.items():
        plain = timings[what.split(",")[0] + ", plain"]
        rows.append(
            {
                "crop": what,
                "wall ms": timing.wall / len(samples) * 1e3,
                "CPU ms": timing.cpu / len(samples) * 1e3,
                "times as fast": governing(plain, args.device) / governing(timing, args.device),
                "target ms": 3.0 if what.endswith("ours") else None,
            }
        )
    remark = (
        f"{len(dicts)} JPEGs of {WIDTH}x{HEIGHT} and {kilobytes:.0f} kB with {args.boxes} boxes each; training crops "
        f"of {TRAIN_SIZE} px, test crops of {TEST_SIZE} px on {args.device}. Plain: scikit-image, a decode per box."
    )
    return {"rows": rows, "remarks": [remark]}
