"""What tells one piece of work from another: the settings and the networks that its outcome depends on.

One set of rules for rounds (is a finished step still valid?), labelling (do these masks come from the same method?) and
the command line (is this output what was asked for?). What a method's own settings decide, the method says itself:
:class:`boxsup_d2.modeling.box_to_mask.MethodInfo`.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from torch import nn

from boxsup_d2.config import load_config
from boxsup_d2.data.datasets.user_data import PATH_FIELDS
from boxsup_d2.modeling.box_to_mask import box_to_mask_classes, method_info
from boxsup_d2.utils.files import file_sha256
from boxsup_d2.version import __version__

__all__ = [
    "Settings",
    "asked_networks_sha256",
    "changed_settings",
    "labelling_identity",
    "masks_sha256",
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
    infos = [kind.info for kind in box_to_mask_classes().values()]
    neutral = _NEUTRAL_KEYS.union(*(info.neutral_keys for info in infos))
    inference = ("PSEUDO_MASKS.", *(key for info in infos for key in info.inference_keys))
    for key, value in sorted(changed.items()):
        if key in neutral:
            continue
        last = key.rsplit(".", 1)[-1]
        for_test = last.endswith("_TEST") or last.startswith("TEST_")
        if key == "DATASETS.REGISTER":
            _split_register(value, changed, split)
        elif key.startswith("TEST.PRECISE_BN."):  # in spite of its name it changes the batch norms that training leaves
            split.training[key] = value
        elif key.startswith(("TEST.", "DATASETS.TEST")) or (for_test and key.startswith("DATASETS.")):
            split.evaluation[key] = value
        elif key.startswith(inference) or (for_test and key.startswith(("INPUT.", "MODEL."))):
            split.labelling[key] = value
        else:
            split.training[key] = value
    return split


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


def masks_sha256(cfg: CfgNode) -> str:
    """Hash of the settings that a mask depends on, given the weights: not paths, devices or batch sizes."""
    info = method_info(cfg)
    settings = split_settings(changed_settings(cfg))
    paths = {"MODEL.WEIGHTS", info.weights_key, *(key for asked in info.asks for key in _keys_of(asked))}
    relevant = {
        key: value
        for key, value in {**settings.training, **settings.labelling}.items()
        if (key.startswith(("MODEL.", "INPUT.")) or key == "PSEUDO_MASKS.CRF") and key not in paths
    }
    for asked in info.asks:
        config = value_of(cfg, asked.config_key)
        if config:  # what it says and not where it lies, so that a moved folder of rounds is the same labelling
            values = changed_settings(asked.read_config(config))
            relevant[asked.config_key] = {k: v for k, v in values.items() if k.startswith(("MODEL.", "INPUT.FORMAT"))}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


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
        **asked_networks_sha256(cfg),
        "overwrite": cfg.PSEUDO_MASKS.OVERWRITE,
        "code_version": __version__,
    }


def weights_path(cfg: CfgNode) -> str:
    """Where the weights of a config's network are: ``MODEL.WEIGHTS``, or what its method reads instead; "": nowhere."""
    return value_of(cfg, method_info(cfg).weights_key or "MODEL.WEIGHTS")


def weights_sha256(path: str, model: nn.Module | None = None) -> str:
    """Hash of a network's weights by their content.

    Args:
        path: of a file or folder, anything that Detectron2's path manager knows, a name on a hub of networks, or "".
        model: the network, whose parameters are hashed where there is neither file nor folder; None: the name is.

    Raises:
        FileNotFoundError: the file cannot be read.
    """
    local = os.path.expanduser(path)
    if os.path.isdir(local):
        files = sorted(entry.path for entry in os.scandir(local) if entry.is_file())
        return hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest()
    if path and (os.path.splitext(path)[1] or PathManager.isfile(local)):
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


def asked_networks_sha256(cfg: CfgNode) -> dict[str, str]:
    """Hashes of the weights of other networks that the method asks, as ``{"segmenter_sha256": ...}``."""
    return {
        f"{asked.step_field.lower()}_sha256": weights_sha256(value_of(cfg, asked.weights_key))
        for asked in method_info(cfg).asks
        if value_of(cfg, asked.weights_key)
    }


def value_of(cfg: CfgNode, key: str) -> Any:
    """The value of a dotted config key."""
    value: Any = cfg
    for part in key.split("."):
        value = value[part]
    return value


def _keys_of(asked: Any) -> Iterator[str]:
    yield from (asked.config_key, asked.weights_key)


def _flat_values(node: CfgNode, prefix: str = "") -> dict[str, Any]:
    """The config as ``{"MODEL.DEVICE": "cuda", ...}``."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, CfgNode):
            flat.update(_flat_values(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = json.loads(json.dumps(value, default=str))
    return flat
