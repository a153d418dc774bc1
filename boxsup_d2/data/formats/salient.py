"""Salient images: a folder of photographs beside a folder of foreground masks, paired by file stem."""

import os
import re
from collections import defaultdict
from typing import Any

from boxsup_d2.data.formats.problems import Problems
from boxsup_d2.data.images import is_image_name
from boxsup_d2.data.paths import require_path

# Words in the names of the two folders, such as DUTS-TR-Image and DUTS-TR-Mask.
_IMAGE_WORDS, _MASK_WORDS = {"image", "images", "img", "imgs"}, {"mask", "masks", "gt"}


def salient_folders(root: str) -> tuple[str, str]:
    """Find the folder of salient images and that of their masks: ``images`` and ``masks``, ``imgs`` and ``gt``,
    ``Image`` and ``Mask``, ``DUTS-TR-Image`` and ``DUTS-TR-Mask``; in ``root``, or else in a folder of it.

    Raises:
        FileNotFoundError: there is no such pair.
        ValueError: there are several.
    """
    inner = sorted(entry.path for entry in os.scandir(require_path(root, "--salient")) if entry.is_dir())
    pairs = _pairs(root) or [pair for folder in inner for pair in _pairs(folder)]
    if not pairs:
        raise FileNotFoundError(
            f"'{root}' has no folders of images and of masks (images and masks, imgs and gt, DUTS-TR-Image and "
            "DUTS-TR-Mask, ...): name them by --salient-images and --salient-masks."
        )
    if len(pairs) > 1:
        raise ValueError(
            f"'{root}' has {len(pairs)} pairs of folders, such as '{pairs[0][0]}' and '{pairs[1][0]}': name one by "
            "--salient-images and --salient-masks."
        )
    return pairs[0]


def _pairs(folder: str) -> list[tuple[str, str]]:
    """Folders in this one whose names differ only in saying what is in them."""
    found: dict[tuple[str, ...], list[list[str]]] = defaultdict(lambda: [[], []])
    for name in sorted(os.listdir(folder)):
        words = re.findall(r"[a-z]+|[0-9]+", name.lower())
        for kind, known in enumerate((_IMAGE_WORDS, _MASK_WORDS)):
            if known & set(words) and os.path.isdir(os.path.join(folder, name)):
                found[tuple(word for word in words if word not in known)][kind].append(os.path.join(folder, name))
    return [(image, mask) for images, masks in found.values() for image in images for mask in masks]


def load_salient(image_root: str, mask_root: str, name: str) -> list[dict[str, Any]]:
    """List salient images and their masks; no image is opened.

    Args:
        image_root: folder of the photographs.
        mask_root: folder of the masks (foreground: grey value above 127).
        name: of the data set, for messages.

    Returns:
        Per image, sorted by name, ``file_name``, ``mask_file_name`` and ``image_id`` (1-based position). Height and
        width are left out: they would cost opening thousands of files.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: an image without a mask, a mask without an image, or two files of one stem.
    """
    problems = Problems()
    images = _by_stem(image_root, name, problems)
    masks = _by_stem(mask_root, name, problems)
    for stem in sorted(images.keys() - masks.keys()):
        problems.add("images without a mask", images[stem])
    for stem in sorted(masks.keys() - images.keys()):
        problems.add("masks without an image", masks[stem])
    if not images and not masks:
        problems.add("folders without images", image_root)
    problems.raise_if_any(image_root, f"Every image needs a mask of the same stem in '{mask_root}', and vice versa.")
    return [
        {
            "file_name": os.path.join(image_root, images[stem]),
            "mask_file_name": os.path.join(mask_root, masks[stem]),
            "image_id": index,
        }
        for index, stem in enumerate(sorted(images), start=1)
    ]


def _by_stem(folder: str, name: str, problems: Problems) -> dict[str, str]:
    files: dict[str, str] = {}
    for file_name in sorted(os.listdir(require_path(folder, name))):
        if not is_image_name(file_name):
            continue
        stem = os.path.splitext(file_name)[0]
        if stem in files:
            problems.add("files that share a stem", f"{files[stem]} and {file_name}")
        files[stem] = file_name
    return files
