"""One image of a report: its pictures, and what is measured on its masks while they are decoded.

Only the masks of the objects that are being drawn are in memory.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from boxsup_d2.data.formats.rotated_boxes import rotated_box_of
from boxsup_d2.data.images import read_image, read_label_map
from boxsup_d2.masks.box_masks import TightBox
from boxsup_d2.masks.confidence import exact_confidence, rotated_confidence
from boxsup_d2.masks.label_map import IGNORE_LABEL
from boxsup_d2.masks.rle import edges_area, edges_window, mask_edges
from boxsup_d2.report.drawing import COLORS, Canvas, blank_jpeg, crop_window
from boxsup_d2.report.mask_sets import Scene, SceneObject, confidence_of, quality_of
from boxsup_d2.utils.ordered_pool import OrderedPool
from boxsup_d2.utils.processes import usable_cores

# Side of an object's picture, as a share of that of its image.
_CROP_SHARE = 0.75


@dataclass(slots=True)
class Measured:
    """The measures of one mask; None where one does not apply.

    Attributes:
        area: pixels of the mask, or of a label map's classes.
        fill: the same as a share of the annotated box's area inside the image.
        quality: predicted IoU, 0..1.
        confidence: 0..1.
        box_iou: IoU of the mask's tight box and the annotated box, 0..1.
        agreement: IoU with the mask of the first set (of label maps: share of pixels with the same label), 0..1.
        iou: with the true mask, 0..1.
        share: of an image's pixels that have a class, 0..1.
    """

    area: int | None = None
    fill: float | None = None
    quality: float | None = None
    confidence: float | None = None
    box_iou: float | None = None
    agreement: float | None = None
    iou: float | None = None
    share: float | None = None


@dataclass
class Rendered:
    """One image.

    Attributes:
        views: JPEGs of the whole image: without masks, with each set's masks, with the truth where there is one.
        crops: of each object, a JPEG with the mask of each set and the true one.
        measured: of each object (of label maps: of the image) the measures of each set's mask.
        classes: of label maps, positions of the classes in the image.
        problems: kind and example.
    """

    views: list[bytes]
    crops: list[list[bytes]] = field(default_factory=list)
    measured: list[list[Measured]] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)


class _Mask(NamedTuple):
    """A mask in its tight box.

    Attributes:
        pixels: h×w bool; 0×0 where it is empty.
        corner: first column and row of the box in the image.
        area: pixels of the mask.
    """

    pixels: np.ndarray
    corner: tuple[int, int]
    area: int

    @property
    def tight_box(self) -> TightBox:
        (x0, y0), (h, w) = self.corner, self.pixels.shape
        return (x0, y0, x0 + w, y0 + h) if self.area else None

    def iou(self, other: "_Mask") -> float:
        """Intersection over union, 0 of two empty masks; as :func:`boxsup_d2.evaluation.metrics.mask_iou`."""
        own, others = self.tight_box, other.tight_box
        if own is None or others is None:
            return 0.0
        x0, y0, x1, y1 = max(own[0], others[0]), max(own[1], others[1]), min(own[2], others[2]), min(own[3], others[3])
        if x0 >= x1 or y0 >= y1:
            return 0.0
        mine, theirs = (
            mask.pixels[y0 - top : y1 - top, x0 - left : x1 - left]
            for mask, (left, top) in ((self, self.corner), (other, other.corner))
        )
        common = int(np.count_nonzero(mine & theirs))
        return common / (self.area + other.area - common)


@dataclass(frozen=True)
class Renderer:
    """Draws scenes.

    Attributes:
        image_root: folder of the images.
        sets: number of mask sets.
        has_truth: whether the objects' last annotation is the true one.
        side: longer side of a view, in pixels.
        outside: file names that lead out of the folder, whose images are not read.
    """

    image_root: str
    sets: int
    has_truth: bool
    side: int
    outside: frozenset[str] = frozenset()

    def __call__(self, scene: Scene) -> Rendered:
        """Draw a scene; an image that cannot be read is grey, and a problem."""
        problem, name = None, f"'{scene.file_name}'"
        if scene.file_name in self.outside:
            return self._blank(scene, ("images outside of their folder", name))
        try:
            image = read_image(os.path.join(self.image_root, scene.file_name), "BGR")
            if scene.size is not None and image.shape[:2] != scene.size:
                problem = ("images of another size than their file says", name)
        except (FileNotFoundError, ValueError):
            problem = ("images that cannot be read", name)
        if problem is not None:
            return self._blank(scene, problem)
        return self._semantic(scene, image) if scene.label_maps else self._instances(scene, image)

    def _blank(self, scene: Scene, problem: tuple[str, str]) -> Rendered:
        columns = self.sets + self.has_truth
        blank = blank_jpeg(self.side // 4)
        measured = [[_stated(a) for a in o.annotations[: self.sets]] for o in scene.objects]
        return Rendered(
            views=[blank] * (columns + 1),
            crops=[[blank] * columns for _ in scene.objects],
            measured=[[Measured() for _ in range(self.sets)]] if scene.label_maps else measured,
            problems=[problem],
        )

    def _instances(self, scene: Scene, image: np.ndarray) -> Rendered:
        height, width = image.shape[:2]
        plain = Canvas(image, (0, 0, width, height), self.side)
        views = [plain.copy() for _ in range(self.sets + self.has_truth)]
        result = Rendered(views=[])
        for number, obj in enumerate(scene.objects):
            color = COLORS[number % len(COLORS)]
            masks = [_decoded(a, height, width, scene, result.problems) for a in obj.annotations]
            if self.has_truth and not (obj.annotations[-1] or {}).get("segmentation"):
                masks[-1] = None  # a true object without a mask cannot be compared with
            box = rotated_box_of(obj.annotations[0] or {}) or obj.box
            plain_crop = Canvas(image, crop_window(obj.box, height, width), int(self.side * _CROP_SHARE))
            crops = []
            for mask, view in zip(masks, views, strict=True):
                crop = plain_crop.copy()
                for canvas in (view, crop):
                    if mask is not None:
                        canvas.mask(mask.pixels, color, mask.corner)
                view.box(box, color)
                crop.box(box)
                crops.append(crop.jpeg())
            result.crops.append(crops)
            result.measured.append(self._measure(obj, masks, (height, width)))
        result.views = [plain.jpeg(), *(view.jpeg() for view in views)]
        return result

    def _measure(self, obj: SceneObject, masks: Sequence[_Mask | None], image_size: tuple[int, int]) -> list[Measured]:
        truth = masks[-1] if self.has_truth else None
        rows: list[Measured] = []
        for annotation, mask in zip(obj.annotations[: self.sets], masks, strict=False):
            row = _stated(annotation)
            if mask is not None:
                row.area = mask.area
                row.fill = row.area / max(_box_area(obj, *image_size), 1.0)
                row.box_iou = _box_iou(obj, mask)
                row.iou = None if truth is None else mask.iou(truth)
                if rows and masks[0] is not None:
                    row.agreement = mask.iou(masks[0])
            rows.append(row)
        return rows

    def _semantic(self, scene: Scene, image: np.ndarray) -> Rendered:
        height, width = image.shape[:2]
        plain = Canvas(image, (0, 0, width, height), self.side)
        result = Rendered(views=[plain.jpeg()], measured=[[]])
        first: np.ndarray | None = None
        for number, path in enumerate(scene.label_maps):
            canvas, row = plain.copy(), Measured()
            labels = _label_map(path, (height, width), result.problems)
            if labels is not None:
                canvas.labels(labels)
                known = (labels > 0) & (labels != IGNORE_LABEL)
                row.area, row.share = int(np.count_nonzero(known)), float(known.mean())
                result.classes = sorted({*result.classes, *(int(v) - 1 for v in np.unique(labels[known]))})
                if number and first is not None:
                    row.agreement = float((labels == first).mean())
            first = labels if number == 0 else first
            result.views.append(canvas.jpeg())
            result.measured[0].append(row)
        return result


def _box_area(obj: SceneObject, height: int, width: int) -> float:
    """Pixels of an object's box, of a rotated one whole, else of what is inside the image."""
    rotated = rotated_box_of(obj.annotations[0] or {})
    if rotated is not None:
        return rotated[2] * rotated[3]
    x, y, w, h = obj.box
    return max(min(x + w, width) - max(x, 0), 0) * max(min(y + h, height) - max(y, 0), 0)


