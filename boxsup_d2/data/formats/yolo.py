"""YOLO's text files as a COCO dict: a file per image, a line "class cx cy w h" per box, or "class x y x y x y ..." per
polygon, in 0..1.
"""

import os
from typing import Any

import yaml

from boxsup_d2.data.formats.coco_checks import is_int
from boxsup_d2.data.formats.folders import ImageFinder, header_size, list_files, read_text, require_folder
from boxsup_d2.data.formats.problems import Problems
from boxsup_d2.data.formats.rotated_boxes import ROTATED_BOX, TURNED, box_of_corners

# Where tools put the names of the classes, beside the labels or above.
_NAME_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names", "_darknet.labels")
# Numbers of a line of four corners: a rotated box, or a polygon.
_CORNERS = 9


def read_yolo(
    labels: str,
    images: str,
    names: str | None = None,
    report: Problems | None = None,
    notes: Problems | None = None,
) -> dict[str, Any]:
    """Read a folder of YOLO labels and the images that they are about.

    Every image is in the result; one without a text file, or with an empty one, has no boxes. Its size is read from
    its header, upright as its EXIF data turn it, which is the frame of the boxes.

    Args:
        labels: folder of the text files, or a whole export; their folders below it are those of the images below
            ``images``, but for the word ``images`` in the place of ``labels``.
        images: folder of the images; it may be the same. Text files that are not about an image of it and hold no
            numbers, such as a README, are no labels.
        names: file with the class names: a yaml with ``names`` (a list, or a mapping from numbers), or a text file
            with a name per line. None looks for ``data.yaml``, ``classes.txt``, ``obj.names`` and the like in these
            two folders and the two above each.
        report: where given, files and lines that cannot be used are noted there and left out; without, they are an
            error.
        notes: gains the rotated boxes.

    Returns:
        COCO dict. ``file_name`` is relative to ``images``; image and annotation ids count from 1; a class's category
        id is its number plus 1. A sixth number of a line, as predictions have, is kept as ``score``. Polygons are
        masks, with the boxes around them; where all of a folder have four corners, they are rotated boxes instead.

    Raises:
        FileNotFoundError: a folder, the class names or all images are missing.
        ValueError: the class names cannot be read; without ``report``: files or lines that cannot be used, all kinds
            with first examples.
    """
    require_folder(labels, "labels")
    finder = ImageFinder(require_folder(images, "images"))
    if not finder.images:
        raise FileNotFoundError(f"There is no image in '{images}'. Correct the path.")
    names_file = names or _find_names(labels, images)
    class_names = read_class_names(names_file)
    problems = Problems() if report is None else report
    label_files = _label_files(labels, names_file, finder, problems)
    data: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": index, "name": name} for index, name in enumerate(class_names, start=1)],
    }
    for image in finder.images:
        size = header_size(images, image, problems)
        if size is None:
            continue
        height, width = size
        image_id = len(data["images"]) + 1
        data["images"].append({"id": image_id, "file_name": image, "height": height, "width": width})
        if image in label_files:
            for annotation in _read_labels(labels, label_files[image], len(class_names), size, problems):
                data["annotations"].append({"id": len(data["annotations"]) + 1, "image_id": image_id, **annotation})
    _take_rotated_boxes(data["annotations"], Problems() if notes is None else notes)
    if report is None:
        problems.raise_if_any(labels, "Correct or remove these, or go on with the others.")
    return data


def read_class_names(path: str) -> list[str]:
    """Class names in the order of their numbers.

    Args:
        path: of a yaml with ``names``, or of a text file with a name per line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no names; numbers are left out between them.
    """
    try:
        text = read_text(path)
        names = yaml.safe_load(text) if path.lower().endswith((".yaml", ".yml")) else text.splitlines()
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"The class names in '{path}' cannot be read ({error}). Correct the file.") from error
    except OSError as error:
        raise FileNotFoundError(f"The file of the class names, '{path}', cannot be read ({error.strerror}).") from error
    if isinstance(names, dict):
        names = names.get("names")
    if isinstance(names, dict) and all(is_int(key) for key in names) and sorted(names) == list(range(len(names))):
        names = [names[key] for key in range(len(names))]
    if not isinstance(names, list):
        raise ValueError(f"'{path}' has no list 'names', or one that leaves out numbers. Name the classes from 0 on.")
    names = [str(name).strip() for name in names]
    while names and not names[-1]:
        names.pop()
    if not names or not all(names):
        raise ValueError(f"'{path}' names {'no classes' if not names else 'a class by an empty line'}. Correct it.")
    return names


