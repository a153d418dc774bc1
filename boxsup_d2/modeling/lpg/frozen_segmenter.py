"""A trained semantic segmenter as a fixed function inside another network: images in, class probabilities out.

LPG's generator of round 2 and later sees what the previous round's segmenter makes of the image. The segmenter is no
part of the generator: neither trained nor saved with it, but named by its config and its weights.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from torch import Tensor, nn

from boxsup_d2.checkpoint import WholeCheckpointer
from boxsup_d2.config import load_config
from boxsup_d2.modeling.build import check_architecture, explain_build_errors

_FORMATS = ("BGR", "RGB")


class FrozenSegmenter:
    """A segmenter in evaluation mode, without gradients, under autocast on a GPU.

    On purpose no ``nn.Module``: a module that owns one keeps its own ``state_dict``, ``parameters`` and ``train`` to
    itself. The network follows the device of the images.
    """

    def __init__(self, network: nn.Module, class_names: Sequence[str], image_format: str, pretrained: bool = True):
        """
        Args:
            network: has ``class_logits(images)``: N×3×H×W in 0..255 to N×(1 + C)×h×w logits, background first.
            class_names: of its 1 + C channels.
            image_format: channel order that it takes, "BGR" or "RGB".
            pretrained: whether it holds trained weights; without, it only refuses to predict.
        """
        if not callable(getattr(network, "class_logits", None)):
            raise ValueError(
                f"{type(network).__name__} is no segmenter with class_logits(): MODEL.LPG.SEGMENTER_CONFIG must be the "
                "config of a semantic segmenter of this package"
            )
        if image_format not in _FORMATS:
            raise ValueError(f"the segmenter's INPUT.FORMAT is '{image_format}': only BGR and RGB can be converted")
        self.network = network.eval().requires_grad_(False)
        self.class_names = list(class_names)
        self.image_format = image_format
        self.pretrained = pretrained
        self._device = next((p.device for p in network.parameters()), torch.device("cpu"))

    @classmethod
    def load(cls, config_file: str, weights: str) -> "FrozenSegmenter":
        """Build the network of a config with trained weights.

        Args:
            config_file: ``MODEL.LPG.SEGMENTER_CONFIG``.
            weights: ``MODEL.LPG.SEGMENTER_WEIGHTS``; empty: the network can be built, but not used.

        Raises:
            FileNotFoundError: a file is missing.
            RuntimeError: the weights do not belong to the network.
            ValueError: the config is of something else, or does not say which classes it knows.
        """
        cfg = load_segmenter_config(config_file)
        names = segmenter_class_names(cfg, config_file)
        with explain_build_errors(cfg):
            network = build_model(cfg).to(memory_format=torch.channels_last)
        if weights:
            fix = "Name trained weights of MODEL.LPG.SEGMENTER_CONFIG."
            WholeCheckpointer(network, what="MODEL.LPG.SEGMENTER_WEIGHTS", fix=fix).load_whole(weights)
        return cls(network, names, cfg.INPUT.FORMAT, pretrained=bool(weights))

    def channels_of(self, names: Sequence[str], wanted_by: str) -> list[int]:
        """Output channel of every class of a data set, see :func:`channels_by_name`."""
        return channels_by_name(self.class_names, names, wanted_by)

    def _class_logits(self, images: Tensor) -> Tensor:
        network: Any = self.network
        return network.class_logits(images)

    @torch.no_grad()
    def class_probabilities(
        self, images: Tensor, image_format: str, owners: Sequence[int], channels: Sequence[int], batch: int
    ) -> Tensor:
        """Probabilities of some classes in some images; every image goes through the network once.

        Args:
            images: N×3×H×W float in 0..255.
            image_format: their channel order, "BGR" or "RGB".
            owners: which of the images each of the S maps is of, ascending.
            channels: which output channel it is of.
            batch: images per forward pass.

        Returns:
            S×H×W float32 in 0..1: the softmax over all classes of the logits, upsampled (align_corners=True).

        Raises:
            RuntimeError: there are no trained weights.
            ValueError: the network has more or fewer outputs than classes.
        """
        if not self.pretrained:
            raise RuntimeError("MODEL.LPG.SEGMENTER_CONFIG is set without MODEL.LPG.SEGMENTER_WEIGHTS: name both")
        device = images.device
        if device != self._device:
            self.network, self._device = self.network.to(device), device
        maps = []
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            with torch.autocast(device.type, enabled=device.type == "cuda"):
                logits: Tensor = self._class_logits(part if image_format == self.image_format else part.flip(1))
            if logits.shape[1] != len(self.class_names):
                raise ValueError(
                    f"the segmenter has {logits.shape[1]} outputs, but MODEL.SEM_SEG_HEAD.CLASSES_OF of its config "
                    f"names a data set of {len(self.class_names)} classes with the background"
                )
            for index, own in enumerate(logits.split(1), start):
                wanted = [channel for owner, channel in zip(owners, channels, strict=True) if owner == index]
                if wanted:
                    # One image at a time: all classes at full size are the largest tensor of a generator's step.
                    full = F.interpolate(own.float(), size=images.shape[-2:], mode="bilinear", align_corners=True)[0]
                    full.sub_(full.amax(dim=0)).exp_()  # softmax, but without a second tensor of that size
                    maps.append(full[wanted] / full.sum(dim=0))
        return torch.cat(maps) if maps else images.new_zeros((0, *images.shape[-2:]))


def load_segmenter_config(config_file: str) -> CfgNode:
    """``MODEL.LPG.SEGMENTER_CONFIG`` without what says nothing about the network: its device, and the weights that its
    training started from.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no config of this package.
    """
    try:
        cfg = load_config(config_file)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"MODEL.LPG.SEGMENTER_CONFIG: {error}") from error
    check_architecture(cfg, f"MODEL.LPG.SEGMENTER_CONFIG {config_file}")
    cfg.MODEL.WEIGHTS, cfg.MODEL.TIMM.PRETRAINED, cfg.MODEL.DEVICE = "", False, "cpu"
    return cfg


def check_segmenter(cfg: CfgNode, classes: Mapping[str, Sequence[str]], where: str) -> None:
    """Check that a network can be the segmenter for data sets.

    Args:
        cfg: config of the network.
        classes: class names of the data sets.
        where: how an error begins.

    Raises:
        ValueError: it is no segmenter, or does not know the classes of a data set.
    """
    kind = cfg.MODEL.META_ARCHITECTURE
    if not hasattr(META_ARCH_REGISTRY.get(kind), "class_logits"):
        raise ValueError(f"{where} trains a {kind}, which is no semantic segmenter.")
    names = segmenter_class_names(cfg, where)
    for dataset, wanted in classes.items():
        channels_by_name(names, wanted, f"{where}, but '{dataset}'")


def segmenter_class_names(cfg: CfgNode, config_file: str) -> list[str]:
    """Names of a segmenter's output channels, background first.

    Raises:
        ValueError: the config does not say for which registered classes it is.
    """
    dataset = cfg.MODEL.SEM_SEG_HEAD.CLASSES_OF
    metadata = MetadataCatalog.get(dataset) if dataset in MetadataCatalog else None
    names = metadata and (metadata.get("stuff_classes") or ["background", *metadata.get("thing_classes", ())])
    if not names or len(names) < 2:
        raise ValueError(
            f"{config_file}: MODEL.SEM_SEG_HEAD.CLASSES_OF is '{dataset}', which is no registered data set with "
            "classes: name the one whose classes the segmenter was trained for"
        )
    return list(names)


def channels_by_name(known: Sequence[str], names: Sequence[str], wanted_by: str) -> list[int]:
    """Output channel of every class of a data set.

    Args:
        known: names of a segmenter's channels, background first.
        names: the data set's classes.
        wanted_by: says in an error whose classes they are.

    Raises:
        ValueError: the segmenter does not know all of them.
    """
    unknown = [name for name in names if name not in known[1:]]
    if unknown:
        raise ValueError(
            f"{wanted_by} has {len(unknown)} classes that the segmenter of MODEL.LPG.SEGMENTER_CONFIG does not "
            f"know ({', '.join(unknown[:5])}{' ...' if len(unknown) > 5 else ''}); it knows "
            f"{', '.join(known[1:6])}{' ...' if len(known) > 6 else ''}. Use the segmenter that was trained for these "
            "classes, or correct MODEL.SEM_SEG_HEAD.CLASSES_OF of its config"
        )
    return [known.index(name, 1) for name in names]
