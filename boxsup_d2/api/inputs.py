"""What people hand in: images, boxes and classes in any usual form, or an error that says what to do."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from boxsup_d2.data.images import read_image
from boxsup_d2.masks.rotated_boxes import enclosing_box

__all__ = ["check_boxes", "check_classes", "check_image"]

# First examples that an error shows.
_MAX_EXAMPLES = 3


def check_image(image: Any) -> tuple[np.ndarray, str]:
    """The pixels (H×W×3 uint8, R, G, B) and what to call them in messages."""
    if isinstance(image, str | os.PathLike):
        path = os.path.expanduser(os.fspath(image))
        if not os.path.isfile(path):
            raise FileNotFoundError(f"There is no image '{path}'.")
        return read_image(path, "RGB"), path
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):
            raise ValueError(
                f"The image has the mode {image.mode}, not 8 bits: scale it to 0..255 and convert it first."
            )
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB")), "image"
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        # Torch's own order has the channels first.
        image = (image.permute(1, 2, 0) if image.ndim == 3 and image.shape[0] == 3 else image).numpy()
    if not isinstance(image, np.ndarray):
        raise TypeError(f"The image is a {type(image).__name__}: give a path, a PIL image, an array or a tensor.")
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        hint = ""
        if image.ndim == 2:
            hint = " A grey image becomes one by np.stack([image] * 3, axis=-1)."
        elif image.ndim == 3 and image.shape[2] == 4:
            hint = " Leave the alpha channel out: image[:, :, :3]."
        elif image.ndim == 3 and image.shape[0] == 3:
            hint = " Channels come last: image.transpose(1, 2, 0)."
        raise ValueError(f"The image has the shape {image.shape}, not height × width × 3.{hint}")
    if image.dtype != np.uint8:
        hint = "(255 * image).round().astype(np.uint8)" if image.dtype.kind == "f" else "image.astype(np.uint8)"
        raise ValueError(f"The image is {image.dtype}, not uint8 in 0..255: {hint} makes it one, if its range fits.")
    return image, "image"


def check_boxes(boxes: Any, height: int, width: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Boxes as N×4 float64 corners; of N×5 rotated ones the upright boxes around them, and these themselves."""
    if isinstance(boxes, torch.Tensor):
        boxes = boxes.detach().cpu().numpy()
    try:
        corners = np.array(boxes, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The boxes are not N×4 numbers: {error}.") from error
    if corners.size == 0:
        return corners.reshape(0, 4), None
    if corners.ndim != 2 or corners.shape[1] not in (4, 5):
        hint = " A single box is a list of one: [box]." if corners.shape in ((4,), (5,)) else ""
        raise ValueError(
            f"The boxes have the shape {corners.shape}, not N×4, or N×5 (cx, cy, w, h, degrees counter-clockwise) of "
            f"rotated boxes.{hint}"
        )
    given, rotated = corners, None
    if corners.shape[1] == 5:
        rotated, given = corners, corners[:, :4]
        finite, flat = np.isfinite(rotated).all(axis=1), (rotated[:, 2:4] <= 0).any(axis=1)
        _refuse(rotated, {"are not finite": ~finite, "have no width or height": flat})
        corners = np.array([enclosing_box(box) for box in rotated])
    if given.min() >= 0 and given.max() <= 1 and max(height, width) > 1:
        raise ValueError(
            f"All boxes lie within 0..1, as shares of the sides do: give pixels, x times {width} and y times {height}."
        )
    x0, y0, x1, y1 = corners.T
    problems = {
        "are not finite": ~np.isfinite(corners).all(axis=1),
        "are inverted or empty; boxes are x0, y0, x1, y1, and not x, y, width, height": (x1 <= x0) | (y1 <= y0),
        f"lie outside the image of {width}×{height} pixels": (x1 <= 0) | (y1 <= 0) | (x0 >= width) | (y0 >= height),
    }
    _refuse(corners, problems)
    return corners, rotated


def _refuse(boxes: np.ndarray, problems: Mapping[str, Any]) -> None:
    """Raise an error of the boxes that have a problem (N bool each), if there are any."""
    for problem, bad in problems.items():
        if bad.any():
            first = ", ".join(f"{index}: {boxes[index].tolist()}" for index in np.flatnonzero(bad)[:_MAX_EXAMPLES])
            raise ValueError(f"{bad.sum()} of {len(boxes)} boxes {problem} (first {first}).")


def check_classes(classes: Sequence[int] | Sequence[str] | None, count: int) -> tuple[list[int], list[str]]:
    """Class numbers, and the names that they count where names were given."""
    if classes is None:
        return [0] * count, []
    values: list[Any] = list(classes)
    if len(values) != count:
        raise ValueError(f"{len(values)} classes for {count} boxes: give one per box, or None.")
    if values and all(isinstance(value, str) for value in values):
        names = list(dict.fromkeys(values))
        return [names.index(value) for value in values], names
    if not all(isinstance(value, int | np.integer) and value >= 0 for value in values):
        raise ValueError(f"Classes are {values[:_MAX_EXAMPLES]}: give numbers from 0, or names.")
    return [int(value) for value in values], []
