"""Toy scenes: images with exact masks, made of photographs in scikit-image's wheel, in the layouts of real data sets.

Shapes are cut out of photographs and pasted over others (nothing is downloaded), and written as a small VOC 2012 and a
small DUTS, which are registered like the real ones. ``docs/toy.md`` describes the scenes. No number that is measured on
them says anything about real images.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from boxsup_d2.toy.composer import Composer, ToyScene
from boxsup_d2.toy.layouts import write_duts_pair, write_image_sets, write_voc_image
from boxsup_d2.toy.shapes import FAMILIES, load_photos
from boxsup_d2.utils.files import atomic_write

__all__ = ["FAMILIES", "TRAIN_PHOTOS", "VAL_PHOTOS", "ToyScene", "generate_scenes", "write_toy_datasets"]

logger = logging.getLogger(__name__)

# Raise it whenever a change gives other scenes for the same seed: older copies on disk are then replaced.
VERSION = 1
MANIFEST = "toy.json"

# In scikit-image's wheel. Training and validation scenes have no photograph in common, neither as background nor as
# texture.
TRAIN_PHOTOS = (
    "astronaut.png", "brick.png", "coins.png", "grass.png", "ihc.png", "moon.png", "retina.jpg", "rocket.jpg",
    "text.png",
)  # fmt: skip
VAL_PHOTOS = ("camera.png", "chelsea.png", "coffee.png", "gravel.png", "motorcycle_left.png")


_SPLITS = {"train": 0, "salient": 1, "val": 2}


def generate_scenes(split: str, count: int, *, seed: int = 0, size: int = 176) -> Iterator[ToyScene]:
    """Compose toy scenes; the i-th depends only on ``split``, ``seed``, ``size`` and i.

    Args:
        split: "train" (several objects), "salient" (one, framed as DUTS does) or "val" (as "train", other photographs).
        count: Number of scenes.
        seed: Any non-negative integer.
        size: Longest side of the images in pixels; the other side is 0.7 to 1 of it.

    Yields:
        The scenes in order. The last 4 digits of train and val names count from 1.

    Raises:
        ValueError: ``split`` is none of the three, or ``size`` is below 96.
    """
    if split not in _SPLITS:
        raise ValueError(f"toy scenes have the splits {sorted(_SPLITS)}, not {split!r}")
    if size < 96:
        raise ValueError(f"toy scenes need a size of at least 96 px, not {size}")
    names = VAL_PHOTOS if split == "val" else TRAIN_PHOTOS
    photos = load_photos(names)

    def scene(index: int) -> ToyScene:
        rng = np.random.default_rng([seed, _SPLITS[split], index])
        short = int(size * rng.uniform(0.7, 1.0))
        composer = Composer(photos, names, (size, short) if rng.random() < 0.6 else (short, size))
        if split == "salient":
            return composer.salient_scene(rng, f"toy_{index + 1:04d}")
        # VOC's form, which the registration turns into an integer id; the splits have different years.
        return composer.detection_scene(rng, f"{'2008' if split == 'train' else '2009'}_{index + 1:06d}")

    with ThreadPoolExecutor() as pool:  # OpenCV and NumPy work outside the interpreter's lock
        yield from pool.map(scene, range(count))


def write_toy_datasets(
    root: str | Path, *, num_train: int = 240, num_salient: int = 400, num_val: int = 60, seed: int = 0, size: int = 176
) -> Path:
    """Write a toy VOC 2012 and a toy DUTS under ``root``, unless they are there already.

    ``VOC2012``: the split ``train_aug`` has ``num_train`` images with boxes, of which a quarter, the split ``train``,
    has masks as well, as in the real data set; ``val`` has ``num_val`` images with masks. ``DUTS``: ``num_salient``
    images with masks. A manifest ``toy.json`` is written last: after an interrupted call, the next one starts again.

    Args:
        root: Folder for ``DETECTRON2_DATASETS``; is made.
        num_train: Images of ``train_aug``.
        num_salient: Images of ``DUTS``.
        num_val: Images of ``val``.
        seed: Seed of every scene.
        size: Longest image side in pixels.

    Returns:
        ``root``.

    Raises:
        FileExistsError: ``root`` has a ``VOC2012`` or ``DUTS`` folder that this function did not make.
        RuntimeError: scikit-image is not installed.
    """
    root = Path(root)
    manifest = {
        "toy": "Toy scenes made by boxsup_d2; no figure on them says anything about real images.",
        "version": VERSION,
        "num_train": num_train,
        "num_salient": num_salient,
        "num_val": num_val,
        "seed": seed,
        "size": size,
    }
    path = root / MANIFEST
    folders = [root / "VOC2012", root / "DUTS"]
    found = json.loads(path.read_text()) if path.is_file() else None
    up_to_date = found is not None and {**found, **manifest, "complete": True} == found
    if up_to_date and all(folder.is_dir() for folder in folders):
        logger.info("Toy scenes are in %s already.", root)
        return root
    foreign = [str(folder) for folder in folders if folder.exists()] if found is None else []
    if foreign:
        raise FileExistsError(f"{', '.join(foreign)} was not made by this tool: choose another folder for toy scenes")

    root.mkdir(parents=True, exist_ok=True)
    partial = root / "toy.partial"
    shutil.rmtree(partial, ignore_errors=True)
    digest = _write_all(partial, {"train": num_train, "salient": num_salient, "val": num_val}, seed=seed, size=size)
    # From here on the folders belong to this function, also if the next lines are interrupted.
    _write_manifest(path, {**manifest, "complete": False})
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        (partial / folder.name).rename(folder)
    partial.rmdir()
    photos = {"train": list(TRAIN_PHOTOS), "val": list(VAL_PHOTOS)}
    _write_manifest(path, {**manifest, "photos": photos, "sha256": digest, "complete": True})
    logger.info("Wrote %d + %d + %d toy scenes to %s.", num_train, num_salient, num_val, root)
    return root


def _write_all(root: Path, counts: dict[str, int], *, seed: int, size: int) -> str:
    """Write both data sets under ``root``; returns a hash over all images and masks before compression."""
    digest = hashlib.sha256()
    names: dict[str, list[str]] = {"train": [], "train_aug": [], "val": []}
    num_masks = max(1, counts["train"] // 4)
    for split in ("train", "val"):
        for index, scene in enumerate(generate_scenes(split, counts[split], seed=seed, size=size)):
            with_masks = split == "val" or index < num_masks
            write_voc_image(root / "VOC2012", scene, with_masks=with_masks)
            if with_masks:
                names[split].append(scene.name)
            if split == "train":
                names["train_aug"].append(scene.name)
            digest.update(scene.image.tobytes() + scene.instance_map.tobytes())
    names["trainval"] = names["train"] + names["val"]
    write_image_sets(root / "VOC2012", names)
    for scene in generate_scenes("salient", counts["salient"], seed=seed, size=size):
        write_duts_pair(root / "DUTS", scene)
        digest.update(scene.image.tobytes() + scene.instance_map.tobytes())
    return digest.hexdigest()


def _write_manifest(path: Path, manifest: dict[str, object]) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(manifest, indent=1) + "\n")
