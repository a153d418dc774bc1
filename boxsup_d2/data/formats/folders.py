"""What the readers and writers of folders share: texts, images and their companions, and safe names for new files."""

import codecs
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from boxsup_d2.data.formats.problems import Problems
from boxsup_d2.data.images import image_size, is_image_name, is_leftover
from boxsup_d2.data.paths import missing_files
from boxsup_d2.utils.files import explain_unwritable

# What Label Studio writes before the name of an uploaded file.
_UPLOAD = re.compile(r"[0-9a-f]{8}-(?=.)")
# Folders of annotations, and those of their images beside them.
_COMPANIONS = {"labels": "images", "Annotations": "JPEGImages", "annotations": "images", "ann": "img"}


def require_folder(path: str, what: str) -> str:
    """
    Raises:
        FileNotFoundError: a path is no folder; otherwise it is returned.
    """
    if not os.path.isdir(path):
        raise FileNotFoundError(f"The folder of the {what}, '{path}', does not exist. Correct the path.")
    return path


def read_text(path: str) -> str:
    """A text file in UTF-8 or 16, with a byte order mark or without, or else in the encoding of western Windows.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    if len(data) > 1 and b"\0" in data[:2]:
        return data.decode("utf-16-le" if data[1] == 0 else "utf-16-be", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def list_files(root: str, extensions: Sequence[str] = ()) -> list[str]:
    """Sorted relative paths, with "/", of the files below a folder; links in it are followed.

    Hidden files and folders, and others that systems and editors leave behind, are not listed.

    ``extensions``: lower-case, with dots; none: the images.
    """
    found = []
    for folder, inner, names in os.walk(root, followlinks=True):
        here = os.path.join(os.path.realpath(folder), "")
        # A link to a folder above would be followed for ever.
        inner[:] = [
            name
            for name in inner
            if not is_leftover(name) and not here.startswith(os.path.join(os.path.realpath(f"{folder}/{name}"), ""))
        ]
        relative = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if relative == "." else f"{relative}/"
        for name in names:
            wanted = name.lower().endswith(tuple(extensions)) if extensions else is_image_name(name)
            if wanted and not is_leftover(name):
                found.append(prefix + name)
    return sorted(found)


class ImageFinder:
    """Finds the images below a folder that annotations name, or belong to.

    Names in different Unicode forms (an accent of its own, or within its letter) are the same.
    """

    def __init__(self, root: str):
        self.images = list_files(root)
        paths = {_key(image): image for image in self.images}
        self._folders = {_folder(key) for key in paths}
        self._by_path: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        self._by_base: dict[str, list[str]] = defaultdict(list)
        for key, image in paths.items():
            stem, base = os.path.splitext(key)[0], key.rsplit("/", 1)[-1]
            self._by_path[stem].append(image)
            self._by_stem[stem.rsplit("/", 1)[-1]].append(image)
            self._by_base[base].append(image)
            if base.lower() != base:
                self._by_base[base.lower()].append(image)

    def beside(self, relative: str) -> str | None:
        """The image that a file of annotations belongs to by its own name; None where there is none or several.

        ``relative``: its path below the folder of the annotations. The image may have any extension, and lie in the
        same folder below the images, in the folder ``images`` beside a folder ``labels``, or anywhere.
        """
        stem = _key(os.path.splitext(relative)[0])
        *folders, name = stem.split("/")
        candidates = [self._by_path.get(stem, [])]
        for place in range(len(folders) - 1, -1, -1):
            if folders[place] in _COMPANIONS:
                beside = [*folders[:place], _COMPANIONS[folders[place]], *folders[place + 1 :], name]
                candidates.append(self._by_path.get("/".join(beside), []))
        candidates.append(self._by_stem.get(name, []))
        return next((images[0] for images in candidates if len(images) == 1), None)

    def named(self, name: str) -> str | None:
        """The image that a name means, which may be a path of another system or a URL; None: no image, or several.

        The end of the path counts, as much of it as there is: where its folder is here, the image must be in it.
        Otherwise the name of the file alone does, in any folder. Names are also looked for without what Label Studio
        puts before them, and without regard to capitals.
        """
        key = _key(unquote(name.rsplit("?d=", 1)[-1]).replace("\\", "/"))
        parts = [part for part in key.split("/") if part not in ("", ".", "..")]
        *folders, base = parts or [""]
        candidates = (base, _UPLOAD.sub("", base, count=1), base.lower())
        for start in range(len(folders) + 1):
            folder = "".join(f"{part}/" for part in folders[start:])
            for candidate in candidates:
                found = [image for image in self._by_base.get(candidate, ()) if _folder(_key(image)) == folder]
                if len(found) == 1:
                    return found[0]
            if folder and folder in self._folders:
                return None
        found = next((self._by_base[candidate] for candidate in candidates if candidate in self._by_base), [])
        return found[0] if len(found) == 1 else None


def _key(path: str) -> str:
    return unicodedata.normalize("NFC", path)


def _folder(path: str) -> str:
    """The folder of a relative path with its "/"; "" for none."""
    return path[: path.rfind("/") + 1]


def locate_images(data: dict[str, Any], image_root: str, notes: Problems) -> dict[str, Any]:
    """A COCO json, which is not changed, with the names that its images have below a folder.

    Names that are there stay, and so do those that mean no image, or several (see :meth:`ImageFinder.named`): that is
    for the inspection to say. ``notes`` gains the others.
    """
    names = [image.get("file_name") for image in data["images"]]
    paths = {name: os.path.join(image_root, name) for name in names if isinstance(name, str) and name}
    missing = set(missing_files(path for path in paths.values() if "\0" not in path))
    if not missing or not os.path.isdir(image_root):
        return data
    finder = ImageFinder(image_root)
    images = []
    for image, name in zip(data["images"], names, strict=True):
        found = finder.named(name) if isinstance(name, str) and paths.get(name) in missing else None
        if found is not None:
            notes.add("names of images that are paths of another place: found by their ends", f"{name} -> {found}")
            image = {**image, "file_name": found}
        images.append(image)
    return {**data, "images": images}


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
    """Write a file, and make its folder; other names of a file that was there keep what it was.

    Raises:
        OSError: the disk is full, for instance; names the file.
    """
    with explain_unwritable(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.lexists(path):  # perhaps a link to an image, or one of its names
            os.remove(path)
        with open(path, "wb") as file:
            file.write(content.encode(errors="replace") if isinstance(content, str) else content)


def by_image(data: dict[str, Any]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each image of a COCO json with its annotations, both in the json's order."""
    annotations: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in data["images"]}
    for annotation in data["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    return [(image, annotations[image["id"]]) for image in data["images"]]
