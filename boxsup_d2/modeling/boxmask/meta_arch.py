"""BoxMask: a class-agnostic network for the box-to-mask contract, trained on whatever masks there are.

It sees a box with some of its surroundings and is told where the box is; it predicts a mask and the IoU that
it expects of it. Boxes without masks teach by their projections, by the colours of the image, and by what the averaged
network (``MODEL.EMA``) thinks of them.

Shape legend: N samples, S their side, h = S / 2, B the boxes of one image.
"""

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.utils.events import get_event_storage
from torch import Tensor

from boxsup_d2.masks.paste import cut_patches
from boxsup_d2.masks.rotated_boxes import cut_patches_to_rotated_boxes
from boxsup_d2.masks.shared_pixels import settle_shared_pixels
from boxsup_d2.modeling.average import TaughtByAverage
from boxsup_d2.modeling.box_to_mask import (
    BoxToMaskMethod,
    MethodInfo,
    box_to_mask_instances,
    first_convolution,
    mean_foreground,
)
from boxsup_d2.modeling.boxmask import losses
from boxsup_d2.modeling.boxmask.box_learning import BoxLearning
from boxsup_d2.modeling.boxmask.inference import WindowInference
from boxsup_d2.modeling.boxmask.network import BoxMaskNetwork
from boxsup_d2.modeling.fold import fold_batch_norms, pad_evenly


