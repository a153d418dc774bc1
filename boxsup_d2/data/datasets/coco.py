"""COCO-format jsons as data sets: boxes alone, with the masks that they have, or some of their classes.

COCO-60 is COCO without the classes of Pascal VOC.
"""

import os
from collections.abc import Callable, Mapping

from boxsup_d2.data.datasets.catalog import register_dataset
from boxsup_d2.data.datasets.source import CocoSource
from boxsup_d2.data.formats.coco import category_tables, coco_header
from boxsup_d2.data.formats.coco_dicts import load_coco_boxes, load_coco_masks, load_coco_subset
from boxsup_d2.data.paths import require_path

#: VOC's 20 classes by the names that COCO gives them.
VOC_CLASSES_IN_COCO = frozenset(
    {
        "airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
        "dining table", "dog", "horse", "motorcycle", "person", "potted plant", "sheep", "couch", "train", "tv",
    }
)  # fmt: skip


def register_coco_boxes(name: str, json_file: str, image_root: str) -> None:
    """Register any COCO json as a box-only data set; nothing is opened before it is used.

    Class names and ids come from the json. Masks and areas in it are never read. A former data set of the name is
    replaced, here as in all registrations.

    Args:
        name: to register it under.
        json_file: path of the json.
        image_root: folder that the json's file names are relative to.
    """
    json_file, image_root = (os.path.abspath(os.path.expanduser(path)) for path in (json_file, image_root))
    register_coco_boxes_lazily(name, lambda: json_file, lambda: image_root)


def register_coco_boxes_lazily(
    name: str,
    json_file: Callable[[], str],
    image_root: Callable[[], str],
    expected: dict[int, str] | None = None,
) -> None:
    """As :func:`register_coco_boxes`, with functions that return the paths when they are used.

    ``expected``: see :func:`category_tables`; class names are then known without opening the json.
    """
    tables = None if expected is None else category_tables({"categories": []}, name, expected)

    def classes() -> list[str]:
        return tables[0] if tables else coco_header(json_file(), name)["thing_classes"]

    def ids() -> dict[int, int]:
        return tables[1] if tables else coco_header(json_file(), name)["thing_dataset_id_to_contiguous_id"]

    register_dataset(
        name,
        lambda: load_coco_boxes(json_file(), require_path(image_root(), name), name, expected),
        lazy={
            "image_root": image_root,
            "thing_classes": classes,
            "thing_dataset_id_to_contiguous_id": ids,
        },
        # No "json_file" beside it: Detectron2's evaluators would take the masks in there for the data set's.
        source=CocoSource(name, json_file, masks=False, classes=expected),
        evaluator_type="box",
    )


def register_coco_masks(name: str, json_file: str, image_root: str) -> None:
    """Register a COCO json with the masks that some or all of its annotations have; nothing is opened before use.

    Labelling it keeps these masks and gives the other boxes one; ``BoxCropDatasetMapper`` learns from boxes where
    there is no mask, and from masks where there is one. Arguments are those of :func:`register_coco_boxes`.
    """
    json_file, image_root = (os.path.abspath(os.path.expanduser(path)) for path in (json_file, image_root))
    keys = ("thing_classes", "thing_dataset_id_to_contiguous_id")
    register_dataset(
        name,
        lambda: load_coco_masks(json_file, require_path(image_root, name), name),
        lazy={key: lambda key=key: coco_header(json_file, name)[key] for key in keys},  # type: ignore[misc]
        source=CocoSource(name, lambda: json_file, masks=True),
        json_file=json_file,
        image_root=image_root,
        evaluator_type="coco",
    )


def register_coco_subset(
    name: str,
    json_file: Callable[[], str],
    image_root: Callable[[], str],
    classes: Mapping[int, str],
    *,
    masks: bool = False,
) -> None:
    """Register some classes of a COCO json, see :func:`load_coco_subset`; paths are looked up when they are used."""
    names, ids = category_tables({"categories": []}, name, dict(classes))
    register_dataset(
        name,
        lambda: load_coco_subset(json_file(), require_path(image_root(), name), name, classes, masks=masks),
        lazy={"image_root": image_root},
        # No "json_file" beside it: Detectron2's evaluators would take all of it for the data set's.
        source=CocoSource(name, json_file, masks=masks, classes=classes, only_classes=True),
        thing_classes=names,
        thing_dataset_id_to_contiguous_id=ids,
        evaluator_type="coco" if masks else "box",
    )
