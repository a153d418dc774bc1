"""Semantic segmentation networks of the DeepLab kind: trained on label maps, predict class probabilities.

Shape legend: N images, C classes with the background, H x W pixels of the network's input, h x w logits.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, SemanticSegmentor
from detectron2.structures import ImageList
from torch import Tensor, nn

from boxsup_d2.masks.label_map import IGNORE_LABEL
from boxsup_d2.modeling.losses import pixel_cross_entropy
from boxsup_d2.modeling.visualization import is_picture_due, overlay_labels, put_picture, to_rgb


@META_ARCH_REGISTRY.register()
class DeepLabSegmenter(SemanticSegmentor):
    """A semantic segmentation network: backbone and head, at one scale or at several (MSC).

    With ``msc_scales`` the image also goes through the network at these scales; the result is the pixel-wise maximum of
    all logits, at the size of those of scale 1 (DeepLabV2). In training each scale and the maximum have a loss.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        num_classes: int,
        ignore_value: int = IGNORE_LABEL,
        loss_weight: float = 1.0,
        msc_scales: Sequence[float] = (),
        test_pad: int = 0,
        image_format: str = "BGR",
        vis_period: int = 0,
    ) -> None:
        """
        Args:
            backbone: any backbone of Detectron2's interface.
            sem_seg_head: has ``layers(features)``, the N x C x h x w logits of the backbone's maps.
            pixel_mean, pixel_std: per channel, for images in 0..255.
            num_classes: C.
            ignore_value: label without a loss.
            loss_weight: of every loss.
            msc_scales: further scales beside 1.
            test_pad: smaller images are padded to this side at inference, at the bottom and on the right.
            image_format: channel order of the images.
            vis_period: iterations between two pictures of training samples; 0: no pictures.
        """
        super().__init__(
            backbone=backbone, sem_seg_head=sem_seg_head, pixel_mean=tuple(pixel_mean), pixel_std=tuple(pixel_std)
        )
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.msc_scales = tuple(msc_scales)
        self.test_pad = test_pad
        self.image_format = image_format
        self.vis_period = vis_period

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.SEM_SEG_HEAD
        return {
            **super().from_config(cfg),
            "num_classes": node.NUM_CLASSES,
            "ignore_value": node.IGNORE_VALUE,
            "loss_weight": node.LOSS_WEIGHT,
            "msc_scales": node.MSC_SCALES,
            "test_pad": node.TEST_PAD,
            "image_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """
        Args:
            batched_inputs: in training, dicts of ``image`` (3 x H x W uint8, channels in ``INPUT.FORMAT`` order) and
                ``sem_seg`` (H x W int64, the class or ``ignore_value``). In evaluation, dicts of ``image``, and
                ``height`` and ``width`` of the output where they are not the image's.

        Returns:
            In training the dict of losses. In evaluation one ``{"sem_seg": C x height x width}`` per input, the
            probability of each class (0..1, sum 1).
        """
        return self.losses(batched_inputs) if self.training else self.inference(batched_inputs)

    def normalize(self, images: Tensor) -> Tensor:
        """Images (... x 3 x H x W) in 0..255, on any device, as the network's input."""
        return (images.to(self.device, torch.float32, non_blocking=True) - self.pixel_mean) / self.pixel_std

    def class_logits(self, images: Tensor) -> Tensor:
        """N x C x h x w logits of N x 3 x H x W images in 0..255; of several scales the pixel-wise maximum.

        Position (y, x) belongs to pixel (stride y, stride x): upsample with ``align_corners=True``.
        """
        return self.scale_logits(self.normalize(images))[-1]

    def scale_logits(self, inputs: Tensor) -> list[Tensor]:
        """Logits of every scale; the last ones are the result.

        Args:
            inputs: N x 3 x H x W, normalised.

        Returns:
            ``[logits]`` with one scale; with several ``[of scale 1, of each further scale, their maximum]``, all but
            the last at their own sizes.
        """
        logits = [self._logits(inputs)]
        if not self.msc_scales:
            return logits
        for scale in self.msc_scales:
            # As published, the factor maps pixels to pixels, and not the ratio of the rounded sizes.
            resized = F.interpolate(inputs, scale_factor=scale, mode="bilinear", align_corners=False)
            logits.append(self._logits(resized))
        best = logits[0]
        for other in logits[1:]:
            best = torch.maximum(best, F.interpolate(other, size=best.shape[-2:], mode="bilinear", align_corners=False))
        return [*logits, best]

    def _logits(self, inputs: Tensor) -> Tensor:
        height, width = inputs.shape[-2:]
        multiple = max(self.backbone.size_divisibility, 1)
        pad_y, pad_x = -height % multiple, -width % multiple
        inputs = F.pad(inputs, (0, pad_x, 0, pad_y)) if pad_x or pad_y else inputs
        logits = self.sem_seg_head.layers(self.backbone(inputs.contiguous(memory_format=torch.channels_last)))
        if pad_x or pad_y:
            stride_y = inputs.shape[-2] // logits.shape[-2]
            stride_x = inputs.shape[-1] // logits.shape[-1]
            logits = logits[..., : -(-height // stride_y), : -(-width // stride_x)]
        return logits

    def losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Cross-entropy of a training batch: ``loss_sem_seg``, and with several scales that of each and of the maximum.

        Always the same keys; zero, with a gradient, where every pixel is ignored.
        """
        multiple = self.backbone.size_divisibility
        # The padding is zero, which is the mean of normalised images.
        images = ImageList.from_tensors([self.normalize(x["image"]) for x in batched_inputs], multiple)
        labels = [x["sem_seg"].to(self.device, non_blocking=True) for x in batched_inputs]
        targets = ImageList.from_tensors(labels, multiple, self.ignore_value).tensor
        scales = {"loss_sem_seg": 1.0}
        if self.msc_scales:
            scales |= {f"loss_sem_seg_x{scale:g}": scale for scale in self.msc_scales} | {"loss_sem_seg_max": 1.0}
        predictions = self.scale_logits(images.tensor)
        if is_picture_due(self.vis_period):
            self.visualize_training(batched_inputs[0], predictions[-1][0], images.tensor.shape[-2:])
        return {
            name: self.loss_weight
            * pixel_cross_entropy(logits, reduce_labels(targets, logits.shape[-2:], scale), ignore=self.ignore_value)
            for (name, scale), logits in zip(scales.items(), predictions, strict=True)
        }

    def visualize_training(self, sample: dict[str, Any], logits: Tensor, padded: Sequence[int]) -> None:
        """Put a picture of a training image and its logits (C x h x w, of its ``padded`` size) into the storage."""
        image = to_rgb(sample["image"], self.image_format)
        height, width = image.shape[-2:]
        full = F.interpolate(logits.detach().float()[None], size=tuple(padded), mode="bilinear", align_corners=True)
        panels = [overlay_labels(image, x) for x in (sample["sem_seg"], full[0].argmax(dim=0)[:height, :width])]
        put_picture("Left to right: image; label map; prediction", [[image, *panels]])

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Class probabilities of a batch of images; see :meth:`forward`."""
        images = [self.normalize(x["image"]) for x in batched_inputs]
        side = self._test_side(max(x.shape[-2] for x in images)), self._test_side(max(x.shape[-1] for x in images))
        inputs = torch.stack([F.pad(x, (0, side[1] - x.shape[-1], 0, side[0] - x.shape[-2])) for x in images])
        logits = self.scale_logits(inputs)[-1].float()
        results = []
        for image, sample, own in zip(images, batched_inputs, logits, strict=True):
            height, width = image.shape[-2:]
            own = self._upsample(own[None], side)[..., :height, :width]
            size = (sample.get("height", height), sample.get("width", width))
            if size != (height, width):
                own = F.interpolate(own, size=size, mode="bilinear", align_corners=False)
            results.append({"sem_seg": own[0].softmax(dim=0)})
        return results

    def _upsample(self, logits: Tensor, side: tuple[int, int]) -> Tensor:
        """Logits at the size of their input, whose sides are from :meth:`_test_side`."""
        # Logits belong to pixels, not to blocks: see reduce_labels.
        if self.backbone.size_divisibility > 1:
            strides = [whole // own for whole, own in zip(side, logits.shape[-2:], strict=True)]
            size = [(own - 1) * stride + 1 for own, stride in zip(logits.shape[-2:], strides, strict=True)]
        else:
            size = list(side)
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=True)
        missing = (0, side[1] - size[1], 0, side[0] - size[0])
        return F.pad(logits, missing, mode="replicate") if any(missing) else logits

    def _test_side(self, side: int) -> int:
        """Side that an image's side is padded to: corners of the logits become corners of the input, if possible."""
        side = max(side, self.test_pad)
        multiple = self.backbone.size_divisibility
        if multiple > 1:
            return -(-side // multiple) * multiple
        stride = max(shape.stride for shape in self.backbone.output_shape().values())
        return -(-(side - 1) // stride) * stride + 1


def reduce_labels(labels: Tensor, size: Sequence[int], scale: float = 1.0) -> Tensor:
    """Labels of the pixels that logits belong to.

    Position (y, x) of a network's logits belongs to pixel (stride y, stride x) of its input; strides are powers of two.
    A resize by nearest neighbour would take other pixels: of 321 for 41 logits those at 7.83 y instead of 8 y, which is
    7 pixels off at the end.

    Args:
        labels: N x H x W, of the image at scale 1.
        size: h, w of the logits.
        scale: of the image that the logits are of.

    Returns:
        N x h x w.
    """
    rows, columns = (
        _positions(whole, own, scale, labels.device) for whole, own in zip(labels.shape[-2:], size, strict=True)
    )
    return labels[:, rows[:, None], columns]


def _positions(side: int, logits: int, scale: float, device: torch.device) -> Tensor:
    stride = 2 ** math.ceil(math.log2(int(side * scale) / logits))  # also where the side is no multiple of it
    # Images are scaled by the centres of pixels.
    centres = (stride * torch.arange(logits, device=device) + 0.5) / scale - 0.5
    return centres.round().long().clamp(0, side - 1)


class SemanticSegmenterWithTTA(nn.Module):
    """Test-time augmentation of any segmenter: the mean over scales and, optionally, the mirrored image."""

    def __init__(self, model: nn.Module, scales: Sequence[float] = (1.0,), flip: bool = False) -> None:
        """
        Args:
            model: gives for dicts of ``image``, ``height`` and ``width`` dicts of ``sem_seg``, C x height x width
                probabilities.
            scales: factors on the image's sides.
            flip: predict the mirrored image as well.

        Raises:
            ValueError: there is no scale, or one that is not positive.
        """
        super().__init__()
        if not scales or min(scales) <= 0:
            raise ValueError(f"TEST.SEM_SEG_SCALES is {tuple(scales)}: give positive factors, (1.0,) for one scale")
        self.model = model
        self.scales = tuple(scales)
        self.flip = flip
        # Detectron2 restores this mode after an evaluation.
        self.training = model.training

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One ``{"sem_seg": C x height x width}`` per input dict."""
        return [{"sem_seg": self._average(sample)} for sample in batched_inputs]

    def _average(self, sample: dict[str, Any]) -> Tensor:
        image = sample["image"].float()
        total: Tensor | None = None
        for scale in self.scales:
            size = [max(round(side * scale), 1) for side in image.shape[-2:]]
            resized = image
            if tuple(size) != tuple(image.shape[-2:]):
                resized = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
            output_size = {
                "height": sample.get("height", image.shape[-2]),
                "width": sample.get("width", image.shape[-1]),
            }
            views = [resized, resized.flip(-1)] if self.flip else [resized]
            probs = [x["sem_seg"] for x in self.model([{**output_size, "image": view} for view in views])]
            mean = (probs[0] + probs[1].flip(-1)) / 2 if self.flip else probs[0]
            total = mean if total is None else total + mean
        assert total is not None
        return total / len(self.scales)