def _find_names(labels: str, images: str) -> str:
    folders: list[str] = []
    for folder in (labels, images):
        folder = os.path.abspath(folder)
        for _ in range(3):
            if folder not in folders:
                folders.append(folder)
            folder = os.path.dirname(folder)
    for folder in folders:
        for base in _NAME_FILES:
            if os.path.isfile(os.path.join(folder, base)):
                return os.path.join(folder, base)
    raise FileNotFoundError(
        f"No file names the classes of '{labels}': looked for {', '.join(_NAME_FILES)} there, beside the images and "
        "in the two folders above each. Write a text file with a class per line, and name it by --names (in Python: "
        "names)."
    )


def _label_files(labels: str, names_file: str, finder: ImageFinder, problems: Problems) -> dict[str, str]:
    """Relative path of the label file of each image that has one."""
    found: dict[str, str] = {}
    for relative in list_files(labels, [".txt"]):
        if os.path.abspath(os.path.join(labels, relative)) == os.path.abspath(names_file):
            continue
        image = finder.beside(relative)
        if image is None and not holds_numbers(os.path.join(labels, relative)):
            continue  # a README, a list of images, names of classes
        if image is None:
            problems.add("label files without an image of their name, or with several", relative)
        elif image in found:
            problems.add("label files of an image that another one describes", f"{relative} ({image})")
        else:
            found[image] = relative
    return found


def holds_numbers(path: str) -> bool:
    """Whether a line of a text file, perhaps a label file, begins with two numbers."""
    try:
        lines = read_text(path).splitlines()
    except OSError:  # for the reader of the labels to tell
        return True
    return any(len(words := line.split()) > 1 and all(map(_is_number, words[:2])) for line in lines)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _take_rotated_boxes(annotations: list[dict[str, Any]], notes: Problems) -> None:
    """Take masks for the rotated boxes that they are: the format does not tell these from polygons of four points."""
    polygons = [annotation for annotation in annotations if "segmentation" in annotation]
    if all(len(annotation["segmentation"][0]) == _CORNERS - 1 for annotation in polygons):
        for annotation in polygons:
            annotation[ROTATED_BOX] = box_of_corners(annotation.pop("segmentation")[0])
            notes.add(TURNED, annotation["bbox"])


def _read_labels(
    folder: str, relative: str, num_classes: int, size: tuple[int, int], problems: Problems
) -> list[dict[str, Any]]:
    """The boxes of a file, without ids; ``size``: height and width of the image."""
    try:
        lines = read_text(os.path.join(folder, relative)).splitlines()
    except OSError as error:
        problems.add("label files that cannot be read", f"{relative} ({error})")
        return []
    annotations = []
    for number, line in enumerate(lines, start=1):
        where = f"{relative}, line {number}: {line.strip()[:60]}"
        try:
            values = [float(text) for text in line.split()]
        except ValueError:
            values = [float("nan")]
        if not values:
            continue
        # Anything but NaN and infinity is less than this in size; what a box is worth, the inspection finds.
        if not all(abs(value) < 1e6 for value in values):
            problems.add("lines that are not made of numbers", where)
        elif len(values) > 6 and len(values) % 2 == 0:
            problems.add("lines of too many numbers for a box (class cx cy w h) and too few for a polygon", where)
        elif len(values) < 5:
            problems.add("lines of fewer numbers than a box has (class cx cy w h)", where)
        elif values[0] not in range(num_classes):
            problems.add(f"lines whose class is none of the {num_classes} that have names", where)
        elif max(values[1:5] if len(values) < 7 else values[1:]) > 1.5:
            problems.add("lines in pixels (the format's are in 0..1 of the image's sides)", where)
        else:
            annotations.append((_annotation if len(values) < 7 else _polygon)(values, *size))
    return annotations


def _annotation(values: list[float], height: int, width: int) -> dict[str, Any]:
    class_number, cx, cy, w, h, *score = values
    return {
        "category_id": int(class_number) + 1,
        "bbox": [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height],
        "area": w * width * h * height,
        "iscrowd": 0,
        **({"score": score[0]} if score else {}),
    }


def _polygon(values: list[float], height: int, width: int) -> dict[str, Any]:
    xs, ys = [value * width for value in values[1::2]], [value * height for value in values[2::2]]
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    return {
        "category_id": int(values[0]) + 1,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
        "segmentation": [[value for point in zip(xs, ys, strict=True) for value in point]],
    }
