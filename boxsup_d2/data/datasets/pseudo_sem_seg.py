"""Data sets of semantic pseudo labels: a manifest that says where they come from, and a palette PNG per image.

``boxsup_d2/labelling/sem_seg_writer.py`` writes both; ``docs/architecture.md`` shows the manifest.
"""

import os
from functools import lru_cache
from typing import Any

from boxsup_d2.data.datasets.catalog import register_dataset
from boxsup_d2.data.datasets.provenance import find_image_root
from boxsup_d2.data.datasets.source import DatasetSource
from boxsup_d2.data.formats.problems import Problems
from boxsup_d2.data.formats.pseudo_masks import MISSING_FIX, read_manifest
from boxsup_d2.data.paths import outside_names, require_images, require_path
from boxsup_d2.masks.label_map import IGNORE_LABEL


def register_pseudo_sem_seg(path: str, name: str) -> None:
    """Register a manifest of semantic pseudo labels; nothing is opened before they are used."""
    register_dataset(
        name,
        lambda: load_pseudo_sem_seg(path, name),
        lazy={
            "image_root": lambda: find_image_root({"info": _header(path, name)[0]}, path),
            "stuff_classes": lambda: list(_header(path, name)[1]),
        },
        source=DatasetSource(name, lambda: [path]),
        ignore_label=IGNORE_LABEL,
        pseudo_masks=True,
        evaluator_type="sem_seg",
    )


def load_pseudo_sem_seg(path: str, name: str) -> list[dict[str, Any]]:
    """Load a manifest; no image is opened.

    Returns:
        Per image ``file_name``, ``height``, ``width``, ``image_id`` and ``sem_seg_file_name``: a PNG of the image's
        size, whose pixels are positions in the metadata's ``stuff_classes``, 0 being background, or 255 (ignored).

    Raises:
        FileNotFoundError: the manifest, images or label maps are missing.
        ValueError: the manifest is damaged.
    """
    data = read_manifest(path, name)
    image_root = find_image_root(data, path)
    folder = os.path.dirname(path)
    problems = Problems()
    records = []
    outside = outside_names(folder, [png for image in data["images"] if isinstance(png := image.get("png"), str)])
    for image in data["images"]:
        names, sides = (image.get("file_name"), image.get("png")), (image.get("height"), image.get("width"))
        if "id" not in image or not all(isinstance(value, str) and value for value in names):
            problems.add("images without an id, file_name or png", image)
        elif not all(isinstance(value, int) and value > 0 for value in sides):
            problems.add("images without a height and width in pixels", image["file_name"])
        elif image["png"] in outside:
            problems.add("label maps outside of the folder of the file", image["png"])
        else:
            records.append(
                {
                    "file_name": os.path.join(image_root, image["file_name"]),
                    "height": image["height"],
                    "width": image["width"],
                    "image_id": image["id"],
                    "sem_seg_file_name": os.path.join(folder, image["png"]),
                }
            )
    problems.raise_if_any(path, "Delete the file and label again.")
    require_images((record["file_name"] for record in records), name)
    require_images(
        (record["sem_seg_file_name"] for record in records),
        name,
        "label maps",
        f"Copy the folder beside '{path}' as well, or delete that file and label again.",
    )
    return records


def _header(path: str, name: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """``info`` and ``stuff_classes`` of a manifest; read once per file version."""
    stat = os.stat(require_path(path, name, MISSING_FIX))
    return _cached_header(path, name, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _cached_header(path: str, name: str, mtime_ns: int, size: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    del mtime_ns, size  # part of the cache's key
    data = read_manifest(path, name)
    return data["info"], tuple(data["stuff_classes"])
