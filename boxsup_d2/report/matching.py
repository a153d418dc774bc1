"""Which image and which object of one mask file are those of another one.

The rules are those by which masks are evaluated: an object that a report compares with the truth is one that counts.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

# Box IoU from which on two objects of an image and class are taken for the same, where no id says so.
_SAME_BOX = 0.5


def match_images(
    images: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any] | None]:
    """Partners of images in another file.

    Images are the same if their names are, with their folders, or, if no other has it, without folders and extension;
    where no name fits, if their ids and sizes are.

    Args:
        images: entries of one file, with ``id`` and ``file_name``.
        others: those of the other file.

    Returns:
        For each of ``images`` its partner or None.
    """
    by_id = {other["id"]: other for other in others}
    by_name = {other["file_name"]: other for other in others}
    by_stem = {_stem(other): other for other in others}
    counts = [Counter(map(_stem, entries)) for entries in (images, others)]
    partners = []
    for image in images:
        partner = by_name.get(image["file_name"])
        if partner is None and all(count[_stem(image)] == 1 for count in counts):
            partner = by_stem[_stem(image)]
        if partner is None:
            partner = by_id.get(image["id"])
            if partner is not None and _size(partner) != _size(image):
                partner = None  # only a number in common
        partners.append(partner)
    return partners


def match_objects(
    objects: Sequence[Mapping[str, Any]],
    others: Sequence[Mapping[str, Any]],
    names: Mapping[Any, str],
    other_names: Mapping[Any, str],
) -> list[Mapping[str, Any] | None]:
    """Partners of the objects of one image in another file.

    Objects are the same if their class names are and their annotation ids agree, for which their boxes have to touch;
    else, one by one from the most similar pair on, if their boxes have an IoU of 0.5.

    Args:
        objects: annotations of the image in one file, with ``bbox`` (x, y, w, h).
        others: those of the other file.
        names: class names of the first file by ``category_id``.
        other_names: those of the other file.

    Returns:
        For each of ``objects`` its partner or None; each of ``others`` is a partner once at most.
    """
    partners: list[Mapping[str, Any] | None] = [None] * len(objects)
    if not objects or not others:
        return partners
    boxes = [np.array([each["bbox"] for each in side], dtype=np.float64) for side in (objects, others)]
    overlap = mask_util.iou(*boxes, [0] * len(others))
    for row, one in enumerate(objects):
        for column, two in enumerate(others):
            if names[one["category_id"]] != other_names.get(two.get("category_id")):
                overlap[row, column] = 0

    def pair(row: int, column: int) -> None:
        partners[row] = others[column]
        overlap[row], overlap[:, column] = 0, 0

    position = {other["id"]: column for column, other in enumerate(others) if "id" in other}
    for row, annotation in enumerate(objects):
        same = position.get(annotation.get("id"))
        if same is not None and overlap[row, same] > 0:
            pair(row, same)
    while overlap.max() >= _SAME_BOX:
        row, column = np.unravel_index(overlap.argmax(), overlap.shape)
        pair(int(row), int(column))
    return partners


def _stem(image: Mapping[str, Any]) -> str:
    return os.path.splitext(image["file_name"].replace("\\", "/").rsplit("/", 1)[-1])[0]


def _size(image: Mapping[str, Any]) -> tuple[Any, Any]:
    return image.get("height"), image.get("width")
