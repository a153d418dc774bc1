"""The images that a prediction is asked for: folders, files, patterns, or those of a json."""

import glob
import os
from collections.abc import Sequence
from typing import Any

from boxsup_d2.data.formats.coco import read_json
from boxsup_d2.data.formats.folders import list_files
from boxsup_d2.data.images import is_image_name

__all__ = ["image_list"]


def image_list(inputs: Sequence[str | os.PathLike], image_root: str | None = None) -> tuple[str, str, dict[str, Any]]:
    """List images as a COCO dict without annotations; none is opened.

    Args:
        inputs: folders, whose images are taken with those of the folders in them; image files; patterns
            (``shots/*.jpg``, ``**`` for any folders); or one COCO json alone, whose images and categories are taken.
        image_root: folder that the file names of a json are relative to; default: the json's.

    Returns:
        What to call the images in messages, the folder that their file names are relative to, and the COCO dict. Ids
        are those of the json, else 1, 2, ... in the order of the inputs.

    Raises:
        FileNotFoundError: an input does not exist, a pattern fits nothing, or a folder has no image.
        ValueError: a file is no image, or a json is damaged or stands beside other inputs.
    """
    named = [os.path.expanduser(os.fspath(value)) for value in inputs]
    jsons = [path for path in named if path.lower().endswith(".json")]
    if jsons:
        if len(named) > 1:
            raise ValueError(f"'{jsons[0]}' lists images itself: name it alone, or name images and folders.")
        return _of_json(jsons[0], image_root)
    if image_root is not None:
        raise ValueError(f"'{image_root}' is the folder of a json's images, but no json is given: leave it out.")
    # Once each, in the order in which they were named.
    paths = list(dict.fromkeys(os.path.abspath(path) for value in named for path in _images_of(value)))
    if not paths:
        raise FileNotFoundError("No images are given: name folders, files, a pattern or a json.")
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    images = [
        {"id": number, "file_name": os.path.relpath(path, root).replace(os.sep, "/")}
        for number, path in enumerate(paths, start=1)
    ]
    return root, root, {"images": images, "annotations": [], "categories": []}


def _of_json(path: str, image_root: str | None) -> tuple[str, str, dict[str, Any]]:
    path = os.path.abspath(path)
    data = read_json(path, "images", "Name the json of the images.")
    images = data.get("images") if isinstance(data, dict) else None
    if not isinstance(images, list) or not images or not all(isinstance(image, dict) for image in images):
        raise ValueError(f"'{path}' lists no images: it needs 'images', as a COCO json has them.")
    root = os.path.abspath(os.path.expanduser(image_root or os.path.dirname(path)))
    if not os.path.isdir(root):
        raise FileNotFoundError(f"There is no folder of images '{root}'.")
    categories = data.get("categories")
    return path, root, {"images": images, "annotations": [], "categories": categories if categories else []}


def _images_of(value: str) -> list[str]:
    """Paths of the images that an input stands for."""
    if os.path.isdir(value):
        found = [os.path.join(value, name) for name in list_files(value)]
        if not found:
            raise FileNotFoundError(f"There is no image in the folder '{value}'.")
        return found
    if os.path.isfile(value):
        if not is_image_name(value):
            raise ValueError(f"'{value}' has no ending of an image: convert it to png or jpg.")
        return [value]
    if not glob.has_magic(value):
        raise FileNotFoundError(f"There is no '{value}': name a folder, an image, a pattern or a json.")
    found = sorted(path for path in glob.glob(value, recursive=True) if os.path.isfile(path) and is_image_name(path))
    if not found:
        raise FileNotFoundError(f"No image fits the pattern '{value}'.")
    return found
