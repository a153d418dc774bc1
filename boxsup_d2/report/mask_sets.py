"""What a report shows: mask files, read and matched image by image. No image and no mask is opened here.

A mask file is a COCO json whose annotations have a ``segmentation`` (a pseudo-mask file of ours or anybody else's), or
the manifest of label maps that ``PSEUDO_MASKS.FORMAT sem_seg`` writes.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from boxsup_d2.data.formats.coco import read_coco_json, usable_images, usable_names, usable_objects
from boxsup_d2.data.formats.coco_checks import is_finite
from boxsup_d2.data.formats.problems import Problems
from boxsup_d2.data.formats.pseudo_masks import is_manifest, provenance_of, read_manifest
from boxsup_d2.data.paths import outside_names
from boxsup_d2.evaluation.mask_matching import match_images, match_objects

_FIX = "Check the path of the mask file."


@dataclass(frozen=True)
class MaskSet:
    """Masks to be shown.

    Attributes:
        name: as the page calls them.
        path: COCO json, or manifest of label maps.
    """

    name: str
    path: str


@dataclass(frozen=True)
class SceneObject:
    """One object of an image.

    Attributes:
        annotation_id: in the first file.
        class_index: position in :attr:`Collection.classes`.
        box: x, y, w, h in pixels, of the first file.
        annotations: its annotation in each file, the truth's last if there is one; None where a file has none.
    """

    annotation_id: Any
    class_index: int
    box: tuple[float, float, float, float]
    annotations: tuple[Mapping[str, Any] | None, ...]


@dataclass(frozen=True)
class Scene:
    """One image.

    Attributes:
        file_name: as in the first file.
        size: height and width as the first file says; None where it does not.
        objects: of instance masks.
        label_maps: path of the label map of each file, None where it has none; empty for instance masks.
    """

    file_name: str
    size: tuple[int, int] | None
    objects: list[SceneObject] = field(default_factory=list)
    label_maps: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class Collection:
    """All that a report shows.

    Attributes:
        sets: the mask sets, without the truth.
        semantic: label maps, and not instance masks.
        has_truth: whether the last annotation of each object is the true one.
        classes: names; of label maps without the background.
        scenes: in the order of the first file.
        provenance: ``info.boxsup_d2`` of each set, empty where it has none.
        unmatched: of each set, objects (of label maps: images) that the first file does not hold.
        total: images of the first file.
        problems: what was left out, and why.
    """

    sets: list[MaskSet]
    semantic: bool
    has_truth: bool
    classes: list[str]
    scenes: list[Scene]
    provenance: list[dict[str, Any]]
    unmatched: list[int]
    total: int
    problems: Problems

    def sampled(self, number: int | None) -> "Collection":
        """At most so many images, spread evenly over the images' lowest qualities; always the same ones."""
        if number is None or number >= len(self.scenes):
            return self
        lowest = [min((_worth(obj.annotations[0]) for obj in s.objects), default=1.0) for s in self.scenes]
        return replace(self, scenes=[self.scenes[index] for index in spread(lowest, number)])


def confidence_of(annotation: Mapping[str, Any] | None) -> float | None:
    """``confidence`` of an annotation, else its ``score``; None where it has neither."""
    if annotation is None:
        return None
    return _number(annotation.get("confidence", annotation.get("score")))


def quality_of(annotation: Mapping[str, Any] | None) -> float | None:
    """``quality`` of an annotation; None where it has none."""
    return None if annotation is None else _number(annotation.get("quality"))


def _number(value: Any) -> float | None:
    return float(value) if is_finite(value) else None


def _worth(annotation: Mapping[str, Any] | None) -> float:
    """Quality of a mask, else its confidence; 0 without both."""
    quality = quality_of(annotation)
    return quality if quality is not None else confidence_of(annotation) or 0.0