def _box_iou(obj: SceneObject, mask: _Mask) -> float:
    """IoU of an object's box and the smallest one, as it lies, around a mask."""
    rotated = rotated_box_of(obj.annotations[0] or {})
    if rotated is None:
        return exact_confidence(mask.tight_box, obj.box)
    return rotated_confidence(mask.pixels, *mask.corner, rotated)


def _stated(annotation: Mapping[str, Any] | None) -> Measured:
    """What the file says of a mask."""
    return Measured(quality=quality_of(annotation), confidence=confidence_of(annotation))


def _decoded(
    annotation: Mapping[str, Any] | None, height: int, width: int, scene: Scene, problems: list[tuple[str, str]]
) -> _Mask | None:
    """The mask of an annotation, empty where it has none; None without annotation or a readable mask."""
    if annotation is None:
        return None
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return _Mask(np.zeros((0, 0), bool), (0, 0), 0)
    try:
        edges = mask_edges(segmentation, height, width)
    except (ValueError, KeyError, TypeError):
        problems.append(("masks that cannot be read", f"annotation {annotation.get('id')} of '{scene.file_name}'"))
        return None
    pixels, left, top = edges_window(edges, height)
    return _Mask(np.ascontiguousarray(pixels.T), (left, top), edges_area(edges))  # by rows, as it is drawn


def _label_map(path: str | None, size: tuple[int, int], problems: list[tuple[str, str]]) -> np.ndarray | None:
    if path is None:
        return None
    try:
        labels = read_label_map(path)
    except (FileNotFoundError, ValueError):
        labels = None
    if labels is None or labels.shape != size:
        problems.append(("label maps that are missing, damaged or of another size than their image", f"'{path}'"))
        return None
    return labels


def render_scenes(renderer: Renderer, scenes: Iterable[Scene], workers: int | None = None) -> Iterator[Rendered]:
    """Draw scenes in parallel; the results come in order, and only a few are in memory.

    Args:
        renderer: draws one.
        scenes: to be drawn.
        workers: threads; default: the number of cores, 8 at most. OpenCV works outside the interpreter's lock.
    """
    workers = workers or min(usable_cores(), 8)
    with OrderedPool(ThreadPoolExecutor(workers), renderer, 2 * workers) as pool:
        for scene in scenes:
            yield from pool.submit(scene)
        yield from pool.drain()
