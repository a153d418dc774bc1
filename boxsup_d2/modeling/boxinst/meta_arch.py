"""BoxInst: Detectron2's FCOS with CondInst's mask head, taught by boxes, or by masks.

Shape legend: N images, R locations of all maps, C classes, K sampled locations or detections, h x w the sides of the
grid of the masks, whose cells have ``MODEL.BOXINST.MASK_STRIDE`` pixels.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from boxsup_d2.modeling.affinity import color_similarity
from boxsup_d2.modeling.box_to_mask import mean_foreground
from boxsup_d2.modeling.boxinst.fcos import ControlledFCOS, Dense, fcos_arguments
from boxsup_d2.modeling.boxinst.heads import DynamicMaskHead, MaskBranch, aligned_bilinear
from boxsup_d2.modeling.boxinst.targets import (
    mean_colors,
    rasterize_boxes,
    sample_locations,
    sample_masks,
    valid_cells,
)
from boxsup_d2.modeling.losses import dice_loss, mean_of_counted, pairwise_affinity_loss, projection_dice_loss
from boxsup_d2.modeling.roi_heads.mask_head import confidence_weights
from boxsup_d2.modeling.visualization import is_picture_due, overlay_mask, put_picture, to_rgb

# Relative coordinates are in units of the largest object of a map: so many strides.
_RANGE = 8
# Pixels of masks that are resized at once: bounds the memory (float32, a few copies).
_PIXELS_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class MaskSettings:
    """How masks are learnt and predicted; the attributes are the keys of ``MODEL.BOXINST`` and have their units.

    Attributes:
        from_masks: learn from masks instead of boxes (``MODEL.MASK_ON``).
        pairwise_warmup: iterations over which the weight of the pairwise loss rises from 0.
        confidence_threshold, confidence_weighting: of masks, see ``MODEL.ROI_MASK_HEAD``.
    """

    from_masks: bool
    stride: int
    samples_per_image: int
    projection_weight: float
    pairwise_weight: float
    pairwise_warmup: float
    pairwise_dilation: int
    color_threshold: float
    ignored_bottom: int
    confidence_threshold: float
    confidence_weighting: bool
    rescore_test: bool


@META_ARCH_REGISTRY.register()
class BoxInst(ControlledFCOS):
    """Instance segmentation that needs no masks (`Tian et al., CVPR 2021 <https://arxiv.org/abs/2012.02310>`_).

    In training it takes what Detectron2's mappers return. With ``MODEL.MASK_ON`` False its losses are ``loss_fcos_*``,
    ``loss_projection`` and ``loss_pairwise``; with True, ``loss_fcos_*`` and ``loss_mask``, and it is CondInst. In
    evaluation it is a detector as any of Detectron2's, with masks.
    """

    @configurable
    def __init__(
        self,
        *,
        mask_branch: MaskBranch,
        mask_head: DynamicMaskHead,
        mask_in_features: list[str],
        mask_settings: MaskSettings,
        image_format: str = "BGR",
        vis_period: int = 0,
        **kwargs: Any,
    ):
        """
        Args:
            mask_branch, mask_head: make masks of the maps ``mask_in_features`` and of what ``head`` predicts.
            mask_in_features: names of the backbone's maps, finest first.
            mask_settings: how.
            image_format: of the inputs, "BGR" or "RGB".
            vis_period: iterations between two pictures of training samples; 0: none.
            kwargs: see :class:`ControlledFCOS`.
        """
        super().__init__(**kwargs)
        self.mask_branch = mask_branch
        self.mask_head = mask_head
        self.mask_in_features = mask_in_features
        self.mask_settings = mask_settings
        self.image_format = image_format
        self.vis_period = vis_period

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """``MODEL.FCOS``, ``MODEL.BOXINST`` and Detectron2's shared keys.

        Raises:
            ValueError: the backbone lacks one of ``IN_FEATURES``, their maps do not meet at its size of images, or
                ``MASK_STRIDE`` does not divide their stride.
        """
        boxinst = cfg.MODEL.BOXINST
        roi = cfg.MODEL.ROI_MASK_HEAD
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        for key, names in (("FCOS", cfg.MODEL.FCOS.IN_FEATURES), ("BOXINST", boxinst.IN_FEATURES)):
            missing = [name for name in names if name not in shapes]
            if missing:
                raise ValueError(f"MODEL.{key}.IN_FEATURES has {missing}, but the backbone makes {list(shapes)}.")
        stride = shapes[boxinst.IN_FEATURES[0]].stride
        if stride % boxinst.MASK_STRIDE:
            raise ValueError(
                f"MODEL.BOXINST.MASK_STRIDE is {boxinst.MASK_STRIDE}: it must divide {stride}, the stride of "
                f"'{boxinst.IN_FEATURES[0]}', the first of MODEL.BOXINST.IN_FEATURES."
            )
        coarsest = max(shapes[name].stride for name in boxinst.IN_FEATURES)
        if not backbone.size_divisibility or backbone.size_divisibility % coarsest:
            raise ValueError(
                f"Images need sides of multiples of {coarsest}, the coarsest stride of MODEL.BOXINST.IN_FEATURES, but "
                f"MODEL.BACKBONE.NAME '{cfg.MODEL.BACKBONE.NAME}' pads to multiples of {backbone.size_divisibility}: "
                "use one with an FPN."
            )
        mask_head = DynamicMaskHead(
            boxinst.MASK_CHANNELS, channels=boxinst.HEAD_CHANNELS, num_layers=boxinst.HEAD_LAYERS
        )
        return {
            **fcos_arguments(cfg, backbone, mask_head.num_parameters),
            "mask_branch": MaskBranch(
                [shapes[name] for name in boxinst.IN_FEATURES],
                channels=boxinst.BRANCH_CHANNELS,
                num_convs=boxinst.BRANCH_CONVS,
                norm=boxinst.BRANCH_NORM,
                out_channels=boxinst.MASK_CHANNELS,
            ),
            "mask_head": mask_head,
            "mask_in_features": list(boxinst.IN_FEATURES),
            "mask_settings": MaskSettings(
                from_masks=cfg.MODEL.MASK_ON,
                stride=boxinst.MASK_STRIDE,
                samples_per_image=boxinst.SAMPLES_PER_IMAGE,
                projection_weight=boxinst.PROJECTION_WEIGHT,
                pairwise_weight=boxinst.PAIRWISE_WEIGHT,
                pairwise_warmup=boxinst.PAIRWISE_WARMUP * cfg.SOLVER.MAX_ITER,
                pairwise_dilation=boxinst.PAIRWISE_DILATION,
                color_threshold=boxinst.COLOR_THRESHOLD,
                ignored_bottom=boxinst.IGNORED_BOTTOM,
                confidence_threshold=roi.CONFIDENCE_THRESHOLD,
                confidence_weighting=roi.CONFIDENCE_WEIGHTING,
                rescore_test=boxinst.RESCORE_TEST,
            ),
            "image_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """
        Args:
            batched_inputs: dicts of ``image`` (3 x H x W, in 0..255, channels in ``INPUT.FORMAT`` order), ``height``
                and ``width`` of the original image, in training also ``instances`` with ``gt_boxes`` and
                ``gt_classes``; to learn from masks also ``gt_masks`` (``BitMasks``) and, optionally,
                ``gt_mask_confidence`` and ``gt_void``, see ``PseudoMaskDatasetMapper``.

        Returns:
            In training the dict of losses, always with the same keys and connected to every parameter. In evaluation
            one ``{"instances": Instances}`` per image, in its original size, with ``pred_boxes``, ``scores`` in 0..1,
            ``pred_classes`` and ``pred_masks`` (K x height x width bool), best first.

        Raises:
            ValueError: the instances do not fit the network.
        """
        if self.training:
            self._check(batched_inputs)
        batched_inputs = [{**x, "image": x["image"].to(self.device)} for x in batched_inputs]
        images, dense, features = self.predictions(
            self.training_view(batched_inputs) if self.training else batched_inputs
        )
        if self.training:
            return self.training_losses(batched_inputs, images, dense, features)
        return self.inference(batched_inputs, images, dense, features)

    def predictions(self, batched_inputs: list[dict[str, Any]]) -> tuple[ImageList, Dense, Tensor]:
        """Of inputs on the device: normalised images, what FCOS predicts, and the map of the mask branch."""
        images = self.preprocess_image(batched_inputs)
        maps = self.backbone(images.tensor)
        dense = self.dense_predictions([maps[name] for name in self.head_in_features])
        return images, dense, self.mask_branch([maps[name] for name in self.mask_in_features])

    def training_view(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The inputs, on the device, as the network sees them in training; colours are compared in them as they are."""
        return batched_inputs

    def _check(self, batched_inputs: list[dict[str, Any]]) -> None:
        """Raise an error that names file and key, before anything is on the device."""
        for item in batched_inputs:
            instances, name = item["instances"], item.get("file_name", "image")
            if not len(instances):
                continue
            largest = int(instances.gt_classes.max())
            if largest >= self.num_classes:
                raise ValueError(
                    f"'{name}' has a box of class {largest}, but the network knows {self.num_classes} classes: "
                    "MODEL.FCOS.NUM_CLASSES does not fit the data set."
                )
            if self.mask_settings.from_masks and not instances.has("gt_masks"):
                raise ValueError(f"'{name}' has no masks to learn from: set MODEL.MASK_ON False to learn from boxes.")

    def mask_logits(self, dense: Dense, features: Tensor, image: Tensor, location: Tensor) -> Tensor:
        """Masks of the objects at some locations.

        Args:
            dense: predictions.
            features: of the mask branch.
            image: K positions in 0..N-1.
            location: K positions in 0..R-1.

        Returns:
            K x 1 x h x w.
        """
        parameters = torch.cat(dense.parameters, dim=1)[image, location]
        anchors = Boxes.cat(dense.anchors).tensor[location]
        points, sides = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2] - anchors[:, 0]
        stride = self.mask_branch.strides[0]
        logits = self.mask_head(features, stride, parameters, points, _RANGE * sides, image)
        return aligned_bilinear(logits, stride // self.mask_settings.stride)

    # ------------------------------------------------------------------------------------------------- training
    def training_losses(
        self, batched_inputs: list[dict[str, Any]], images: ImageList, dense: Dense, features: Tensor
    ) -> dict[str, Tensor]:
        """Losses of a batch; arguments as in :meth:`forward`, with images on the device."""
        targets = [x["instances"].to(self.device) for x in batched_inputs]
        labels, boxes, objects = self.match(dense.anchors, targets)
        losses = self.losses(dense.anchors, dense.logits, labels, dense.distances, boxes, dense.centerness)

        image_of_object = torch.cat([x.gt_classes.new_full((len(x),), i) for i, x in enumerate(targets)])
        centerness = torch.cat(dense.centerness, dim=1)[..., 0]
        quality = torch.cat(dense.logits, dim=1).amax(2).sigmoid() * centerness.sigmoid()
        image, location, owner = sample_locations(
            objects, quality, image_of_object, self.mask_settings.samples_per_image
        )
        logits = self.mask_logits(dense, features, image, location)
        if self.mask_settings.from_masks:
            losses.update(self.mask_losses(logits, targets, owner))
        else:
            losses.update(self.box_losses(logits, batched_inputs, images, targets, image, owner))
        if is_picture_due(self.vis_period):
            self.visualize_masks(batched_inputs[0], logits[image == 0])
        return losses

    def box_losses(
        self,
        logits: Tensor,
        batched_inputs: list[dict[str, Any]],
        images: ImageList,
        targets: list[Instances],
        image: Tensor,
        owner: Tensor,
    ) -> dict[str, Tensor]:
        """BoxInst's losses of masks.

        Args:
            logits: K x 1 x h x w.
            batched_inputs, images, targets: of the batch, on the device.
            image, owner: image and object of the K masks.
        """
        settings = self.mask_settings
        dilation = settings.pairwise_dilation
        boxes = self.box_cells(logits, targets).index_select(0, owner)
        padded = (images.tensor.shape[-2], images.tensor.shape[-1])
        colors = mean_colors([x["image"] for x in batched_inputs], padded, settings.stride)
        valid = self.neighbour_cells(logits, batched_inputs, images)
        colors = colors.flip(1) if self.image_format == "BGR" else colors
        edges = color_similarity(colors, valid, dilation=dilation) >= settings.color_threshold

        warmup = min(get_event_storage().iter / max(settings.pairwise_warmup, 1), 1)
        pairwise = pairwise_affinity_loss(logits, edges.index_select(0, image), boxes, dilation=dilation)
        return {
            "loss_projection": settings.projection_weight * projection_dice_loss(logits, boxes),
            "loss_pairwise": settings.pairwise_weight * warmup * pairwise,
        }

    def box_cells(self, logits: Tensor, targets: list[Instances]) -> Tensor:
        """The boxes of the batch, filled, on the grid of K x 1 x h x w logits: G x 1 x h x w float32, 0 or 1."""
        boxes = torch.cat([x.gt_boxes.tensor for x in targets])
        return rasterize_boxes(boxes, (logits.shape[-2], logits.shape[-1]), self.mask_settings.stride)

    def neighbour_cells(self, logits: Tensor, batched_inputs: list[dict[str, Any]], images: ImageList) -> Tensor:
        """Cells of each image that may be neighbours: N x 1 x h x w float32, 0 or 1."""
        ignored = [
            self.mask_settings.ignored_bottom * size[0] // x.get("height", size[0])
            for x, size in zip(batched_inputs, images.image_sizes, strict=True)
        ]
        return valid_cells(images.image_sizes, ignored, logits, self.mask_settings.stride)

    def mask_losses(self, logits: Tensor, targets: list[Instances], owner: Tensor) -> dict[str, Tensor]:
        """CondInst's loss of masks, weighted by their confidence; void pixels count for neither side.

        Args:
            logits: K x 1 x h x w.
            targets: of the batch, on the device.
            owner: object of the K masks.
        """
        settings = self.mask_settings
        size, stride = (logits.shape[-2], logits.shape[-1]), settings.stride
        known = 1 - sample_masks(targets, "gt_void", size, stride).index_select(0, owner)
        masks = sample_masks(targets, "gt_masks", size, stride).index_select(0, owner) * known
        confidence = torch.cat(
            [
                x.gt_mask_confidence if x.has("gt_mask_confidence") else x.gt_boxes.tensor.new_ones(len(x))
                for x in targets
            ]
        )
        weights = confidence_weights(confidence, settings.confidence_threshold, settings.confidence_weighting)
        losses = dice_loss(logits.float().sigmoid() * known, masks)
        # The dice with an empty mask is 1, whatever is predicted: one without a cell does not count.
        return {"loss_mask": mean_of_counted(losses, weights[owner] * masks.flatten(1).amax(1))}

    @torch.no_grad()
    def visualize_masks(self, item: dict[str, Any], logits: Tensor) -> None:
        """Put a training image into the event storage: with its boxes, and with the masks of its samples.

        Args:
            item: the image's input.
            logits: K x 1 x h x w of its samples.
        """
        image = to_rgb(item["image"], self.image_format)
        stride, size = self.mask_settings.stride, (image.shape[1], image.shape[2])
        boxes = rasterize_boxes(item["instances"].gt_boxes.tensor, size, 1)
        masks = aligned_bilinear(logits.float().sigmoid(), stride)[..., : size[0], : size[1]]
        panels = [x.amax(0)[0] if len(x) else torch.zeros(size) for x in (boxes, masks)]
        row = [image, *(overlay_mask(image, panel) for panel in panels)]
        put_picture("Left to right: image; boxes; masks", [row])

    # ------------------------------------------------------------------------------------------------- inference
    def inference(
        self, batched_inputs: list[dict[str, Any]], images: ImageList, dense: Dense, features: Tensor
    ) -> list[dict[str, Instances]]:
        """Detections with masks; arguments and results as of :meth:`forward`."""
        results = []
        for instances in self.detections(batched_inputs, images, dense, features):
            if self.mask_settings.rescore_test:
                instances.scores = (instances.scores * instances.mask_certainty).sqrt()
                instances = instances[instances.scores.argsort(descending=True)]
            instances.remove("mask_certainty")
            results.append({"instances": instances})
        return results

    def detections(
        self, batched_inputs: list[dict[str, Any]], images: ImageList, dense: Dense, features: Tensor
    ) -> list[Instances]:
        """Detections of each image, with FCOS's scores and ``mask_certainty``: mean probability inside the mask."""
        found = [self.detect(dense, i, size) for i, size in enumerate(images.image_sizes)]
        image = torch.cat([x.locations.new_full((len(x),), i) for i, x in enumerate(found)])
        logits = self.mask_logits(dense, features, image, torch.cat([x.locations for x in found]))
        prob = logits.float().sigmoid()[:, 0].split([len(x) for x in found])
        results = []
        for item, instances, cells in zip(batched_inputs, found, prob, strict=True):
            size = instances.image_size
            instances.remove("locations")
            instances.cells = cells
            instances.mask_certainty = mean_foreground(cells, cells > 0.5)
            instances = detector_postprocess(instances, item.get("height", size[0]), item.get("width", size[1]))
            masks = resize_masks(instances.cells, self.mask_settings.stride, size, instances.image_size)
            instances.remove("cells")
            instances.pred_masks = masks
            results.append(instances)
        return results


@torch.no_grad()
def resize_masks(
    prob: Tensor, stride: int, image_size: tuple[int, int], output_size: tuple[int, int], threshold: float = 0.5
) -> Tensor:
    """Masks of cells to masks of pixels.

    Args:
        prob: K x h x w in 0..1, of the padded image.
        stride: of its cells, pixels.
        image_size: height and width of the image in it.
        output_size: height and width of the masks.
        threshold: foreground above it.

    Returns:
        K x height x width bool.
    """
    masks = prob.new_zeros(len(prob), *output_size, dtype=torch.bool)
    at_once = max(1, _PIXELS_AT_ONCE // max(prob.shape[1] * prob.shape[2] * stride**2, output_size[0] * output_size[1]))
    for some, place in zip(prob.split(at_once), masks.split(at_once), strict=True):
        pixels = aligned_bilinear(some[:, None], stride)[..., : image_size[0], : image_size[1]]
        if len(some):
            place[:] = F.interpolate(pixels, output_size, mode="bilinear", align_corners=False)[:, 0] > threshold
    return masks
