"""LPG: a class-agnostic generator of class masks from boxes (Xie et al., arXiv 2103.05463).

The generator sees an image, the boxes of one class as one more channel, and from round 2 on the probability that the
previous round's segmenter gives to that class; it predicts which pixels are the class's. It learns on classes that have
masks and labels those that have only boxes.

Shape legend: N samples (one per image and class), S the side of a training sample, B the boxes and K the classes
present in one image, H×W an image, h×w the padded size.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from torch import Tensor, nn

from boxsup_d2.masks.paste import MaskPatch, cut_patches
from boxsup_d2.modeling.box_to_mask import (
    AuxiliaryNetwork,
    BoxToMaskMethod,
    MethodInfo,
    box_to_mask_instances,
    first_convolution,
    mean_foreground,
)
from boxsup_d2.modeling.losses import pixel_cross_entropy
from boxsup_d2.modeling.lpg.checkpoint import PIXEL_MEAN, PIXEL_STD, PUBLISHED
from boxsup_d2.modeling.lpg.class_prompts import ClassPrompts, first_claim_labels
from boxsup_d2.modeling.lpg.frozen_segmenter import FrozenSegmenter, check_segmenter, load_segmenter_config
from boxsup_d2.modeling.lpg.hourglass import HourglassBackbone
from boxsup_d2.modeling.lpg.windows import Window
from boxsup_d2.modeling.visualization import is_picture_due, overlay_mask, put_picture, to_rgb


@META_ARCH_REGISTRY.register()
class LPG(BoxToMaskMethod):
    """Backbone and head of the generator, its loss, and inference from boxes to class masks."""

    info = MethodInfo(
        name="lpg",
        summary="a network that learned on other classes' masks",
        config={
            "MODEL.BACKBONE.NAME": "build_hourglass_backbone",
            "MODEL.PIXEL_MEAN": PIXEL_MEAN,
            "MODEL.PIXEL_STD": PIXEL_STD,
            "INPUT.FORMAT": "BGR",
        },
        weights_key="MODEL.WEIGHTS",
        weights="package://boxsup_d2/model_zoo/weights/lpg.safetensors",
        weights_sha256="3d9843e0a5c423692e8298ef2095fc36872a362014ef0e22136f89bd84d8bb1d",
        recipe="quick/lpg-generator.yaml",
        neutral_keys=("MODEL.LPG.TEST_SAMPLES_PER_FORWARD",),
        auxiliary=(
            AuxiliaryNetwork(
                step_field="SEGMENTER",
                config_key="MODEL.LPG.SEGMENTER_CONFIG",
                weights_key="MODEL.LPG.SEGMENTER_WEIGHTS",
                read_config=load_segmenter_config,
                check=check_segmenter,
            ),
        ),
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
        pixel_mean: list[float],
        pixel_std: list[float],
        image_format: str = "BGR",
        segmenter: FrozenSegmenter | None = None,
        train_dataset: str = "",
        test_samples_per_forward: int = 8,
        test_flip: bool = False,
        vis_period: int = 0,
    ) -> None:
        """
        Args:
            backbone: takes the channels [class probability if there is a segmenter, box mask, image].
            in_features: its maps that the head sees, upsampled to the first, which has stride 4, and concatenated.
            head_channels: hidden channels of the head.
            pixel_mean, pixel_std: per image channel, for images in 0..255.
            image_format: channel order of the images.
            segmenter: gives the class probability; None: the generator of the first round, without one.
            train_dataset: registered data set whose classes the training samples' ``class_id`` counts.
            test_samples_per_forward: samples of up to 512×512 pixels per forward pass at inference, >= 1.
            test_flip: average with the mirrored sample.
            vis_period: iterations between two pictures of training samples; 0: none.

        Raises:
            ValueError: the backbone lacks a feature, the first is not of stride 4, or a number is out of its range.
        """
        super().__init__()
        shapes = backbone.output_shape()
        if not in_features or not set(in_features) <= set(shapes):
            raise ValueError(f"MODEL.LPG.IN_FEATURES is {in_features}, the backbone gives {sorted(shapes)}")
        if shapes[in_features[0]].stride != 4:
            raise ValueError(
                f"MODEL.LPG.IN_FEATURES begins with '{in_features[0]}' of stride {shapes[in_features[0]].stride}: the "
                "training targets have stride 4"
            )
        if test_samples_per_forward < 1:
            raise ValueError(f"MODEL.LPG.TEST_SAMPLES_PER_FORWARD is {test_samples_per_forward}: at least 1 is needed")
        self.backbone = backbone
        self.in_features = in_features
        channels = sum(shapes[name].channels for name in in_features)
        self.head = nn.Sequential(
            nn.Conv2d(channels, head_channels, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(head_channels, 2, 1)
        )
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        self.image_format = image_format
        self.segmenter = segmenter
        self.train_dataset = train_dataset
        self.test_samples_per_forward = test_samples_per_forward
        self.test_flip = test_flip
        self.vis_period = vis_period
        # Segmenter channels by class names, looked up once per data set.
        self._channels: dict[tuple[str, ...], list[int]] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.LPG
        if node.SEGMENTER_WEIGHTS and not node.SEGMENTER_CONFIG:
            raise ValueError(
                "MODEL.LPG.SEGMENTER_WEIGHTS is set without MODEL.LPG.SEGMENTER_CONFIG, the config that they were "
                "trained with: name both, or neither for a generator that sees the boxes alone"
            )
        segmenter = (
            FrozenSegmenter.load(node.SEGMENTER_CONFIG, node.SEGMENTER_WEIGHTS) if node.SEGMENTER_CONFIG else None
        )
        channels = len(cfg.MODEL.PIXEL_MEAN) + (1 if segmenter is None else 2)
        return {
            "backbone": build_backbone(cfg, ShapeSpec(channels=channels)),
            "in_features": list(node.IN_FEATURES),
            "head_channels": node.HEAD_CHANNELS,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "image_format": cfg.INPUT.FORMAT,
            "segmenter": segmenter,
            "train_dataset": cfg.DATASETS.TRAIN[0] if cfg.DATASETS.TRAIN else "",
            "test_samples_per_forward": node.TEST_SAMPLES_PER_FORWARD,
            "test_flip": node.TEST_FLIP,
            "vis_period": cfg.VIS_PERIOD,
        }

    @property
    def device(self) -> torch.device:
        """Where inputs are moved to."""
        return self.pixel_mean.device

    @property
    def in_channels(self) -> int:
        """Channels of the network's input: 4, or 5 with a segmenter."""
        return len(self.pixel_mean) + (1 if self.segmenter is None else 2)

    # Of a checkpoint with another number of input channels.
    input_help = (
        "An LPG generator that was trained with a segmenter (5 input channels) needs MODEL.LPG.SEGMENTER_CONFIG and "
        "MODEL.LPG.SEGMENTER_WEIGHTS; one without (4) must not have them."
    )

    @property
    def input_convolution(self) -> str:
        """Parameter that grows when a checkpoint knows fewer input channels; "" if there is none."""
        return first_convolution(self.backbone, "backbone", self.in_channels)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """
        Args:
            batched_inputs: in training, dicts of ``image`` (3×S×S uint8), ``box_mask`` (S×S bool, the union of one
                class's boxes), ``target`` (S/4×S/4 uint8: 1 that class, 0 another, 255 ignored) and ``class_id``. In
                evaluation, dicts of ``image`` (3×H×W uint8, not resized; of any size each) and ``instances`` with
                ``gt_boxes`` (B×4, in ``image``'s pixels) and ``gt_classes``; ``num_classes`` of the data set, without
                which the largest class of the image counts; and, for a segmenter, ``class_names``.

        Returns:
            In training ``{"loss_mask": ...}``. In evaluation per input a dict of

            * ``instances``: ``pred_masks`` (``BoxMasks``: the mask of the box's class inside the box), ``pred_boxes``,
              ``pred_classes`` and ``scores`` are those of the boxes, in order;
            * ``patches``: of every box a :class:`boxsup_d2.masks.paste.MaskPatch`;
            * ``label_map``: H×W int32, 0 the background, else 1 + class; where classes claim one pixel, the one that
              comes first among the boxes keeps it.
        """
        return self.losses(batched_inputs) if self.training else self.inference(batched_inputs)

    def network_input(self, images: Tensor, masks: Tensor, probabilities: Tensor | None) -> Tensor:
        """Input of the backbone, N×(4 or 5)×h×w.

        Args:
            images: N×3×h×w float in 0..255.
            masks: N×h×w, 1 inside the boxes.
            probabilities: N×h×w in 0..1; None without a segmenter.
        """
        front = masks[:, None] if probabilities is None else torch.stack([probabilities, masks.float()], dim=1)
        normalised = (images - self.pixel_mean) / self.pixel_std
        return torch.cat([front.float(), normalised], dim=1).contiguous(memory_format=torch.channels_last)

    def logits(self, network_input: Tensor) -> Tensor:
        """N×2×h/4×w/4 logits (other, class) of N inputs from :meth:`network_input`."""
        maps = self.backbone(network_input)
        used = [maps[name] for name in self.in_features]
        size = used[0].shape[-2:]
        used[1:] = [F.interpolate(m, size=size, mode="bilinear", align_corners=False) for m in used[1:]]
        logits = self.head(torch.cat(used, dim=1) if len(used) > 1 else used[0])
        if self.training:
            # DDP waits for the gradient of every parameter, those of levels that the head does not see included.
            logits = logits + sum(m[:0].sum() for name, m in maps.items() if name not in self.in_features)
        return logits

    def losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The loss of a training batch: cross-entropy at stride 4.

        Raises:
            ValueError: the samples do not fit the network, or the segmenter does not know a class of the data set.
        """

        def stack(key: str, dtype: torch.dtype) -> Tensor:
            return torch.stack([x[key] for x in batched_inputs]).to(self.device, non_blocking=True).to(dtype)

        images, masks = stack("image", torch.float32), stack("box_mask", torch.float32)
        targets = stack("target", torch.long)
        side = max(self.backbone.size_divisibility, 4)
        if any(s % side for s in images.shape[-2:]) or any(
            4 * t != s for t, s in zip(targets.shape[-2:], images.shape[-2:], strict=True)
        ):
            raise ValueError(
                f"training samples of {tuple(images.shape[-2:])} pixels with targets of {tuple(targets.shape[-2:])}: "
                f"INPUT.CLASS_CROP.SIZE must be a multiple of {side}, and the targets a quarter of it"
            )
        probabilities = None
        if self.segmenter is not None:
            channels = self._segmenter_channels(self._training_classes(), f"DATASETS.TRAIN '{self.train_dataset}'")
            wanted = [channels[int(x["class_id"])] for x in batched_inputs]
            probabilities = self._class_probabilities(images, range(len(images)), wanted)
        logits = self.logits(self.network_input(images, masks, probabilities))
        if is_picture_due(self.vis_period):
            self.visualize_training(batched_inputs[0], logits[0])
        return {"loss_mask": pixel_cross_entropy(logits, targets)}

    def visualize_training(self, sample: dict[str, Any], logits: Tensor) -> None:
        """Put a training sample into the event storage, with its logits 2×S/4×S/4."""
        image = to_rgb(sample["image"], self.image_format)
        target, predicted = sample["target"] == 1, logits.float().softmax(dim=0)[1]
        panels = [overlay_mask(image, mask) for mask in (sample["box_mask"], target, predicted)]
        put_picture("Left to right: sample; boxes of a class; its true mask; prediction", [[image, *panels]])

    def _training_classes(self) -> Sequence[str]:
        metadata = MetadataCatalog.get(self.train_dataset) if self.train_dataset in MetadataCatalog else None
        names = metadata.get("thing_classes") if metadata is not None else None
        if not names:
            raise ValueError(
                f"DATASETS.TRAIN names '{self.train_dataset}', which is no registered data set with thing_classes: the "
                "segmenter of MODEL.LPG.SEGMENTER_CONFIG finds classes by name"
            )
        return names

    def _segmenter_channels(self, names: Sequence[str], wanted_by: str) -> list[int]:
        assert self.segmenter is not None
        key = tuple(names)
        if key not in self._channels:
            self._channels[key] = self.segmenter.channels_of(key, wanted_by)
        return self._channels[key]

    def _class_probabilities(self, images: Tensor, owners: Sequence[int], channels: Sequence[int]) -> Tensor:
        assert self.segmenter is not None
        return self.segmenter.class_probabilities(
            images, self.image_format, owners, channels, self.samples_at_once(images.shape[-2:])
        )

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Class masks of all boxes of a batch of images; see :meth:`forward`.

        Raises:
            ValueError: a class is none of the data set's, or the segmenter does not know it.
        """
        # The prompts lie on the CPU, so their corners are read without waiting for the device.
        prompts = [ClassPrompts.of(item) for item in batched_inputs]
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            if prompt.classes:
                groups[self.padded_size(prompt.size)].append(index)
        margins: dict[int, Tensor] = {}
        for size, members in groups.items():
            margins.update(zip(members, self.predict([prompts[i] for i in members], size), strict=True))
        return [self._prediction(prompt, margins.get(index)) for index, prompt in enumerate(prompts)]

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width that an image is padded to at inference."""
        side = max(self.backbone.size_divisibility, 4)
        return -(-size[0] // side) * side, -(-size[1] // side) * side

    def samples_at_once(self, size: Sequence[int]) -> int:
        """Samples of this height and width that go through a network together at inference."""
        return max(min(self.test_samples_per_forward, self.test_samples_per_forward * 512**2 // (size[0] * size[1])), 1)

    def predict(self, prompts: Sequence[ClassPrompts], size: tuple[int, int]) -> list[Tensor]:
        """Run images that share a padded size through the network, all their classes together.

        Args:
            prompts: of images with at least one box each.
            size: h, w.

        Returns:
            Per image K×h/4×w/4 float32: the class's logit minus the other one, as far as it counts inside the boxes
            of the class; elsewhere 0.
        """
        # Padding with the mean: zeros once normalised.
        images = self.pixel_mean.expand(len(prompts), -1, *size).clone()
        for image, prompt in zip(images, prompts, strict=True):
            image[:, : prompt.size[0], : prompt.size[1]] = prompt.item["image"].to(self.device, non_blocking=True)
        masks = torch.cat([prompt.unions(size, self.device) for prompt in prompts])
        owners = [index for index, prompt in enumerate(prompts) for _ in prompt.classes]
        windows = [window for prompt in prompts for window in prompt.windows(size)]
        probabilities = None
        if self.segmenter is not None:
            channels = [self._channels_in(prompt.item)[label] for prompt in prompts for label in prompt.classes]
            probabilities = self._class_probabilities(images, owners, channels)

        margins = images.new_zeros((len(owners), size[0] // 4, size[1] // 4))
        at_once = self.samples_at_once(size)
        for start in range(0, len(owners), at_once):
            part = slice(start, start + at_once)
            x = self.network_input(
                torch.stack([images[index] for index in owners[part]]),
                masks[part],
                None if probabilities is None else probabilities[part],
            )
            logits_of = self.window_logits(x, windows[part])
            if self.test_flip:
                mirrored = self.window_logits(x.flip(-1), [window.mirrored(size[1] // 4) for window in windows[part]])
                logits_of = [(a + b.flip(-1)) / 2 for a, b in zip(logits_of, mirrored, strict=True)]
            for margin, window, logits in zip(margins[part], windows[part], logits_of, strict=True):
                window.of(margin).copy_(logits[1] - logits[0])
        return list(margins.split([len(prompt.classes) for prompt in prompts]))

    def window_logits(self, network_input: Tensor, windows: Sequence[Window]) -> list[Tensor]:
        """:meth:`logits` (N inputs) in one window of stride-4 pixels each: N tensors 2×height×width, float32.

        On a CPU, whose time is arithmetic, backbones that can compute no more than that: boxes of a third of the image
        take two thirds of the time. A GPU would lose more by many small convolutions than it gains.
        """
        if network_input.device.type != "cpu" or not isinstance(self.backbone, HourglassBackbone):
            logits = self.logits(network_input).float()
            return [window.of(one) for one, window in zip(logits, windows, strict=True)]
        size = (network_input.shape[-2] // 4, network_input.shape[-1] // 4)
        seen = [window.grow(1, size) for window in windows]
        maps = self.backbone.in_windows(network_input, seen)
        return [window.of(self.head(m)[0].float(), outer) for m, window, outer in zip(maps, windows, seen, strict=True)]

    def _channels_in(self, item: dict[str, Any]) -> list[int]:
        name = item.get("file_name", "image")
        if not item.get("class_names"):
            raise ValueError(
                f"'{name}' comes without class_names, by which the segmenter of MODEL.LPG.SEGMENTER_CONFIG finds its "
                "classes: its data set must be registered with thing_classes"
            )
        return self._segmenter_channels(item["class_names"], f"the data set of '{name}'")

    def _prediction(self, prompt: ClassPrompts, margins: Tensor | None) -> dict[str, Any]:
        """Class masks and label map of one image in its frame, from K×h/4×w/4 differences of logits."""
        height, width = prompt.size
        probs = self.pixel_mean.new_zeros((0, height, width))
        if margins is not None:
            full = F.interpolate(
                margins[:, None], size=self.padded_size(prompt.size), mode="bilinear", align_corners=True
            )
            probs = full[:, 0, :height, :width].sigmoid()
        own = (probs > 0.5) & prompt.unions(prompt.size, self.device)
        scores = probs.new_zeros(len(prompt.corners))
        patches = []
        for row, (slot, (x0, y0, x1, y1)) in enumerate(zip(prompt.slots, prompt.corners, strict=True)):
            window = (slot, slice(y0, y1), slice(x0, x1))
            scores[row] = mean_foreground(probs[window], own[window])
            patches.append(MaskPatch(x0, y0, probs[window]))
        masks = cut_patches(patches, *prompt.size)
        boxes = prompt.item["instances"]
        return {
            "instances": box_to_mask_instances(masks, boxes.gt_boxes.tensor, boxes.gt_classes, scores, prompt.size),
            "patches": patches,
            "label_map": first_claim_labels(own, prompt.classes),
        }
