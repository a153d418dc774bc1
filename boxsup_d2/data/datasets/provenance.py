"""Where the images of a file that labelling wrote are: on this machine first, then where the file says they were."""

import os
from collections.abc import Mapping
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from boxsup_d2.data.formats.pseudo_masks import PROVENANCE_KEY, provenance_of


def find_image_root(data: Mapping[str, Any], path: str) -> str:
    """Folder of a pseudo-mask file's images.

    Args:
        data: the json, or of it ``info`` alone.
        path: of the json, whose folder a recorded one counts from, if it is not absolute.

    Raises:
        FileNotFoundError: neither the labelled data set's folder on this machine nor the recorded one exists.
        ValueError: the file does not say where it comes from.
    """
    provenance = provenance_of(data)
    if provenance is None:
        raise ValueError(
            f"'{path}' is no pseudo-mask file: its info has no '{PROVENANCE_KEY}'. A box json is registered by "
            "register_coco_boxes, one with masks by Detectron2's register_coco_instances."
        )
    source, recorded = provenance.get("source_dataset"), provenance.get("image_root")
    if isinstance(recorded, str):
        recorded = os.path.join(os.path.dirname(path), recorded)
    candidates = [_catalog_image_root(source) if isinstance(source, str) else None, recorded]
    folders = [folder for folder in candidates if isinstance(folder, str)]
    for folder in folders:
        if os.path.isdir(folder):
            return folder
    raise FileNotFoundError(
        f"The images of '{path}' are neither where data set '{source}' has them nor where the file says: tried "
        f"{', '.join(map(repr, folders)) or 'nothing'}. Set DETECTRON2_DATASETS, register '{source}' before, or "
        f"correct info.{PROVENANCE_KEY}.image_root in the file."
    )


def _catalog_image_root(source: str) -> str | None:
    if source not in DatasetCatalog:
        return None
    try:
        return MetadataCatalog.get(source).get("image_root")
    except (FileNotFoundError, ValueError):  # itself a pseudo-mask file whose source is not here
        return None
