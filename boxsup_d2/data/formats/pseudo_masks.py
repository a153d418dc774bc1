"""The pseudo-mask file: a COCO json that says where it comes from.

``info`` keeps what the source held and gains one key, :data:`PROVENANCE_KEY`; docs/architecture.md lists what it says.
It is written first, so that the provenance of a large file is read without the rest. A file appears under its name only
when it is whole.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any

from boxsup_d2.data.formats.coco import read_coco_json, read_json
from boxsup_d2.utils.files import atomic_write, json_sha256, strict_json

PROVENANCE_KEY = "boxsup_d2"
# Describe a run and not what it made: a file that differs in these only is the same labelling. Paths are among them,
# for a folder may move or be spelled in another way; the hashes beside them say what is in it.
_NOT_IDENTITY = ("date", "summary", "checkpoint", "config_name", "image_root", "step")
_HEAD_CHARACTERS = 1 << 16
# What follows the source data set's name in the name of a file, by PSEUDO_MASKS.FORMAT.
_SUFFIXES = {"instances": "_pseudo", "sem_seg": "_pseudo_sem_seg"}
#: What to do where a file that labelling writes is missing.
MISSING_FIX = "Run the labelling step that writes it (PSEUDO_MASKS.DATASETS), or correct DATASETS.PSEUDO_MASKS."


def labels_path(folder: str, dataset_name: str, label_format: str = "instances") -> str:
    """Path of the file that a labelling of a data set writes into a folder.

    ``label_format``: ``"instances"``: a COCO json; ``"sem_seg"``: a manifest, whose label maps lie in the folder of its
    stem.

    Raises:
        ValueError: there is no such format.
    """
    if label_format not in _SUFFIXES:
        raise ValueError(f"PSEUDO_MASKS.FORMAT is '{label_format}': use {' or '.join(map(repr, _SUFFIXES))}.")
    return os.path.join(folder, f"{dataset_name}{_SUFFIXES[label_format]}.json")


def is_manifest(path: str) -> bool:
    """Whether a file, which need not exist yet, is the manifest of semantic labels, by its name."""
    return os.path.splitext(path)[0].endswith(_SUFFIXES["sem_seg"])


def label_map_folder(path: str) -> str:
    """The folder of the label maps that a manifest lists."""
    return os.path.splitext(path)[0]


def provenance_digest(provenance: dict[str, Any]) -> str:
    """16 hex digits that tell one labelling from another; date, summary, names and paths do not count."""
    identity = {key: value for key, value in provenance.items() if key not in _NOT_IDENTITY}
    return json_sha256(identity)[:16]


def write_pseudo_masks(
    path: str,
    source: dict[str, Any],
    provenance: dict[str, Any],
    annotate: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    hint: str = "",
) -> None:
    """Write a source json with masks, annotation by annotation; or a manifest of semantic labels.

    Args:
        path: of the file, replaced atomically.
        source: COCO json, manifest or another json; it is not changed. Its keys, their values and the order of its
            lists, which may be iterators, are kept, but for NaN and infinities, which become null.
        provenance: goes to ``info``.
        annotate: maps each annotation of the source to the one that is written; None writes them as they are.
        hint: appended to the message where the disk is full.

    Raises:
        OSError: see :func:`atomic_write`.
    """
    info = source.get("info") or {}
    if not isinstance(info, dict):  # no COCO json's, but nothing is lost
        info = {"info": info}
    info = {**info, PROVENANCE_KEY: provenance}
    with atomic_write(path, hint) as file:
        file.write(f'{{"info": {strict_json(info)}')
        for key, value in source.items():
            if key == "info":
                continue
            file.write(f",\n{strict_json(key)}: ")
            if key == "annotations" and annotate is not None:
                _write_list(file, (annotate(annotation) for annotation in value))
            elif isinstance(value, list | Iterator):
                _write_list(file, value)
            else:
                file.write(strict_json(value))
        file.write("}\n")


def _write_list(file: IO[str], values: Iterable[Any]) -> None:
    separator = "[\n"
    for value in values:
        file.write(separator + strict_json(value))
        separator = ",\n"
    file.write("[]" if separator == "[\n" else "\n]")


def read_provenance(path: str) -> dict[str, Any] | None:
    """Provenance of a pseudo-mask file, from its head alone; None where no such file can be read or it has none."""
    try:
        with open(path, encoding="utf-8") as file:
            head = file.read(_HEAD_CHARACTERS)
            prefix = '{"info": '
            if not head.startswith(prefix):
                return None
            while True:
                try:
                    info, _ = json.JSONDecoder().raw_decode(head, len(prefix))
                    break
                except json.JSONDecodeError:  # an info longer than what was read, or a damaged file
                    more = file.read(len(head))
                    if not more:
                        return None
                    head += more
    except (OSError, UnicodeDecodeError, RecursionError):
        return None
    return provenance_of({"info": info})


def provenance_of(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """Provenance of a json that was read; None where it has none."""
    info = data.get("info")
    provenance = info.get(PROVENANCE_KEY) if isinstance(info, dict) else None
    return provenance if isinstance(provenance, dict) else None


def read_pseudo_masks(path: str) -> dict[str, Any]:
    """Read a pseudo-mask file, the COCO json as it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no valid json, not in COCO's form, or carries no provenance.
    """
    data = read_coco_json(path, os.path.splitext(os.path.basename(path))[0], MISSING_FIX)
    if provenance_of(data) is None:
        raise ValueError(
            f"'{path}' does not say where its masks come from (info.{PROVENANCE_KEY} is missing): it was not written "
            "by boxsup_d2. Register it as an ordinary COCO data set instead."
        )
    return data


def read_manifest(path: str, name: str) -> dict[str, Any]:
    """Read a manifest and check its outer form; ``name``: of the data set, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or no manifest.
    """
    data = read_json(path, name, MISSING_FIX, "Copy it again, or delete it and label again.")
    classes, images = (data.get(key) if isinstance(data, dict) else None for key in ("stuff_classes", "images"))
    if not isinstance(classes, list) or not isinstance(images, list) or not isinstance(data.get("info"), dict):
        raise ValueError(
            f"'{path}' is no manifest of semantic labels: it needs info, stuff_classes and images. A json of instance "
            f"masks must not have a name that ends in {_SUFFIXES['sem_seg']}.json: rename it."
        )
    return data
