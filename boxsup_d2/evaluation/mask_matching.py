"""Which masks of two COCO jsons are about the same object: by ids, else by image, class and box.

Files that were made from one another share ids, files of two tools perhaps only the names of their images and classes.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_util

from boxsup_d2.data.datasets.catalog import Problems
from boxsup_d2.data.datasets.coco_checks import is_finite, unused_ids
from boxsup_d2.data.datasets.coco_format import build_dicts, category_tables, coco_segmentation, read_coco_json

# Box IoU from which on two objects of an image and class are taken for the same, where no id says so.
_SAME_BOX = 0.5


class Pair(NamedTuple):
    """Positions of two annotations of an image that are one object."""

    truth: int
    predicted: int
    by_id: bool


@dataclass(frozen=True)
class MaskFile:
    """A json that was read.

    Attributes:
        path: Of the file.
        class_names: By contiguous class index.
        records: Dataset dicts, as :func:`boxsup_d2.data.datasets.coco_format.build_dicts` makes them, with crowd
            regions. Their annotations have ``segmentation`` (None without a mask) and ``fields``: what the json's have
            that is a number.
    """

    path: str
    class_names: list[str]
    records: list[dict[str, Any]]


def read_mask_file(path: str) -> MaskFile:
    """Read and check a file; annotations without an id get one.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or a mask does not fit its image.
    """
    data = read_coco_json(path, os.path.basename(path), "Correct the path.")
    new_ids = unused_ids(data["annotations"])
    data["annotations"] = [
        annotation if annotation.get("id") is not None else {**annotation, "id": next(new_ids)}
        for annotation in data["annotations"]
    ]

    def mask_keys(source: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
        where = f"'{path}', annotation {source['id']}"
        fields = {key: value for key, value in source.items() if is_finite(value)}
        return {"segmentation": coco_segmentation(source.get("segmentation"), image, where), "fields": fields}

    records = build_dicts(data, path, "", path, keep_crowds=True, extra_keys=mask_keys, look_up_images=False)
    return MaskFile(path, category_tables(data, path)[0], records)


def objects_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Annotations of a record that are no crowd regions."""
    return [annotation for annotation in record["annotations"] if not annotation["iscrowd"]]


def match_images(ours: MaskFile, theirs: MaskFile) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Records of the same image, predicted and true, in the order of the true file.

    Raises:
        ValueError: Images of one name differ in size.
    """
    by_id = {record["image_id"]: record for record in theirs.records}
    by_name, by_stem = _unique(theirs.records, str), _unique(theirs.records, _stem)
    stems = _unique(ours.records, _stem)
    partners: dict[int, dict[str, Any]] = {}  # by the true image's id
    problems = Problems()
    for record in ours.records:
        named = by_name.get(record["file_name"])
        if named is None and _stem(record["file_name"]) in stems:
            named = by_stem.get(_stem(record["file_name"]))
        partner = by_id.get(record["image_id"])
        if named is not None:
            partner = named
        elif partner is not None and image_frame(partner) != image_frame(record):
            partner = None  # only a number in common
        if partner is None or partner["image_id"] in partners:
            continue
        if image_frame(partner) != image_frame(record):
            example = f"{record['file_name']}: {image_frame(record)} and {image_frame(partner)}"
            problems.add("images of different height and width in the two files", example)
        partners[partner["image_id"]] = record
    problems.raise_if_any(ours.path, f"Its masks must be in the frame of the images of '{theirs.path}'.")
    return [(partners[key], record) for key, record in by_id.items() if key in partners]


def _unique(records: Iterable[dict[str, Any]], key: Callable[[str], str]) -> dict[str, dict[str, Any]]:
    """Records by a key of their file names; without those that share one."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        found[key(record["file_name"])].append(record)
    return {name: same[0] for name, same in found.items() if len(same) == 1}


def _stem(file_name: str) -> str:
    return os.path.splitext(file_name.replace("\\", "/").rsplit("/", 1)[-1])[0]


def image_frame(record: dict[str, Any]) -> tuple[int, int]:
    """Height and width."""
    return record["height"], record["width"]


def match_objects(
    ours: list[dict[str, Any]], theirs: list[dict[str, Any]], our_names: Sequence[str], their_names: Sequence[str]
) -> list[Pair]:
    """Pairs of objects of one image, in the order of the true ones; each is in one pair at most."""
    if not ours or not theirs:
        return []
    overlap = mask_util.iou([a["bbox"] for a in ours], [a["bbox"] for a in theirs], [0] * len(theirs))
    same_class = np.array(
        [[our_names[a["category_id"]] == their_names[b["category_id"]] for b in theirs] for a in ours]
    )
    overlap = np.where(same_class, overlap, 0.0)
    position = {annotation["id"]: index for index, annotation in enumerate(theirs)}
    pairs = []
    for index, annotation in enumerate(ours):
        partner = position.get(annotation["id"])
        if partner is not None and overlap[index, partner] > 0:
            pairs.append(Pair(partner, index, True))
    for pair in pairs:
        overlap[pair.predicted] = 0
        overlap[:, pair.truth] = 0
    while overlap.max() >= _SAME_BOX:
        index, partner = map(int, np.unravel_index(overlap.argmax(), overlap.shape))
        pairs.append(Pair(partner, index, False))
        overlap[index] = 0
        overlap[:, partner] = 0
    return sorted(pairs)
