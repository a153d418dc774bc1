"""From boxes to masks by a network that looks at windows.

Shape legend: H x W an image, B its boxes, S the side of a window, h = S / 2 that of the network's maps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.structures import Boxes
from detectron2.structures.boxes import matched_pairwise_iou
from torch import Tensor

from boxsup_d2.masks.paste import MaskPatch, mean_patch, paste_patches
from boxsup_d2.masks.pieces import specks_and_pinholes
from boxsup_d2.masks.windows import Box, Window, box_coverage, box_window, clip_box, cut_window
from boxsup_d2.modeling.boxmask.edges import snap_to_edges

# N x 3 x S x S images in 0..255 and N x 1 x S x S coverage by the box in 0..1, on the CPU, to N x 1 x h x h logits of
# masks and N logits of their IoU, on the network's device.
Look = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class WindowInference:
    """How boxes are looked at; ``boxsup_d2/modeling/boxmask/config.py`` says what each key is good for.

    Attributes:
        margin, max_aspect: see :func:`boxsup_d2.masks.windows.box_window`.
        sizes: sides of windows, in pixels; the probabilities of several are averaged.
        flip_below, again_below: a box is looked at a second time, mirrored and moved towards its mask by the predicted
            IoU, and both masks are averaged, where that is at most ``flip_below`` (0: nowhere, 1: everywhere), or the
            IoU of the mask's tight box with the box is below ``again_below``.
        overrun: share of a box's sides by which its mask may leave it.
        specks: see :func:`without_specks`.
        edge_steps, edge_weight, edge_color: see :func:`boxsup_d2.modeling.boxmask.edges.snap_to_edges`.
        windows_per_forward: boxes that are predicted at once, at least 1.
    """

    margin: float = 0.25
    max_aspect: float = 2.0
    sizes: Sequence[int] = (128,)
    flip_below: float = 0.0
    again_below: float = 0.0
    overrun: float = 0.1
    specks: float = 0.0
    edge_steps: int = 0
    edge_weight: float = 6.0
    edge_color: float = 12.0
    windows_per_forward: int = 32

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "WindowInference":
        node = cfg.MODEL.BOXMASK
        return cls(
            margin=cfg.INPUT.MASK_CROP.MARGIN,
            max_aspect=cfg.INPUT.MASK_CROP.MAX_ASPECT,
            sizes=tuple(node.TEST_SIZES),
            flip_below=node.TEST_FLIP_BELOW,
            again_below=node.TEST_AGAIN_BELOW,
            overrun=node.TEST_OVERRUN,
            specks=node.TEST_SPECKS,
            edge_steps=node.EDGE_STEPS,
            edge_weight=node.EDGE_WEIGHT,
            edge_color=node.EDGE_COLOR,
            windows_per_forward=node.TEST_WINDOWS_PER_FORWARD or (8 if cfg.MODEL.DEVICE == "cpu" else 32),
        )

    def predict(
        self, look: Look, image: Tensor, boxes: Tensor, size: tuple[int, int]
    ) -> tuple[list[MaskPatch], Tensor]:
        """Masks of the boxes of one image.

        Args:
            look: the network.
            image: 3 x H x W uint8.
            boxes: B x 4.
            size: (H, W).

        Returns:
            B patches and B predicted IoUs.
        """
        pixels = np.ascontiguousarray(image.cpu().numpy().transpose(1, 2, 0))
        corners = [clip_box(box, *size) for box in boxes.detach().cpu().double().tolist()]
        starts = range(0, len(corners), self.windows_per_forward)
        # Each lot to its patches, which are as small as their boxes: the maps of thousands would fill the memory.
        lots = [self._predict(look, pixels, corners[start : start + self.windows_per_forward]) for start in starts]
        if not lots:
            return [], torch.zeros(0)
        return [patch for found, _ in lots for patch in found], torch.cat([quality for _, quality in lots])

    def _predict(self, look: Look, pixels: np.ndarray, corners: list[Box]) -> tuple[list[MaskPatch], Tensor]:
        """The same for as many boxes as fit into the memory, of an H x W x 3 image."""
        size, boxes = pixels.shape[:2], torch.tensor(corners, dtype=torch.float64)
        windows = [box_window(box, self.margin, self.max_aspect) for box in corners]
        prob, quality = self._look(look, pixels, corners, windows, mirror=False)
        prob = without_specks(prob, self.specks)
        patches = self._paste(prob, windows, corners, size)
        found, fit = mask_boxes(prob, windows, boxes)
        again = ((quality.cpu() <= self.flip_below) | (fit < self.again_below)).nonzero()[:, 0].tolist()
        if again:
            # A user's box may be loose or too tight, and then the mask knows better; or the mask is wrong.
            toward = boxes.lerp(found, quality.cpu().double().nan_to_num(0)[:, None])
            moved = [clip_box(box, *size) for box in toward[again].tolist()]
            windows = [box_window(box, self.margin, self.max_aspect) for box in moved]
            prob, judged = self._look(look, pixels, moved, windows, mirror=True)
            for i, patch in zip(again, self._paste(prob, windows, [corners[i] for i in again], size), strict=True):
                mean = mean_patch(patches[i], patch)
                patches[i] = mean._replace(prob=without_specks(mean.prob[None], self.specks)[0])
            quality[again] = (quality[again] + judged) / 2
        return patches, quality

    def _paste(self, prob: Tensor, windows: list[Window], boxes: list[Box], size: tuple[int, int]) -> list[MaskPatch]:
        """Maps of windows as patches of an H x W image, near their boxes."""
        patches = paste_patches(prob, torch.tensor(windows), *size)
        return [_cut_to_box(patch, box, self.overrun) for patch, box in zip(patches, boxes, strict=True)]

    def _look(
        self, look: Look, pixels: np.ndarray, boxes: list[Box], windows: list[Window], mirror: bool
    ) -> tuple[Tensor, Tensor]:
        """Probabilities (B maps of one size) and B predicted IoUs of boxes in their windows."""
        views = [_view(pixels, boxes, windows, side) for side in sorted(self.sizes)]
        prob, quality = _see(look, views, mirror)
        if self.edge_steps > 0:
            # The last images are the finest.
            prob = snap_to_edges(
                prob.clamp(1e-4, 1 - 1e-4).logit(),
                views[-1][0].to(prob.device),
                steps=self.edge_steps,
                weight=self.edge_weight,
                color=self.edge_color,
            ).sigmoid()
        return prob[:, 0], quality


def _view(pixels: np.ndarray, boxes: list[Box], windows: list[Window], side: int) -> tuple[Tensor, Tensor]:
    """N x 3 x side x side uint8 and N x 1 x side x side coverage of boxes in their windows of an H x W x 3 image."""
    crops = torch.from_numpy(np.stack([cut_window(pixels, window, side) for window in windows]))
    covers = torch.from_numpy(np.stack([box_coverage(b, w, side) for b, w in zip(boxes, windows, strict=True)]))
    return crops.permute(0, 3, 1, 2), covers[:, None]


def _see(look: Look, views: Sequence[tuple[Tensor, Tensor]], mirror: bool) -> tuple[Tensor, Tensor]:
    """N x 1 x h x h probabilities and N predicted IoUs of views of the same windows, their mean over the sizes."""
    side = views[-1][0].shape[-1] // 2
    seen = [look(*(x.flip(-1) if mirror else x for x in view)) for view in views]
    probs = [_resize(logits.float().sigmoid(), side) for logits, _ in seen]
    prob = torch.stack(probs).mean(0)
    return prob.flip(-1) if mirror else prob, torch.stack([q.float().sigmoid() for _, q in seen]).mean(0)


def _resize(maps: Tensor, side: int) -> Tensor:
    """Bilinear resize of N x 1 x h x h maps."""
    if maps.shape[-1] == side:
        return maps
    return F.interpolate(maps, (side, side), mode="bilinear", align_corners=False)


def mask_boxes(prob: Tensor, windows: Sequence[Window], boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Where the masks of windows are, and how well they fit their boxes.

    Args:
        prob: N x h x w, on any device; the mask is what is above 1/2.
        windows: of the maps.
        boxes: N x 4 float64.

    Returns:
        N x 4 float64 tight boxes of the masks in the image's pixels, and their N IoUs with ``boxes``, on the CPU. Edges
        half a cell of the map or less from the box's are the box's; an empty mask has its box, and an IoU of 0.
    """
    inside = prob > 0.5
    edges = []
    for lines in (inside.any(1), inside.any(2)):  # columns, rows
        line = lines.byte()
        edges += [line.argmax(1), lines.shape[1] - line.flip(1).argmax(1)]
    left, right, top, bottom = torch.stack(edges).cpu().double()
    corners = torch.tensor(windows, dtype=torch.float64).reshape(-1, 4)
    cell = ((corners[:, 2:] - corners[:, :2]) / torch.tensor([prob.shape[2], prob.shape[1]])).repeat(1, 2)
    found = torch.stack([left, top, right, bottom], dim=1) * cell + corners[:, :2].repeat(1, 2)
    some = inside.any(2).any(1).cpu()
    found = torch.where(some[:, None] & ((found - boxes).abs() > cell / 2), found, boxes)
    return found, some * matched_pairwise_iou(Boxes(found), Boxes(boxes))


