"""The files that a step reads, and what has become of them since; its settings are :mod:`boxsup_d2.same_work`'s."""

import hashlib
import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils.file_io import PathManager

from boxsup_d2.data.datasets.source import dataset_source
from boxsup_d2.same_work import network_paths
from boxsup_d2.utils.files import file_sha256

__all__ = ["InputFile", "InputsCheck", "check_inputs", "input_files"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InputFile:
    """A file or folder that a step reads and no step makes; ``for_training``: the weights depend on its content."""

    path: str
    for_training: bool


@dataclass(frozen=True)
class InputsCheck:
    """What has become of the files that a step read.

    Attributes:
        fingerprints: what to remember: of the present files, and the former ones of those that are absent.
        changed: present files whose content is another one than is remembered.
        absent: files that are remembered and not there.
    """

    fingerprints: dict[str, dict[str, Any]]
    changed: list[InputFile]
    absent: list[InputFile]


def input_files(
    cfg: CfgNode, *, trains: bool, from_steps: Collection[str], made: Collection[str]
) -> dict[str, InputFile]:
    """The files whose content a step's outcome depends on. Opens none of them.

    Of a data set these are the json, the list of images (VOC) or the folders (salient images: only the names in them
    count). Images, and VOC's thousands of XML files, are not looked at.

    Args:
        cfg: the step's config.
        trains: whether it trains.
        from_steps: config keys of networks that other steps make.
        made: data sets that other steps make.

    Returns:
        By names that do not change when a folder is moved: ``<data set>/<file>`` and ``<key>/<file>``.
    """
    labels = {os.path.splitext(os.path.basename(path))[0]: path for path in cfg.DATASETS.PSEUDO_MASKS}
    files: dict[str, InputFile] = {}
    training = tuple(cfg.DATASETS.TRAIN) if trains else ()
    for name in dict.fromkeys((*training, *cfg.PSEUDO_MASKS.DATASETS)):
        if name not in made:
            for path in [labels[name]] if name in labels else _dataset_files(name):
                key = f"{name}/{os.path.basename(os.path.normpath(path))}"
                files[key] = InputFile(path, for_training=name in training)
    given = {key: path for key, path in network_paths(cfg).items() if key not in from_steps}
    files.update({f"{key}/{os.path.basename(path)}": InputFile(path, for_training=True) for key, path in given.items()})
    return files


def check_inputs(files: Mapping[str, InputFile], known: Mapping[str, Mapping[str, Any]]) -> InputsCheck:
    """Compare files with their remembered fingerprints.

    A file is the same if its sha256 is, wherever it lies; it is read only where its size or time differ from the
    remembered ones.

    Args:
        files: from :func:`input_files`.
        known: their fingerprints, from a former :attr:`InputsCheck.fingerprints`; empty if there are none.
    """
    check = InputsCheck({}, [], [])
    for key, file in files.items():
        former = known.get(key)
        present = _fingerprint(file.path, former or {})
        if present is None:
            if former is not None:
                check.fingerprints[key] = dict(former)
                check.absent.append(file)
            continue
        check.fingerprints[key] = present
        if former is not None and former.get("sha256") != present["sha256"]:
            check.changed.append(file)
    return check


def _dataset_files(name: str) -> list[str]:
    return dataset_source(name).files() if name in DatasetCatalog else []


def _fingerprint(path: str, former: Mapping[str, Any]) -> dict[str, Any] | None:
    """Size, time and sha256 of a file, or the sha256 of a folder's file names; None where there is none."""
    try:
        if os.path.isdir(path):
            names = sorted(name for name in os.listdir(path) if not name.startswith("."))
            return {"names": len(names), "sha256": hashlib.sha256("\n".join(names).encode()).hexdigest()}
        if "://" in path or not PathManager.isfile(path):  # what is remote would be downloaded to be looked at
            return None
        local = PathManager.get_local_path(path)
        stat = os.stat(local)
        fingerprint = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        if "sha256" in former and fingerprint == {key: former.get(key) for key in fingerprint}:
            return dict(former)
        return {**fingerprint, "sha256": file_sha256(local)}
    except OSError as error:
        logger.warning("%s cannot be read: %s", path, error)
        return None
