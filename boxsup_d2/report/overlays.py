"""Whole images with their objects drawn over them: arrays in, arrays out, and a folder of JPEGs of a COCO json."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from boxsup_d2.data.formats.coco import category_tables
from boxsup_d2.data.formats.folders import by_image, output_stems, write_file
from boxsup_d2.data.formats.polygons import decode_mask
from boxsup_d2.data.formats.rotated_boxes import rotated_box_of
from boxsup_d2.data.images import read_image
from boxsup_d2.masks.rotated_boxes import enclosing_box
from boxsup_d2.report.drawing import COLORS, Canvas, encode_jpeg

__all__ = ["DrawnObject", "draw_objects", "write_overlays"]

# Height of letters, as a share of the image's longer side, and in pixels at least.
_LETTERS, _LEAST_LETTERS = 1 / 60, 11
# Lines within a box, from its top, that its text may be on.
_LINES = 4


class DrawnObject(NamedTuple):
    """What is drawn of an object.

    Attributes:
        mask: H×W bool; None: it has none.
        box: x, y, w, h in pixels, or cx, cy, w, h and degrees counter-clockwise.
        color: position in the palette; the same for all objects of a class.
        text: beside the box; "": none.
    """

    mask: np.ndarray | None
    box: Sequence[float]
    color: int = 0
    text: str = ""


def draw_objects(image: np.ndarray, objects: Iterable[DrawnObject]) -> np.ndarray:
    """Draw objects over a copy of an image: H×W×3 uint8, BGR, both."""
    height, width = image.shape[:2]
    canvas = Canvas(image, (0, 0, width, height), max(height, width))
    texts = []
    for each in objects:
        color = COLORS[each.color % len(COLORS)]
        if each.mask is not None and each.mask.any():
            canvas.mask(each.mask, color)
        canvas.box(each.box, color)
        texts.append((each._replace(mask=None), color))  # one mask at a time: together they may be gigabytes
    picture = Image.fromarray(np.ascontiguousarray(canvas.pixels[:, :, ::-1]))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=max(max(height, width) * _LETTERS, _LEAST_LETTERS))
    placed, number = np.zeros((len(texts), 4)), 0
    for each, color in texts:
        if each.text:
            x0, y0, x1, y1 = draw.textbbox((0, 0), each.text, font=font)
            box = _upright(each.box)
            left = min(max(box[0], 0), max(width - x1, 0))
            tops = np.array([top for top in _tops(box, y1) if 0 <= top <= height - y1] or [max(box[1], 0)])
            spots = np.stack([left + x0 + 0 * tops, tops + y0, left + x1 + 0 * tops, tops + y1], axis=1)
            best = int(_overlap(spots, placed[:number]).argmin())
            placed[number], number = spots[best], number + 1
            draw.rectangle(tuple(spots[best]), fill=color[::-1])
            draw.text((left, tops[best]), each.text, fill=(0, 0, 0), font=font)
    return np.ascontiguousarray(np.asarray(picture)[:, :, ::-1])


def _upright(box: Sequence[float]) -> Sequence[float]:
    """x0, y0, x1, y1 of, or around, a box of a :class:`DrawnObject`."""
    return enclosing_box(box) if len(box) == 5 else (box[0], box[1], box[0] + box[2], box[1] + box[3])


def _tops(box: Sequence[float], height: float) -> list[float]:
    """Where the text of a box may begin, best first: above it, within it from its top, below it."""
    within = (box[1] + line * height for line in range(_LINES))
    return [box[1] - height, *(top for top in within if top == box[1] or top + height <= box[3]), box[3]]


def _overlap(spots: np.ndarray, placed: np.ndarray) -> np.ndarray:
    """Of N boxes x0, y0, x1, y1, the area that M others cover of each, those that lie over one another counted each."""
    corners = spots[:, None], placed[None]
    low = np.maximum(*(each[..., :2] for each in corners))
    high = np.minimum(*(each[..., 2:] for each in corners))
    return (high - low).clip(0).prod(axis=-1).sum(axis=1)


def write_overlays(data: dict[str, Any], out_dir: str, image_root: str) -> int:
    """Write ``<image>.jpg`` per image, with masks, boxes, classes and scores; returns how many.

    Args:
        data: COCO dict whose images have sizes and whose masks fit them.
        out_dir: folder to write to.
        image_root: folder that the file names are relative to.

    Raises:
        ValueError: two images share a name but for its extension, or a mask or image cannot be read.
    """
    names, class_of = category_tables(data, out_dir)
    stems = output_stems(data["images"])
    for (image, annotations), stem in zip(by_image(data), stems, strict=True):
        pixels = read_image(os.path.join(image_root, image["file_name"]), "BGR")
        objects = (_drawn(annotation, pixels.shape[:2], names, class_of) for annotation in annotations)
        write_file(os.path.join(out_dir, f"{stem}.jpg"), encode_jpeg(draw_objects(pixels, objects)))
    return len(stems)


def _drawn(
    annotation: dict[str, Any], size: Sequence[int], names: Sequence[str], class_of: Mapping[int, int]
) -> DrawnObject:
    number = class_of[annotation["category_id"]]
    score = annotation.get("score", annotation.get("quality"))
    mask = decode_mask(annotation, size[0], size[1]) if annotation.get("segmentation") else None
    return DrawnObject(mask, rotated_box_of(annotation) or annotation["bbox"], number, _text(names[number], score))


def _text(name: str, score: Any) -> str:
    return f"{name} {score:.2f}" if isinstance(score, int | float) else name
