"""Pascal VOC 2012's folder: boxes from the XML files, instance masks from ``SegmentationObject``, class masks from
``SegmentationClass``.

Every split is ``ImageSets/Segmentation/<split>.txt``. Loading boxes never opens a mask file. Frames are those of
:mod:`.voc`: 0-based, exclusive ends.
"""

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from boxsup_d2.data.formats.voc import ids_of_names, parse_xml, voc_image_size, voc_object
from boxsup_d2.data.images import read_label_map
from boxsup_d2.data.paths import require_images, require_path
from boxsup_d2.masks.label_map import IGNORE_LABEL
from boxsup_d2.masks.rle import encode_masks

logger = logging.getLogger(__name__)

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def split_file(dirname: str, split: str) -> str:
    """The list of the images of a split."""
    return os.path.join(dirname, "ImageSets", "Segmentation", f"{split}.txt")


def load_voc_boxes(
    dirname: str, split: str, name: str, classes: Sequence[str] = VOC_CLASSES, *, use_difficult: bool = True
) -> list[dict[str, Any]]:
    """Load a split of a folder in VOC's layout, boxes only.

    Args:
        dirname: the folder with ``Annotations``, ``ImageSets`` and ``JPEGImages``.
        split: reads ``ImageSets/Segmentation/<split>.txt``.
        name: of the data set, for messages.
        classes: names in the order of ``category_id``.
        use_difficult: with the objects marked difficult; ids are the same without them.

    Returns:
        Per image ``file_name``, ``height``, ``width`` (of the XML), ``image_id`` ("2007_000032" → 2007000032) and
        ``annotations`` in XML order: ``id`` (1-based position in the whole list, difficult objects counted whether
        used or not), ``bbox`` (x0, y0, x1, y1; 0-based, exclusive ends, floats), ``bbox_mode`` (XYXY_ABS),
        ``category_id``, ``iscrowd`` 0, ``difficult`` 0 or 1.

    Raises:
        FileNotFoundError: a list, XML file or image is missing.
        ValueError: an XML file is damaged, or holds an unknown class or an inverted box.
    """
    records = _read_split(dirname, split, name, classes)
    return records if use_difficult else filter_difficult(records)


