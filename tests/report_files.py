"""Images and mask files that the tests of the report are made of: random shapes, their true masks, and worse ones."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_util

CLASSES = {7: "cat", 3: "dog", 5: "cow"}


def rle(mask: np.ndarray) -> dict[str, Any]:
    """H×W bool as compressed RLE with str counts."""
    encoded = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def decoded(annotation: dict[str, Any]) -> np.ndarray:
    return mask_util.decode(annotation["segmentation"]).astype(bool)


def make_files(folder: Path, images: int = 6, size: tuple[int, int] = (60, 80)) -> dict[str, Any]:
    """Write images, ``truth.json`` and ``masks.json`` (shifted masks with confidences); returns the latter.

    The first image has no object, the last object an empty mask. Ids have gaps, and are not in order.
    """
    rng = np.random.default_rng(0)
    height, width = size
    (folder / "images").mkdir(parents=True, exist_ok=True)
    truth: dict[str, Any] = {
        "info": {},
        "images": [],
        "annotations": [],
        "categories": [{"id": key, "name": name} for key, name in CLASSES.items()],
    }
    masks = copy.deepcopy(truth)
    masks["info"] = {"boxsup_d2": {"method": "Shifted", "checkpoint_sha256": "abc123", "image_root": "images"}}
    for number in range(images):
        image_id, name = 50 - number, f"{number:04d}.jpg"
        picture = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        truth["images"].append({"id": image_id, "file_name": name, "height": height, "width": width})
        for _ in range(number % 4):
            mask = np.zeros(size, np.uint8)
            center = (int(rng.integers(15, width - 15)), int(rng.integers(12, height - 12)))
            cv2.ellipse(mask, center, (int(rng.integers(4, 14)), int(rng.integers(4, 10))), 0, 0, 360, 1, -1)
            picture[mask > 0] //= 3
            x, y, w, h = cv2.boundingRect(mask)
            annotation = {
                "id": 900 - 3 * len(truth["annotations"]),
                "image_id": image_id,
                "category_id": int(rng.choice(list(CLASSES))),
                "bbox": [x, y, w, h],
                "iscrowd": 0,
                "area": int(mask.sum()),
            }
            shifted = np.roll(mask, int(rng.integers(0, 5)), axis=1).astype(bool)
            truth["annotations"].append({**annotation, "segmentation": rle(mask > 0)})
            confidence = round(float(rng.uniform()), 3)
            masks["annotations"].append({**annotation, "segmentation": rle(shifted), "confidence": confidence})
        cv2.imwrite(str(folder / "images" / name), picture)
    masks["images"] = truth["images"]
    masks["annotations"][-1]["segmentation"] = rle(np.zeros(size, bool))
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "masks.json").write_text(json.dumps(masks))
    return masks
