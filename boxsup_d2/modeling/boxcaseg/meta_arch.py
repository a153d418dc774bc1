"""BoxCaseg: a class-agnostic network from boxes to masks (Wang et al., CVPR 2021, arXiv 2104.01526).

Training takes crops around boxes, with nothing but the box as label, together with salient images and their masks.
Inference takes images with box prompts and predicts one mask per box (see docs/boxcaseg.md).

Shape legend: N images or crops of a batch, S the side of a crop, B the boxes of one image.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from torch import Tensor, nn

from boxsup_d2.masks.paste import cut_patches, min_max_normalize, paste_patches
from boxsup_d2.modeling.box_to_mask import (
    BoxToMaskMethod,
    MethodInfo,
    box_to_mask_instances,
    mean_foreground,
    truncate_boxes,
)
from boxsup_d2.modeling.boxcaseg.checkpoint import PIXEL_MEAN, PIXEL_STD, PUBLISHED
from boxsup_d2.modeling.boxcaseg.heads import PixelHead, SalientHead
from boxsup_d2.modeling.losses import box_projection_mil_loss, pairwise_smoothness_loss, pseudo_label_loss, salient_loss
from boxsup_d2.modeling.visualization import is_picture_due, overlay_mask, put_picture, to_rgb


@META_ARCH_REGISTRY.register()
class BoxCaseg(BoxToMaskMethod):
    """Backbone, box head and salient head, their losses, and inference from boxes to masks."""

    info = MethodInfo(
        name="boxcaseg",
        summary="a network trained on boxes, and on salient objects",
        config={
            "MODEL.BACKBONE.NAME": "build_timm_backbone",
            "MODEL.TIMM.NAME": "hrnet_w48",
            "MODEL.PIXEL_MEAN": PIXEL_MEAN,
            "MODEL.PIXEL_STD": PIXEL_STD,
            "INPUT.FORMAT": "RGB",
        },
        weights_key="MODEL.WEIGHTS",
        weights="package://boxsup_d2/model_zoo/weights/boxcaseg.safetensors",
        weights_sha256="374f48164c343209ac46d56468b47ff3062e1a39f9c58039928fb0e3f5beb725",
        recipe="quick/voc-joint.yaml",
        neutral_keys=("MODEL.BOXCASEG.TEST_CROPS_PER_FORWARD",),
        published=PUBLISHED,
    )

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: list[str],
        head_channels: int,
        alpha: float,
        pixel_mean: list[float],
        pixel_std: list[float],
        loss_weights: dict[str, float],
        pseudo_label_thresholds: tuple[float, float] = (0.85, 0.05),
        test_size: int = 320,
        test_head: str = "salient",
        test_minmax: bool = True,
        test_flip: bool = False,
        test_threshold: float = 0.5,
        test_crops_per_forward: int = 32,
        antialias: bool = False,
        image_format: str = "BGR",
        vis_period: int = 0,
    ) -> None:
        """
        Args:
            backbone: gives the maps ``in_features``, which are upsampled to the finest of them and concatenated.
            head_channels: hidden channels of the heads; 0: as many as the concatenated maps have.
            alpha: share of the salient head's own branch, in 0..1.
            pixel_mean, pixel_std: per channel, for images in 0..255.
            loss_weights: of "mil", "pairwise", "salient" and "pseudo_label".
            pseudo_label_thresholds: (foreground above, background below).
            test_size: side that a box is resized to at inference, in pixels.
            test_head: "salient" or "box".
            test_minmax: stretch the probabilities of every crop to 0..1.
            test_flip: average with the mirrored crop.
            test_threshold: foreground above it.
            test_crops_per_forward: crops per forward pass at inference.
            antialias: average over the pixels that a shrinking crop merges.
            image_format: channel order of the images.
            vis_period: iterations between two pictures of training samples; 0: none.
        """
        super().__init__()
        if test_head not in ("salient", "box"):
            raise ValueError(f"MODEL.BOXCASEG.TEST_HEAD must be 'salient' or 'box', not '{test_head}'")
        self.backbone = backbone
        self.in_features = in_features
        channels = sum(backbone.output_shape()[name].channels for name in in_features)
        hidden = head_channels or channels
        self.box_head = PixelHead(channels, hidden)
        self.salient_head = SalientHead(channels, hidden, alpha)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        self.loss_weights = loss_weights
        self.pseudo_label_thresholds = pseudo_label_thresholds
        self.test_size = test_size
        self.test_head = test_head
        self.test_minmax = test_minmax
        self.test_flip = test_flip
        self.test_threshold = test_threshold
        self.test_crops_per_forward = test_crops_per_forward
        self.antialias = antialias
        self.image_format = image_format
        self.vis_period = vis_period

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.BOXCASEG
        return {
            "backbone": build_backbone(cfg),
            "in_features": list(node.IN_FEATURES),
            "head_channels": node.HEAD_CHANNELS,
            "alpha": node.ALPHA,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "loss_weights": {
                "mil": node.MIL_WEIGHT,
                "pairwise": node.PAIRWISE_WEIGHT,
                "salient": node.SALIENT_WEIGHT,
                "pseudo_label": node.PSEUDO_LABEL_WEIGHT,
            },
            "pseudo_label_thresholds": (node.PSEUDO_LABEL_FG, node.PSEUDO_LABEL_BG),
            "test_size": cfg.INPUT.BOX_CROP.TEST_SIZE,
            "test_head": node.TEST_HEAD,
            "test_minmax": node.TEST_MINMAX,
            "test_flip": node.TEST_FLIP,
            "test_threshold": node.TEST_THRESHOLD,
            "test_crops_per_forward": node.TEST_CROPS_PER_FORWARD,
            "antialias": cfg.INPUT.BOX_CROP.ANTIALIAS,
            "image_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: in training, dicts of ``image`` (3 x S x S uint8, channels in ``INPUT.FORMAT`` order),
                ``mask`` (S x S uint8, 0 or 1: the box's pixels in a box crop, the object's in a salient image) and
                ``is_salient`` (bool). In evaluation, dicts of ``image`` (3 x H x W uint8, not resized), ``height``,
                ``width``, and ``instances`` with ``gt_boxes`` (B x 4, in ``image``'s pixels) and ``gt_classes``.

        Returns:
            In training the dict of losses. In evaluation one ``{"instances": Instances, "patches": [MaskPatch]}`` per
            input, whose ``pred_masks`` (``BoxMasks``), ``pred_boxes``, ``pred_classes``, ``scores`` and
            patches are those of the boxes, in order.
        """
        return self.losses(batched_inputs) if self.training else self.inference(batched_inputs)

    def normalize(self, images: Tensor) -> Tensor:
        """N x 3 x S x S images in 0..255, on any device, as the network's input."""
        images = images.to(self.device, torch.float32, non_blocking=True, memory_format=torch.channels_last)
        return (images - self.pixel_mean) / self.pixel_std

    def features(self, images: Tensor) -> Tensor:
        """N x C x S/4 x S/4 map of N x 3 x S x S normalised images: the levels side by side, at the finest's size."""
        maps = self.backbone(images)
        finest = maps[self.in_features[0]]
        return torch.cat([_resize(maps[name], finest.shape[-2:]) for name in self.in_features], dim=1)

    def losses(self, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """The weighted losses of a training batch, always the same keys (section 3 of the paper)."""
        # Salient images first, so that their share of the batch is a slice and no index has to reach the GPU.
        batched_inputs = sorted(batched_inputs, key=lambda x: not x["is_salient"])
        num_salient = sum(bool(x["is_salient"]) for x in batched_inputs)
        images = self.normalize(torch.stack([x["image"] for x in batched_inputs]))
        masks = torch.stack([x["mask"] for x in batched_inputs]).to(self.device, torch.float32, non_blocking=True)[
            :, None
        ]

        features = self.features(images)
        box_logits = _resize(self.box_head(features), masks.shape[-2:])
        # The pseudo-label loss teaches the salient head on every image; without it, only salient ones reach it.
        teach_all = self.loss_weights["pseudo_label"] > 0
        num_seen = len(batched_inputs) if teach_all else num_salient
        salient_logits = _resize(self._salient_logits(features[:num_seen]), masks.shape[-2:])
        if is_picture_due(self.vis_period):
            self.visualize_training(batched_inputs, box_logits, salient_logits)

        losses = {
            "loss_mil": self.loss_weights["mil"] * box_projection_mil_loss(box_logits, masks),
            "loss_pairwise": self.loss_weights["pairwise"] * pairwise_smoothness_loss(box_logits),
            "loss_salient": self.loss_weights["salient"]
            * salient_loss(salient_logits[:num_salient], masks[:num_salient]),
        }
        if teach_all:
            fg, bg = self.pseudo_label_thresholds
            losses["loss_pseudo_label"] = self.loss_weights["pseudo_label"] * pseudo_label_loss(
                salient_logits, box_logits, foreground=fg, background=bg
            )
        return losses

    def visualize_training(self, batched_inputs: list[dict], box_logits: Tensor, salient_logits: Tensor) -> None:
        """Put a salient image and a box crop into the event storage, as far as the batch has them.

        Args:
            batched_inputs: of the batch, salient images first.
            box_logits: N x 1 x S x S, of the box head.
            salient_logits: of the salient head, of the first images or of all.
        """
        rows = []
        for is_salient in (True, False):
            index = next((i for i, x in enumerate(batched_inputs) if bool(x["is_salient"]) == is_salient), None)
            if index is not None:
                image = to_rgb(batched_inputs[index]["image"], self.image_format)
                probs = [logits[index, 0].sigmoid() for logits in (box_logits, salient_logits) if index < len(logits)]
                panels = [overlay_mask(image, x) for x in (batched_inputs[index]["mask"], *probs)]
                # Grey where the salient head was not asked.
                rows.append([image, *panels, *[torch.full_like(image, 128)] * (2 - len(probs))])
        put_picture("Left to right: sample; box or true mask; box head; salient head", rows)

    def _salient_logits(self, features: Tensor) -> Tensor:
        """Salient head on the salient share of a training batch, which may be empty on this rank or on all."""
        if isinstance(self.salient_head.transfer_bn, nn.SyncBatchNorm) and dist.is_initialized():
            # SyncBatchNorm copes with an empty rank, not with a batch that is empty everywhere.
            total = torch.tensor([features.shape[0]], device=features.device)
            dist.all_reduce(total)
            if total.item() == 0:
                return self.salient_head(features, self.box_head, sync=False)
        return self.salient_head(features, self.box_head)

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Masks of all boxes of a batch of images (section 3.4); see :meth:`forward`."""
        # The prompts lie on the CPU, so their corners are read without waiting for the device.
        boxes = [truncate_boxes(x["instances"].gt_boxes.tensor, tuple(x["image"].shape[-2:])) for x in batched_inputs]
        probs = self._probabilities([x["image"] for x in batched_inputs], boxes)
        counts = [len(b) for b in boxes]
        values = min_max_normalize(probs) if self.test_minmax else probs
        return [
            self._prediction(x, b, p, v)
            for x, b, p, v in zip(batched_inputs, boxes, probs.split(counts), values.split(counts), strict=True)
        ]

    def _probabilities(self, images: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """B x h x w probabilities of the boxes of all images, one after the other."""
        counts, corners = torch.tensor([len(own) for own in boxes]), torch.cat(boxes)
        owners = torch.arange(len(boxes)).repeat_interleave(counts)
        probs = []
        # Crops are cut when it is their turn: those of thousands of boxes are gigabytes.
        for part in torch.arange(len(owners)).split(self.test_crops_per_forward) if len(owners) else ():
            own = owners[part]
            crops = [self.crop_boxes(images[i], corners[part[own == i]]) for i in own.unique().tolist()]
            probs.append(self.predict_crops(torch.cat(crops)))
        return torch.cat(probs) if probs else self.pixel_mean.new_zeros((0, 1, 1))

    def _prediction(self, inputs: dict, boxes: Tensor, probs: Tensor, values: Tensor) -> dict[str, Any]:
        """Paste the stride-4 maps of one image's boxes (B x h x w) into its frame."""
        prompt = inputs["instances"]
        size = (inputs["height"], inputs["width"])
        # Moved so that 1/2 decides, as others expect of probabilities.
        patches = paste_patches(values + (0.5 - self.test_threshold), boxes, *size)
        masks = cut_patches(patches, *size)
        # A map without a pixel above the threshold pastes to an empty mask, whose score is 0.
        scores = mean_foreground(probs, values > self.test_threshold)
        instances = box_to_mask_instances(masks, prompt.gt_boxes.tensor, prompt.gt_classes, scores, size)
        return {"instances": instances, "patches": patches}

    def crop_boxes(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Cut boxes out of an image and resize each to the network's input.

        Args:
            image: 3 x H x W uint8.
            boxes: B x 4 whole-pixel corners inside the image, from :func:`truncate_boxes`.

        Returns:
            B x 3 x test_size x test_size in 0..255, bilinear, whole grey levels as in training, whose steps the network
            has learnt to see in smooth areas: uint8 on the CPU, whose resize is four times as fast in it and stays
            within a grey level, float32 on the GPU, which has none for uint8.
        """
        image = image.to(self.device)[None].contiguous(memory_format=torch.channels_last)
        if not image.is_cpu:
            image = image.float()
        size = (self.test_size, self.test_size)
        crops = [
            F.interpolate(image[..., y0:y1, x0:x1], size, mode="bilinear", antialias=self.antialias)
            for x0, y0, x1, y1 in boxes.tolist()
        ]
        cut = torch.cat(crops) if crops else image.new_zeros((0, 3, *size))
        return cut.round_() if cut.is_floating_point() else cut

    def predict_crops(self, crops: Tensor) -> Tensor:
        """N x h x w probabilities in 0..1, at stride 4, of N x 3 x S x S crops in 0..255."""
        if len(crops) == 0:
            return self.pixel_mean.new_zeros((0, 1, 1))
        probs = self._predict(self.normalize(crops))
        if self.test_flip:
            probs = (probs + self._predict(self.normalize(crops.flip(-1))).flip(-1)) / 2
        return probs

    def _predict(self, images: Tensor) -> Tensor:
        features = self.features(images)
        logits = self.box_head(features) if self.test_head == "box" else self.salient_head(features, self.box_head)
        return logits.float().sigmoid()[:, 0]


def _resize(maps: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Bilinear resize of N x C x H x W maps; a batch of none keeps its gradient connection."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    if maps.shape[0] == 0:
        # interpolate() refuses an empty batch.
        return maps[..., :1, :1].expand(*maps.shape[:2], *size)
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
