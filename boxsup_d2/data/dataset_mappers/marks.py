"""Marks on surfaces, drawn into photographs: stains, cracks and spots, whose masks are known as they are drawn.

Photographs of things teach where things end. What users bring are also defects, cells and openings, which are no
things: they differ from what is around them in colour or texture, and often lie among others of their kind.

Random numbers are NumPy's global ones, which the loader seeds per sample. Shape legend: H x W an image, h x w a mark.
"""

import cv2
import numpy as np

# Mean difference in grey values that makes a mark visible.
_VISIBLE = 10.0


def surface_with_mark(
    image: np.ndarray, texture: np.ndarray, outline: np.ndarray | None = None, side: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """A part of an image with marks of one kind on it, and the mask of one of them.

    Args:
        image: H x W x 3 uint8, whose part is the surface.
        texture: another one, which a mark may show.
        outline: uint8 mask of any size, above 127 inside, which the marks may have as their shape.
        side: of the result, pixels.

    Returns:
        side x side x 3 uint8, and side x side uint8, 0 or 255, with at least one pixel of 255.
    """
    surface = _random_part(image, side, least=0.15)
    kind = np.random.choice(["blob", "crack", "outline"], p=[0.6, 0.15, 0.25])
    shapes = [_shape(kind, outline) for _ in range(1 + np.random.choice([0, 0, 2, 4]))]
    mark = _paint(surface, texture)
    long = np.random.uniform(0.12, 0.6) * side
    places = [_place(shape, long * np.random.uniform(0.7, 1.3), side) for shape in shapes]
    target, pixels = places[0], surface.astype(np.float32)
    inside = target > 0.5
    if np.abs(mark - pixels)[inside].mean() < _VISIBLE:
        mark = pixels + np.float32(40 if pixels[inside].mean() < 128 else -40)
    apart = cv2.dilate((target > 0.02).astype(np.uint8), np.ones((3, 3), np.uint8)) == 0
    for alpha in (target, *(other * apart for other in places[1:])):
        share = alpha[:, :, None]
        pixels = pixels * (1 - share) + mark * share
    return pixels.clip(0, 255).astype(np.uint8), np.where(inside, np.uint8(255), np.uint8(0))


def _random_part(image: np.ndarray, side: int, least: float) -> np.ndarray:
    """side x side x 3: a square of ``least`` to all of an image's shorter side, resized."""
    height, width = image.shape[:2]
    size = max(int(np.random.uniform(least, 1) * min(height, width)), 1)
    top, left = np.random.randint(height - size + 1), np.random.randint(width - size + 1)
    part = np.ascontiguousarray(image[top : top + size, left : left + size])
    return cv2.resize(part, (side, side), interpolation=cv2.INTER_AREA if size > side else cv2.INTER_LINEAR)


def _paint(surface: np.ndarray, texture: np.ndarray) -> np.ndarray:
    """What the surface looks like where it is marked: side x side x 3 float32."""
    plain: np.ndarray = surface.astype(np.float32)
    kind, marked = np.random.rand(), plain
    if kind < 0.35:
        marked = _random_part(texture, surface.shape[0], least=0.1).astype(np.float32)
        marked += (plain - marked) * np.float32(np.random.uniform(0, 0.5))
    elif kind < 0.55:
        marked = cv2.GaussianBlur(plain, (0, 0), surface.shape[0] * np.random.uniform(0.02, 0.1))
    else:
        marked = (plain * np.random.uniform(0.4, 1.0)).astype(np.float32)
    if kind >= 0.35:
        tone = np.random.choice([-1, 1]) * np.random.uniform(15, 90) + np.random.normal(0, 15, 3)
        marked = marked + tone.astype(np.float32)
    if np.random.rand() < 0.3:
        marked = marked + np.random.normal(0, np.random.uniform(5, 25), surface.shape).astype(np.float32)
    return marked.clip(0, 255)


def _shape(kind: str, outline: np.ndarray | None) -> np.ndarray:
    """h x w float32 in 0..1, tight around what is above 1/2."""
    if kind == "outline" and outline is not None:
        return _largest(outline > 127)
    return _crack() if kind == "crack" else _blob()


def _blob(size: int = 64) -> np.ndarray:
    """size x size float32 in 0..1: a round to ragged piece."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    noise = cv2.GaussianBlur(np.random.normal(0, 1, (size, size)), (0, 0), size * np.random.uniform(0.05, 0.2))
    noise *= np.random.choice([0.0, 0.15, 0.4, 0.8]) / max(float(noise.std()), 1e-6)
    return _largest(0.6 - x * x - y * y + noise * 0.5 > 0)


def _crack(size: int = 128) -> np.ndarray:
    """size x size float32 in 0..1: a line that wanders, and maybe forks."""
    shape = np.zeros((size, size), np.uint8)
    thick = max(round(size * np.random.uniform(0.02, 0.1)), 1)
    start, heading = np.array([0.1, 0.5]) * size, 0.0
    for _ in range(np.random.choice([1, 1, 2])):
        steps = np.random.uniform(-0.7, 0.7, 8).cumsum() * np.random.choice([0.2, 1.0]) + heading
        ways = np.stack([np.cos(steps), np.sin(steps)], axis=1) * size * 0.11
        points = (start + np.concatenate([[[0, 0]], ways.cumsum(axis=0)])).round().astype(np.int32)
        cv2.polylines(shape, [points], False, 1, thick)
        start, heading = points[4].astype(float), np.random.choice([-0.9, 0.9])
    return _largest(shape > 0)


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest piece of a mask, cut out, as float32 in 0..1; a square where there is none."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count < 2:
        return np.ones((8, 8), np.float32)
    best = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    x, y, width, height = stats[best, :4]
    return (labels[y : y + height, x : x + width] == best).astype(np.float32)


def _place(shape: np.ndarray, long: float, side: int) -> np.ndarray:
    """A shape, turned and stretched, somewhere on a surface: side x side float32 in 0..1, soft at its edge."""
    height, width = shape.shape
    scale = long / max(height, width) * np.exp(np.random.uniform(-0.4, 0.4, 2))
    angle = np.random.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag(scale)
    center = np.random.uniform(0.2, 0.8, 2) * side - turn @ (width / 2, height / 2)
    matrix = np.concatenate([turn, center[:, None]], axis=1)
    placed = cv2.warpAffine(shape, matrix, (side, side), flags=cv2.INTER_LINEAR)
    if not (placed > 0.5).any():  # thinner than a pixel
        placed = (placed > 0).astype(np.float32) if (placed > 0).any() else _dot(side)
    soft: np.ndarray = cv2.GaussianBlur(placed, (0, 0), np.random.uniform(0.3, 1.5))
    return soft if (soft > 0.5).any() else placed


def _dot(side: int) -> np.ndarray:
    """A spot in the middle."""
    dot = np.zeros((side, side), np.float32)
    dot[side // 2 - 4 : side // 2 + 4, side // 2 - 4 : side // 2 + 4] = 1
    return dot
