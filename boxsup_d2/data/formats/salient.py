"""Salient images: a folder of photographs beside a folder of foreground masks, paired by file stem."""

import os
from typing import Any

from boxsup_d2.data.formats.problems import Problems
from boxsup_d2.data.images import is_image_name
from boxsup_d2.data.paths import require_path


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
