"""What tells one piece of work from another: the settings and the networks that its outcome depends on.

One set of rules for rounds (is a finished step still valid?), labelling (do these masks come from the same method?) and
the command line (is this output what was asked for?). What a method's own settings decide, the method says itself:
:class:`boxsup_d2.modeling.box_to_mask.MethodInfo`.
"""

import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.utils.file_io import PathManager
from torch import nn

from boxsup_d2.config import load_config
from boxsup_d2.data.datasets.user_data import PATH_FIELDS
from boxsup_d2.modeling.box_to_mask import box_to_mask_classes, method_info
from boxsup_d2.utils.files import file_sha256, json_sha256
from boxsup_d2.version import __version__

__all__ = [
    "Settings",
    "auxiliary_sha256",
    "changed_settings",
    "counts_by_content",
    "labelling_identity",
    "masks_sha256",
    "network_paths",
    "split_settings",
    "value_of",
    "weights_path",
    "weights_sha256",
]

# Keys that say where and how a step runs, not what comes out of it: moving a run to another machine, or saving
# checkpoints more often, must not throw a finished step away.
_NEUTRAL_KEYS = frozenset(
    {
        "CUDNN_BENCHMARK",
        "DATALOADER.NUM_WORKERS",
        "MODEL.DEVICE",
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


def changed_settings(cfg: CfgNode) -> dict[str, Any]:
    """The values that differ from the defaults, by dotted key; tuples as lists, as json would give them back.

    The others do not count, so that a new version of this package or of Detectron2 may add keys without making every
    finished step look changed.
    """
    defaults = _flat_values(load_config(""))
    return {key: value for key, value in _flat_values(cfg).items() if value != defaults.get(key)}


def split_settings(changed: Mapping[str, Any]) -> Settings:
    """Sort config values by what they decide; those that decide nothing are left out.

    Args:
        changed: from :func:`changed_settings`.
    """
    split = Settings()
    neutral, inference = _declared_keys(changed.get("MODEL.META_ARCHITECTURE", ""))
    for key, value in sorted(changed.items()):
        if key in _NEUTRAL_KEYS or _is_one_of(key, neutral):
            continue
        last = key.rsplit(".", 1)[-1]
        for_test = last.endswith("_TEST") or last.startswith("TEST_")
        if key == "DATASETS.REGISTER":
            _split_register(value, changed, split)
        elif key.startswith("TEST.PRECISE_BN."):  # in spite of its name it changes the batch norms that training leaves
            split.training[key] = value
        elif key.startswith(("TEST.", "DATASETS.TEST")) or (for_test and key.startswith("DATASETS.")):
            split.evaluation[key] = value
        elif (
            key.startswith("PSEUDO_MASKS.")
            or _is_one_of(key, inference)
            or (for_test and key.startswith(("INPUT.", "MODEL.")))
        ):
            split.labelling[key] = value
        else:
            split.training[key] = value
    return split


def _declared_keys(meta_architecture: str) -> tuple[list[str], list[str]]:
    """Neutral and inference keys: those that the step's method declares, and those that others declare of their own
    sections. What a method says of keys that it shares with others must not decide over their work."""
    neutral: list[str] = []
    inference: list[str] = []
    for name, kind in box_to_mask_classes().items():
        for keys, declared in ((neutral, kind.info.neutral_keys), (inference, kind.info.inference_keys)):
            keys += [key for key in declared if name == meta_architecture or _is_of_a_section_of_ours(key)]
    return neutral, inference


def _is_of_a_section_of_ours(key: str) -> bool:
    section = key.split(".")[1:2]
    return key.startswith("MODEL.") and bool(section) and section[0] not in _sections_of_detectron2()


@functools.cache
def _sections_of_detectron2() -> frozenset[str]:
    return frozenset(get_cfg().MODEL)


def _is_one_of(key: str, declared: Sequence[str]) -> bool:
    return any(key == other or (other.endswith((".", "_")) and key.startswith(other)) for other in declared)


def _split_register(entries: Sequence[Mapping[str, Any]], changed: Mapping[str, Any], split: Settings) -> None:
    """Sort the entries of ``DATASETS.REGISTER`` by what their data sets are used for.

    Their paths do not count: what lies there is compared by content (:mod:`boxsup_d2.rounds.inputs`).
    """
    for entry in entries:
        decided = split.evaluation
        if entry["NAME"] in changed.get("DATASETS.TRAIN", ()):
            decided = split.training
        elif entry["NAME"] in changed.get("PSEUDO_MASKS.DATASETS", ()):
            decided = split.labelling
        decided[f"DATASETS.REGISTER.{entry['NAME']}"] = {k: v for k, v in entry.items() if k not in PATH_FIELDS}


def network_paths(cfg: CfgNode) -> dict[str, str]:
    """Config keys that name the networks of a step, and what they name, where it is not empty."""
    info = method_info(cfg)
    keys = ["MODEL.WEIGHTS", *filter(None, [info.weights_key])]
    keys += [key for network in info.auxiliary for key in (network.config_key, network.weights_key)]
    return {key: path for key in dict.fromkeys(keys) if (path := value_of(cfg, key))}


def counts_by_content(cfg: CfgNode, path: str) -> bool:
    """Whether a network's file is compared by its content, wherever it lies: not what is remote or on a hub."""
    return "://" not in path and not (method_info(cfg).weights_on_hub and not os.path.exists(os.path.expanduser(path)))


def masks_sha256(cfg: CfgNode) -> str:
    """Hash of the settings that a mask depends on, given the weights: not paths, devices or batch sizes."""
    info = method_info(cfg)
    settings = split_settings(changed_settings(cfg))
    paths = network_paths(cfg)
    relevant = {
        key: value
        for key, value in {**settings.training, **settings.labelling}.items()
        if (key.startswith(("MODEL.", "INPUT.")) or key in ("PSEUDO_MASKS.CRF", "PSEUDO_MASKS.SPECKS"))
        and key not in paths
    }
    for network in info.auxiliary:
        config = value_of(cfg, network.config_key)
        if config:  # what it says and not where it lies, so that a moved folder of rounds is the same labelling
            values = changed_settings(network.read_config(config))
            relevant[network.config_key] = {k: v for k, v in values.items() if k.startswith(("MODEL.", "INPUT.FORMAT"))}
    return json_sha256(relevant)


def labelling_identity(cfg: CfgNode, source_sha256: str) -> dict[str, Any]:
    """What decides the masks of a labelling, beside the weights.

    Args:
        cfg: full config.
        source_sha256: hash of the boxes.
    """
    return {
        "source_sha256": source_sha256,
        "method": cfg.MODEL.META_ARCHITECTURE,
        "config_sha256": masks_sha256(cfg),
        **auxiliary_sha256(cfg),
        "overwrite": cfg.PSEUDO_MASKS.OVERWRITE,
        "code_version": __version__,
    }


def weights_path(cfg: CfgNode) -> str:
    """Where the weights of a config's network are: ``MODEL.WEIGHTS``, or what its method reads instead; "": nowhere."""
    return value_of(cfg, method_info(cfg).weights_key or "MODEL.WEIGHTS")


def weights_sha256(path: str, model: nn.Module | None = None, *, on_hub: bool = False) -> str:
    """Hash of a network's weights by their content.

    Args:
        path: of a file or folder, anything that Detectron2's path manager knows, or "".
        model: the network, whose parameters are hashed where there is no file; None: the path is.
        on_hub: ``path`` may be a name on a hub of networks, see ``MethodInfo.weights_on_hub``.

    Raises:
        FileNotFoundError: the file cannot be read.
    """
    local = os.path.expanduser(path)
    if os.path.isdir(local):
        files = sorted(entry.path for entry in os.scandir(local) if entry.is_file())
        return hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest()
    if path and not (on_hub and not PathManager.isfile(local)):
        try:
            return file_sha256(PathManager.get_local_path(local))
        except OSError as error:
            raise FileNotFoundError(
                f"Weights '{path}' cannot be read ({error}). Correct MODEL.WEIGHTS (--weights), or train first."
            ) from error
    digest = hashlib.sha256()
    if model is None:
        digest.update(path.encode())
        return digest.hexdigest()
    for key, tensor in model.state_dict().items():
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def auxiliary_sha256(cfg: CfgNode) -> dict[str, str]:
    """Hashes of the weights of other networks that the method uses, as ``{"segmenter_sha256": ...}``."""
    return {
        f"{network.step_field.lower()}_sha256": weights_sha256(value_of(cfg, network.weights_key))
        for network in method_info(cfg).auxiliary
        if value_of(cfg, network.weights_key)
    }


def value_of(cfg: CfgNode, key: str) -> Any:
    """The value of a dotted config key."""
    value: Any = cfg
    for part in key.split("."):
        value = value[part]
    return value


def _flat_values(node: CfgNode, prefix: str = "") -> dict[str, Any]:
    """The config as ``{"MODEL.DEVICE": "cuda", ...}``."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, CfgNode):
            flat.update(_flat_values(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = json.loads(json.dumps(value, default=str))
    return flat
