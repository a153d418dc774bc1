"""What the outcome of a step depends on: its settings, sorted by what they decide, and the files that it reads.

:mod:`boxsup_d2.rounds.plan` and :mod:`boxsup_d2.rounds.state` use it to find out how much of a finished
step a change leaves valid.
"""

import hashlib
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils.file_io import PathManager

from boxsup_d2.data.datasets.source import dataset_source
from boxsup_d2.data.datasets.user_data import PATH_FIELDS
from boxsup_d2.utils.files import file_sha256

__all__ = ["InputFile", "InputsCheck", "Settings", "check_inputs", "input_files", "split_settings"]

logger = logging.getLogger(__name__)

# Keys that say where and how a step runs, not what comes out of it: moving a run to another machine, or saving
# checkpoints more often, must not throw a finished step away.
_NEUTRAL_KEYS = frozenset(
    {
        "CUDNN_BENCHMARK",
        "DATALOADER.NUM_WORKERS",
        "MODEL.BOXCASEG.TEST_CROPS_PER_FORWARD",
        "MODEL.DEVICE",
        "MODEL.LPG.TEST_SAMPLES_PER_FORWARD",
        "MODEL.SALIENT_ONNX.CROPS_PER_FORWARD",
        "MODEL.SAM.BOXES_PER_FORWARD",
        "OUTPUT_DIR",
        "PSEUDO_MASKS.CRF_WORKERS",
        "PSEUDO_MASKS.IMS_PER_BATCH",
        "PSEUDO_MASKS.REPORT_IMAGES",
        "PSEUDO_MASKS.STEP",
        "ROUNDS",
        "SOLVER.CHECKPOINT_PERIOD",
        "TEST.EVAL_PERIOD",
        "VERSION",
        "VIS_PERIOD",
    }
)
_LABELLING_PREFIXES = (
    "INPUT.BOX_CROP.TEST_SIZE",
    "MODEL.BOXCASEG.TEST_",
    "MODEL.GRABCUT.",
    "MODEL.LPG.TEST_",
    "MODEL.SALIENT_ONNX.",
    "MODEL.SAM.",
    "MODEL.SEM_SEG_HEAD.TEST_",
    "PSEUDO_MASKS.",
)


@dataclass(frozen=True)
class Settings:
    """Config values by key, sorted by what they decide.

    Attributes:
        training: what the weights depend on, and everything that is not known to decide less.
        labelling: what only inference depends on: pseudo masks and the evaluation, not the weights.
        evaluation: what only is measured in the end.
    """

    training: dict[str, Any] = field(default_factory=dict)
    labelling: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)


def split_settings(changed: Mapping[str, Any]) -> Settings:
    """Sort config values by what they decide; those that decide nothing are left out.

    Args:
        changed: the values that differ from the defaults. The others do not count, so that a new version of this
            package or of Detectron2 may add keys without making every finished step look changed.
    """
    split = Settings()
    for key, value in sorted(changed.items()):
        if key in _NEUTRAL_KEYS:
            continue
        if key == "DATASETS.REGISTER":
            _split_register(value, changed, split)
            continue
        for_test = key.endswith("_TEST")  # as Detectron2 calls what it uses in evaluation mode only
        if key.startswith("TEST.PRECISE_BN."):  # in spite of its name it changes the batch norms that training leaves
            split.training[key] = value
        elif key.startswith(("TEST.", "DATASETS.TEST")) or (for_test and key.startswith("DATASETS.")):
            split.evaluation[key] = value
        elif key.startswith(_LABELLING_PREFIXES) or (for_test and key.startswith(("INPUT.", "MODEL."))):
            split.labelling[key] = value
        else:
            split.training[key] = value
    return split


def _split_register(entries: Sequence[Mapping[str, Any]], changed: Mapping[str, Any], split: Settings) -> None:
    """Sort the entries of ``DATASETS.REGISTER`` by what their data sets are used for.

    Their paths do not count: what lies there is compared by content (:func:`check_inputs`).
    """
    for entry in entries:
        decided = split.evaluation
        if entry["NAME"] in changed.get("DATASETS.TRAIN", ()):
            decided = split.training
        elif entry["NAME"] in changed.get("PSEUDO_MASKS.DATASETS", ()):
            decided = split.labelling
        decided[f"DATASETS.REGISTER.{entry['NAME']}"] = {k: v for k, v in entry.items() if k not in PATH_FIELDS}


@dataclass(frozen=True)
class InputFile:
    """A file or folder that a step reads and no step makes; ``anew``: not only labels depend on its content."""

    path: str
    anew: bool


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
    cfg: CfgNode, *, trains: bool, given_weights: bool, given_segmenter: bool, made: Collection[str]
) -> dict[str, InputFile]:
    """The files whose content a step's outcome depends on. Opens none of them.

    Of a data set these are the json, the list of images (VOC) or the folders (salient images: only the names in them
    count). Images, and VOC's thousands of XML files, are not looked at.

    Args:
        cfg: the step's config.
        trains: whether it trains.
        given_weights: whether it starts from ``MODEL.WEIGHTS``, and not from another step's weights.
        given_segmenter: the same of ``MODEL.LPG.SEGMENTER_WEIGHTS`` and ``SEGMENTER_CONFIG``.
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
                files[key] = InputFile(path, anew=name in training)
    given = {
        "MODEL.WEIGHTS": cfg.MODEL.WEIGHTS if given_weights else "",
        "MODEL.LPG.SEGMENTER_CONFIG": cfg.MODEL.LPG.SEGMENTER_CONFIG if given_segmenter else "",
        "MODEL.LPG.SEGMENTER_WEIGHTS": cfg.MODEL.LPG.SEGMENTER_WEIGHTS if given_segmenter else "",
        "MODEL.SALIENT_ONNX.NETWORK": cfg.MODEL.SALIENT_ONNX.NETWORK,
    }
    files.update({f"{key}/{os.path.basename(path)}": InputFile(path, anew=True) for key, path in given.items() if path})
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
