"""Writers of composed scenes in the layouts of VOC 2012 and DUTS."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import cv2
import numpy as np
from PIL import Image

from boxsup_d2.data.datasets.pascal_voc import VOC_CLASSES
from boxsup_d2.data.images import encode_label_map

if TYPE_CHECKING:
    from boxsup_d2.toy.composer import ToyScene

__all__ = ["write_duts_pair", "write_image_sets", "write_voc_image"]

_JPEG_QUALITY = 92


def _write_jpeg(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]):
        raise OSError(f"cannot write {path}")


def _write_palette_png(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_label_map(labels))


def _annotation(scene: ToyScene, with_masks: bool) -> ElementTree.Element:
    """VOC's XML: objects in the order of the instance ids, boxes 1-based with both corners inside."""
    height, width = scene.instance_map.shape
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "folder").text = "VOC2012"
    ElementTree.SubElement(root, "filename").text = f"{scene.name}.jpg"
    source = ElementTree.SubElement(root, "source")
    ElementTree.SubElement(source, "database").text = "boxsup_d2 toy scenes"
    size = ElementTree.SubElement(root, "size")
    for tag, value in (("width", width), ("height", height), ("depth", 3)):
        ElementTree.SubElement(size, tag).text = str(value)
    ElementTree.SubElement(root, "segmented").text = str(int(with_masks))
    for index, name in enumerate(scene.classes, start=1):
        ys, xs = np.nonzero(scene.instance_map == index)
        item = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(item, "name").text = name
        ElementTree.SubElement(item, "pose").text = "Unspecified"
        touches = xs.min() == 0 or ys.min() == 0 or xs.max() == width - 1 or ys.max() == height - 1
        ElementTree.SubElement(item, "truncated").text = str(int(touches))
        ElementTree.SubElement(item, "difficult").text = "0"
        box = ElementTree.SubElement(item, "bndbox")
        for tag, value in (("xmin", xs.min()), ("ymin", ys.min()), ("xmax", xs.max()), ("ymax", ys.max())):
            ElementTree.SubElement(box, tag).text = str(int(value) + 1)
    ElementTree.indent(root, "\t")
    return root


def write_voc_image(root: Path, scene: ToyScene, *, with_masks: bool) -> None:
    """Write one image of a VOC 2012 tree: JPEG, XML, and optionally class and instance masks.

    Args:
        root: The folder ``VOC2012``.
        scene: The image.
        with_masks: Write ``SegmentationClass`` and ``SegmentationObject`` as well.
    """
    _write_jpeg(root / "JPEGImages" / f"{scene.name}.jpg", scene.image)
    xml = root / "Annotations" / f"{scene.name}.xml"
    xml.parent.mkdir(parents=True, exist_ok=True)
    xml.write_text(ElementTree.tostring(_annotation(scene, with_masks), encoding="unicode") + "\n")
    if with_masks:
        labels = np.array([0] + [VOC_CLASSES.index(name) + 1 for name in scene.classes], np.uint8)
        _write_palette_png(root / "SegmentationObject" / f"{scene.name}.png", scene.instance_map)
        _write_palette_png(root / "SegmentationClass" / f"{scene.name}.png", labels[scene.instance_map])


def write_image_sets(root: Path, names: dict[str, list[str]]) -> None:
    """Write ``ImageSets/Segmentation/<split>.txt`` of a VOC 2012 tree."""
    folder = root / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True, exist_ok=True)
    for split, members in names.items():
        (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in members))


def write_duts_pair(root: Path, scene: ToyScene) -> None:
    """Write one image and its mask (255 = the object) of a DUT-TR-Single tree."""
    _write_jpeg(root / "DUTS-TR-Image-single" / f"{scene.name}.jpg", scene.image)
    path = root / "DUTS-TR-Mask-single" / f"{scene.name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((scene.instance_map > 0).astype(np.uint8) * 255).save(path)
