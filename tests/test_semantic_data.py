"""Data sets of semantic segmentation (COCO-60, VOC's class masks), the mappers that read them, and their loaders."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as mask_util

from boxsup_d2.config import add_boxsup_config
from boxsup_d2.data import build_test_loader, build_train_loader
from boxsup_d2.data.dataset_mappers import ClassMaskDatasetMapper, SemSegDatasetMapper
from boxsup_d2.data.dataset_mappers.class_mask import class_samples, class_target
from boxsup_d2.data.dataset_mappers.scaled_crop import CropWindow, crop_image, crop_labels, random_window
from boxsup_d2.data.dataset_mappers.sem_seg import sem_seg_dicts
from boxsup_d2.data.datasets import VOC_CLASSES_IN_COCO, dataset_to_coco, register_dataset
from boxsup_d2.data.images import encode_label_map, read_label_map

NAMES = {category["id"]: category["name"] for category in COCO_CATEGORIES if category["isthing"]}
SQUARE = [[2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]]
MEAN = (104.008, 116.669, 122.675)


def make_cfg(**keys: Any) -> CfgNode:
    cfg = get_cfg()
    add_boxsup_config(cfg)
    cfg.MODEL.PIXEL_MEAN = list(MEAN)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEED = 1
    for key, value in keys.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


# ------------------------------------------------------------------------------------------------ COCO-60


@pytest.fixture
def coco(datasets_root: Path) -> dict[str, Any]:
    """Person 1, car 3, zebra 24, book 84: images 1 of a person and two books, 2 of a car, 3 of a crowd of books, 4 of a
    zebra and a crowd of zebras, 5 of a book without a polygon."""
    crowd = {"size": [20, 30], "counts": [100, 40, 460]}

    def obj(key: int, image: int, category: int, **fields: Any) -> dict[str, Any]:
        return {"id": key, "image_id": image, "category_id": category, "bbox": [2, 2, 6, 6], "area": 36.0, "iscrowd": 0,
                "segmentation": SQUARE, **fields}  # fmt: skip

    data = {
        "info": {"year": 2017},
        "images": [
            {"id": key, "file_name": f"{key}.jpg", "height": 20, "width": 30, "license": 3} for key in range(1, 6)
        ],
        "annotations": [
            obj(1, 1, 84),
            obj(2, 1, 1),
            obj(3, 1, 84, bbox=[0, 0, 9, 9]),
            obj(4, 2, 3),
            obj(5, 3, 84, iscrowd=1, segmentation=crowd),
            obj(6, 4, 24),
            obj(7, 4, 24, iscrowd=1, segmentation=crowd),
            obj(8, 5, 84, segmentation=[[1, 1, 2, 2]]),
        ],
        "categories": [{"id": key, "name": name} for key, name in reversed(NAMES.items())],
        "own": 1,
    }
    folder = datasets_root / "coco"
    for split in ("train", "val"):
        for image in data["images"]:
            path = folder / f"{split}2017" / image["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path)
        path = folder / "annotations" / f"instances_{split}2017.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(data))
    return data


def test_coco60_has_the_classes_that_voc_lacks():
    metadata = MetadataCatalog.get("coco60_2017_train")
    assert len(VOC_CLASSES_IN_COCO & set(NAMES.values())) == 20
    assert metadata.thing_classes == [NAMES[key] for key in sorted(NAMES) if NAMES[key] not in VOC_CLASSES_IN_COCO]
    assert len(metadata.thing_classes) == 60
    ids = metadata.thing_dataset_id_to_contiguous_id
    assert list(ids.values()) == list(range(60))
    assert sorted(ids) == list(ids)
    for split, kind in (("train", ""), ("val", ""), ("train", "_box"), ("val", "_box")):
        metadata = MetadataCatalog.get(f"coco60_2017_{split}{kind}")
        assert metadata.evaluator_type == MetadataCatalog.get(f"coco_2017_{split}{kind}").evaluator_type


def test_coco60_images_objects_and_crowds(coco):
    masks, boxes = (DatasetCatalog.get(f"coco60_2017_train{kind}") for kind in ("", "_box"))
    assert [record["image_id"] for record in masks] == [record["image_id"] for record in boxes] == [1, 4, 5]
    assert [[obj["id"] for obj in record["annotations"]] for record in boxes] == [[1, 3], [6], [8]]
    assert [[obj["id"] for obj in record["annotations"]] for record in masks] == [[1, 3], [6, 7], []], "8 has no mask"
    names = MetadataCatalog.get("coco60_2017_train").thing_classes
    assert [names[record["annotations"][0]["category_id"]] for record in boxes] == ["book", "zebra", "book"]
    zebra, crowd = masks[1]["annotations"]
    assert (zebra["iscrowd"], crowd["iscrowd"]) == (0, 1)
    assert zebra["segmentation"] == SQUARE
    assert mask_util.decode(crowd["segmentation"]).sum() == 40
    for record in boxes:
        for obj in record["annotations"]:
            assert obj.keys() == {"id", "bbox", "bbox_mode", "category_id", "iscrowd"}


def test_coco60_as_json_keeps_what_the_source_says_of_its_part(coco):
    for name in ("coco60_2017_val", "coco60_2017_val_box"):
        data = dataset_to_coco(name)
        assert data["own"] == 1
        assert [image["license"] for image in data["images"]] == [3, 3, 3]
        assert [annotation["id"] for annotation in data["annotations"]] == [1, 3, 6, 7, 8]
        assert len(data["categories"]) == 60
        has_masks = ["segmentation" in annotation for annotation in data["annotations"]]
        assert has_masks == ([True] * 5 if name.endswith("val") else [False, False, False, True, False])


def test_coco60_on_real_images(shared, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shared / "data"))
    for split, images, samples in (("train", 226, 521), ("val", 186, 369)):
        masks, boxes = (DatasetCatalog.get(f"coco60_2017_{split}{kind}") for kind in ("", "_box"))
        assert len(masks) == len(boxes) == images
        assert len(class_samples(masks)) == samples
        with pytest.raises(ValueError, match="coco60_2017_train and not coco60_2017_train_box"):
            class_samples(boxes)


# ------------------------------------------------------------------------------------------------ VOC


@pytest.fixture
def voc(datasets_root: Path) -> Path:
    """Two images with a cat each; the second one has its class mask in SegmentationClassAug only."""
    voc = datasets_root / "VOC2012"
    folders = [voc / "ImageSets" / "Segmentation", *(voc / name for name in ("Annotations", "JPEGImages"))]
    folders += [voc / "SegmentationClass", voc / "SegmentationClassAug"]
    for folder in folders:
        folder.mkdir(parents=True)
    for stem in ("2007_000001", "2007_000002"):
        noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(voc / "JPEGImages" / f"{stem}.jpg")
        corners = "<xmin>3</xmin><ymin>3</ymin><xmax>8</xmax><ymax>8</ymax>"
        (voc / "Annotations" / f"{stem}.xml").write_text(
            "<annotation><size><width>30</width><height>20</height></size><object><name>cat</name>"
            f"<bndbox>{corners}</bndbox></object></annotation>"
        )
    labels = np.zeros((20, 30), np.uint8)
    labels[2:8, 2:8] = 8
    labels[2, 2:8] = 255
    (voc / "SegmentationClass" / "2007_000001.png").write_bytes(encode_label_map(labels))
    (voc / "SegmentationClassAug" / "2007_000002.png").write_bytes(encode_label_map(labels))
    for split, stems in (("train", (1,)), ("val", (1, 2)), ("train_aug", (1, 2))):
        (folders[0] / f"{split}.txt").write_text("".join(f"2007_00000{stem}\n" for stem in stems))
    return voc


def test_voc_class_masks_file_by_file(voc):
    (record,) = DatasetCatalog.get("voc_2012_train_sem_seg")
    assert record["sem_seg_file_name"] == str(voc / "SegmentationClass" / "2007_000001.png")
    boxes = DatasetCatalog.get("voc_2012_train_box")
    assert {key: value for key, value in record.items() if key != "sem_seg_file_name"} == boxes[0]
    augmented = [Path(record["sem_seg_file_name"]) for record in DatasetCatalog.get("voc_2012_train_aug_sem_seg")]
    assert [path.parent.name for path in augmented] == ["SegmentationClass", "SegmentationClassAug"]
    (voc / "SegmentationClassAug" / "2007_000001.png").write_bytes(b"any")
    first = DatasetCatalog.get("voc_2012_train_aug_sem_seg")[0]
    assert Path(first["sem_seg_file_name"]).parent.name == "SegmentationClassAug", "it comes first"
    with pytest.raises(FileNotFoundError, match=r"voc_2012_val_sem_seg.*1 of its 2 .*SegmentationClass'.*000002\.png"):
        DatasetCatalog.get("voc_2012_val_sem_seg")
    (voc / "SegmentationClassAug" / "2007_000002.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"prepare_voc_train_aug\.py --masks"):
        DatasetCatalog.get("voc_2012_train_aug_sem_seg")


def test_voc_sem_seg_metadata():
    metadata = MetadataCatalog.get("voc_2012_val_sem_seg")
    assert metadata.stuff_classes[0] == "background"
    assert metadata.stuff_classes[1:] == metadata.thing_classes
    assert len(metadata.thing_classes) == 20
    assert (metadata.ignore_label, metadata.evaluator_type) == (255, "sem_seg")


def test_label_maps_are_written_and_read_as_they_are(tmp_path):
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    (tmp_path / "a.png").write_bytes(encode_label_map(labels))
    assert np.array_equal(read_label_map(str(tmp_path / "a.png")), labels)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        assert image.getpalette()[3:6] == [128, 0, 0]
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        read_label_map(str(tmp_path / "absent.png"))
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "colour.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:-40])
    for name in ("colour.png", "cut.png"):
        with pytest.raises(ValueError, match=f"{name}' is damaged or no label map"):
            read_label_map(str(tmp_path / name))


# ------------------------------------------------------------------------------------------------ crops


def slow_crop(labels: np.ndarray, window: CropWindow, size: int, fill: int, stride: int) -> np.ndarray:
    """Pixel by pixel."""
    crop = np.full((size, size), fill, labels.dtype)
    for y in range(window.out_height):
        for x in range(window.out_width):
            source_y = window.top + np.floor((y + 0.5) * window.height / window.out_height)
            source_x = window.left + np.floor((x + 0.5) * window.width / window.out_width)
            crop[y, x] = labels[int(source_y), int(source_x)]
    return (crop[:, ::-1] if window.flip else crop)[::stride, ::stride]


@pytest.mark.parametrize("seed", range(12))
def test_crops_match_slow_reference(seed):
    np.random.seed(seed)
    height, width = np.random.randint(3, 40, 2)
    labels = np.random.randint(0, 255, (height, width)).astype(np.uint8)
    for scale in (0.5, 0.75, 1.0, 1.5):
        window = random_window(height, width, 16, [scale], True)
        for stride in (1, 4):
            expected = slow_crop(labels, window, 16, 255, stride)
            assert np.array_equal(crop_labels(labels, window, 16, 255, stride), expected)
        image = np.stack([labels, labels, 255 - labels], axis=2)
        crop = crop_image(image, window, 16, (7.4, 8.6, 9))
        assert crop.shape == (3, 16, 16)
        assert crop.flags.c_contiguous
        padding = slow_crop(np.zeros_like(labels), window, 16, 1, 1) == 1
        assert (crop[:, padding] == np.array([[7], [9], [9]])).all()
        if scale == 1:
            assert np.array_equal(crop[0], slow_crop(labels, window, 16, 7, 1))
        whole = window._replace(flip=False)
        assert np.array_equal(crop_image(image, whole, 16, (7.4, 8.6, 9))[:, :, :: -1 if window.flip else 1], crop)


def test_window_holds_the_box_where_it_can():
    size = 64
    starts = set()
    for _ in range(400):
        height, width = (int(v) for v in np.random.randint(20, 300, 2))
        x0, x1 = sorted(np.random.uniform(0, width, 2))
        y0, y1 = sorted(np.random.uniform(0, height, 2))
        scale = float(np.random.choice([0.5, 0.75, 1, 1.25, 1.5]))
        window = random_window(height, width, size, [scale], False, (x0, y0, x1, y1))
        spans = (window.left, window.width, window.out_width, x0, x1, width)
        for start, part, out, low, high, length in (spans, (*window[1::2][:2], window.out_height, y0, y1, height)):
            assert 0 <= start <= start + part <= length
            assert abs(out / part - scale) <= 0.51 * max(scale, 1) / part + 1e-9, "the scale, to half a pixel"
            assert out == size or part == length, "padding only where the image ends"
            if np.ceil(high) - np.floor(low) <= part:
                assert start <= low
                assert high <= start + part
            else:  # nothing else is in it
                assert np.floor(low) <= start
                assert start + part <= np.ceil(high)
    for _ in range(200):
        starts.add(random_window(10, 20, 10, [1.0], False, (6.5, 0, 9.5, 10)).left)
    assert starts == set(range(0, 7)), "every start that keeps the box, and no other"
    flips = [random_window(10, 10, 10, [1.0], True).flip for _ in range(200)]
    assert 60 < sum(flips) < 140
    assert not any(random_window(10, 10, 10, [1.0], False).flip for _ in range(20))


def test_image_and_labels_stay_together():
    """A label map drawn into the image is found in both crops at the same place, whatever the scale."""
    labels = cv2.resize(np.random.randint(0, 2, (6, 8)).astype(np.uint8), (480, 360), interpolation=cv2.INTER_NEAREST)
    image = np.repeat(labels[:, :, None] * 200, 3, axis=2)
    for scale in (0.5, 0.75, 1.0, 1.25, 1.5):  # at a half, the image's edges may lie between two pixels
        for _ in range(4):
            window = random_window(360, 480, 128, [scale], True)
            drawn = crop_image(image, window, 128, (0, 0, 0))[0] > 100
            assert (drawn == (crop_labels(labels, window, 128, 0) == 1)).mean() > (0.97 if scale == 0.5 else 0.999)


# ------------------------------------------------------------------------------------------------ mappers


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (8, 10, 3)).astype(np.uint8)
    Image.fromarray(cv2.resize(noise, (80, 60), interpolation=cv2.INTER_CUBIC)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def rle(mask: np.ndarray) -> dict[str, Any]:
    encoded = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def obj(box: list[float], mask: np.ndarray, iscrowd: int = 0, category_id: int = 2) -> dict[str, Any]:
    return {"id": 1, "bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": category_id, "iscrowd": iscrowd,
            "segmentation": rle(mask)}  # fmt: skip


@pytest.fixture
def class_sample(photo: Path) -> dict[str, Any]:
    """Two objects, and a crowd that overlaps one of them."""
    first, second, crowd = np.zeros((3, 60, 80), bool)
    first[10:30, 10:30] = True
    second[40:50, 50:60] = True
    crowd[25:45, 20:40] = True
    annotations = [obj([10, 10, 30.4, 30], first), obj([50, 40, 60, 50], second), obj([20, 25, 40, 45], crowd, 1)]
    sample = {"file_name": str(photo), "height": 60, "width": 80, "image_id": 7, "class_id": 2}
    return {**sample, "annotations": annotations}


def test_target_of_objects_and_crowds(class_sample):
    target = class_target(class_sample["annotations"], 60, 80)
    assert (target == 1).sum() == 400 + 100
    assert (target == 255).sum() == 400 - 5 * 10, "an object's pixels are its own, in a crowd too"
    polygon = {"segmentation": SQUARE, "iscrowd": 0}
    both = class_target([polygon, class_sample["annotations"][1]], 60, 80)
    assert both[3, 3] == both[45, 55] == 1


def test_class_mask_mapper(class_sample, photo):
    mapper = ClassMaskDatasetMapper(image_format="BGR", pixel_mean=MEAN, size=128, scales=(1.0,), flip=False)
    before = pickle.dumps(class_sample)
    sample = mapper(class_sample)
    assert pickle.dumps(class_sample) == before
    image, inside, target = sample["image"], sample["box_mask"], sample["target"]
    assert (image.dtype, image.shape) == (torch.uint8, (3, 128, 128))
    assert (inside.dtype, inside.shape) == (torch.bool, (128, 128))
    assert (target.dtype, target.shape) == (torch.uint8, (32, 32))
    assert (sample["class_id"], sample["image_id"]) == (2, 7)
    pixels = np.asarray(Image.open(photo))[:, :, ::-1]
    assert np.array_equal(image[:, :60, :80].permute(1, 2, 0).numpy(), pixels)
    assert (image[:, 60:] == torch.tensor([104, 117, 123], dtype=torch.uint8)[:, None, None]).all()
    expected = torch.zeros(128, 128, dtype=torch.bool)
    expected[10:30, 10:31] = expected[40:50, 50:60] = True  # the last column is partly covered; the crowd adds no box
    assert torch.equal(inside, expected)
    whole = torch.zeros(128, 128, dtype=torch.uint8)
    whole[:60, :80] = torch.from_numpy(class_target(class_sample["annotations"], 60, 80))
    assert torch.equal(target, whole[::4, ::4])

    flipped = ClassMaskDatasetMapper(image_format="BGR", pixel_mean=MEAN, size=128, scales=(1.0,))
    for _ in range(8):
        other = flipped(class_sample)
        if not torch.equal(other["image"], image):
            assert torch.equal(other["image"], image.flip(2))
            assert torch.equal(other["box_mask"], inside.flip(1))
            assert torch.equal(other["target"], whole.flip(1)[::4, ::4])
            break
    else:
        pytest.fail("no sample was flipped")


def test_class_mask_mapper_crops_around_the_boxes(class_sample):
    mapper = ClassMaskDatasetMapper(image_format="RGB", pixel_mean=MEAN, size=64, scales=(0.5, 0.75, 1.0, 1.25))
    areas = {scale: set() for scale in mapper.scales}
    for scale in mapper.scales:
        mapper.scales = (scale,)
        for _ in range(10):
            sample = mapper(class_sample)
            areas[scale].add(int(sample["box_mask"].sum()))
            assert set(sample["target"].unique().tolist()) <= {0, 1, 255}
    # The union is 50 pixels wide and 40 high: always whole up to scale 1.25 (63 x 50 pixels).
    for scale, found in areas.items():
        assert all(abs(area - (420 + 100) * scale**2) <= 0.15 * 520 * scale**2 for area in found), scale


def test_mappers_refuse_what_cannot_be(class_sample, photo, tmp_path):
    for scales, size in (((), 64), ((0.0,), 64), ((1.0,), 66), ((1.0,), 0)):
        with pytest.raises(ValueError, match=r"INPUT\.CLASS_CROP\.S"):
            ClassMaskDatasetMapper(image_format="BGR", pixel_mean=MEAN, size=size, scales=scales)
    for mapper in (ClassMaskDatasetMapper, SemSegDatasetMapper):
        with pytest.raises(ValueError, match="is for training"):
            mapper(make_cfg(), is_train=False)
    from detectron2.data.detection_utils import SizeMismatchError

    with pytest.raises(SizeMismatchError):
        ClassMaskDatasetMapper(make_cfg(), is_train=True)({**class_sample, "height": 61})
    (tmp_path / "labels.png").write_bytes(encode_label_map(np.zeros((61, 80), np.uint8)))
    record = {"file_name": str(photo), "sem_seg_file_name": str(tmp_path / "labels.png"), "image_id": 1}
    with pytest.raises(ValueError, match=r"labels\.png' is 80x61 pixels, but its image '.*photo\.png' 80x60"):
        SemSegDatasetMapper(make_cfg(), is_train=True)(record)


def test_sem_seg_mapper(photo, tmp_path):
    labels = np.random.randint(0, 21, (60, 80)).astype(np.uint8)
    labels[:, 70:] = 255
    (tmp_path / "labels.png").write_bytes(encode_label_map(labels))
    record = {"file_name": str(photo), "sem_seg_file_name": str(tmp_path / "labels.png"), "image_id": 1}
    cfg = make_cfg(INPUT__SEM_SEG_CROP__SIZE=70, INPUT__SEM_SEG_CROP__SCALES=[1.0], INPUT__SEM_SEG_CROP__FLIP=False)
    sample = SemSegDatasetMapper(cfg, is_train=True)(record)
    assert (sample["image"].dtype, sample["image"].shape) == (torch.uint8, (3, 70, 70))
    assert (sample["sem_seg"].dtype, sample["sem_seg"].shape) == (torch.int64, (70, 70))
    assert (sample["sem_seg"][60:] == 255).all()
    assert (sample["image"][:, 60:] == torch.tensor([104, 117, 123], dtype=torch.uint8)[:, None, None]).all()
    lefts = [left for left in range(11) if np.array_equal(sample["sem_seg"][:60], labels[:, left : left + 70])]
    assert len(lefts) == 1
    pixels = np.asarray(Image.open(photo))[:, lefts[0] : lefts[0] + 70, ::-1]
    assert np.array_equal(sample["image"][:, :60].permute(1, 2, 0).numpy(), pixels)


# ------------------------------------------------------------------------------------------------ loaders


def test_one_sample_per_image_and_class(class_sample):
    mask = np.ones((60, 80), bool)
    record = copy.deepcopy(class_sample)
    record["annotations"] += [obj([0, 0, 9, 9], mask, category_id=0), obj([0, 0, 9, 9], mask, 1, category_id=5)]
    samples = class_samples([record, {**record, "annotations": []}])
    assert [(sample["class_id"], len(sample["annotations"])) for sample in samples] == [(2, 3), (0, 1)]
    with pytest.raises(ValueError, match="hold no object with a mask"):
        class_samples([{**record, "annotations": record["annotations"][-1:]}])


def test_class_mask_loader(class_sample):
    records = [{**class_sample, "image_id": number} for number in range(5)]
    register_dataset("class_mask_test", lambda: records, thing_classes=list("abc"))
    cfg = make_cfg(INPUT__TRAIN_MAPPER="ClassMaskDatasetMapper", INPUT__CLASS_CROP__SIZE=32, SOLVER__IMS_PER_BATCH=4)
    cfg.DATASETS.TRAIN = ("class_mask_test",)
    loader = iter(build_train_loader(cfg))
    seen = [sample for _ in range(5) for sample in next(loader)]
    assert sorted(sample["image_id"] for sample in seen) == sorted(4 * list(range(5))), "epochs are whole"
    assert all(sample["target"].shape == (8, 8) for sample in seen)
    again = [sample["image_id"] for sample in next(iter(build_train_loader(cfg)))]
    assert again == [sample["image_id"] for sample in seen[:4]], "the seed decides"


def test_sem_seg_loader(voc):
    cfg = make_cfg(INPUT__TRAIN_MAPPER="SemSegDatasetMapper", INPUT__SEM_SEG_CROP__SIZE=33, SOLVER__IMS_PER_BATCH=2)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 21
    cfg.DATASETS.TRAIN = ("voc_2012_train_aug_sem_seg",)
    batch = next(iter(build_train_loader(cfg)))
    assert {sample["image_id"] for sample in batch} == {2007000001, 2007000002}
    assert all(set(sample["sem_seg"].unique().tolist()) <= {0, 8, 255} for sample in batch)

    labelled = [{"file_name": "x", "sem_seg_file_name": "y", "image_id": 1}]
    register_dataset("three_classes", lambda: labelled, stuff_classes=["background", "a", "b"])
    with pytest.raises(ValueError, match=r"'three_classes' and 'voc_2012_train_aug_sem_seg' have different classes"):
        sem_seg_dicts(("voc_2012_train_aug_sem_seg", "three_classes"), 21)
    with pytest.raises(ValueError, match=r"'voc_2012_train_box' of DATASETS\.TRAIN has no label maps"):
        sem_seg_dicts(("voc_2012_train_box",), 21)
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN is empty"):
        sem_seg_dicts((), 21)
    with pytest.raises(ValueError, match=r"NUM_CLASSES is 20.*voc_2012_train_aug_sem_seg.*21 classes"):
        sem_seg_dicts(("voc_2012_train_aug_sem_seg",), 20)


def test_prompts_say_which_classes_there_are(voc):
    for name in ("voc_2012_train_sem_seg", "voc_2012_train_box"):
        ((sample,),) = list(build_test_loader(make_cfg(), name, box_prompts=True))
        assert sample["num_classes"] == len(sample["class_names"]) == 20
        assert sample["class_names"][int(sample["instances"].gt_classes[0])] == "cat"
        assert sample["instances"].gt_boxes.tensor.tolist() == [[2, 2, 8, 8]]
