"""The toy scenes: the same on every run, exact, apart in their photographs, and read by the real registration code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("skimage", reason="the toy scenes are cut from photographs in scikit-image (extra 'demo')")

from pycocotools import mask as mask_util

from boxsup_d2.data.images import voc_palette
from boxsup_d2.toy import scenes as toy_scenes
from boxsup_d2.toy.composer import Composer
from boxsup_d2.toy.scenes import (
    FAMILIES,
    TRAIN_PHOTOS,
    VAL_PHOTOS,
    generate_scenes,
    write_toy_datasets,
)
from boxsup_d2.toy.shapes import draw_shape, load_photos, random_texture, render_texture

COUNTS = {"num_train": 8, "num_salient": 4, "num_val": 4, "size": 128}


@pytest.fixture(scope="module")
def toy_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Toy data sets that the tests of this file share and must not change."""
    return write_toy_datasets(tmp_path_factory.mktemp("toy"), **COUNTS)


def content(root: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def tight_box(mask: np.ndarray) -> list[float]:
    ys, xs = np.nonzero(mask)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


# ------------------------------------------------------------------------------------------------ scenes
@pytest.mark.parametrize("split", ["train", "salient", "val"])
def test_a_scene_depends_on_seed_and_index_alone(split: str) -> None:
    few = list(generate_scenes(split, 2, seed=3, size=112))
    more = list(generate_scenes(split, 4, seed=3, size=112))
    other = list(generate_scenes(split, 2, seed=4, size=112))
    for a, b, c in zip(few, more, other, strict=False):
        assert a.name == b.name
        assert a.classes == b.classes
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.instance_map, b.instance_map)
        assert a.image.shape != c.image.shape or (a.image != c.image).any()


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_object_is_visible_and_ids_are_complete(split: str) -> None:
    counts = set()
    for scene in generate_scenes(split, 24, seed=1):
        assert scene.image.dtype == np.uint8
        assert scene.image.shape == (*scene.instance_map.shape, 3)
        assert max(scene.image.shape) == 176
        assert set(np.unique(scene.instance_map)) - {0} == set(range(1, len(scene.classes) + 1))
        assert set(scene.classes) <= set(FAMILIES.values())
        for index in range(1, len(scene.classes) + 1):
            x0, y0, x1, y1 = tight_box(scene.instance_map == index)
            assert min(x1 - x0, y1 - y0) >= 14
        counts.add(len(scene.classes))
    assert len(counts) >= 4, "scenes hold different numbers of objects"


def test_scenes_hold_what_is_hard() -> None:
    """Touching objects, objects of several pieces, and boxes that are a poor guess of the mask."""
    touching = pieces = 0
    fill = []
    for scene in generate_scenes("train", 40, seed=2):
        ids = scene.instance_map.astype(int)
        right, below = (ids[:, :-1], ids[:, 1:]), (ids[:-1], ids[1:])
        touching += any(((a != b) & (a > 0) & (b > 0)).any() for a, b in (right, below))
        for index in range(1, len(scene.classes) + 1):
            mask = ids == index
            x0, y0, x1, y1 = tight_box(mask)
            fill.append(mask.sum() / ((x1 - x0) * (y1 - y0)))
            _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
            pieces += (stats[1:, cv2.CC_STAT_AREA] >= 20).sum() > 1
    assert touching >= 10
    assert pieces >= 10
    assert 0.4 < np.mean(fill) < 0.65


def test_salient_scenes_frame_one_object() -> None:
    for scene in generate_scenes("salient", 24, seed=5):
        height, width = scene.instance_map.shape
        assert len(scene.classes) == 1
        x0, y0, x1, y1 = tight_box(scene.instance_map == 1)
        assert 0.5 < max((x1 - x0), (y1 - y0)) / min(height, width) <= 1.0
        assert abs((x0 + x1) / 2 / width - 0.5) < 0.2
        assert abs((y0 + y1) / 2 / height - 0.5) < 0.2