def spread(values: Sequence[float], number: int) -> list[int]:
    """Positions, ascending, of ``number`` values that are evenly spaced in the sorted order; the extremes are in."""
    order = sorted(range(len(values)), key=lambda index: (values[index], index))
    last = max(number - 1, 1)
    return sorted({order[place * (len(order) - 1) // last] for place in range(number)}) if order else []


def load_collection(mask_sets: Sequence[MaskSet], truth: str | None = None) -> Collection:
    """Read mask files and match the others' images and objects with the first one's.

    Args:
        mask_sets: one or more, all of instance masks or all of label maps.
        truth: COCO json with true masks, for instance masks only.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file is damaged or of another kind, there is none, or two have one name.
    """
    if not mask_sets:
        raise ValueError("A report needs at least one mask file.")
    if len({each.name for each in mask_sets}) < len(mask_sets):
        raise ValueError(
            f"Mask sets must have different names, not {', '.join(repr(each.name) for each in mask_sets)}."
        )
    files = [_read(each) for each in mask_sets]
    kinds = {"stuff_classes" in data for data in files}
    if len(kinds) > 1:
        raise ValueError(
            f"{', '.join(repr(each.path) for each in mask_sets)}: instance masks and label maps cannot be compared. "
            "Write a report of each."
        )
    if kinds == {True}:
        if truth is not None:
            raise ValueError(
                f"'{mask_sets[0].path}' lists label maps: truth '{truth}' is of instances. Leave it out, and "
                "measure label maps with TEST.TASKS sem_seg."
            )
        return _semantic_collection(list(mask_sets), files)
    paths = [each.path for each in mask_sets]
    if truth is not None:
        files.append(_read(MaskSet("ground truth", truth)))
        paths.append(truth)
    for path, data in zip(paths, files, strict=True):
        _check_has_masks(path, data)
    return _instance_collection(list(mask_sets), files)


def _read(mask_set: MaskSet) -> dict[str, Any]:
    """A COCO json, or a manifest of label maps."""
    if is_manifest(mask_set.path):
        return read_manifest(mask_set.path, mask_set.name)
    return read_coco_json(mask_set.path, mask_set.name, _FIX)


def _check_has_masks(path: str, data: dict[str, Any]) -> None:
    """Refuse a file of boxes alone; one of a labelling that left all of them as boxes shows that."""
    objects = [annotation for annotation in data["annotations"] if not annotation.get("iscrowd")]
    bare = not any(annotation.get("segmentation") not in (None, [], [[]], {}) for annotation in objects)
    if objects and bare and provenance_of(data) is None:
        raise ValueError(
            f"'{path}' has no masks: {len(objects)} boxes alone. 'boxsup label --json' makes a json with masks of it."
        )


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = image.get("height"), image.get("width")
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _instance_collection(sets: list[MaskSet], files: list[dict[str, Any]]) -> Collection:
    """Collection of instance masks; there is one file more than sets where the last one is the truth."""
    problems = Problems()
    images = [usable_images(data["images"], problems) for data in files]
    objects = [usable_objects(data["annotations"], problems) for data in files]
    names = [usable_names(data["categories"]) for data in files]
    class_indices = {key: index for index, key in enumerate(names[0])}
    partners = [_partners(images[0], entries) for entries in images[1:]]
    matched = [0] * len(files)
    scenes = []
    for place, image in enumerate(images[0]):
        own = [a for a in objects[0].get(image["id"], ()) if _has_class(a, class_indices, problems)]
        columns: list[Sequence[Mapping[str, Any] | None]] = [own]
        for found_images, others, other_names in zip(partners, objects[1:], names[1:], strict=True):
            partner = found_images[place]
            found = others.get(partner["id"], []) if partner is not None else []
            columns.append(_same_objects(own, found, names[0], other_names))
        for number, column in enumerate(columns):
            matched[number] += sum(annotation is not None for annotation in column)
        scenes.append(
            Scene(
                image["file_name"],
                _size(image),
                [
                    SceneObject(a.get("id"), class_indices[a["category_id"]], (*map(float, a["bbox"]),), row)  # type: ignore[arg-type]
                    for a, row in zip(own, zip(*columns, strict=True), strict=True)
                ],
            )
        )
    held = [sum(map(len, by_image.values())) for by_image in objects]
    return Collection(
        sets=sets,
        semantic=False,
        has_truth=len(files) > len(sets),
        classes=list(names[0].values()),
        scenes=scenes,
        provenance=[provenance_of(data) or {} for data in files[: len(sets)]],
        unmatched=[h - m for h, m in zip(held, matched, strict=True)][: len(sets)],
        total=len(scenes),
        problems=problems,
    )


def _partners(images: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
    """The same image in another file, or None, for each image."""
    return [None if found is None else others[found] for found in match_images(images, others, "id")]


def _same_objects(
    own: list[dict[str, Any]], others: list[dict[str, Any]], names: Mapping[Any, str], other_names: Mapping[Any, str]
) -> list[dict[str, Any] | None]:
    """The same object in another file, or None, for each object of an image."""
    classes, other_classes = (
        [names[a["category_id"]] for a in own],
        [other_names.get(a.get("category_id")) for a in others],
    )
    found = {pair.ours: others[pair.theirs] for pair in match_objects(own, others, classes, other_classes)}
    return [found.get(place) for place in range(len(own))]


def _has_class(annotation: Mapping[str, Any], known: Mapping[Any, int], problems: Problems) -> bool:
    if annotation.get("category_id") in known:
        return True
    problems.add("annotations of unknown categories", annotation.get("id"))
    return False


def _semantic_collection(sets: list[MaskSet], files: list[dict[str, Any]]) -> Collection:
    """Collection of label maps."""
    classes = files[0]["stuff_classes"]
    for mask_set, data in zip(sets, files, strict=True):
        if data["stuff_classes"] != classes:
            raise ValueError(
                f"'{mask_set.path}' and '{sets[0].path}' have different classes, so their label maps cannot be "
                "compared. Write a report of each."
            )
    problems = Problems()
    images = [usable_images(data["images"], problems) for data in files]
    partners = [_partners(images[0], entries) for entries in images]
    folders = [os.path.dirname(mask_set.path) for mask_set in sets]
    outside = [
        outside_names(folder, [image["png"] for image in entries if isinstance(image.get("png"), str)])
        for folder, entries in zip(folders, images, strict=True)
    ]
    matched = [0] * len(files)
    scenes = []
    for place, image in enumerate(images[0]):
        row: list[str | None] = []
        for number, (folder, column) in enumerate(zip(folders, partners, strict=True)):
            partner = column[place]
            png = partner.get("png") if partner is not None else None
            if png in outside[number]:
                problems.add("label maps outside of the folder of their file", png)
            row.append(os.path.join(folder, png) if isinstance(png, str) and png not in outside[number] else None)
            matched[number] += partner is not None
        scenes.append(Scene(image["file_name"], _size(image), label_maps=tuple(row)))
    return Collection(
        sets=sets,
        semantic=True,
        has_truth=False,
        classes=[str(name) for name in classes[1:]],
        scenes=scenes,
        provenance=[provenance_of(data) or {} for data in files],
        unmatched=[len(entries) - m for entries, m in zip(images, matched, strict=True)],
        total=len(scenes),
        problems=problems,
    )
