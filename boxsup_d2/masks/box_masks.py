"""Masks that live in their boxes: the memory they take goes by what they cover, not by their number times the image."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

# x0, y0, x1, y1 in pixels; x1 and y1 exclusive.
Window = tuple[int, int, int, int]
# None: the mask is empty.
TightBox = Window | None

# Pixels of whole masks that are in memory at once.
_PIXELS_AT_ONCE = 1 << 24


class BoxMasks:
    """The masks of N boxes of an image of H×W; outside of its window a mask is empty.

    They are a field of Detectron2's ``Instances``. As a sequence they give whole masks, H×W bool, each made when it is
    asked for; slices, lists of positions, and index and bool tensors give fewer of them. NumPy takes them for N×H×W.

    Attributes:
        parts: N tensors h×w bool, the masks inside their windows; h and w may be 0. They may share memory.
        corners: N pairs of the first column and row of the window in the image.
        image_size: H, W.
    """

    dtype = torch.bool

    def __init__(
        self, parts: Sequence[torch.Tensor], corners: Sequence[tuple[int, int]], image_size: tuple[int, int]
    ) -> None:
        """
        Raises:
            ValueError: a window lies outside of the image, or a part is not bool.
        """
        height, width = image_size
        for part, (left, top) in zip(parts, corners, strict=True):
            if part.dtype != torch.bool or part.ndim != 2:
                raise ValueError(f"A mask is {tuple(part.shape)} {part.dtype}, expected height × width torch.bool.")
            if min(left, top) < 0 or left + part.shape[1] > width or top + part.shape[0] > height:
                raise ValueError(
                    f"A mask of {part.shape[1]}×{part.shape[0]} pixels at {left}, {top} is not inside its image of "
                    f"{width}×{height}."
                )
        self.parts = list(parts)
        self.corners = list(corners)
        self.image_size = (int(height), int(width))

    @classmethod
    def of(cls, masks: "torch.Tensor | BoxMasks") -> "BoxMasks":
        """Masks in either form; N×H×W bool (or integers, of which 0 is the background) are not copied."""
        if isinstance(masks, BoxMasks):
            return masks
        height, width = masks.shape[1:]
        return cls(
            list(masks if masks.is_floating_point() else masks.bool()), [(0, 0)] * len(masks), (int(height), int(width))
        )

    @classmethod
    def filled(
        cls, windows: Sequence[Window], image_size: tuple[int, int], device: torch.device | None = None
    ) -> "BoxMasks":
        """Masks that fill N windows of the image."""
        pixel = torch.ones((), dtype=torch.bool, device=device)
        parts = [pixel.expand(y1 - y0, x1 - x0) for x0, y0, x1, y1 in windows]
        return cls(parts, [(x0, y0) for x0, y0, _, _ in windows], image_size)

    @staticmethod
    def cat(several: "Sequence[BoxMasks]") -> "BoxMasks":
        """One after the other; one at least, all of images of one size."""
        if len({masks.image_size for masks in several}) != 1:
            raise ValueError("Masks of images of different sizes cannot be joined.")
        parts = [part for masks in several for part in masks.parts]
        corners = [corner for masks in several for corner in masks.corners]
        return BoxMasks(parts, corners, several[0].image_size)

    @property
    def shape(self) -> torch.Size:
        """N, H, W."""
        return torch.Size((len(self), *self.image_size))

    @property
    def windows(self) -> list[Window]:
        """Where the parts lie in the image."""
        return [
            (left, top, left + part.shape[1], top + part.shape[0])
            for part, (left, top) in zip(self.parts, self.corners, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.parts)

    def __repr__(self) -> str:
        return f"BoxMasks({len(self)} masks of {self.image_size[0]}×{self.image_size[1]})"

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, int | np.integer):
            return self._frame(int(item))
        if isinstance(item, slice):
            chosen: Sequence[int] = range(len(self))[item]
        else:
            index = torch.as_tensor(item, device="cpu")
            if index.dtype == torch.bool and len(index) != len(self):
                raise IndexError(f"{len(index)} choices among {len(self)} masks: one per mask is needed.")
            chosen = (index.nonzero()[:, 0] if index.dtype == torch.bool else index).tolist()
        return BoxMasks([self.parts[i] for i in chosen], [self.corners[i] for i in chosen], self.image_size)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return map(self._frame, range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy  # there are no frames before this makes them
        return self.full().cpu().numpy().astype(dtype or bool, copy=False)

    def to(self, *args: Any, **kwargs: Any) -> "BoxMasks":
        """On another device, as of tensors."""
        return BoxMasks([part.to(*args, **kwargs) for part in self.parts], self.corners, self.image_size)

    def full(self) -> torch.Tensor:
        """The masks as N×H×W bool, which of many masks or a large image is much memory."""
        if not len(self):
            return torch.zeros(self.shape, dtype=torch.bool)
        frames = torch.zeros(self.shape, dtype=torch.bool, device=self.parts[0].device)
        for frame, part, (x0, y0, x1, y1) in zip(frames, self.parts, self.windows, strict=True):
            frame[y0:y1, x0:x1] = part
        return frames

    def crop(self, windows: Sequence[Window]) -> "BoxMasks":
        """The masks in other windows of the image, one per mask; what lies outside of these is lost.

        Raises:
            ValueError: there are not as many windows as masks.
        """
        if len(windows) != len(self):
            raise ValueError(f"{len(self)} masks for {len(windows)} windows: one window per mask is needed.")
        parts = []
        for part, (left, top, right, bottom), (x0, y0, x1, y1) in zip(self.parts, self.windows, windows, strict=True):
            # Of its own memory: the part may be a view of much more.
            cut = part.new_zeros(y1 - y0, x1 - x0)
            first_x, first_y, last_x, last_y = max(x0, left), max(y0, top), min(x1, right), min(y1, bottom)
            if first_x < last_x and first_y < last_y:
                inner = part[first_y - top : last_y - top, first_x - left : last_x - left]
                cut[first_y - y0 : last_y - y0, first_x - x0 : last_x - x0] = inner
            parts.append(cut)
        return BoxMasks(parts, [(x0, y0) for x0, y0, _, _ in windows], self.image_size)

    def tight(self) -> "BoxMasks":
        """The same masks in their tight boxes."""
        return self.crop([box or (0, 0, 0, 0) for box in self.tight_boxes()])

    def tight_boxes(self) -> list[TightBox]:
        """The smallest boxes around the masks; None where one is empty."""
        cpu = self.to("cpu")
        return [tight_box(part.numpy(), *corner) for part, corner in zip(cpu.parts, self.corners, strict=True)]

    def areas(self) -> list[int]:
        """Pixels of each mask."""
        return [int(part.sum()) for part in self.parts]

    def _frame(self, index: int) -> torch.Tensor:
        return self[index : index + 1 or None].full()[0]


def frames_at_once(image_size: tuple[int, int]) -> int:
    """How many whole masks of an image of H×W a method had better make together; at least 1."""
    return max(_PIXELS_AT_ONCE // max(image_size[0] * image_size[1], 1), 1)


def tight_box(mask: np.ndarray, left: int = 0, top: int = 0) -> TightBox:
    """Smallest box around a mask (h×w bool) whose first pixel is at ``left``, ``top``; None where it is empty."""
    if mask.size == 0:
        return None
    # max over uint8 is vectorised, any() over bool is not; the values are the same.
    pixels = mask.view(np.uint8)
    x, y = np.flatnonzero(pixels.max(axis=0)), np.flatnonzero(pixels.max(axis=1))
    return (left + int(x[0]), top + int(y[0]), left + int(x[-1]) + 1, top + int(y[-1]) + 1) if len(x) else None
