"""Which masks of two COCO jsons are about the same object: by ids, else by image, class and box.

Files that were made from one another share ids, files of two tools perhaps only the names of their images and classes.
The evaluation of files and the report both pair by these rules: an object that is shown with its truth is one that
counts.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_util

from boxsup_d2.data.formats.coco import category_tables, coco_segmentation, read_coco_json
from boxsup_d2.data.formats.coco_checks import is_finite, unused_ids
from boxsup_d2.data.formats.coco_dicts import build_dicts
from boxsup_d2.data.formats.problems import Problems

# Box IoU from which on two objects of an image and class are taken for the same, where no id says so.
_SAME_BOX = 0.5


class Pair(NamedTuple):
    """Positions of two annotations of an image that are one object; whether their ids or their boxes say so."""

    theirs: int
    ours: int
    by_id: bool


@dataclass(frozen=True)
class MaskFile:
    """A json that was read.

    Attributes:
        path: Of the file.
        class_names: By contiguous class index.
        records: Dataset dicts, as :func:`boxsup_d2.data.formats.coco_dicts.build_dicts` makes them, with crowd
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


def match_records(ours: MaskFile, theirs: MaskFile) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Records of the same image, predicted and true, in the order of the true file.

    Raises:
        ValueError: Images of one name differ in size.
    """
    problems = Problems()
    pairs = []
    for record, position in zip(ours.records, match_images(ours.records, theirs.records, "image_id"), strict=True):
        if position is None:
            continue
        partner = theirs.records[position]
        if image_frame(partner) != image_frame(record):
            example = f"{record['file_name']}: {image_frame(record)} and {image_frame(partner)}"
            problems.add("images of different height and width in the two files", example)
        pairs.append((position, record))
    problems.raise_if_any(ours.path, f"Its masks must be in the frame of the images of '{theirs.path}'.")
    return [(record, theirs.records[position]) for position, record in sorted(pairs, key=itemgetter(0))]


def match_images(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], id_key: str
) -> list[int | None]:
    """Partners of images in another file.

    Images are the same if their names are, with their folders, or, if no other has it, without folders and extension;
    where no name fits, if their ids and sizes are.

    Args:
        ours, theirs: The images of the files, with ``file_name``, an id, and where they are known ``height`` and
            ``width``.
        id_key: Key of the id: "id" of COCO's images, "image_id" of dataset dicts.

    Returns:
        For each of ``ours`` the position of its partner or None; each of ``theirs`` is a partner once at most.
    """
    by_id = {image[id_key]: position for position, image in enumerate(theirs)}
    by_name, by_stem = _unique(theirs, str), _unique(theirs, _stem)
    stems = _unique(ours, _stem)
    partners: list[int | None] = [None] * len(ours)
    taken: set[int] = set()

    def by_stem_of(image: Mapping[str, Any]) -> int | None:
        stem = _stem(image["file_name"])
        return by_stem.get(stem) if stem in stems else None

    def by_id_of(image: Mapping[str, Any]) -> int | None:
        partner = by_id.get(image[id_key])
        if partner is None or any(theirs[partner].get(key) != image.get(key) for key in ("height", "width")):
            return None  # only a number in common
        return partner

    # The surer ways first, for all: a number in common must not take the partner that another image names.
    for find in (lambda image: by_name.get(image["file_name"]), by_stem_of, by_id_of):
        for index, image in enumerate(ours):
            partner = find(image) if partners[index] is None else None
            if partner is not None and partner not in taken:
                partners[index] = partner
                taken.add(partner)
    return partners


def _unique(images: Iterable[Mapping[str, Any]], key: Callable[[str], str]) -> dict[str, int]:
    """Positions of images by a key of their file names; without those that share one."""
    found: dict[str, list[int]] = defaultdict(list)
    for position, image in enumerate(images):
        found[key(image["file_name"])].append(position)
    return {name: same[0] for name, same in found.items() if len(same) == 1}


def _stem(file_name: str) -> str:
    return os.path.splitext(file_name.replace("\\", "/").rsplit("/", 1)[-1])[0]


def image_frame(record: dict[str, Any]) -> tuple[int, int]:
    """Height and width."""
    return record["height"], record["width"]


def match_objects(
    ours: Sequence[Mapping[str, Any]],
    theirs: Sequence[Mapping[str, Any]],
    our_classes: Sequence[str],
    their_classes: Sequence[str | None],
) -> list[Pair]:
    """Pairs of objects of one image.

    Objects are the same if their class names are and their annotation ids agree, for which their boxes have to touch;
    else, one by one from the most similar pair on, if their boxes have an IoU of 0.5.

    Args:
        ours, theirs: Annotations of the image in the files, with ``bbox`` (x, y, w, h).
        our_classes, their_classes: Class name of each; None is no class of ours.

    Returns:
        In the order of ``theirs``; each object is in one pair at most.
    """
    if not ours or not theirs:
        return []
    overlap = mask_util.iou([a["bbox"] for a in ours], [a["bbox"] for a in theirs], [0] * len(theirs))
    overlap *= np.array([[one == other for other in their_classes] for one in our_classes])
    pairs = []

    def pair(index: int, partner: int, by_id: bool) -> None:
        pairs.append(Pair(partner, index, by_id))
        overlap[index], overlap[:, partner] = 0, 0

    position = {annotation["id"]: index for index, annotation in enumerate(theirs) if annotation.get("id") is not None}
    for index, annotation in enumerate(ours):
        partner = position.get(annotation.get("id"))
        if partner is not None and overlap[index, partner] > 0:
            pair(index, partner, by_id=True)
    while overlap.max() >= _SAME_BOX:
        index, partner = map(int, np.unravel_index(overlap.argmax(), overlap.shape))
        pair(index, partner, by_id=False)
    return sorted(pairs)
