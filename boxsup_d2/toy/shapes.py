"""Views of photographs and shapes, which toy scenes are made of."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

__all__ = ["FAMILIES", "Texture", "draw_shape", "load_photos", "random_texture", "render_texture", "split_in_two"]

# Shape families and the VOC classes of their objects, so that the real class list and XML format can be used.
FAMILIES = {
    "ellipse": "sheep",
    "polygon": "boat",
    "star": "aeroplane",
    "blob": "cat",
    "ring": "bicycle",
    "figure": "person",
}

_SUPERSAMPLE = 4  # shapes are drawn this much larger, so that their edges are as soft as a photograph's


@dataclass(frozen=True)
class Texture:
    """A view of a photograph: where it is cut, at which angle and scale, and how its colours are changed."""

    photo: int
    center: tuple[float, float]  # 0..1 of the photograph
    angle: float  # degrees
    zoom: float  # photograph pixels per scene pixel
    gain: tuple[float, float, float]  # per channel
    contrast: float


def load_photos(names: tuple[str, ...]) -> list[np.ndarray]:
    """Read photographs as BGR uint8, longest side at most 600 px."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("The toy scenes are cut from photographs in scikit-image: pip install scikit-image")
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    photos = []
    for name in names:
        photo = cv2.imread(str(folder / name), cv2.IMREAD_COLOR)
        if photo is None:
            raise FileNotFoundError(
                f"{folder / name} is not in this scikit-image; the toy scenes need one that ships it (0.22 to 0.26 do)"
            )
        if name == "retina.jpg":  # a disc on black: keep the inside of the disc
            margin = photo.shape[0] // 6
            photo = photo[margin:-margin, margin:-margin]
        scale = 600 / max(photo.shape[:2])
        if scale < 1:
            photo = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        photos.append(photo)
    return photos


def random_texture(rng: np.random.Generator, photo: int, shape: tuple[int, ...], size: int, free: bool) -> Texture:
    """A random view of a photograph of ``shape``; ``free`` allows any angle (textures), else it stays upright."""
    # From a view of the whole photograph down to a third of it.
    zoom = min(shape[:2]) / size * rng.uniform(0.35, 1.0)
    gain = rng.uniform(0.75, 1.15) * rng.uniform(0.75, 1.25, 3)
    return Texture(
        photo=photo,
        center=(rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7)),
        angle=rng.uniform(-180, 180) if free else rng.uniform(-8, 8),
        zoom=zoom * (rng.uniform(0.6, 1.2) if free else 1.0),
        gain=(float(gain[0]), float(gain[1]), float(gain[2])),
        contrast=rng.uniform(0.7, 1.2),
    )


