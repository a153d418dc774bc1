"""Trained networks that predict without boxes: their configs, weights and classes."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, SemanticSegmentor
from detectron2.modeling.meta_arch.dense_detector import DenseDetector

from boxsup_d2.config import load_config
from boxsup_d2.data.datasets import register_from_cfg
from boxsup_d2.data.formats.yolo import read_class_names
from boxsup_d2.methods import prepare_inference
from boxsup_d2.modeling.box_to_mask import BoxToMaskMethod
from boxsup_d2.modeling.boxinst.fcos import ControlledFCOS
from boxsup_d2.utils.files import atomic_write

__all__ = ["TrainedNetwork", "find_config", "trained_network", "training_classes", "write_class_names"]

_CONFIG, _WEIGHTS, _NAMES = "config.yaml", "model_final.pth", "class_names.txt"


@dataclass(frozen=True)
class TrainedNetwork:
    """A network that predicts without boxes.

    Attributes:
        cfg: its complete config, weights and device included, frozen. Detectron2's ``DefaultPredictor`` takes it.
        class_names: in the order of the network's numbers; empty where nobody knows them.
        semantic: whether it gives every pixel a class, and finds no objects.
    """

    cfg: CfgNode
    class_names: tuple[str, ...]
    semantic: bool

    @property
    def background(self) -> bool:
        """Whether its first class stands for no class."""
        return self.semantic and self.class_names[:1] == ("background",)


def trained_network(
    model: str | os.PathLike,
    weights: str | os.PathLike | None = None,
    *,
    names: str | os.PathLike | None = None,
    opts: Sequence[Any] = (),
    device: str | None = None,
) -> TrainedNetwork:
    """Find a trained network's config, weights and classes; nothing is built.

    Args:
        model: folder that a training left (of ``boxsup train`` or of rounds: that of their last such network), a
            checkpoint with ``config.yaml`` beside it, or the config of any Detectron2 network.
        weights: its weights; default: ``model_final.pth`` beside the config.
        names: file of its class names, a name per line or yaml; default: those of the training, as far as they are
            known here: from ``class_names.txt`` beside the config, or from the data set.
        opts: config overrides, ``[KEY, VALUE, ...]``.
        device: "cpu", "cuda", "cuda:1"; None: the GPU if there is one.

    Raises:
        FileNotFoundError: config, weights or names are missing.
        ValueError: it is no such network, the names are more or less than its classes, or a key or the device does not
            exist.
    """
    config, found = find_config(model, weights)
    cfg = load_config(config, opts)
    kind = _kind_of(cfg)
    if kind is None:
        raise ValueError(
            f"'{config}' is the config of a {cfg.MODEL.META_ARCHITECTURE}, which nothing here defines: install the "
            "package that does, with an entry point in 'boxsup_d2.methods' that imports it."
        )
    if _needs_boxes(kind):
        raise ValueError(
            f"'{config}' is the config of a {kind.__name__}, which gives masks to boxes: use it with 'boxsup label "
            f"--config {config}', or predict with a Mask R-CNN ('boxsup train --mask-rcnn' leaves one)."
        )
    semantic = issubclass(kind, SemanticSegmentor)
    known = _class_names(cfg, kind, os.path.dirname(config), names)
    prepare_inference(cfg, opts, device)
    cfg.MODEL.WEIGHTS = found
    cfg.freeze()
    return TrainedNetwork(cfg, tuple(known), semantic)


def _kind_of(cfg: CfgNode) -> type | None:
    """The meta-architecture of a config; None where nothing registers it."""
    name = cfg.MODEL.META_ARCHITECTURE
    kind = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
    return kind if isinstance(kind, type) else None


def _needs_boxes(kind: type) -> bool:
    return issubclass(kind, BoxToMaskMethod) and not kind.info.finds_objects


def find_config(model: str | os.PathLike, weights: str | os.PathLike | None = None) -> tuple[str, str]:
    """Config and weights of a trained network; weights are "" of a method that has none.

    Args:
        model, weights: see :func:`trained_network`.

    Raises:
        FileNotFoundError, ValueError: as :func:`trained_network`.
    """
    named = os.path.expanduser(os.fspath(model))
    config, beside = _find_config(named)
    found = os.path.expanduser(os.fspath(weights)) if weights else beside
    if "://" in found or os.path.isfile(found):
        return config, found
    kind = _kind_of(load_config(config))
    if not weights and kind is not None and issubclass(kind, BoxToMaskMethod) and not kind.info.weights_key:
        return config, ""
    why = ": name them (--weights)."
    if weights or found == named:
        why = ": there is no such file."
    elif os.path.isdir(named):
        why = ": its training has not ended, or had nothing to learn from. Name them (--weights)."
    raise FileNotFoundError(f"There are no weights '{found}' of the network of '{config}'{why}")


def _find_config(path: str) -> tuple[str, str]:
    """Config of what a user named, and where its weights would be."""
    if path.endswith((".pth", ".pkl", ".safetensors")):
        folder = os.path.dirname(path)
        config = os.path.join(folder, _CONFIG)
        if not os.path.isfile(config):
            raise FileNotFoundError(
                f"There is no '{_CONFIG}' beside '{path}': name the config, and --weights '{path}'."
            )
        return config, path
    if not os.path.exists(path):
        raise FileNotFoundError(f"There is no '{path}': name the folder of a training, or a config and --weights.")
    config = os.path.join(path, _CONFIG) if os.path.isdir(path) else path
    steps: Sequence[dict[str, Any]] = ()
    if os.path.isfile(config):
        rounds = load_config(config).ROUNDS
        if not rounds:
            return config, os.path.join(os.path.dirname(config), _WEIGHTS)
        steps = [step for each in rounds for step in each["STEPS"]]
    if not os.path.isdir(path):
        raise ValueError(f"'{path}' is a rounds config: name the folder of one of its steps.")
    names = [step["NAME"] for step in reversed(steps)]
    # A step that the last command of a training did not ask for is there, too; what a restart put aside has a dot.
    names += sorted({each.name for each in os.scandir(path) if each.is_dir() and "." not in each.name} - set(names))
    for name in names:
        folder = os.path.join(path, name)
        config = os.path.join(folder, _CONFIG)
        if os.path.isfile(config) and os.path.isfile(os.path.join(folder, _WEIGHTS)):
            kind = _kind_of(load_config(config))
            if kind is not None and not _needs_boxes(kind):
                return config, os.path.join(folder, _WEIGHTS)
    raise FileNotFoundError(
        f"There is no network in '{path}' that predicts without boxes, with '{_CONFIG}' and '{_WEIGHTS}': 'boxsup "
        "train --mask-rcnn' trains one; or name the folder of a training itself."
    )


def _class_names(cfg: CfgNode, kind: type, folder: str, names: str | os.PathLike | None) -> list[str]:
    number = _num_classes(cfg, kind)
    if names is not None:
        given = read_class_names(os.fspath(names))
        if number is not None and len(given) != number:
            raise ValueError(f"'{names}' names {len(given)} classes, but the network has {number}.")
        return given
    beside = os.path.join(folder, _NAMES)
    with contextlib.suppress(FileNotFoundError, ValueError):  # the data of the training may be elsewhere
        known = read_class_names(beside) if os.path.isfile(beside) else training_classes(cfg)
        if number is None or len(known) == number:
            return known
    return [f"class {index}" for index in range(number or 0)]


def _num_classes(cfg: CfgNode, kind: type) -> int | None:
    """How many classes a network tells apart; None where only its own code knows."""
    for base, section in (
        (SemanticSegmentor, cfg.MODEL.SEM_SEG_HEAD),
        (ControlledFCOS, cfg.MODEL.FCOS),
        (DenseDetector, cfg.MODEL.RETINANET),
        (GeneralizedRCNN, cfg.MODEL.ROI_HEADS),
    ):
        if issubclass(kind, base):
            return section.NUM_CLASSES
    return None


def training_classes(cfg: CfgNode) -> list[str]:
    """Names of the classes that a config trains on, in the order of their numbers; empty where there are none.

    Raises:
        FileNotFoundError, ValueError: the data set is not there, or damaged.
    """
    register_from_cfg(cfg)
    if not cfg.DATASETS.TRAIN or cfg.DATASETS.TRAIN[0] not in DatasetCatalog:
        return []
    kind = _kind_of(cfg)
    key = "stuff_classes" if kind is not None and issubclass(kind, SemanticSegmentor) else "thing_classes"
    return list(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get(key) or ())


def write_class_names(cfg: CfgNode) -> None:
    """Leave the names of the classes beside what a training leaves, where :func:`trained_network` looks for them."""
    names = training_classes(cfg)
    if names:
        with atomic_write(os.path.join(cfg.OUTPUT_DIR, _NAMES)) as file:
            file.writelines(f"{name}\n" for name in names)