@META_ARCH_REGISTRY.register()
class BoxMask(TaughtByAverage, BoxToMaskMethod):
    """The network, its losses, and inference from boxes to masks."""

    info = MethodInfo(
        name="boxmask",
        summary="a network trained on masks of many kinds, which also says how good its masks are",
        weights_key="MODEL.WEIGHTS",
        weights="package://boxsup_d2/model_zoo/weights/boxmask.safetensors",
        weights_sha256="67fc0e86535e7155bae724c296de68e9b2138ce4e001522e3acadfbf09b77468",
        recipe="zoo/boxmask.yaml",
        fast=(
            "MODEL.BOXMASK.TEST_FLIP_BELOW",
            0.0,
            "MODEL.BOXMASK.TEST_AGAIN_BELOW",
            0.0,
            "MODEL.BOXMASK.EDGE_STEPS",
            0,
        ),
        best=("MODEL.BOXMASK.TEST_FLIP_BELOW", 1.0),
        neutral_keys=("MODEL.BOXMASK.TEST_WINDOWS_PER_FORWARD", "INPUT.MASK_CROP.CACHE_MB"),
        inference_keys=("MODEL.BOXMASK.EDGE_",),
    )
    input_help = "MODEL.BOXMASK.BOX_CHANNEL says whether it sees the box."

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: list[str],
        decoder_channels: int,
        fine_channels: int,
        pixel_mean: list[float],
        pixel_std: list[float],
        loss_weights: dict[str, float],
        box_channel: bool = True,
        boundary_weight: float = 3.0,
        predicted_end: float = 1.0,
        box_learning: BoxLearning | None = None,
        image_format: str = "RGB",
        backbone_lr_factor: float = 1.0,
        train_sizes: list[int] | None = None,
        train_size_steps: list[int] | None = None,
        windows: WindowInference | None = None,
        nested_from: float = 0.0,
    ) -> None:
        """
        Args:
            backbone: gives the maps ``in_features``, of strides 2 to 32, finest first.
            decoder_channels, fine_channels: see :class:`boxsup_d2.modeling.boxmask.network.Decoder`.
            pixel_mean, pixel_std: per channel, for images in 0..255.
            loss_weights: of "pixel", "overlap", "projection", "pairwise", "teacher" and "quality".
            box_channel: whether the backbone sees the box, in a channel in front of the image's.
            boundary_weight: see :func:`boxsup_d2.modeling.boxmask.losses.boundary_weights`.
            predicted_end: share of their weight that predicted masks keep when the averaged network teaches fully.
            box_learning: how boxes without true masks teach.
            image_format: order of the image's channels, "RGB" or "BGR".
            backbone_lr_factor: see :meth:`lr_factors`.
            train_sizes, train_size_steps: sides that samples are shrunk to, and the iterations from which they count.
            windows: how boxes are looked at in evaluation.
            nested_from: see :func:`boxsup_d2.masks.shared_pixels.settle_shared_pixels`.
        """
        super().__init__()
        self.net = BoxMaskNetwork(backbone, in_features, decoder_channels, fine_channels, box_channel)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        self.loss_weights = loss_weights
        self.boundary_weight = boundary_weight
        self.predicted_end = predicted_end
        self.box_learning = box_learning or BoxLearning()
        self.image_format = image_format
        self.backbone_lr_factor = backbone_lr_factor
        self.train_sizes = list(zip(train_size_steps or [], train_sizes or [], strict=True))
        self.windows = windows or WindowInference()
        self.nested_from = nested_from

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.BOXMASK
        return {
            "backbone": build_backbone(cfg, ShapeSpec(channels=4 if node.BOX_CHANNEL else 3)),
            "in_features": list(node.IN_FEATURES),
            "decoder_channels": node.DECODER_CHANNELS,
            "fine_channels": node.FINE_CHANNELS,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "loss_weights": {
                "pixel": node.PIXEL_WEIGHT,
                "overlap": node.OVERLAP_WEIGHT,
                "projection": node.PROJECTION_WEIGHT,
                "pairwise": node.PAIRWISE_WEIGHT,
                "teacher": node.TEACHER_WEIGHT,
                "quality": node.QUALITY_WEIGHT,
            },
            "box_channel": node.BOX_CHANNEL,
            "boundary_weight": node.BOUNDARY_WEIGHT,
            "predicted_end": node.PREDICTED_MASKS_END,
            "box_learning": BoxLearning.from_config(cfg),
            "image_format": cfg.INPUT.FORMAT,
            "backbone_lr_factor": node.BACKBONE_LR_FACTOR,
            "train_sizes": list(node.TRAIN_SIZES),
            "train_size_steps": list(node.TRAIN_SIZE_STEPS),
            "windows": WindowInference.from_config(cfg),
            "nested_from": node.TEST_NESTED_FROM,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def input_convolution(self) -> str:
        """Weight of the first convolution, which ImageNet weights of three channels are grown to."""
        return first_convolution(self.net.backbone, "net.backbone", 4 if self.net.box_channel else 3)

    def lr_factors(self) -> dict[str, float]:
        """The backbone comes trained and learns more slowly than the rest."""
        return {"net.backbone": self.backbone_lr_factor}

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: in training, dicts of ``image`` (3 x S x S uint8), ``box``, ``mask`` and ``void`` (S x S
                uint8, coverage in 0..255), ``has_mask`` (bool; False: ``mask`` says nothing), ``confidence`` (0..1;
                below 1 the mask is a prediction, and the box teaches as well), and, where boxes teach by colours,
                ``plain`` and ``seen``: see ``MaskCropDatasetMapper``. In evaluation, dicts
                of ``image`` (3 x H x W uint8, not resized), ``height``, ``width``, and ``instances`` with ``gt_boxes``
                (B x 4, in ``image``'s pixels) and ``gt_classes``.

        Returns:
            In training the dict of losses. In evaluation one ``{"instances": Instances, "patches": [MaskPatch]}`` per
            input, whose ``pred_masks`` (``BoxMasks``), ``pred_boxes``, ``pred_classes``, ``scores``,
            ``quality`` (B floats, predicted IoU) and patches are those of the boxes, in order.
        """
        return self.losses(batched_inputs) if self.training else self.inference(batched_inputs)

    def losses(self, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """The weighted losses of a training batch, always the same keys."""
        iteration, learning = get_event_storage().iter, self.box_learning
        # True masks first and then predicted ones, so that each kind is a slice.
        batched_inputs = sorted(batched_inputs, key=lambda x: (not x["has_mask"], x["confidence"] < 1))
        known = sum(bool(x["has_mask"]) for x in batched_inputs)
        true = sum(bool(x["has_mask"]) and x["confidence"] >= 1 for x in batched_inputs)
        images = self.normalize(torch.stack([x["image"] for x in batched_inputs]))
        boxes, masks, void = (self._maps([x[key] for x in batched_inputs]) for key in ("box", "mask", "void"))
        side = next((s for step, s in reversed(self.train_sizes) if iteration >= step), images.shape[-1])
        images, boxes = resized(images, side), resized(boxes, side).clamp(0, 1)

        logits, quality = self.net(images, boxes)
        masks, void, inner = (F.interpolate(maps, logits.shape[-2:], mode="area") for maps in (masks, void, boxes))
        unknown, inner, rest = logits[true:], inner[true:], batched_inputs[true:]
        pixels = resized(self._plain(rest), side) if rest else images[true:]
        colors, seen = self._colors(rest, pixels, inner)
        confidence = masks.new_tensor([x["confidence"] for x in batched_inputs])
        if learning.contrast_weight > 0:
            masks[known:] = learning.contrast_labels(colors, seen, inner)[known - true :]
            confidence[known:], known = learning.contrast_weight, len(logits)
        teaches = 0.0 if self.teacher is None else learning.teacher_share(iteration)
        confidence[true:] *= 1 - (1 - self.predicted_end) * teaches
        masks, counted = masks[:known], 1 - void[:known]
        weights = losses.boundary_weights(masks, self.boundary_weight) * counted
        pixel, overlap = losses.pixel_and_overlap_losses(logits[:known], masks, weights, confidence[:known])

        found, labels = {"pixel": pixel, "overlap": overlap, "projection": learning.projection(unknown, inner)}, None
        found["pairwise"] = found["teacher"] = unknown.sum() * 0
        if rest and self.loss_weights["pairwise"] > 0:
            found["pairwise"] = learning.pairwise_share(iteration) * learning.pairwise(unknown, colors, seen, inner)
        if rest and teaches > 0:
            with torch.no_grad():
                taught = self.teacher.net(self.normalize(pixels), boxes[true:])[0]
            labels = learning.labels(unknown, taught, pixels, inner)
            found["teacher"] = teaches * learning.teacher(unknown, labels, inner)
        found["quality"] = self._judged(quality, logits, masks, counted, true, labels)
        return {f"loss_{name}": self.loss_weights[name] * value for name, value in found.items()}

    def _colors(self, batched_inputs: list[dict], pixels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Colours (R, G, B) of samples at the size of ``boxes``, and which of them are the image's."""
        size = boxes.shape[-2:]
        if not batched_inputs:
            return boxes.new_zeros(0, 3, *size), boxes
        seen = self._maps([x["seen"] if "seen" in x else torch.full_like(x["box"], 255) for x in batched_inputs])
        rgb = pixels.flip(1) if self.image_format == "BGR" else pixels
        return F.interpolate(rgb, size, mode="area"), F.interpolate(seen, size, mode="area")

    def _judged(
        self, quality: Tensor, logits: Tensor, masks: Tensor, counted: Tensor, true: int, labels: Tensor | None
    ) -> Tensor:
        """Loss of the predicted IoU: with the true masks; without any with what the averaged network teaches, or with
        the predicted masks."""
        if not true and labels is not None:
            iou = losses.hard_iou(logits, labels, torch.ones_like(labels))
        else:
            judged = true or len(masks)
            iou = losses.hard_iou(logits[:judged], masks[:judged], counted[:judged])
        if not len(iou):
            return quality.sum() * 0
        return F.binary_cross_entropy_with_logits(quality[: len(iou)], iou)

    def _maps(self, maps: list[Tensor]) -> Tensor:
        """S x S coverages in 0..255 as N x 1 x S x S in 0..1, on the device."""
        return torch.stack(maps)[:, None].to(self.device).float() / 255

    def _plain(self, batched_inputs: list[dict]) -> Tensor:
        """The samples in their own colours, where the mapper gives them: N x 3 x S x S float32 in 0..255."""
        return torch.stack([x.get("plain", x["image"]) for x in batched_inputs]).to(self.device).float()

    def only_predict(self) -> None:
        example = [self.pixel_mean.new_zeros((1, channels, 64, 64)) for channels in (3, 1)]
        fold_batch_norms(self.net.eval(), *example)
        if self.device.type == "cpu":  # on a GPU kernels of odd sides are the fast ones
            pad_evenly(self.net)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # Checkpoints of before hold two networks, of which the average predicts, and count updates.
        state_dict.pop(prefix + "updates", None)
        for key in [key for key in state_dict if key.startswith(prefix + "average.")]:
            state_dict[prefix + "net." + key.removeprefix(prefix + "average.")] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def normalize(self, images: Tensor) -> Tensor:
        """N x 3 x S x S images in 0..255, on any device, as the network's input."""
        images = images.to(self.device, torch.float32, non_blocking=True, memory_format=torch.channels_last)
        return (images - self.pixel_mean) / self.pixel_std

    def look(self, images: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """The network that predicts; see :data:`boxsup_d2.modeling.boxmask.inference.Look`."""
        return self.net(self.normalize(images), boxes.to(self.device))

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Masks of all boxes of a batch of images; see :meth:`forward`."""
        predictions = []
        for x in batched_inputs:
            boxes = x["instances"].gt_boxes.tensor
            size = (x["height"], x["width"])
            prompt = x["instances"]
            patches, quality = self.windows.predict(self.look, x["image"], boxes, size)
            if prompt.has("gt_rotated_boxes"):  # nothing is lost to what lies outside of another one
                patches = cut_patches_to_rotated_boxes(patches, prompt.gt_rotated_boxes.tolist())
            patches, kept = settle_shared_pixels(patches, boxes, self.nested_from, self.windows.specks)
            masks = cut_patches(patches, *size)
            # Where two masks disagree either may be right. Of masks that lost more than 5 % the root had a rank
            # correlation with the true IoU of .43 on VOC val and .64 on COCO val, their quality alone .21 and .49.
            quality = quality.cpu() * kept.sqrt()
            scores = torch.stack([mean_foreground(p.prob, p.prob > 0.5) for p in patches] or [torch.zeros(0)]).flatten()
            # Without a box nothing was computed on the device.
            scores, quality = scores.to(self.device), quality.to(self.device)
            instances = box_to_mask_instances(masks, prompt.gt_boxes.tensor, prompt.gt_classes, scores, size)
            instances.quality = quality
            predictions.append({"instances": instances, "patches": patches})
        return predictions


def resized(images: Tensor, side: int) -> Tensor:
    """N x C x S x S images as N x C x side x side."""
    if side == images.shape[-1]:
        return images
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)
