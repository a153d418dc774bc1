"""The pseudo-mask file: a COCO json that says where it comes from.

``info`` keeps what the source held and gains one key, :data:`PROVENANCE_KEY`, with ``source_dataset``,
``source_sha256``, ``method``, ``config_name``, ``config_sha256``, ``checkpoint``, ``checkpoint_sha256``, ``step``,
``code_version``, ``image_root``, ``overwrite``, ``date`` and ``summary``. It is written first, so that the provenance
of a large file is read without the rest. A file appears under its name only when it is whole.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from typing import IO, Any

from boxsup_d2.utils.files import atomic_write

PROVENANCE_KEY = "boxsup_d2"
# Describe a run and not what it made: a file that differs in these only is the same labelling. Paths are among them,
# for a folder may move or be spelled in another way; the hashes beside them say what is in it.
_NOT_IDENTITY = ("date", "summary", "checkpoint", "config_name", "image_root")
_HEAD_CHARACTERS = 1 << 16
# What follows the source data set's name in the name of a file, by PSEUDO_MASKS.FORMAT.
_SUFFIXES = {"instances": "_pseudo", "sem_seg": "_pseudo_sem_seg"}


def labels_path(folder: str, dataset_name: str, label_format: str = "instances") -> str:
    """Path of the file that a labelling of a data set writes.

    Args:
        folder: it is in.
        dataset_name: of the source.
        label_format: ``"instances"``: a COCO json; ``"sem_seg"``: a manifest, whose label maps lie in the folder of
            its stem.

    Raises:
        ValueError: there is no such format.
    """
    if label_format not in _SUFFIXES:
        raise ValueError(f"PSEUDO_MASKS.FORMAT is '{label_format}': use {' or '.join(map(repr, _SUFFIXES))}.")
    return os.path.join(folder, f"{dataset_name}{_SUFFIXES[label_format]}.json")


def label_map_folder(path: str) -> str:
    """The folder of the label maps that a manifest lists."""
    return os.path.splitext(path)[0]


def provenance_digest(provenance: dict[str, Any]) -> str:
    """16 hex digits that tell one labelling from another; date, summary and paths do not count."""
    identity = {key: value for key, value in provenance.items() if key not in _NOT_IDENTITY}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


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
        source: COCO json or manifest; it is not changed. Its keys, their values and the order of its lists are kept.
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
        file.write(f'{{"info": {json.dumps(info)}')
        for key, value in source.items():
            if key == "info":
                continue
            file.write(f",\n{json.dumps(key)}: ")
            if key == "annotations" and annotate is not None:
                _write_list(file, (annotate(annotation) for annotation in value))
            elif isinstance(value, list):
                _write_list(file, value)
            else:
                file.write(json.dumps(value))
        file.write("}\n")


def _write_list(file: IO[str], values: Iterable[Any]) -> None:
    separator = "[\n"
    for value in values:
        file.write(separator + json.dumps(value))
        separator = ",\n"
    file.write("[]" if separator == "[\n" else "\n]")


def read_provenance(path: str) -> dict[str, Any] | None:
    """Provenance of a pseudo-mask file, from its head alone; None where there is no such file or no provenance."""
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
                    more = file.read(_HEAD_CHARACTERS)
                    if not more:
                        return None
                    head += more
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    provenance = info.get(PROVENANCE_KEY) if isinstance(info, dict) else None
    return provenance if isinstance(provenance, dict) else None


def read_pseudo_masks(path: str) -> dict[str, Any]:
    """Read and check a pseudo-mask file.

    Returns:
        The COCO json.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no whole json, not in COCO's form, or carries no provenance.
    """
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"Pseudo-mask file '{path}' does not exist. Run the labelling step that writes it "
            "(PSEUDO_MASKS.DATASETS), or correct DATASETS.PSEUDO_MASKS."
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"Pseudo-mask file '{path}' is no whole json ({error}). Labelling never leaves such a file, so it was cut "
            "off by copying or downloading: get it again, or delete it and label again."
        ) from error
    lists = ("images", "annotations", "categories")
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in lists):
        raise ValueError(f"'{path}' is no COCO json: it needs the lists {', '.join(lists)}.")
    info = data.get("info")
    if not isinstance(info, dict) or not isinstance(info.get(PROVENANCE_KEY), dict):
        raise ValueError(
            f"'{path}' does not say where its masks come from (info.{PROVENANCE_KEY} is missing): it was not written "
            "by boxsup_d2. Register it as an ordinary COCO data set instead."
        )
    return data
