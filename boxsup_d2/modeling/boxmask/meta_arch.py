"""BoxMask: a class-agnostic network for the box-to-mask contract, trained on whatever masks there are.

It sees a box with some of its surroundings and is told where the box is; it predicts a mask and the IoU that
it expects of it. Boxes without masks teach by their projections and by what the averaged network thinks of them.

Shape legend: N samples, S their side, h = S / 2, B the boxes of one image.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from torch import Tensor

from boxsup_d2.masks.paste import cut_patches
from boxsup_d2.modeling.box_to_mask import BoxToMaskMethod, MethodInfo, box_to_mask_instances
from boxsup_d2.modeling.boxmask import losses
from boxsup_d2.modeling.boxmask.edges import snap_to_edges
from boxsup_d2.modeling.boxmask.inference import WindowInference
from boxsup_d2.modeling.boxmask.network import BoxMaskNetwork
from boxsup_d2.modeling.fold import fold_batch_norms


@META_ARCH_REGISTRY.register()
class BoxMask(BoxToMaskMethod):
    """The network, its exponential average, the losses, and inference from boxes to masks.

    The average is part of the model, so that checkpoints, resuming and several processes need nothing special.
    """

    info = MethodInfo(
        name="boxmask",
        summary="a network trained on masks of many kinds, which also says how good its masks are",
        weights_key="MODEL.WEIGHTS",
        weights="package://boxsup_d2/model_zoo/weights/boxmask.safetensors",
        weights_sha256="11ee411cd0bf2c1a8cc3da7d48e97f0fd597d420001ada48d9ce9b7bed671c6e",
        recipe="zoo/boxmask.yaml",
        fast=("MODEL.BOXMASK.TEST_FLIP_BELOW", 0.0, "MODEL.BOXMASK.EDGE_STEPS", 0),
        neutral_keys=("MODEL.BOXMASK.TEST_WINDOWS_PER_FORWARD", "INPUT.MASK_CROP.CACHE_MB"),
        inference_keys=("MODEL.BOXMASK.EDGE_",),
    )
    input_help = "MODEL.BOXMASK.BOX_CHANNEL says whether it sees the box."

    pixel_mean: Tensor
    pixel_std: Tensor
    updates: Tensor

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
        teacher_start: int = 500,
        teacher_edges: bool = False,
        ema_decay: float = 0.998,
        backbone_lr_factor: float = 1.0,
        train_sizes: list[int] | None = None,
        train_size_steps: list[int] | None = None,
        windows: WindowInference | None = None,
    ) -> None:
        """
        Args:
            backbone: gives the maps ``in_features``, of strides 2 to 32, finest first.
            decoder_channels, fine_channels: see :class:`boxsup_d2.modeling.boxmask.network.Decoder`.
            pixel_mean, pixel_std: per channel, for images in 0..255.
            loss_weights: of "pixel", "overlap", "projection", "teacher" and "quality".
            box_channel: whether the backbone sees the box, in a channel in front of the image's.
            boundary_weight: see :func:`boxsup_d2.modeling.boxmask.losses.boundary_weights`.
            teacher_start: updates before the averaged network teaches.
            teacher_edges: snap what it teaches to the image's edges.
            ema_decay: of the averaged network, per update; 0: there is none.
            backbone_lr_factor: see :meth:`lr_factors`.
            train_sizes, train_size_steps: sides that samples are shrunk to, and the updates from which they count.
            windows: how boxes are looked at in evaluation.
        """
        super().__init__()
        self.net = BoxMaskNetwork(backbone, in_features, decoder_channels, fine_channels, box_channel)
        self.average: BoxMaskNetwork | None = None
        if ema_decay > 0:
            self.average = copy.deepcopy(self.net).requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        # The same on the host: to read the buffer is to wait for the GPU, which every update would do.
        self._updates = 0
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        self.loss_weights = loss_weights
        self.boundary_weight = boundary_weight
        self.teacher_start = teacher_start
        self.teacher_edges = teacher_edges
        self.ema_decay = ema_decay
        self.backbone_lr_factor = backbone_lr_factor
        self.train_sizes = list(zip(train_size_steps or [], train_sizes or [], strict=True))
        self.windows = windows or WindowInference()

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
                "teacher": node.TEACHER_WEIGHT,
                "quality": node.QUALITY_WEIGHT,
            },
            "box_channel": node.BOX_CHANNEL,
            "boundary_weight": node.BOUNDARY_WEIGHT,
            "teacher_start": node.TEACHER_START,
            "teacher_edges": node.TEACHER_EDGES,
            "ema_decay": node.EMA_DECAY,
            "backbone_lr_factor": node.BACKBONE_LR_FACTOR,
            "train_sizes": list(node.TRAIN_SIZES),
            "train_size_steps": list(node.TRAIN_SIZE_STEPS),
            "windows": WindowInference.from_config(cfg),
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def input_convolution(self) -> str:
        """Weight of the first convolution, which ImageNet weights of three channels are grown to."""
        return "net.backbone.net.conv_stem.weight"

    @property
    def pretrained_prefix(self) -> str:
        """Where the parameters of a backbone's own checkpoint belong; the average takes them from there."""
        return "net.backbone.net."

    def lr_factors(self) -> dict[str, float]:
        """The backbone comes trained and learns more slowly than the rest."""
        return {"net.backbone": self.backbone_lr_factor}

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: in training, dicts of ``image`` (3 x S x S uint8), ``box``, ``mask`` and ``void`` (S x S
                uint8, coverage in 0..255) and ``has_mask`` (bool; False: ``mask`` says nothing). In evaluation, dicts
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
        self.update_average()
        # Those with masks first, so that they are a slice.
        batched_inputs = sorted(batched_inputs, key=lambda x: not x["has_mask"])
        known = sum(bool(x["has_mask"]) for x in batched_inputs)
        images = self.normalize(torch.stack([x["image"] for x in batched_inputs]))
        boxes, masks, void = (
            torch.stack([x[key] for x in batched_inputs])[:, None].to(self.device).float() / 255
            for key in ("box", "mask", "void")
        )
        side = next((s for step, s in reversed(self.train_sizes) if self._updates >= step), images.shape[-1])
        if side != images.shape[-1]:
            images = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
            boxes = F.interpolate(boxes, (side, side), mode="bilinear", antialias=True).clamp(0, 1)

        logits, quality = self.net(images, boxes)
        masks, void, inner = (F.interpolate(maps, logits.shape[-2:], mode="area") for maps in (masks, void, boxes))
        masks, counted = masks[:known], 1 - void[:known]
        weights = losses.boundary_weights(masks, self.boundary_weight) * counted
        pixel, overlap = losses.pixel_and_overlap_losses(logits[:known], masks, weights)
        unknown = logits[known:]
        teacher = unknown.sum() * 0
        if self.average is not None and known < len(logits) and self._updates >= self.teacher_start:
            taught = self.teach(self.average, images[known:], boxes[known:])
            teacher = losses.teacher_loss(unknown, taught, inner[known:])
        truth = losses.hard_iou(logits[:known], masks, counted)
        judged = F.binary_cross_entropy_with_logits(quality[:known], truth) if known else quality.sum() * 0
        found = {
            "pixel": pixel,
            "overlap": overlap,
            "projection": losses.projection_loss(unknown, inner[known:]),
            "teacher": teacher,
            "quality": judged,
        }
        return {f"loss_{name}": self.loss_weights[name] * value for name, value in found.items()}

    @torch.no_grad()
    def teach(self, network: BoxMaskNetwork, images: Tensor, boxes: Tensor) -> Tensor:
        """N x 1 x h x h probabilities that the network gives normalised images, for another one to learn from."""
        logits = network(images, boxes)[0].float()
        if self.teacher_edges:
            pixels = images * self.pixel_std + self.pixel_mean
            # Not by the EDGE_ keys, which decide predictions and no weights.
            logits = F.interpolate(snap_to_edges(logits, pixels), logits.shape[-2:], mode="area")
        return logits.sigmoid()

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the averaged network towards the network; a young average forgets faster."""
        decay = min(self.ema_decay, self._updates / (self._updates + 10))
        self.updates += 1
        self._updates += 1
        if self.average is None:
            return
        for mean, value in zip(self.average.parameters(), self.net.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)
        for mean_buffer, buffer in zip(self.average.buffers(), self.net.buffers(), strict=True):
            if mean_buffer.is_floating_point():
                mean_buffer.lerp_(buffer, 1 - decay)
            else:
                mean_buffer.copy_(buffer)
        self.average.eval()

    def train(self, mode: bool = True) -> "BoxMask":
        super().train(mode)
        if self.average is not None:
            self.average.eval()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # Shipped and pretrained weights hold one network, which both start from.
        average = prefix + "average."
        if self.average is not None and not any(key.startswith(average) for key in state_dict):
            net = prefix + "net."
            state_dict.update({average + k[len(net) :]: v for k, v in list(state_dict.items()) if k.startswith(net)})
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._updates = int(self.updates)

    def inference_state(self) -> dict[str, Tensor]:
        """The network that predicts, once; the average starts from it (:meth:`_load_from_state_dict`)."""
        network = self.net if self.average is None else self.average
        return {"updates": self.updates, **{f"net.{name}": value for name, value in network.state_dict().items()}}

    def only_predict(self) -> None:
        self.net, self.average = self.net if self.average is None else self.average, None
        example = [self.pixel_mean.new_zeros((1, channels, 64, 64)) for channels in (3, 1)]
        fold_batch_norms(self.net.eval(), *example)

    def normalize(self, images: Tensor) -> Tensor:
        """N x 3 x S x S images in 0..255, on any device, as the network's input."""
        images = images.to(self.device, torch.float32, non_blocking=True, memory_format=torch.channels_last)
        return (images - self.pixel_mean) / self.pixel_std

    def look(self, images: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """The network that predicts; see :data:`boxsup_d2.modeling.boxmask.inference.Look`."""
        network = self.net if self.average is None else self.average
        return network(self.normalize(images), boxes.to(self.device))

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Masks of all boxes of a batch of images; see :meth:`forward`."""
        predictions = []
        for x in batched_inputs:
            boxes = x["instances"].gt_boxes.tensor
            size = (x["height"], x["width"])
            patches, scores, quality = self.windows.predict(self.look, x["image"], boxes, size)
            masks = cut_patches(patches, *size)
            prompt = x["instances"]
            # Without a box nothing was computed on the device.
            scores, quality = scores.to(self.device), quality.to(self.device)
            instances = box_to_mask_instances(masks, prompt.gt_boxes.tensor, prompt.gt_classes, scores, size)
            instances.quality = quality
            predictions.append({"instances": instances, "patches": patches})
        return predictions
