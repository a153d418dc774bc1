"""Which image and which object of one mask file are those of another one."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

#: Boxes of different files are the same object's from this IoU on.
_SAME_BOX = 0.5


class ImageIndex:
    """Finds the entry of an image in a file by the entry that another file has of it."""

    def __init__(self, images: Sequence[Mapping[str, Any]]):
        self._by_id = {image["id"]: image for image in images}
        self._by_name = {image["file_name"]: image for image in images}
        self._by_base: dict[str, Mapping[str, Any] | None] = {}
        for image in images:
            base = os.path.basename(image["file_name"])
            # Two folders may hold images of one name: then that says nothing.
            self._by_base[base] = None if base in self._by_base else image

    def find(self, image: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The entry of the same image: of that id if the file's name agrees, else of that file name; or None."""
        base = os.path.basename(image["file_name"])
        own = self._by_id.get(image["id"])
        if own is not None and os.path.basename(own["file_name"]) == base:
            return own
        return self._by_name.get(image["file_name"]) or self._by_base.get(base)


def match_objects(
    reference: Sequence[Mapping[str, Any]],
    others: Sequence[Mapping[str, Any]],
    names: Mapping[Any, str],
    other_names: Mapping[Any, str],
) -> list[Mapping[str, Any] | None]:
    """Partners of the objects of one image in another file.

    Where the files share annotation ids, these decide. Else an object's partner is, of those of its class that are
    still free, the one whose box overlaps its own most, by an IoU of 0.5 at least; of equal ones the first.

    Args:
        reference: annotations of the image in one file, with ``bbox`` (x, y, w, h).
        others: those of the other file.
        names: class names of the first file by ``category_id``.
        other_names: those of the other file.

    Returns:
        For each of ``reference`` its partner or None.
    """
    by_id = {other["id"]: other for other in others if "id" in other}
    partners = [by_id.get(annotation.get("id")) for annotation in reference]
    if any(partner is not None for partner in partners):
        return partners
    free = list(others)
    for position, annotation in enumerate(reference):
        name = names.get(annotation.get("category_id"))
        same = [other for other in free if other_names.get(other.get("category_id")) == name]
        best = max(same, key=lambda other: _box_iou(annotation["bbox"], other["bbox"]), default=None)
        if best is not None and _box_iou(annotation["bbox"], best["bbox"]) >= _SAME_BOX:
            partners[position] = best
            free = [other for other in free if other is not best]
    return partners


def _box_iou(one: Sequence[float], two: Sequence[float]) -> float:
    """IoU of two boxes x, y, w, h as areas; 0 where both are empty."""
    width = min(one[0] + one[2], two[0] + two[2]) - max(one[0], two[0])
    height = min(one[1] + one[3], two[1] + two[3]) - max(one[1], two[1])
    inter = max(width, 0.0) * max(height, 0.0)
    union = one[2] * one[3] + two[2] * two[3] - inter
    return inter / union if union > 0 else 0.0
