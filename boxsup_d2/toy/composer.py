"""Composition of toy scenes: objects with shading and shadows over backgrounds, one in front of the other.

All randomness comes from the generator that is passed in: a scene depends only on its seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from boxsup_d2.toy.shapes import (
    FAMILIES,
    Texture,
    draw_shape,
    random_texture,
    render_texture,
    split_in_two,
)

__all__ = ["Composer", "ToyScene"]

# Shares of the hard cases among the objects / scenes; see docs/toy.md before changing one.
CAMOUFLAGE_SHARE = 0.30  # object from the photograph behind it
TWIN_SHARE = 0.25  # object touches another one and continues its texture
TWO_TONE_SHARE = 0.30  # object of two textures
CROSSING_SHARE = 0.20  # object lies across another one
HORIZON_SHARE = 0.40  # background of two photographs

_MIN_VISIBLE_SHARE = 0.5  # of an object's own area, behind the objects in front of it
_MIN_SIDE = 14  # pixels of a visible object's box


@dataclass(frozen=True)
class ToyScene:
    """One composed image.

    Attributes:
        name: Unique name, of VOC's form for detection scenes.
        image: H x W x 3 uint8, BGR.
        instance_map: H x W uint8, 0 = background, i = the visible pixels of the i-th object, i >= 1.
        classes: VOC class name of every object, in the order of the instance ids.
        photos: File names of its photographs.
    """

    name: str
    image: np.ndarray
    instance_map: np.ndarray
    classes: tuple[str, ...]
    photos: tuple[str, ...]


@dataclass
class _Thing:
    """A placed object: per-part coverage (P x H x W, 0..1), a texture per part, and its shading."""

    family: str
    parts: np.ndarray
    textures: list[Texture]
    shading: float
    rim: float

    @property
    def alpha(self) -> np.ndarray:
        return np.minimum(self.parts.sum(0), 1.0)


class Composer:
    """Draws scenes of one split from its photographs."""

    def __init__(self, photos: list[np.ndarray], names: tuple[str, ...], size: tuple[int, int]) -> None:
        self.photos = photos
        self.names = names
        self.size = size  # width, height

    def texture(self, rng: np.random.Generator, exclude: tuple[int, ...] = (), *, free: bool = True) -> Texture:
        """A random view of a photograph that is none of ``exclude``."""
        choices = [i for i in range(len(self.photos)) if i not in exclude]
        photo = int(rng.choice(choices))
        return random_texture(rng, photo, self.photos[photo].shape, min(self.size), free)

    def background(self, rng: np.random.Generator) -> tuple[np.ndarray, list[Texture]]:
        """One photograph, or two that meet at a wavy horizon."""
        width, height = self.size
        views = [self.texture(rng, free=False)]
        canvas = render_texture(self.photos[views[0].photo], views[0], self.size)
        if rng.random() < HORIZON_SHARE:
            views.append(self.texture(rng, (views[0].photo,), free=False))
            x = np.arange(width)
            horizon = height * (
                rng.uniform(0.35, 0.65) + rng.uniform(-0.3, 0.3) * (x / width - 0.5)
                + rng.uniform(0, 0.05) * np.sin(x / width * rng.uniform(3, 12))
            )  # fmt: skip
            below = np.clip(np.arange(height)[:, None] - horizon + 0.5, 0, 1)[..., None].astype(np.float32)
            canvas = canvas * (1 - below) + render_texture(self.photos[views[1].photo], views[1], self.size) * below
        return canvas, views

    def thing(
        self, rng: np.random.Generator, behind: list[Texture], center: np.ndarray, radius: float,
        family: str | None = None,
    ) -> _Thing:  # fmt: skip
        """A random object; ``behind`` are the views of its background."""
        family = family or str(rng.choice(list(FAMILIES)))
        parts = draw_shape(rng, family, center, radius, self.size)
        used = tuple(view.photo for view in behind)
        # Many things are lighter on one side and darker towards their rim; some are as flat as paper.
        shading, rim = rng.uniform(0, 0.35), max(0.0, rng.uniform(-0.15, 0.45))
        if rng.random() < CAMOUFLAGE_SHARE:
            rim = max(rim, 0.15)  # without a rim, it would be invisible
            # Another place, angle and scale of the photograph behind it, in nearly the same colours.
            view = behind[int(rng.integers(len(behind)))]
            other = random_texture(rng, view.photo, self.photos[view.photo].shape, min(self.size), True)
            gain = np.array(view.gain) * rng.uniform(0.85, 1.15)
            textures = [replace(other, gain=tuple(gain.tolist()), contrast=view.contrast)]
        else:
            textures = [self.texture(rng, used)]
        if rng.random() < TWO_TONE_SHARE:
            if len(parts) == 1:
                parts = split_in_two(rng, parts)
            textures.append(self.texture(rng))
        else:
            textures *= len(parts)
        return _Thing(family, parts, textures[: len(parts)], shading, rim)

    def paste(self, rng: np.random.Generator, canvas: np.ndarray, thing: _Thing) -> np.ndarray:
        """Blend an object, and its shadow, over the canvas (H x W x 3 float32)."""
        width, height = self.size
        alpha = thing.alpha
        if rng.random() < 0.5:
            shift = np.array([[1, 0, rng.uniform(-5, 5)], [0, 1, rng.uniform(0, 5)]], np.float32)
            shadow = cv2.GaussianBlur(cv2.warpAffine(alpha, shift, self.size), (0, 0), rng.uniform(1.5, 4))
            canvas = canvas * (1 - rng.uniform(0.1, 0.5) * shadow[..., None])
        angle = rng.uniform(0, 2 * np.pi)
        x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
        ys, xs = np.nonzero(alpha > 0.5)
        radius = max(np.ptp(xs), np.ptp(ys)) / 2 + 1
        slope = (x[None] - xs.mean()) * np.cos(angle) + (y[:, None] - ys.mean()) * np.sin(angle)
        light = 1 + thing.shading * np.clip(slope / radius, -1, 1)
        depth = cv2.GaussianBlur(alpha, (0, 0), max(1.5, radius / 10))  # 1 deep inside, about a half at the rim
        light = (light * (1 - thing.rim * np.clip(2 * (1 - depth), 0, 1))).astype(np.float32)
        color = np.zeros_like(canvas)
        for texture in dict.fromkeys(thing.textures):
            coverage = sum(part for part, own in zip(thing.parts, thing.textures, strict=True) if own == texture)
            color += render_texture(self.photos[texture.photo], texture, self.size) * coverage[..., None]
        # At soft edges the parts cover pixels partly: full colour here, alpha blends it below.
        color *= (light / np.maximum(thing.parts.sum(0), 1e-3))[..., None]
        return canvas * (1 - alpha[..., None]) + np.clip(color, 0, 255) * alpha[..., None]

    def finish(self, rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
        """Add a camera's blur and noise; H x W x 3 uint8."""
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.3, 0.8)) + rng.normal(
            0, rng.uniform(1, 5), canvas.shape
        )
        return np.clip(np.round(canvas), 0, 255).astype(np.uint8)

    # -------------------------------------------------------------------------------------- detection scenes
    def _twin(self, rng: np.random.Generator, sibling: _Thing) -> _Thing:
        """An object that touches ``sibling`` from in front and continues its texture."""
        ys, xs = np.nonzero(sibling.alpha > 0.5)
        start = np.array([xs.mean(), ys.mean()])
        radius = max(np.ptp(xs), np.ptp(ys)) / 2 * rng.uniform(0.7, 1.2)
        middle = np.array(self.size) / 2
        twin = self.thing(rng, [sibling.textures[0]], middle, min(radius, 0.45 * min(self.size)))
        twin.textures = [sibling.textures[0]] * len(twin.parts)
        twin.shading, twin.rim = sibling.shading, max(sibling.rim, 0.15)  # else no edge would be between them
        angle = rng.uniform(0, 2 * np.pi)
        direction = np.array([np.cos(angle), np.sin(angle)])
        parts = twin.parts
        for distance in range(2 * max(self.size) // 3, 0, -2):
            shift = np.round(start + direction * distance - middle)
            moved = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float32)
            twin.parts = np.stack([cv2.warpAffine(part, moved, self.size) for part in parts])
            if ((twin.alpha > 0.5) & (sibling.alpha > 0.5)).sum() > 8:
                break
        return twin

    def _next_thing(self, rng: np.random.Generator, views: list[Texture], things: list[_Thing]) -> _Thing:
        """A candidate for the next object in front of ``things``."""
        side = min(self.size)
        kind = rng.random()
        if things and kind < TWIN_SHARE:
            return self._twin(rng, things[int(rng.integers(len(things)))])
        if things and kind < TWIN_SHARE + CROSSING_SHARE:
            ys, xs = np.nonzero(things[int(rng.integers(len(things)))].alpha > 0.5)
            radius = min(max(np.ptp(xs), np.ptp(ys)) / 2 * rng.uniform(0.9, 1.4), 0.5 * side)
            return self.thing(rng, views, np.array([xs.mean(), ys.mean()]) + rng.normal(0, 0.03 * side, 2), radius)
        radius = side * np.exp(rng.uniform(np.log(0.12), np.log(0.4)))
        return self.thing(rng, views, np.array(self.size) * rng.uniform(0.1, 0.9, 2), radius)

    def detection_scene(self, rng: np.random.Generator, name: str) -> ToyScene:
        """Several objects, one behind the other; at least half of the pixels of each are visible."""
        canvas, views = self.background(rng)
        count = int(rng.choice([1, 2, 3, 4, 5], p=[0.1, 0.2, 0.3, 0.25, 0.15]))
        things: list[_Thing] = []
        areas: list[int] = []  # own pixels of each, hidden ones included
        instance_map = np.zeros(canvas.shape[:2], np.uint8)
        for _ in range(8 * count):
            if len(things) == count:
                break
            thing = self._next_thing(rng, views, things)
            mask = thing.alpha > 0.5
            candidate = np.where(mask, np.uint8(len(things) + 1), instance_map)
            if _all_visible(candidate, [*areas, int(mask.sum())]):
                things.append(thing)
                areas.append(int(mask.sum()))
                instance_map = candidate
                canvas = self.paste(rng, canvas, thing)
        if not things:
            raise RuntimeError(f"no object fits into toy scene {name}: the image size {self.size} is too small")
        # Instance ids must not tell which object is in front.
        order = rng.permutation(len(things))
        lookup = np.zeros(len(things) + 1, np.uint8)
        lookup[order + 1] = np.arange(1, len(things) + 1)
        views += [texture for thing in things for texture in thing.textures]
        return ToyScene(
            name=name,
            image=self.finish(rng, canvas),
            instance_map=lookup[instance_map],
            classes=tuple(FAMILIES[things[i].family] for i in order),
            photos=tuple(sorted({self.names[view.photo] for view in views})),
        )

    def salient_scene(self, rng: np.random.Generator, name: str) -> ToyScene:
        """One large object near the middle with context around it, as DUTS frames its objects."""
        canvas, views = self.background(rng)
        width, height = self.size
        center = np.array(self.size) * (0.5 + rng.uniform(-0.08, 0.08, 2))
        thing = self.thing(rng, views, center, rng.uniform(0.3, 0.47) * min(width, height))
        canvas = self.paste(rng, canvas, thing)
        views += thing.textures
        return ToyScene(
            name=name,
            image=self.finish(rng, canvas),
            instance_map=(thing.alpha > 0.5).astype(np.uint8),
            classes=(FAMILIES[thing.family],),
            photos=tuple(sorted({self.names[view.photo] for view in views})),
        )


def _all_visible(instance_map: np.ndarray, areas: list[int]) -> bool:
    """Whether at least half of the ``areas[i - 1]`` pixels of each object i are visible, and none is tiny."""
    for index, area in enumerate(areas, start=1):
        mask = instance_map == index
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        if len(rows) == 0 or mask.sum() < _MIN_VISIBLE_SHARE * area:
            return False
        if min(np.ptp(rows), np.ptp(columns)) + 1 < _MIN_SIDE:
            return False
    return True