def without_specks(prob: Tensor, share: float) -> Tensor:
    """Probabilities whose masks lack small pieces and small holes.

    Args:
        prob: N x h x w, on any device.
        share: of the largest piece's area, below which a piece goes and a hole is filled; 0: none.

    Returns:
        N x h x w; what went has 0, what was filled 1.
    """
    if share <= 0 or not prob.numel():
        return prob
    masks = (prob > 0.5).cpu().numpy()
    change = np.zeros(masks.shape, np.float32)
    for mask, changed in zip(masks, change, strict=True):
        specks, pinholes = specks_and_pinholes(mask, share)
        changed[specks], changed[pinholes] = -1, 1
    return (prob + torch.from_numpy(change).to(prob.device)).clamp(0, 1)


def _cut_to_box(patch: MaskPatch, box: Any, overrun: float) -> MaskPatch:
    """The part of a patch that lies in the box and a little beyond."""
    slack_x, slack_y = overrun * (box[2] - box[0]), overrun * (box[3] - box[1])
    height, width = patch.prob.shape
    left, top = max(int(box[0] - slack_x) - patch.left, 0), max(int(box[1] - slack_y) - patch.top, 0)
    right = min(int(np.ceil(box[2] + slack_x)) - patch.left, width)
    bottom = min(int(np.ceil(box[3] + slack_y)) - patch.top, height)
    part = patch.prob[top : max(bottom, top), left : max(right, left)]
    # A copy: the part alone would keep the whole window, many times as large where boxes are long, in memory.
    return MaskPatch(patch.left + left, patch.top + top, part.clone())
