"""Data sets of the user: masks that a json has, ``DATASETS.REGISTER``, and the training crops that come of them."""

from __future__ import annotations

import json
import pickle
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools import mask as mask_util

from boxsup_d2.config import add_boxsup_config
from boxsup_d2.data.build import build_train_loader
from boxsup_d2.data.dataset_mappers.box_crop import BoxCropDatasetMapper, box_samples
from boxsup_d2.data.dataset_mappers.joint import JointOrder
from boxsup_d2.data.datasets import load_coco_boxes, load_coco_masks, register_listed
from boxsup_d2.data.formats.salient import salient_folders
from boxsup_d2.data.train_loader import TrainLoader
from boxsup_d2.same_work import split_settings

MASK = np.zeros((40, 60), np.uint8)
MASK[10:30, 20:30] = 1  # the left half of the box 20, 10, 20, 20


def rle(mask: np.ndarray) -> dict[str, Any]:
    encoded = mask_util.encode(np.asfortranarray(mask))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with two images: a box with a mask, a crowd region, and boxes without a mask."""
    (tmp_path / "images").mkdir()
    for image_id in (1, 2):
        Image.fromarray(np.full((40, 60, 3), 50 * image_id, np.uint8)).save(tmp_path / f"images/{image_id}.png")
    box = {"category_id": 5, "iscrowd": 0, "bbox": [20, 10, 20, 20], "area": 400}
    data = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 60} for i in (1, 2)],
        "annotations": [
            {"id": 1, "image_id": 1, **box, "segmentation": rle(MASK)},
            {"id": 2, "image_id": 1, **box, "segmentation": []},
            {"id": 3, "image_id": 2, **box},
            {"id": 4, "image_id": 2, **box, "segmentation": rle(0 * MASK)},
            {"id": 5, "image_id": 2, **box, "iscrowd": 1, "segmentation": {"size": [40, 60], "counts": [2400]}},
        ],
        "categories": [{"id": 5, "name": "cat"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(data))
    return tmp_path


def entry(source: Path, **fields: str) -> dict[str, str]:
    return {"NAME": "user_data_test", "JSON": str(source / "boxes.json"), "IMAGES": str(source / "images"), **fields}


def mapper(**kwargs: Any) -> BoxCropDatasetMapper:
    return BoxCropDatasetMapper(image_format="BGR", **{"size": 20, "salient_size": 24, **kwargs})


def test_masks_are_read_where_there_are_some(source: Path) -> None:
    records = load_coco_masks(str(source / "boxes.json"), str(source / "images"), "x")
    masked = [a["id"] for r in records for a in r["annotations"] if "segmentation" in a and not a["iscrowd"]]
    assert masked == [1], "an empty list, no key and an RLE without a pixel are no masks"
    assert [a["id"] for r in records for a in r["annotations"]] == [1, 2, 3, 4, 5]


def test_only_sets_registered_for_their_masks_teach_them(source: Path) -> None:
    arguments = (str(source / "boxes.json"), str(source / "images"), "x")
    with_masks, boxes = load_coco_masks(*arguments), load_coco_boxes(*arguments)
    assert ["segmentation" in s for s in box_samples(with_masks)] == [True, False, False, False]
    assert not any("segmentation" in s for s in box_samples(boxes))
    # A set of Detectron2's own has masks in its dicts too; they stay unread.
    unmarked = [{k: v for k, v in record.items() if k != "fully_supervised"} for record in with_masks]
    assert not any("segmentation" in s for s in box_samples(unmarked))


def test_crop_of_a_box_with_a_mask_shows_the_mask(source: Path) -> None:
    samples = box_samples(load_coco_masks(str(source / "boxes.json"), str(source / "images"), "x"))
    exact = mapper(center_jitter=0, scale_jitter=0)
    crop = exact(samples[0])
    assert crop["is_salient"]
    assert np.array_equal(crop["mask"].numpy(), MASK[10:30, 20:40])
    box = exact(samples[1])
    assert not box["is_salient"]
    assert box["mask"].all()


def test_jitter_and_flip_move_mask_and_box_alike(source: Path) -> None:
    """The same random numbers cut the same window, whether the box has a mask or not."""
    masked, plain, *_ = box_samples(load_coco_masks(str(source / "boxes.json"), str(source / "images"), "x"))
    for seed in range(20):
        masks = []
        for sample in (masked, plain):
            np.random.seed(seed)
            masks.append(mapper(box_flip="horizontal")(sample)["mask"].numpy())
        assert (masks[0] <= masks[1]).all(), "the mask lies in the box"
        assert 0.3 < masks[0].sum() / masks[1].sum() <= 1


def test_mask_of_another_size_names_the_image(source: Path) -> None:
    sample = box_samples(load_coco_masks(str(source / "boxes.json"), str(source / "images"), "x"))[0]
    with pytest.raises(ValueError, match=r"1\.png.*size"):
        mapper()({**sample, "segmentation": rle(np.ones((30, 60), np.uint8))})


@pytest.mark.parametrize("ratio", [-1.0, 0.75])
def test_batches_hold_both_kinds(source: Path, ratio: float) -> None:
    samples = box_samples(load_coco_masks(str(source / "boxes.json"), str(source / "images"), "x"))
    options = {"overlap_iou": 0.5, "overlap_drop_prob": 0.5, "window": 4}
    order = JointOrder(samples, batch_size=4, box_ratio=ratio, **options)
    loader = TrainLoader(samples, mapper(), order, seed=1)
    flags = [sample["is_salient"] for batch in islice(loader, 100) for sample in batch]
    if ratio > 0:
        assert all(sum(flags[i : i + 4]) == 1 for i in range(0, 400, 4)), "one of four has a mask, in every batch"
    else:
        assert 0 < sum(flags) < 200


def test_register_list_registers_for_loaders(source: Path) -> None:
    cfg = get_cfg()
    add_boxsup_config(cfg)
    Image.fromarray(MASK * 255).save(source / "mask.png")
    for folder, file in (("s_images", "images/1.png"), ("s_masks", "mask.png")):
        (source / folder).mkdir()
        (source / folder / "1.png").write_bytes((source / file).read_bytes())
    salient = {"NAME": "user_salient", "IMAGES": str(source / "s_images"), "SALIENT_MASKS": str(source / "s_masks")}
    cfg.DATASETS.REGISTER = [entry(source, MASKS="kept"), salient]
    for _ in range(2):  # as the steps of a round in one process
        assert register_listed(cfg.DATASETS.REGISTER) == ["user_data_test", "user_salient"]
    assert MetadataCatalog.get("user_data_test").thing_classes == ["cat"]
    cfg.DATASETS.TRAIN = ("user_data_test", "user_salient")
    cfg.INPUT.TRAIN_MAPPER, cfg.MODEL.DEVICE, cfg.DATALOADER.NUM_WORKERS = "BoxCropDatasetMapper", "cpu", 0
    cfg.INPUT.BOX_CROP.TRAIN_SIZE, cfg.INPUT.BOX_CROP.SALIENT_SIZE, cfg.SOLVER.IMS_PER_BATCH = 20, 24, 5
    batch = next(iter(build_train_loader(cfg)))
    assert sum(sample["is_salient"] for sample in batch) == 2
    # The config as a file says the same.
    loaded = get_cfg()
    add_boxsup_config(loaded)
    (source / "config.yaml").write_text(cfg.dump())
    loaded.merge_from_file(str(source / "config.yaml"))
    assert loaded.DATASETS.REGISTER == cfg.DATASETS.REGISTER


def test_boxes_are_registered_without_masks_by_default(source: Path) -> None:
    register_listed([entry(source)])
    annotations = [a for record in DatasetCatalog.get("user_data_test") for a in record["annotations"]]
    assert len(annotations) == 4
    assert not any("segmentation" in a for a in annotations)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["mine"], "an entry has the fields"),
        ([{"NAME": "a", "JSON": "b", "IMAGES": "c", "KIND": "coco"}], "no field KIND"),
        ([{"NAME": "a", "IMAGES": "c"}], "either JSON"),
        ([{"NAME": "a", "JSON": "b", "IMAGES": "c", "SALIENT_MASKS": "d"}], "either JSON"),
        ([{"NAME": "a", "JSON": "b", "IMAGES": "c", "MASKS": "some"}], "none or kept"),
        ([{"NAME": "a", "JSON": 3, "IMAGES": "c"}], "JSON must be a text"),
        ([{"NAME": "voc_2012_val_box", "JSON": "b", "IMAGES": "c"}], "already"),
        ([{"NAME": "a1", "JSON": "b", "IMAGES": "c"}] * 2, "two entries called a1"),
    ],
)
def test_wrong_entries_are_refused(entries: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        register_listed(entries)


def test_where_data_lie_decides_nothing_and_a_test_set_no_weights() -> None:
    def settings(folder: str, **fields: str) -> Any:
        train = {"NAME": "a", "JSON": f"{folder}/a.json", "IMAGES": folder, **fields}
        test = {"NAME": "b", "JSON": f"{folder}/b.json", "IMAGES": folder}
        return split_settings({"DATASETS.REGISTER": [train, test], "DATASETS.TRAIN": ["a"], "DATASETS.TEST": ["b"]})

    assert settings("here") == settings("there")
    assert settings("here").training != settings("here", MASKS="kept").training
    assert "DATASETS.REGISTER.b" in settings("here").evaluation
    assert "DATASETS.REGISTER.b" not in settings("here").training


def test_metadata_goes_to_worker_processes():
    """Mappers that keep metadata are pickled with it; files that a set lacks here are no hindrance."""
    for name in DatasetCatalog.list():
        copy = pickle.loads(pickle.dumps(MetadataCatalog.get(name)))
        assert copy.name == name
        assert copy.get("evaluator_type") == MetadataCatalog.get(name).get("evaluator_type")


def test_salient_images_and_masks_are_found_by_the_names_of_their_folders(tmp_path: Path) -> None:
    def folders(*names: str) -> str:
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        for name in names:
            (root / name).mkdir(parents=True)
        return str(root)

    for images, masks in [
        ("images", "masks"),
        ("imgs", "gt"),
        ("Image", "Mask"),
        ("DUTS-TR-Image", "DUTS-TR-Mask"),
        ("DUTS/DUTS-TR-Image-single", "DUTS/DUTS-TR-Mask-single"),
    ]:
        root = folders(images, masks, "imagenet", "other")
        assert salient_folders(root) == (str(Path(root, images)), str(Path(root, masks)))
    with pytest.raises(FileNotFoundError, match="--salient-images"):
        salient_folders(folders("images", "labels"))
    with pytest.raises(ValueError, match=r"2 pairs .*DUTS-TE-Image"):
        salient_folders(folders("DUTS-TR-Image", "DUTS-TR-Mask", "DUTS-TE-Image", "DUTS-TE-Mask"))
