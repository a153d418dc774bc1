"""The base class of box-to-mask methods: what they take and give, and what each says about itself.

A method is a meta-architecture. What the rest of the package needs to know of it (to label with it by name, to tell
whether a changed setting makes masks or weights anew, to recognise its published checkpoints) it declares in
:attr:`BoxToMaskMethod.info`; nothing else knows any method.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from boxsup_d2.checkpoint.formats import CheckpointFormat
from boxsup_d2.masks.box_masks import BoxMasks
from boxsup_d2.masks.rotated_boxes import cut_to_rotated_boxes

__all__ = [
    "AuxiliaryNetwork",
    "BoxToMaskMethod",
    "MethodInfo",
    "UntrainedBoxToMask",
    "box_to_mask_classes",
    "box_to_mask_instances",
    "fill_boxes",
    "filled_boxes",
    "mean_foreground",
    "method_info",
    "predicted_quality",
    "truncate_boxes",
]


@dataclass(frozen=True)
class AuxiliaryNetwork:
    """Another network, trained by itself, that a method uses while it predicts.

    Attributes:
        step_field: field of a step in a rounds config that names the step which trains it.
        config_key, weights_key: config keys that name its config and its weights.
        read_config: reads the former, without what says nothing about the network, its device for instance.
        check: called as ``check(its config, {data set: class names}, where)``; raises ``ValueError``, whose text begins
            with ``where``, if it does not fit these data sets.
    """

    step_field: str
    config_key: str
    weights_key: str
    read_config: Callable[[str], CfgNode]
    check: Callable[[CfgNode, Mapping[str, Sequence[str]], str], None]


@dataclass(frozen=True)
class MethodInfo:
    """What a box-to-mask method says about itself.

    Of config keys, those whose last word begins with ``TEST_`` or ends with ``_TEST`` are known to decide inference
    alone; they need not be listed.

    Attributes:
        name: it is called by on the command line and in Python; "": by a config file only.
        summary: one line on what it does.
        config: keys and values that make a complete config of it, beside ``MODEL.META_ARCHITECTURE``; of a method that
            is trained, those of its published network, if any.
        weights_key: config key that names its weights; "": it has none.
        weights_help: what these are, for whoever did not give them.
        weights_on_hub: whether they may be a name on a hub of networks, beside a file or folder.
        weights: trained weights that ship with this package; "": none do.
        weights_sha256: of that file.
        recipe: the shipped config that made them (:mod:`boxsup_d2.model_zoo`), which describes their network.
        fast, best: config keys and values, in turn, that make it faster for somewhat worse masks, and slower for
            somewhat better ones; (): it has no such setting.
        finds_objects: whether it also predicts masks of images without boxes.
        extra: of this package that installs what it needs ("onnx": ``pip install 'boxsup_d2[onnx]'``); "": none.
        inference_keys: keys, or beginnings of keys that end in "." or "_", that decide predictions and no weights: a
            change labels anew and trains nothing.
        neutral_keys: likewise, of what decides nothing about the outcome, such as how much goes through the network at
            once.
        auxiliary: other networks that it uses.
        published: the form of its published checkpoints.
    """

    name: str = ""
    summary: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    weights_key: str = ""
    weights_on_hub: bool = False
    weights_help: str = "a trained checkpoint (.pth), such as 'boxsup train' or train_net.py leaves"
    weights: str = ""
    weights_sha256: str = ""
    recipe: str = ""
    fast: tuple[Any, ...] = ()
    best: tuple[Any, ...] = ()
    finds_objects: bool = False
    extra: str = ""
    inference_keys: tuple[str, ...] = ()
    neutral_keys: tuple[str, ...] = ()
    auxiliary: tuple[AuxiliaryNetwork, ...] = ()
    published: CheckpointFormat | None = None


class BoxToMaskMethod(nn.Module):
    """Base of the meta-architectures that turn boxes into masks.

    In evaluation, ``forward`` takes dicts of ``image`` (3×H×W uint8, not resized), ``height``, ``width`` and
    ``instances`` with ``gt_boxes`` (N×4: x0, y0, x1, y1 in the image's pixels) and ``gt_classes``; it returns a dict
    per image whose ``instances`` (:func:`box_to_mask_instances`) hold a mask for every box, in the order of the boxes.
    Where prompts have ``gt_rotated_boxes`` (N×5: cx, cy, w, h, degrees counter-clockwise), ``gt_boxes`` are the boxes
    around these, and what ``forward`` returns is cut to them.
    A method may add

    * ``instances.quality``: of every mask the IoU with the true one that it expects, in 0..1;
    * ``patches``: of every box its probabilities in a window, :class:`boxsup_d2.masks.paste.MaskPatch`, from which a
      refinement can start;
    * ``label_map``: H×W int32, 0 the background, else 1 + class, of a method that decides by class.

    ``docs/architecture.md`` has the whole contract.
    """

    info: ClassVar[MethodInfo] = MethodInfo()

    #: Whether it can do nothing with an image without boxes.
    needs_prompts: ClassVar[bool] = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.needs_prompts:
            self.register_forward_pre_hook(_check_prompts)
        self.register_forward_hook(_cut_to_rotated_boxes)

    #: What an error says of a checkpoint whose first convolution takes more channels than the network's.
    input_help = ""

    @property
    def input_convolution(self) -> str:
        """Of a network whose input has more channels than an image: name of its first convolution's weight, which
        grows where a checkpoint's takes fewer channels; "" of any other."""
        return ""

    def lr_factors(self) -> dict[str, float]:
        """Learning rates as multiples of ``SOLVER.BASE_LR``, by beginnings of parameter names."""
        return {}

    def only_predict(self) -> None:
        """Take on the form that predicts fastest; the network will not be trained or saved any more."""

    @classmethod
    def num_known_classes(cls, cfg: CfgNode) -> int | None:
        """Classes that a network of this config tells apart by their numbers; None: it takes boxes of any class."""
        del cfg
        return None


def _check_prompts(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Say what is missing where Detectron2's ``DefaultPredictor``, or whoever else, gives an image alone."""
    if not model.training and inputs and not all("instances" in item for item in inputs[0]):
        raise ValueError(
            f"{type(model).__name__} needs box prompts: every input of it has instances with gt_boxes and gt_classes. "
            "boxsup_d2.load(...).predict(image, boxes) makes them; DefaultPredictor cannot."
        )


def _cut_to_rotated_boxes(model: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> Any:
    """Methods see upright boxes; here, for all of them, their masks are cut to the rotated ones that were annotated."""
    if model.training or not inputs or not all("instances" in item for item in inputs[0]):
        return outputs
    pairs = zip(inputs[0], outputs, strict=True)
    return [cut_to_rotated_boxes(item["instances"], output) for item, output in pairs]


def box_to_mask_classes() -> dict[str, type[BoxToMaskMethod]]:
    """All box-to-mask methods by ``MODEL.META_ARCHITECTURE``, those of other packages included."""
    return {
        name: kind for name, kind in META_ARCH_REGISTRY if isinstance(kind, type) and issubclass(kind, BoxToMaskMethod)
    }


def method_info(cfg: CfgNode) -> MethodInfo:
    """What the meta-architecture of a config says about itself; nothing, if it is no box-to-mask method."""
    kind = box_to_mask_classes().get(cfg.MODEL.META_ARCHITECTURE)
    return kind.info if kind is not None else MethodInfo()


def truncate_boxes(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Whole-pixel boxes inside the image: corners truncated, at least one pixel, as BoxCaseg crops them.

    Args:
        boxes: N×4 float, x0, y0, x1, y1 in pixels.
        image_size: height, width; both at least 1.

    Returns:
        N×4 int64 with 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height.
    """
    height, width = image_size
    limit = boxes.new_tensor([width, height], dtype=torch.int64)
    corners = boxes.to(torch.int64)
    low = corners[:, :2].clamp(min=0).minimum(limit - 1)
    high = corners[:, 2:].minimum(limit).maximum(low + 1)
    return torch.cat([low, high], dim=1)


def filled_boxes(boxes: Tensor, image_size: tuple[int, int]) -> BoxMasks:
    """Masks that fill the truncated boxes."""
    return BoxMasks.filled(truncate_boxes(boxes, image_size).tolist(), image_size, boxes.device)


def fill_boxes(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """:func:`filled_boxes` as N×H×W bool, for methods that work in the frame of the image."""
    return filled_boxes(boxes, image_size).full().to(boxes.device)


def first_convolution(network: nn.Module, prefix: str, channels: int) -> str:
    """Name of the weight of the first convolution of a network that takes its input; "" if there is none.

    Args:
        prefix: name of the network in what it is a part of.
        channels: of the input.
    """
    for name, module in network.named_modules(prefix=prefix):
        if isinstance(module, nn.Conv2d) and module.in_channels == channels and module.groups == 1:
            return f"{name}.weight"
    return ""


def mean_foreground(probs: Tensor, masks: Tensor) -> Tensor:
    """The score of masks: mean foreground probability inside each; 0 of an empty one.

    Args:
        probs: (...)×h×w in 0..1.
        masks: (...)×h×w bool.

    Returns:
        (...), in 0..1.
    """
    inside = masks.to(probs.dtype)
    return (probs * inside).sum(dim=(-2, -1)) / inside.sum(dim=(-2, -1)).clamp(min=1)


def box_to_mask_instances(
    masks: BoxMasks | Tensor,
    boxes: Tensor,
    classes: Tensor,
    scores: Tensor,
    image_size: tuple[int, int],
    quality: Tensor | None = None,
) -> Instances:
    """The prediction for the N box prompts of one image, in their order.

    Args:
        masks: in their boxes, or N×H×W bool, which takes far more memory; original frame. They may lie on another
            device than the rest.
        boxes: N×4, the prompts.
        classes: N, int64.
        scores: N, in 0..1: :func:`mean_foreground`; 1 for methods without probabilities.
        image_size: H, W.
        quality: N, the IoU with the true mask that the method expects of each mask, in 0..1; None: it expects none,
            see :func:`predicted_quality`.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    shape = (len(boxes), *image_size)
    if tuple(masks.shape) != shape or masks.dtype != torch.bool:
        raise ValueError(f"Box-to-mask prediction is {tuple(masks.shape)} {masks.dtype}, expected {shape} torch.bool.")
    instances = Instances(image_size, pred_masks=masks, pred_boxes=Boxes(boxes), pred_classes=classes, scores=scores)
    if quality is not None:
        instances.quality = quality
    return instances


def predicted_quality(instances: Instances) -> list[float]:
    """The predicted IoU of masks, N in 0..1: their ``quality``, or the ``scores`` of a method that predicts none, or 1.

    Of what such methods know, the mean foreground probability tells good masks from bad ones best: a rank correlation
    with the true IoU of .52, mean of 15 data sets; the box IoU of the mask has .12.
    """
    field = next((name for name in ("quality", "scores") if instances.has(name)), None)
    if field is None:
        return [1.0] * len(instances)
    # A method from outside may leave the range, and json has no NaN.
    return torch.nan_to_num(instances.get(field).double(), nan=0.0).clamp(0, 1).tolist()


class UntrainedBoxToMask(BoxToMaskMethod):
    """Base of methods that are used as they are.

    Subclasses implement one of :meth:`predict_masks`, :meth:`predict` and :meth:`predict_with_quality`.
    """

    device_anchor: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Only tells where the model was moved to; not persistent, so that checkpoints stay empty.
        self.register_buffer("device_anchor", torch.zeros(0), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where :meth:`forward` leaves its predictions."""
        return self.device_anchor.device

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """See :class:`BoxToMaskMethod`.

        Raises:
            RuntimeError: in training mode.
        """
        if self.training:
            raise RuntimeError(
                f"{type(self).__name__} is used as it is and cannot be trained: run train_net.py with --eval-only."
            )
        results = []
        for item in batched_inputs:
            instances = item["instances"].to(self.device)
            boxes = instances.gt_boxes.tensor
            masks, scores, quality = self.predict_with_quality(item["image"], boxes)
            image_size = (int(item["image"].shape[1]), int(item["image"].shape[2]))
            predicted = box_to_mask_instances(
                masks,
                boxes,
                instances.gt_classes,
                scores.to(self.device),
                image_size,
                None if quality is None else quality.to(self.device),
            )
            results.append({"instances": predicted})
        return results

    def predict_with_quality(self, image: Tensor, boxes: Tensor) -> tuple[BoxMasks | Tensor, Tensor, Tensor | None]:
        """As :meth:`predict`, and the qualities (N, 0..1), or None where the method expects no IoU of its masks."""
        return *self.predict(image, boxes), None

    def predict(self, image: Tensor, boxes: Tensor) -> tuple[BoxMasks | Tensor, Tensor]:
        """Masks (of either form) and scores (N, 0..1) of the boxes (N×4, x0, y0, x1, y1) of one image (3×H×W uint8).

        By default :meth:`predict_masks` and scores of 1, for methods that know no probabilities.
        """
        return self.predict_masks(image, boxes), torch.ones(len(boxes))

    def predict_masks(self, image: Tensor, boxes: Tensor) -> BoxMasks | Tensor:
        """Masks, in their boxes or N×H×W bool, of the boxes (N×4, x0, y0, x1, y1) of one image (3×H×W uint8)."""
        raise NotImplementedError
