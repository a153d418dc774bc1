"""Pictures of the demo: contact sheets of boxes and the masks of several methods. A part of ``demo.py``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

from boxsup_d2.checkpoint import BoxSupCheckpointer
from boxsup_d2.config import load_config
from boxsup_d2.data import build_test_loader
from boxsup_d2.data.datasets import register_pseudo_masks
from boxsup_d2.data.images import read_image
from boxsup_d2.engine.trainer import Trainer

# Well apart on a screen and for most colour-blind eyes (Okabe and Ito), B, G, R.
_COLORS = [(0, 159, 230), (233, 180, 86), (115, 158, 0), (66, 228, 240), (178, 114, 0), (0, 94, 213), (167, 121, 204)]
_ZOOM = 1.25
_ROWS = 10


def draw_pictures(output: Path) -> list[tuple[str, Path]]:
    """Draw one sheet of training boxes with their proxy masks and one of validation images.

    Args:
        output: Folder of the demo, all steps done.

    Returns:
        Title and path of each sheet.
    """
    logging.getLogger("fvcore").setLevel(logging.WARNING)
    logging.getLogger("detectron2").setLevel(logging.WARNING)
    return [
        ("Proxy masks of training boxes", _draw_train(output, output / "proxy_masks.png")),
        ("Masks on validation images", _draw_val(output, output / "validation.png")),
    ]


def _draw_train(output: Path, path: Path) -> Path:
    """Image, boxes, proxy masks, which the retrained network learns from."""
    name = "voc_2012_train_aug_box"
    register_pseudo_masks(str(output / "joint" / "pseudo_masks" / f"{name}_pseudo.json"))
    records = DatasetCatalog.get(f"{name}_pseudo")
    rows = []
    for record in _spread(records):
        image = read_image(record["file_name"], "BGR")
        boxes = np.array(
            [BoxMode.convert(obj["bbox"], obj["bbox_mode"], BoxMode.XYXY_ABS) for obj in record["annotations"]]
        )
        masks = np.array([mask_util.decode(obj["segmentation"]) for obj in record["annotations"]], bool)
        rows.append([overlay(image), overlay(image, boxes=boxes), overlay(image, masks=masks)])
    return _write_sheet(path, ["image", "boxes", "BoxCaseg proxy masks"], rows)


def _draw_val(output: Path, path: Path) -> Path:
    """Boxes, truth, and the masks that BoxCaseg, both retrained networks and the one that ships predict from them."""
    steps = ("joint", "retrain-filled", "retrain", "shipped")
    configs = {step: load_config(str(output / step / "config.yaml")) for step in steps}
    name = configs["joint"].DATASETS.TEST[0]
    truth = {record["image_id"]: record for record in DatasetCatalog.get(name)}
    inputs = _spread([batch[0] for batch in build_test_loader(configs["joint"], name, box_prompts=True)])
    trained = {step: str(output / step / "model_final.pth") for step in steps[:-1]}
    predictions = {step: _predict(cfg, trained.get(step, cfg.MODEL.WEIGHTS), inputs) for step, cfg in configs.items()}
    rows = []
    for index, item in enumerate(inputs):
        image = item["image"].permute(1, 2, 0).numpy()
        if configs["joint"].INPUT.FORMAT == "RGB":
            image = image[:, :, ::-1]
        image = np.ascontiguousarray(image)
        true = [mask_util.decode(obj["segmentation"]) for obj in truth[item["image_id"]]["annotations"]]
        boxes = item["instances"].gt_boxes.tensor.numpy()
        rows.append(
            [overlay(image, boxes=boxes), overlay(image, masks=np.array(true, bool))]
            + [overlay(image, masks=masks[index]) for masks in predictions.values()]
        )
    titles = ["boxes", "truth", "BoxCaseg", "retrained: filled", "retrained: proxies", "ships"]
    return _write_sheet(path, titles, rows)


@torch.no_grad()
def _predict(cfg: CfgNode, weights: str, inputs: list[dict[str, Any]]) -> list[np.ndarray]:
    """Masks (N x H x W bool) that a trained network predicts from the boxes of each image."""
    model = Trainer.build_model(cfg).eval()
    BoxSupCheckpointer(model).load(weights)
    return [model([item])[0]["instances"].pred_masks.full().cpu().numpy() for item in inputs]


def overlay(image: np.ndarray, *, boxes: np.ndarray | None = None, masks: np.ndarray | None = None) -> np.ndarray:
    """The image with boxes (N x 4, x0, y0, x1, y1) drawn and masks (N x H x W bool) laid over it, enlarged."""
    size = (round(image.shape[1] * _ZOOM), round(image.shape[0] * _ZOOM))
    canvas = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    for index, mask in enumerate([] if masks is None else masks):
        color = _COLORS[index % len(_COLORS)]
        large = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        inside = large > 0
        canvas[inside] = (0.45 * canvas[inside] + 0.55 * np.array(color)).astype(np.uint8)
        contours, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, contours, -1, color, 1)
    for index, box in enumerate([] if boxes is None else boxes):
        x0, y0, x1, y1 = (round(float(value) * _ZOOM) for value in box)
        cv2.rectangle(canvas, (x0, y0), (x1 - 1, y1 - 1), _COLORS[index % len(_COLORS)], 2)
    return canvas


def _spread(items: list[Any]) -> list[Any]:
    """At most ten of them, spread over the list."""
    return items[:: max(1, len(items) // _ROWS)][:_ROWS]


def _write_sheet(path: Path, titles: list[str], rows: list[list[np.ndarray]]) -> Path:
    """Write tiles of any sizes as a grid with a title above each column."""
    heights = [max(tile.shape[0] for tile in row) + 6 for row in rows]
    width = max(tile.shape[1] for row in rows for tile in row) + 6
    sheet = np.full((28 + sum(heights), width * len(titles), 3), 255, np.uint8)
    for column, title in enumerate(titles):
        cv2.putText(sheet, title, (column * width + 4, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    top = 28
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            left = column * width
            sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
        top += height
    if not cv2.imwrite(str(path), sheet):
        raise OSError(f"cannot write {path}")
    return path
