"""What the readers and writers of folders share: finding images and their companions, and safe names for new files."""

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from boxsup_d2.data.formats.problems import Problems
from boxsup_d2.data.images import image_size, is_image_name
from boxsup_d2.utils.files import disk_full_message


def require_folder(path: str, what: str) -> str:
    """
    Raises:
        FileNotFoundError: a path is no folder; otherwise it is returned.
    """
    if not os.path.isdir(path):
        raise FileNotFoundError(f"The folder of the {what}, '{path}', does not exist. Correct the path.")
    return path


def list_files(root: str, extensions: Sequence[str] = ()) -> list[str]:
    """Sorted relative paths, with "/", of the files below a folder; links in it are followed.

    ``extensions``: lower-case, with dots; none: the images.
    """
    found = []
    for folder, inner, names in os.walk(root, followlinks=True):
        here = os.path.join(os.path.realpath(folder), "")
        # A link to a folder above would be followed for ever.
        inner[:] = [
            name for name in inner if not here.startswith(os.path.join(os.path.realpath(f"{folder}/{name}"), ""))
        ]
        relative = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if relative == "." else f"{relative}/"
        for name in names:
            if name.lower().endswith(tuple(extensions)) if extensions else is_image_name(name):
                found.append(prefix + name)
    return sorted(found)


class ImageFinder:
    """Finds the image below a folder that a file of annotations belongs to."""

    def __init__(self, root: str):
        self.images = list_files(root)
        self._paths = set(self.images)
        self._by_path: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for image in self.images:
            without = os.path.splitext(image)[0]
            self._by_path[without].append(image)
            self._by_stem[without.rsplit("/", 1)[-1]].append(image)

    def find(self, relative: str, named: str = "") -> str | None:
        """Relative path of an image; None where there is none or more than one.

        Args:
            relative: path of the annotations below their folder.
            named: name of the image, where the annotations give one.
        """
        stem = os.path.splitext(relative)[0]
        candidates = [
            [named] if named in self._paths else [],
            self._by_path.get(stem, []),
            self._by_stem.get(stem.rsplit("/", 1)[-1], []),
        ]
        return next((images[0] for images in candidates if len(images) == 1), None)


def header_size(root: str, image: str, problems: Problems) -> tuple[int, int] | None:
    """Height and width of an image below a folder, from its header; None, and a problem, where it cannot be read."""
    path = os.path.join(root, image)
    try:
        return image_size(path)
    except (FileNotFoundError, ValueError) as error:
        # Messages name the path, of which only the last part tells examples apart.
        problems.add("images that cannot be read", str(error).replace(path, image))
        return None


def output_stems(images: Sequence[dict[str, Any]]) -> list[str]:
    """Relative paths without extension under which files for images can be written.

    Folders of the file names stay; an absolute path loses its root, and nothing leads out of the folder that is
    written to, whatever the json says. ``images`` are entries of a COCO json.

    Raises:
        ValueError: two images would get the same.
    """
    stems = []
    for image in images:
        path = PurePosixPath(image["file_name"].replace("\\", "/"))
        parts = [part.replace(":", "_").replace("\0", "_") for part in path.parts if part not in ("/", "//", "..")]
        stems.append(os.path.splitext("/".join(parts))[0] or f"image_{image['id']}")
    seen: dict[str, str] = {}
    for image, stem in zip(images, stems, strict=True):
        if stem in seen:
            raise ValueError(
                f"The images '{seen[stem]}' and '{image['file_name']}' would be given files of the same name, "
                f"'{stem}': this format tells images apart by their names without extension. Rename one of them."
            )
        seen[stem] = image["file_name"]
    return stems


def write_file(path: str, content: str | bytes) -> None:
    """Write a file, and make its folder.

    Raises:
        OSError: the disk is full, for instance; names the file.
    """
    with disk_full_message(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content.encode(errors="replace") if isinstance(content, str) else content)


def by_image(data: dict[str, Any]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each image of a COCO json with its annotations, both in the json's order."""
    annotations: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in data["images"]}
    for annotation in data["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    return [(image, annotations[image["id"]]) for image in data["images"]]