def test_photographs_of_train_and_val_are_disjoint() -> None:
    assert not set(TRAIN_PHOTOS) & set(VAL_PHOTOS)
    used = {
        split: {photo for scene in generate_scenes(split, 30) for photo in scene.photos}
        for split in ("train", "salient", "val")
    }
    assert used["train"] <= set(TRAIN_PHOTOS)
    assert used["salient"] <= set(TRAIN_PHOTOS)
    assert used["val"] == set(VAL_PHOTOS)


def test_masks_are_where_the_pixels_changed() -> None:
    """The mask is exact: inside it the pasted colour, outside (no shadow, no noise) the untouched background."""
    photos = load_photos(VAL_PHOTOS)
    size = (120, 100)
    composer = Composer(photos, VAL_PHOTOS, size)
    rng = np.random.default_rng(0)
    shadows = 0
    for _ in range(12):
        thing = composer.thing(rng, [composer.texture(rng)], np.array([60.0, 50.0]), 30)
        background = np.full((100, 120, 3), 500, np.float32)  # a value that no photograph has
        pasted = composer.paste(rng, background, thing)
        outside = thing.alpha == 0
        shadows += (pasted[outside] < 499.9).any()
        assert (pasted[thing.alpha >= 0.999] <= 256).all()
        assert (pasted[thing.alpha < 0.5].mean() > 255) or not (thing.alpha < 0.5).any()
    assert 0 < shadows < 12, "some objects throw a shadow, some do not"


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_have_the_size_asked_for(family: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(5):
        parts = draw_shape(rng, family, np.array([64.0, 60.0]), 30, (128, 120))
        alpha = parts.sum(0)
        assert alpha.max() <= 1 + 1e-5
        x0, y0, x1, y1 = tight_box(alpha > 0.5)
        assert max(x1 - x0, y1 - y0) == pytest.approx(60, abs=4)
        assert (x0 + x1) / 2 == pytest.approx(64, abs=4)
        assert (y0 + y1) / 2 == pytest.approx(60, abs=4)


def test_an_untouched_view_is_the_photograph() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    texture = random_texture(np.random.default_rng(0), 0, photo.shape, 40, False)
    plain = replace(texture, center=(0.5, 0.5), angle=0.0, zoom=1.0, gain=(1.0,) * 3, contrast=1.0)
    np.testing.assert_allclose(render_texture(photo, plain, (60, 40)), photo, atol=1)


@pytest.mark.parametrize(("split", "size"), [("test", 176), ("train", 64)])
def test_what_cannot_be_made_is_an_error(split: str, size: int) -> None:
    with pytest.raises(ValueError, match="toy scenes"):
        list(generate_scenes(split, 1, size=size))


# ------------------------------------------------------------------------------------------------ on disk
def test_layouts_are_complete(toy_root: Path) -> None:
    voc = toy_root / "VOC2012"
    lists = {path.stem: path.read_text().split() for path in sorted((voc / "ImageSets" / "Segmentation").glob("*.txt"))}
    assert {name: len(members) for name, members in lists.items()} == {
        "train": 2, "train_aug": 8, "trainval": 6, "val": 4,
    }  # fmt: skip
    assert set(lists["train"]) < set(lists["train_aug"])
    assert not set(lists["train_aug"]) & set(lists["val"])
    everything = set(lists["train_aug"]) | set(lists["val"])
    for folder, members in (
        ("JPEGImages", everything),
        ("Annotations", everything),
        ("SegmentationClass", set(lists["trainval"])),
        ("SegmentationObject", set(lists["trainval"])),
    ):
        assert {path.stem for path in (voc / folder).iterdir()} == members, folder
    for name in lists["trainval"]:
        ids = Image.open(voc / "SegmentationObject" / f"{name}.png")
        assert ids.mode == "P"
        assert ids.getpalette()[: len(voc_palette())] == voc_palette()[: len(ids.getpalette())]
    stems = {path.stem for path in (toy_root / "DUTS" / "DUTS-TR-Image-single").iterdir()}
    assert stems == {path.stem for path in (toy_root / "DUTS" / "DUTS-TR-Mask-single").iterdir()}
    assert len(stems) == 4
    assert not list(toy_root.glob("*.partial*"))


def test_palette_is_vocs() -> None:
    palette = np.array(voc_palette()).reshape(256, 3)
    assert palette[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert palette[15].tolist() == [192, 128, 128]
    assert palette[20].tolist() == [0, 64, 128]
    assert palette[255].tolist() == [224, 224, 192]


def test_real_registration_reads_them(toy_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from detectron2.data import DatasetCatalog

    import boxsup_d2.data.datasets  # noqa: F401

    monkeypatch.setenv("DETECTRON2_DATASETS", str(toy_root))
    scenes = {int(scene.name.replace("_", "")): scene for scene in generate_scenes("val", 4, size=128)}

    boxes = DatasetCatalog.get("voc_2012_val_box")
    instances = DatasetCatalog.get("voc_2012_val_instance")
    assert len(DatasetCatalog.get("voc_2012_train_aug_box")) == 8
    assert len(DatasetCatalog.get("voc_2012_train_instance")) == 2
    salient = DatasetCatalog.get("dut_tr_single")
    assert len(salient) == 4
    assert set(np.unique(cv2.imread(salient[0]["mask_file_name"], cv2.IMREAD_GRAYSCALE))) == {0, 255}
    assert [record["image_id"] for record in instances] == [record["image_id"] for record in boxes] == list(scenes)
    for with_boxes, with_masks in zip(boxes, instances, strict=True):
        scene = scenes[with_boxes["image_id"]]
        assert len(with_boxes["annotations"]) == len(scene.classes)
        for index, (box, masked) in enumerate(
            zip(with_boxes["annotations"], with_masks["annotations"], strict=True), start=1
        ):
            assert "segmentation" not in box
            truth = scene.instance_map == index
            np.testing.assert_array_equal(mask_util.decode(masked["segmentation"]).astype(bool), truth)
            assert box["bbox"] == masked["bbox"] == tight_box(truth)
            assert box["category_id"] == masked["category_id"]


def test_second_call_does_nothing(toy_root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in toy_root.rglob("*")}
    write_toy_datasets(toy_root, **COUNTS)
    assert {path: path.stat().st_mtime_ns for path in toy_root.rglob("*")} == before


def test_two_folders_get_the_same_files(toy_root: Path, tmp_path: Path) -> None:
    assert content(write_toy_datasets(tmp_path / "deep" / "down", **COUNTS)) == content(toy_root)


def test_changed_or_interrupted_sets_are_made_anew(
    toy_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_toy_datasets(tmp_path, **{**COUNTS, "seed": 7})
    assert content(root) != content(toy_root)

    with monkeypatch.context() as patch:
        patch.setattr(toy_scenes.shutil, "rmtree", crash_after(1, toy_scenes.shutil.rmtree))
        with pytest.raises(KeyboardInterrupt):
            write_toy_datasets(root, **COUNTS)
    assert json.loads((root / "toy.json").read_text())["complete"] is False
    assert content(write_toy_datasets(root, **COUNTS)) == content(toy_root)


def crash_after(calls: int, function):
    """``function``, which is interrupted when it is called once more than ``calls`` times."""
    left = [calls]

    def limited(*args, **kwargs):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return function(*args, **kwargs)

    return limited


def test_data_sets_of_others_are_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "VOC2012" / "JPEGImages" / "2007_000032.jpg"
    precious.parent.mkdir(parents=True)
    precious.write_bytes(b"real")
    with pytest.raises(FileExistsError, match="choose another folder"):
        write_toy_datasets(tmp_path, **COUNTS)
    assert content(tmp_path) == {"VOC2012/JPEGImages/2007_000032.jpg": b"real"}


def test_missing_photographs_are_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        load_photos(("nowhere.png",))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="pip install scikit-image"):
        load_photos(TRAIN_PHOTOS)
