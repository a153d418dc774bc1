"""Rectangular parts of feature maps, for networks that compute an output only where somebody asks for it.

A 3×3 convolution on a part of a map is right everywhere but in the outermost row and column of the sides that the part
does not share with the map. So a part that is larger by one row and column per convolution, and cropped afterwards,
gives exactly what the whole map gives there.
"""

from typing import NamedTuple

from torch import Tensor


class Window(NamedTuple):
    """Rows ``top`` to ``bottom`` and columns ``left`` to ``right`` of a map; the ends are exclusive."""

    top: int
    left: int
    bottom: int
    right: int

    def grow(self, border: int, size: tuple[int, int]) -> "Window":
        """The window and ``border`` rows and columns around it, as far as a map of ``size`` (H, W) has them."""
        return Window(
            max(self.top - border, 0),
            max(self.left - border, 0),
            min(self.bottom + border, size[0]),
            min(self.right + border, size[1]),
        )

    def halved(self) -> "Window":
        """The smallest window of a map of half the size that covers this one."""
        return Window(self.top // 2, self.left // 2, -(-self.bottom // 2), -(-self.right // 2))

    def doubled(self) -> "Window":
        """The same pixels of a map of twice the size."""
        return Window(*(2 * end for end in self))

    def mirrored(self, width: int) -> "Window":
        """The same pixels of the mirrored map of this width."""
        return Window(self.top, width - self.right, self.bottom, width - self.left)

    def of(self, maps: Tensor, whole: "Window | None" = None) -> Tensor:
        """This part (view) of ...×H×W maps, which themselves are the window ``whole`` of larger ones, if given."""
        top, left = (whole.top, whole.left) if whole else (0, 0)
        return maps[..., self.top - top : self.bottom - top, self.left - left : self.right - left]