def render_texture(photo: np.ndarray, texture: Texture, size: tuple[int, int]) -> np.ndarray:
    """The view as H x W x 3 float32 in 0..255, for a scene of ``size`` (width, height)."""
    width, height = size
    radians = np.deg2rad(texture.angle)
    cos, sin = np.cos(radians) * texture.zoom, np.sin(radians) * texture.zoom
    x, y = texture.center[0] * photo.shape[1], texture.center[1] * photo.shape[0]
    to_photo = np.array(
        [
            [cos, -sin, x - cos * width / 2 + sin * height / 2],
            [sin, cos, y - sin * width / 2 - cos * height / 2],
        ]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    if texture.zoom > 1.5:  # a view that shrinks the photograph this much would alias
        photo = cv2.blur(photo, (round(texture.zoom),) * 2)
    view = cv2.warpAffine(photo, to_photo, size, flags=flags, borderMode=cv2.BORDER_REFLECT_101).astype(np.float32)
    mean = view.mean()
    return np.clip(((view - mean) * texture.contrast + mean) * np.array(texture.gain, np.float32), 0, 255)


def _closed_curve(radii: np.ndarray, stretch: float = 1.0) -> np.ndarray:
    """Points at equal angles with these radii (N), stretched along x: N x 2."""
    angles = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    return np.stack([np.cos(angles) * radii * stretch, np.sin(angles) * radii], 1)


def _shape_parts(rng: np.random.Generator, family: str) -> list[list[np.ndarray]]:
    """A random member of a family.

    Returns:
        Its parts, back to front, each a list of closed polygons (N x 2, within about -1.3..1.3).
    """
    round_ = np.ones(48)
    if family == "ellipse":
        return [[_closed_curve(round_, rng.uniform(1.4, 2.6))]]
    if family == "polygon":
        corners = int(rng.integers(3, 6))
        return [[_closed_curve(rng.uniform(0.55, 1.0, corners), rng.uniform(1.0, 1.8))]]
    if family == "star":
        points = int(rng.integers(4, 8))
        radii = np.where(np.arange(2 * points) % 2 == 0, 1.0, rng.uniform(0.35, 0.6))
        return [[_closed_curve(radii * rng.uniform(0.85, 1.0, 2 * points))]]
    if family == "blob":
        orders = np.arange(2, 6)[:, None]
        waves = np.cos(orders * np.linspace(0, 2 * np.pi, 72, endpoint=False) + rng.uniform(0, 2 * np.pi, (4, 1)))
        radii = 1.0 + (rng.uniform(0.1, 0.35, (4, 1)) * waves).sum(0)
        return [[_closed_curve(np.maximum(radii, 0.25), rng.uniform(1.0, 1.5))]]
    if family == "ring":
        hole = rng.uniform(0.45, 0.7)
        offset = rng.uniform(-0.9, 0.9, 2) * (1 - hole) * 0.6
        stretch = rng.uniform(1.0, 1.5)
        return [[_closed_curve(round_, stretch), _closed_curve(round_ * hole, stretch) + offset]]
    # "figure": a body, perhaps with legs, and a head that may be apart from it: one object of several parts.
    body = _closed_curve(round_) * (rng.uniform(0.35, 0.55), 0.62)
    neck = np.array([rng.uniform(-0.3, 0.3), -0.62 - rng.uniform(0.12, 0.4)])
    head = _closed_curve(round_ * rng.uniform(0.22, 0.34)) + neck
    lower = [body]
    if rng.random() < 0.6:
        for side in (-1, 1):
            top, foot = side * rng.uniform(0.1, 0.25), side * rng.uniform(0.2, 0.6)
            leg = np.array([[top - 0.1, 0.55], [top + 0.1, 0.55], [foot + 0.1, 1.25], [foot - 0.1, 1.25]])
            lower.append(leg)
    return [lower, [head]]


def _fill(polygons: list[np.ndarray], size: tuple[int, int], even_odd: bool) -> np.ndarray:
    """Coverage (H x W float32, 0..1) of polygons in scene pixels; their union unless ``even_odd``."""
    width, height = size
    canvas = np.zeros((height * _SUPERSAMPLE, width * _SUPERSAMPLE), np.uint8)
    points = [np.round(polygon * _SUPERSAMPLE).astype(np.int32) for polygon in polygons]
    if even_odd:
        cv2.fillPoly(canvas, points, 255)
    else:
        for polygon in points:
            cv2.fillPoly(canvas, [polygon], 255)
    return cv2.resize(canvas, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def draw_shape(
    rng: np.random.Generator, family: str, center: np.ndarray, radius: float, size: tuple[int, int]
) -> np.ndarray:
    """Coverage of the parts of a random member of ``family`` around ``center``, longest half-side about ``radius``."""
    parts = _shape_parts(rng, family)
    angle = rng.uniform(-0.5, 0.5) if family == "figure" else rng.uniform(-np.pi, np.pi)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turned = [[polygon @ turn for polygon in part] for part in parts]
    corners = np.concatenate([polygon for part in turned for polygon in part])
    low, high = corners.min(0), corners.max(0)
    scale = 2 * radius / (high - low).max()
    middle = (low + high) / 2
    drawn = [
        _fill([(polygon - middle) * scale + center for polygon in part], size, family == "ring") for part in turned
    ]
    for k in range(len(drawn) - 1):  # a later part lies in front of an earlier one
        drawn[k] *= 1 - drawn[k + 1]
    return np.stack(drawn)


def split_in_two(rng: np.random.Generator, parts: np.ndarray) -> np.ndarray:
    """Cut a one-part shape along a random line near its middle: 2 x H x W."""
    ys, xs = np.nonzero(parts[0] > 0.5)
    angle = rng.uniform(0, 2 * np.pi)
    grid_y, grid_x = np.mgrid[: parts.shape[1], : parts.shape[2]]
    distance = (grid_x - xs.mean()) * np.cos(angle) + (grid_y - ys.mean()) * np.sin(angle)
    near = np.clip(distance + 0.5, 0, 1).astype(np.float32)
    return np.stack([parts[0] * near, parts[0] * (1 - near)])
