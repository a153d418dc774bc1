"""BoxMask: a class-agnostic network for the box-to-mask contract, trained on whatever masks there are.

It sees a box with some of its surroundings and is told where the box is; it predicts a mask and the IoU that
it expects of it. Boxes without masks teach by their projections and by what the averaged network thinks of them.

Shape legend: N samples or windows, S their side, h = S / 2, B the boxes of one image.
"""

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from torch import Tensor

from boxsup_d2.masks.paste import MaskPatch, cut_patches, paste_patches
from boxsup_d2.masks.windows import Box, Window, box_coverage, box_window, clip_box, cut_window
from boxsup_d2.modeling.box_to_mask import BoxToMaskMethod, MethodInfo, box_to_mask_instances, mean_foreground
from boxsup_d2.modeling.boxmask import losses
from boxsup_d2.modeling.boxmask.edges import snap_to_edges
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
        config={
            "MODEL.BACKBONE.NAME": "build_timm_backbone",
            "MODEL.TIMM.NAME": "tf_efficientnet_lite2",
            "MODEL.TIMM.OUT_FEATURES": ["res1", "res2", "res3", "res4", "res5"],
            "MODEL.PIXEL_MEAN": [127.5, 127.5, 127.5],
            "MODEL.PIXEL_STD": [127.5, 127.5, 127.5],
            "INPUT.FORMAT": "RGB",
        },
        weights_key="MODEL.WEIGHTS",
        weights="package://boxsup_d2/model_zoo/weights/boxmask.safetensors",
        weights_sha256="11ee411cd0bf2c1a8cc3da7d48e97f0fd597d420001ada48d9ce9b7bed671c6e",
        recipe="zoo/boxmask.yaml",
        fast=("MODEL.BOXMASK.TEST_FLIP", False, "MODEL.BOXMASK.EDGE_STEPS", 0),
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
        ema_decay: float = 0.998,
        backbone_lr_factor: float = 1.0,
        train_sizes: list[int] | None = None,
        train_size_steps: list[int] | None = None,
        margin: float = 0.25,
        max_aspect: float = 2.0,
        test_sizes: list[int] | None = None,
        test_flip: bool = False,
        test_passes: int = 1,
        test_overrun: float = 0.1,
        edge_steps: int = 0,
        edge_weight: float = 4.0,
        edge_color: float = 12.0,
        test_windows_per_forward: int = 32,
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
            ema_decay: of the averaged network, per update; 0: there is none.
            backbone_lr_factor: see :meth:`lr_factors`.
            train_sizes, train_size_steps: sides that samples are shrunk to, and the updates from which they count.
            margin, max_aspect: see :func:`boxsup_d2.masks.windows.box_window`.
            test_sizes: sides of windows at inference, in pixels.
            test_flip: average with the mirrored window.
            test_passes: how often a box is looked at, from the second time on where the mask before was.
            test_overrun: share of a box's sides by which its mask may leave it.
            edge_steps, edge_weight, edge_color: see :func:`boxsup_d2.modeling.boxmask.edges.snap_to_edges`.
            test_windows_per_forward: windows per forward pass at inference.
        """
        super().__init__()
        self.net = BoxMaskNetwork(backbone, in_features, decoder_channels, fine_channels, box_channel)
        self.average: BoxMaskNetwork | None = None
        if ema_decay > 0:
            self.average = copy.deepcopy(self.net).requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        self.loss_weights = loss_weights
        self.boundary_weight = boundary_weight
        self.teacher_start = teacher_start
        self.ema_decay = ema_decay
        self.backbone_lr_factor = backbone_lr_factor
        self.train_sizes = list(zip(train_size_steps or [], train_sizes or [], strict=True))
        self.margin = margin
        self.max_aspect = max_aspect
        self.test_sizes = test_sizes or [128]
        self.test_flip = test_flip
        self.test_passes = test_passes
        self.test_overrun = test_overrun
        self.edge_steps = edge_steps
        self.edge_weight = edge_weight
        self.edge_color = edge_color
        self.test_windows_per_forward = test_windows_per_forward

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
            "ema_decay": node.EMA_DECAY,
            "backbone_lr_factor": node.BACKBONE_LR_FACTOR,
            "train_sizes": list(node.TRAIN_SIZES),
            "train_size_steps": list(node.TRAIN_SIZE_STEPS),
            "margin": cfg.INPUT.MASK_CROP.MARGIN,
            "max_aspect": cfg.INPUT.MASK_CROP.MAX_ASPECT,
            "test_sizes": list(node.TEST_SIZES),
            "test_flip": node.TEST_FLIP,
            "test_passes": node.TEST_PASSES,
            "test_overrun": node.TEST_OVERRUN,
            "edge_steps": node.EDGE_STEPS,
            "edge_weight": node.EDGE_WEIGHT,
            "edge_color": node.EDGE_COLOR,
            "test_windows_per_forward": node.TEST_WINDOWS_PER_FORWARD,
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
            input, whose ``pred_masks`` (B x height x width bool), ``pred_boxes``, ``pred_classes``, ``scores``,
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
        side = next((s for step, s in reversed(self.train_sizes) if self.updates >= step), images.shape[-1])
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
        if self.average is not None and known < len(logits) and self.updates >= self.teacher_start:
            with torch.no_grad():
                taught = self.average(images[known:], boxes[known:])[0].sigmoid()
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
    def update_average(self) -> None:
        """Move the averaged network towards the network; a young average forgets faster."""
        if self.average is None:
            self.updates += 1
            return
        count = int(self.updates)
        decay = min(self.ema_decay, count / (count + 10))
        self.updates += 1
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

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Masks of all boxes of a batch of images; see :meth:`forward`."""
        predictions = []
        for x in batched_inputs:
            boxes = x["instances"].gt_boxes.tensor
            patches, scores, quality = self.predict(x["image"], boxes, (x["height"], x["width"]))
            size = (x["height"], x["width"])
            masks = cut_patches(patches, *size, self.device)
            prompt = x["instances"]
            instances = box_to_mask_instances(masks, prompt.gt_boxes.tensor, prompt.gt_classes, scores, size)
            instances.quality = quality
            predictions.append({"instances": instances, "patches": patches})
        return predictions

    def predict(self, image: Tensor, boxes: Tensor, size: tuple[int, int]) -> tuple[list[MaskPatch], Tensor, Tensor]:
        """Masks of the boxes of one image.

        Args:
            image: 3 x H x W uint8.
            boxes: B x 4.
            size: (H, W).

        Returns:
            B patches, B mean foreground probabilities inside the masks, B predicted IoUs.
        """
        pixels = np.ascontiguousarray(image.cpu().numpy().transpose(1, 2, 0))
        corners = [clip_box(box, *size) for box in boxes.detach().cpu().double().tolist()]
        windows = [box_window(box, self.margin, self.max_aspect) for box in corners]
        prob, quality = self._window_predictions(pixels, corners, windows, mirror=False)
        for step in range(1, self.test_passes):
            # A user's box may be loose or too tight: the mask knows better where the object is.
            found = [_mask_box(p, window, box) for p, window, box in zip(prob, windows, corners, strict=True)]
            boxes_now = [clip_box(box, *size) for box in found]
            windows = [box_window(box, self.margin, self.max_aspect) for box in boxes_now]
            prob, judged = self._window_predictions(pixels, boxes_now, windows, mirror=step % 2 == 1)
            quality = (quality * step + judged) / (step + 1)
        patches = paste_patches(prob, torch.tensor(windows, dtype=torch.int64).reshape(-1, 4), *size)
        patches = [_cut_to_box(p, box, self.test_overrun) for p, box in zip(patches, corners, strict=True)]
        return patches, mean_foreground(prob, prob > 0.5), quality

    def _window_predictions(
        self, pixels: np.ndarray, boxes: list[Box], windows: list[Window], mirror: bool
    ) -> tuple[Tensor, Tensor]:
        """B x h x h probabilities and B predicted IoUs of boxes in their windows of an H x W x 3 image."""
        if not boxes:
            return self.pixel_mean.new_zeros((0, 1, 1)), self.pixel_mean.new_zeros(0)
        step = max(self.test_windows_per_forward // (2 if self.test_flip else 1), 1)
        starts = range(0, len(boxes), step)
        parts = [self._predict_windows(pixels, boxes[i : i + step], windows[i : i + step], mirror) for i in starts]
        return torch.cat([prob for prob, _ in parts]), torch.cat([quality for _, quality in parts])

    def _predict_windows(
        self, pixels: np.ndarray, boxes: list[Box], windows: list[Window], mirror: bool
    ) -> tuple[Tensor, Tensor]:
        """The same for as many as fit into the memory, averaged over sizes and flips."""
        network = self.net if self.average is None else self.average
        probs, qualities = [], []
        finest = max(self.test_sizes)
        for side in sorted(self.test_sizes):
            crops = torch.from_numpy(np.stack([cut_window(pixels, window, side) for window in windows]))
            images = crops.permute(0, 3, 1, 2)
            covers = torch.from_numpy(np.stack([box_coverage(b, w, side) for b, w in zip(boxes, windows, strict=True)]))
            normalized, covers = self.normalize(images), covers[:, None].to(self.device)
            flips = (False, True) if self.test_flip else (mirror,)
            # One pass for both: an image has few boxes, and a small batch costs more per window.
            seen = [torch.cat([x.flip(-1) if flip else x for flip in flips]) for x in (normalized, covers)]
            logits, quality = network(*seen)
            for flip, part in zip(flips, logits.float().sigmoid().chunk(len(flips)), strict=True):
                probs.append(_resize(part.flip(-1) if flip else part, finest // 2))
            qualities += quality.float().sigmoid().chunk(len(flips))
        prob, quality = torch.stack(probs).mean(0), torch.stack(qualities).mean(0)
        if self.edge_steps > 0:
            logits = _resize(prob.clamp(1e-4, 1 - 1e-4).logit(), finest)
            # The last size is the finest.
            refined = snap_to_edges(
                logits, images.to(self.device), steps=self.edge_steps, weight=self.edge_weight, color=self.edge_color
            )
            prob = refined.sigmoid()
        return prob[:, 0], quality


def _resize(maps: Tensor, side: int) -> Tensor:
    """Bilinear resize of N x 1 x h x h maps."""
    if maps.shape[-1] == side:
        return maps
    return F.interpolate(maps, (side, side), mode="bilinear", align_corners=False)


def _mask_box(prob: Tensor, window: Window, box: Box) -> Box:
    """Tight box, in the image's pixels, of what is above 1/2 in a window's h x h map; ``box`` where nothing is."""
    inside = prob > 0.5
    columns, rows = inside.any(0).nonzero()[:, 0].tolist(), inside.any(1).nonzero()[:, 0].tolist()
    if not columns:
        return box
    scale_x, scale_y = (window[2] - window[0]) / prob.shape[1], (window[3] - window[1]) / prob.shape[0]
    return (
        window[0] + columns[0] * scale_x,
        window[1] + rows[0] * scale_y,
        window[0] + (columns[-1] + 1) * scale_x,
        window[1] + (rows[-1] + 1) * scale_y,
    )


def _cut_to_box(patch: MaskPatch, box: Any, overrun: float) -> MaskPatch:
    """The part of a patch that lies in the box and a little beyond."""
    slack_x, slack_y = overrun * (box[2] - box[0]), overrun * (box[3] - box[1])
    height, width = patch.prob.shape
    left, top = max(int(box[0] - slack_x) - patch.left, 0), max(int(box[1] - slack_y) - patch.top, 0)
    right = min(int(np.ceil(box[2] + slack_x)) - patch.left, width)
    bottom = min(int(np.ceil(box[3] + slack_y)) - patch.top, height)
    return MaskPatch(patch.left + left, patch.top + top, patch.prob[top : max(bottom, top), left : max(right, left)])