def filter_difficult(dataset_dicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copies of box-only dataset dicts without the annotations whose ``difficult`` is 1; images and ids stay."""
    return [
        {**record, "annotations": [obj for obj in record["annotations"] if not obj.get("difficult", 0)]}
        if "annotations" in record
        else record
        for record in dataset_dicts
    ]


def load_voc_instances(
    dirname: str, split: str, name: str, classes: Sequence[str] = VOC_CLASSES, *, use_difficult: bool = True
) -> list[dict[str, Any]]:
    """Load a split with the masks of ``SegmentationObject`` (XML object i is instance id i, from 1).

    Returns:
        As :func:`load_voc_boxes`; each annotation also has ``segmentation``, a compressed RLE with str counts in the
        frame of the image, and each image with void pixels has ``void_mask``, their RLE. Void are: value 255, ids
        beyond the XML's objects, and difficult objects where they are not used. An object without a single
        pixel of its own is left out (and counted in a warning): there is no mask to learn or to compare with.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_voc_boxes`; a mask file is missing or damaged.
    """
    mask_root = require_path(os.path.join(dirname, "SegmentationObject"), name)
    records = _read_split(dirname, split, name, classes)
    without_pixels, beyond_xml, resized = [], [], []
    for record in records:
        stem = os.path.splitext(os.path.basename(record["file_name"]))[0]
        ids = read_label_map(require_path(os.path.join(mask_root, f"{stem}.png"), name))
        if ids.shape != (record["height"], record["width"]):
            # A few official XML files have wrong sizes; the mask was drawn on the image itself.
            record["height"], record["width"] = ids.shape
            resized.append(stem)
        boxes = record["annotations"]
        # One H×W×(N+1) stack, void last: pycocotools encodes all of it in one call.
        masks = ids[:, :, None] == np.array([*range(1, len(boxes) + 1), IGNORE_LABEL], dtype=np.uint8)
        unknown = (ids > len(boxes)) & (ids != IGNORE_LABEL)
        if unknown.any():
            masks[:, :, -1] |= unknown
            beyond_xml.append(stem)
        kept = []
        for index, obj in enumerate(boxes):
            if obj["difficult"] and not use_difficult:
                masks[:, :, -1] |= masks[:, :, index]
            elif not masks[:, :, index].any():
                without_pixels.append(stem)
            else:
                kept.append(index)
        *rles, void = encode_masks(masks[:, :, [*kept, -1]])
        record["annotations"] = [{**boxes[index], "segmentation": rle} for index, rle in zip(kept, rles, strict=True)]
        if masks[:, :, -1].any():
            record["void_mask"] = void
    for stems, text in (
        (without_pixels, "objects without a pixel in SegmentationObject are left out"),
        (beyond_xml, "masks hold ids that their XML has no object for: void"),
        (resized, "XML files give another size than the mask: the mask's is used"),
    ):
        if stems:
            logger.warning("%s: %d %s (%s ...)", name, len(stems), text, ", ".join(stems[:3]))
    return records


def load_voc_sem_seg(
    dirname: str, split: str, name: str, classes: Sequence[str] = VOC_CLASSES, *, use_difficult: bool = True
) -> list[dict[str, Any]]:
    """Load a split with its class masks; none of them is opened.

    Returns:
        As :func:`load_voc_boxes`; each image also has ``sem_seg_file_name``, a PNG of the image's size: 0 background,
        1 + ``category_id``, 255 void. Of ``train_aug`` it is the file of ``SegmentationClassAug`` where there is one,
        of any other split that of ``SegmentationClass``.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_voc_boxes`; class masks are missing.
    """
    records = load_voc_boxes(dirname, split, name, classes, use_difficult=use_difficult)
    folders = ["SegmentationClassAug", "SegmentationClass"] if split == "train_aug" else ["SegmentationClass"]
    paths = [os.path.join(dirname, folder) for folder in folders]
    present = {path: set(os.listdir(path)) for path in paths if os.path.isdir(path)}
    missing = []
    for record in records:
        base = os.path.splitext(os.path.basename(record["file_name"]))[0] + ".png"
        path = next((path for path in paths if base in present.get(path, ())), None)
        if path is None:
            missing.append(base)
        else:
            record["sem_seg_file_name"] = os.path.join(path, base)
    if missing:
        made = "datasets/prepare_voc_train_aug.py --masks makes them."
        fix = made if split == "train_aug" else "Unpack the whole VOC 2012."
        raise FileNotFoundError(
            f"Data set '{name}' lacks the class masks of {len(missing)} of its {len(records)} images in "
            f"{' and '.join(map(repr, paths))}, first {', '.join(missing[:3])}. {fix}"
        )
    return records


def _read_split(dirname: str, split: str, name: str, classes: Sequence[str]) -> list[dict[str, Any]]:
    list_file = split_file(dirname, split)
    fix = ""
    if split == "train_aug" and os.path.isdir(os.path.dirname(list_file)):
        fix = "Build it with datasets/prepare_voc_train_aug.py; datasets/README.md says what it needs."
    with open(require_path(list_file, name, fix), encoding="utf-8") as file:
        stems = [line.split()[0] for line in file if line.strip()]
    for folder in ("Annotations", "JPEGImages"):
        require_path(os.path.join(dirname, folder), name)
    class_ids = {class_name: index for index, class_name in enumerate(classes)}
    records = []
    next_id = 1
    for stem, image_id in zip(stems, _image_ids(stems, list_file), strict=True):
        record = _read_xml(os.path.join(dirname, "Annotations", f"{stem}.xml"), name, class_ids)
        record["file_name"] = os.path.join(dirname, "JPEGImages", f"{stem}.jpg")
        record["image_id"] = image_id
        for obj in record["annotations"]:
            obj["id"] = next_id
            next_id += 1
        records.append(record)
    require_images((record["file_name"] for record in records), name)
    return records


def _image_ids(stems: list[str], list_file: str) -> list[int]:
    if len(set(stems)) != len(stems):
        raise ValueError(f"'{list_file}' names an image twice. Remove the repeated lines.")
    return ids_of_names(stems)


def _read_xml(path: str, name: str, class_ids: dict[str, int]) -> dict[str, Any]:
    root = parse_xml(require_path(path, name))
    height, width = voc_image_size(root, path)
    annotations = []
    for element in root.findall("object"):
        obj = voc_object(element, path)
        if obj.name not in class_ids:
            raise ValueError(f"'{path}': unknown class '{obj.name}'; known are {', '.join(class_ids)}. Rename it.")
        annotations.append(
            {
                "bbox": list(obj.box),
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": class_ids[obj.name],
                "iscrowd": 0,
                "difficult": obj.difficult,
            }
        )
    return {"height": height, "width": width, "annotations": annotations}
