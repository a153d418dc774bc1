"""Registered data sets: frames, ids, laziness, errors, and that box-only sets hold nothing that comes from a mask."""

import copy
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

import boxsup_d2.data.datasets as datasets
from boxsup_d2.config import add_boxsup_config
from boxsup_d2.masks.rle import encode_masks

BOX_KEYS = {"id", "bbox", "bbox_mode", "category_id", "iscrowd"}
BUILTIN = (
    [f"voc_2012_{split}_box" for split in ("train", "val", "trainval", "train_aug")]
    + [f"voc_2012_{split}_instance" for split in ("train", "val")]
    + [f"voc_2012_{split}_sem_seg" for split in ("train", "val", "train_aug")]
    + [f"coco60_2017_{split}{suffix}" for split in ("train", "val") for suffix in ("", "_box")]
    + [f"coco_2017_{split}{suffix}" for split in ("train", "val") for suffix in ("", "_box")]
    + [f"voc_2012_{split}_cocostyle_box" for split in ("train_aug", "val")]
    + ["dut_tr_single", "dut_tr_single_new"]
)


@pytest.fixture(autouse=True)
def _default_switches():
    yield
    set_use_difficult(True)


def set_use_difficult(value: bool) -> None:
    cfg = get_cfg()
    add_boxsup_config(cfg)
    cfg.DATASETS.VOC_USE_DIFFICULT = value
    datasets.apply_dataset_switches(cfg)


# ------------------------------------------------------------------------------------------------ synthetic files


def write_jpeg(path: Path, height: int = 20, width: int = 30) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)


def voc_object(name: str, box: Sequence[float], difficult: int = 0) -> str:
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    # A part has a box of its own, which is not the object's.
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    return f"<object><name>{name}</name><difficult>{difficult}</difficult>{part}<bndbox>{corners}</bndbox></object>"


def write_voc_image(voc: Path, stem: str, objects: Sequence[str], mask: np.ndarray | None = None) -> None:
    write_jpeg(voc / "JPEGImages" / f"{stem}.jpg")
    (voc / "Annotations").mkdir(exist_ok=True)
    (voc / "Annotations" / f"{stem}.xml").write_text(
        f"<annotation><size><width>30</width><height>20</height><depth>3</depth></size>{''.join(objects)}</annotation>"
    )
    if mask is not None:
        (voc / "SegmentationObject").mkdir(exist_ok=True)
        image = Image.fromarray(mask)
        image.putpalette([value % 256 for value in range(768)])
        image.save(voc / "SegmentationObject" / f"{stem}.png")


def write_split(voc: Path, split: str, stems: Sequence[str]) -> None:
    folder = voc / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))


@pytest.fixture
def voc(datasets_root: Path) -> Path:
    """Two images, in the split val: a cat (difficult) and a dog that touch, and a person."""
    voc = datasets_root / "VOC2012"
    mask = np.zeros((20, 30), np.uint8)
    mask[4:10, 2:8] = 1
    mask[4:10, 8:15] = 2
    mask[3, 2:15] = mask[10, 2:15] = 255
    cat, dog = voc_object("cat", (2, 4, 9, 11), difficult=1), voc_object("dog", (8, 4, 16, 11))
    write_voc_image(voc, "2007_000032", [cat, dog], mask)
    mask = np.zeros((20, 30), np.uint8)
    mask[0:5, 0:5] = 1
    write_voc_image(voc, "2011_000007", [voc_object("person", (1, 1, 5.5, 5))], mask)
    for split in ("train", "val", "trainval", "train_aug"):
        write_split(voc, split, ["2007_000032", "2011_000007"])
    return voc


def coco_json() -> dict[str, Any]:
    """Three images, the last one empty; ids with gaps, a crowd region, one annotation without iscrowd."""
    square = [[2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]]
    return {
        "info": {"year": 2017},
        "images": [
            {"id": key, "file_name": f"{key:012d}.jpg", "height": 20, "width": 30, "license": 3} for key in (7, 9, 70)
        ],
        "annotations": [
            {"id": 11, "image_id": 9, "category_id": 90, "bbox": [2, 2, 6, 6], "area": 36.0, "iscrowd": 0,
             "segmentation": square, "note": "unknown"},
            {"id": 5, "image_id": 7, "category_id": 1, "bbox": [1.5, 2, 3, 0.4], "area": 1.0, "segmentation": square},
            {"id": 900, "image_id": 7, "category_id": 1, "bbox": [0, 0, 30, 20], "area": 9.0, "iscrowd": 1,
             "segmentation": {"size": [20, 30], "counts": [100, 40, 460]}},
            {"id": 12, "image_id": 9, "category_id": 1, "bbox": [4, 4, 6, 6], "area": 30.0, "iscrowd": 0,
             "segmentation": square},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}],
    }  # fmt: skip


def write_coco(root: Path, data: dict[str, Any], split: str = "train") -> Path:
    for image in data["images"]:
        write_jpeg(root / "coco" / f"{split}2017" / image["file_name"])
    path = root / "coco" / "annotations" / f"instances_{split}2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def write_pseudo(path: Path, **provenance: Any) -> Path:
    """Pseudo masks for coco_json(): annotation 11 labelled, 5 without a mask, 12 with polygons of its own."""
    data = coco_json()
    data["info"]["boxsup_d2"] = {"source_dataset": "coco_2017_train_box", "method": "BoxFill", **provenance}
    mask = np.zeros((20, 30, 1), bool)
    mask[2:8, 2:8] = True
    labelled, unlabelled, _, kept = data["annotations"]
    labelled.update(segmentation=encode_masks(mask)[0], confidence=0.75, confidence_exact=1.0)
    del unlabelled["segmentation"]
    kept.update(confidence=1.0, quality="sharp")  # a field of the user's own
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def raw_boxes(path: Path) -> list[tuple[float, ...]]:
    """Slow reference: all boxes of a VOC folder's xml, by string search."""
    text = path.read_text()
    boxes = []
    for part in text.split("<object>")[1:]:
        part = part[: part.index("</object>")]
        if "<part>" in part:
            part = part[: part.index("<part>")] + part[part.rindex("</part>") :]
        corner = {k: float(part.split(f"<{k}>")[1].split("<")[0]) for k in ("xmin", "ymin", "xmax", "ymax")}
        boxes.append((corner["xmin"] - 1, corner["ymin"] - 1, corner["xmax"], corner["ymax"]))
    return boxes


# ------------------------------------------------------------------------------------------------ registration


def test_registered_and_lazy(datasets_root):
    for name in BUILTIN:
        assert name in DatasetCatalog
        assert MetadataCatalog.get(name).evaluator_type
    assert len(MetadataCatalog.get("voc_2012_train_aug_box").thing_classes) == 20
    assert MetadataCatalog.get("voc_2012_val_instance").thing_classes == sorted(datasets.VOC_CLASSES)
    box, full = MetadataCatalog.get("coco_2017_train_box"), MetadataCatalog.get("coco_2017_train")
    assert box.thing_classes == full.thing_classes
    assert box.thing_dataset_id_to_contiguous_id == full.thing_dataset_id_to_contiguous_id
    assert full.json_file.endswith("coco/annotations/instances_train2017.json")


@pytest.mark.parametrize("name", [name for name in BUILTIN if name not in ("coco_2017_train", "coco_2017_val")])
def test_absent_names_path_and_fix(name, datasets_root):
    with pytest.raises(FileNotFoundError, match="DETECTRON2_DATASETS") as error:
        DatasetCatalog.get(name)
    assert str(datasets_root) in str(error.value)
    assert name in str(error.value)


def test_train_aug_without_its_list_names_the_script(voc):
    (voc / "ImageSets" / "Segmentation" / "train_aug.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"prepare_voc_train_aug\.py"):
        DatasetCatalog.get("voc_2012_train_aug_box")


def test_root_is_read_when_used(voc, tmp_path, monkeypatch):
    metadata = MetadataCatalog.get("voc_2012_val_box")
    assert metadata.image_root == str(voc / "JPEGImages")
    moved = tmp_path / "elsewhere"
    shutil.copytree(voc, moved / "VOC2012")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(moved))
    assert metadata.image_root == str(moved / "VOC2012" / "JPEGImages")
    assert metadata.as_dict()["dirname"] == str(moved / "VOC2012")
    assert DatasetCatalog.get("voc_2012_val_box")[0]["file_name"].startswith(str(moved))
    assert metadata.get("json_file", "none") == "none"
    with pytest.raises(AttributeError):
        _ = metadata.no_such_key
    assert copy.deepcopy(metadata).image_root == metadata.image_root


# ------------------------------------------------------------------------------------------------ VOC


def test_voc_boxes(voc):
    first, second = DatasetCatalog.get("voc_2012_val_box")
    assert (first["height"], first["width"], first["image_id"]) == (20, 30, 2007000032)
    assert Path(first["file_name"]) == voc / "JPEGImages" / "2007_000032.jpg"
    cat, dog = first["annotations"]
    assert cat == {
        "id": 1, "bbox": [1, 3, 9, 11], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 7, "iscrowd": 0, "difficult": 1,
    }  # fmt: skip
    assert (dog["id"], dog["category_id"], dog["difficult"]) == (2, 11, 0)
    (person,) = second["annotations"]
    assert (person["id"], person["bbox"]) == (3, [0, 0, 5.5, 5])
    for record in (first, second):
        assert record.keys() == {"file_name", "height", "width", "image_id", "annotations"}


def test_voc_difficult_switch_keeps_ids(voc):
    everything = DatasetCatalog.get("voc_2012_val_box")
    set_use_difficult(False)
    without = DatasetCatalog.get("voc_2012_val_box")
    assert [[obj["id"] for obj in record["annotations"]] for record in without] == [[2], [3]]
    assert datasets.filter_difficult(everything) == without
    instance = DatasetCatalog.get("voc_2012_val_instance")[0]
    assert [obj["id"] for obj in instance["annotations"]] == [2]
    void = mask_util.decode(instance["void_mask"])
    assert void[4:10, 2:8].all(), "a difficult object that is left out is void"
    assert void.sum() == 36 + 26
    datasets.register_voc_boxes("voc_registered_late", str(voc), "val")
    assert DatasetCatalog.get("voc_registered_late") == without
    set_use_difficult(True)
    assert DatasetCatalog.get("voc_registered_late") == DatasetCatalog.get("voc_2012_val_box") == everything


def test_voc_instances(voc):
    boxes, records = (DatasetCatalog.get(f"voc_2012_val_{kind}") for kind in ("box", "instance"))
    stripped = copy.deepcopy(records)
    for record in stripped:
        record.pop("void_mask", None)
        for obj in record["annotations"]:
            del obj["segmentation"]
    assert stripped == boxes
    ids = np.asarray(Image.open(voc / "SegmentationObject" / "2007_000032.png"))
    for index, obj in enumerate(records[0]["annotations"], start=1):
        np.testing.assert_array_equal(mask_util.decode(obj["segmentation"]), ids == index)
        assert isinstance(obj["segmentation"]["counts"], str)
    np.testing.assert_array_equal(mask_util.decode(records[0]["void_mask"]), ids == 255)
    assert "void_mask" not in records[1]
    json.dumps(records)


def test_voc_instances_that_do_not_match_the_xml(voc, caplog):
    """An id without an object is void, an object without a pixel is left out, the mask's size counts."""
    mask = np.zeros((18, 28), np.uint8)
    mask[2:4, 2:4] = 2
    mask[6:8, 2:4] = 5
    objects = [voc_object("cat", (2, 4, 9, 11)), voc_object("dog", (3, 3, 4, 4))]
    write_voc_image(voc, "2007_000032", objects, mask)
    with caplog.at_level("WARNING", "boxsup_d2"):
        record = DatasetCatalog.get("voc_2012_val_instance")[0]
    assert len(caplog.records) == 3
    assert [obj["id"] for obj in record["annotations"]] == [2]
    np.testing.assert_array_equal(mask_util.decode(record["void_mask"]), mask == 5)
    assert (record["height"], record["width"]) == (18, 28)


def test_voc_image_without_objects(voc):
    write_voc_image(voc, "2007_000032", [], np.zeros((20, 30), np.uint8))
    assert DatasetCatalog.get("voc_2012_val_box")[0]["annotations"] == []
    record = DatasetCatalog.get("voc_2012_val_instance")[0]
    assert record["annotations"] == []
    assert "void_mask" not in record


def test_voc_box_sets_open_no_mask(voc):
    before = DatasetCatalog.get("voc_2012_train_aug_box")
    shutil.rmtree(voc / "SegmentationObject")
    assert DatasetCatalog.get("voc_2012_train_aug_box") == before


def test_voc_layout_with_other_names_and_classes(tmp_path):
    write_voc_image(tmp_path, "dot", [voc_object("blob", (1, 1, 1, 1))])
    write_split(tmp_path, "all", ["dot"])
    datasets.register_voc_boxes("test_blobs", str(tmp_path), "all", classes=["thing", "blob"])
    (record,) = DatasetCatalog.get("test_blobs")
    assert record["image_id"] == 1
    assert record["annotations"][0]["bbox"] == [0, 0, 1, 1], "inclusive ends: a box of one pixel is no inverted box"
    assert record["annotations"][0]["category_id"] == 1


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([voc_object("unicorn", (1, 1, 5, 5))], "unknown class 'unicorn'"),
        ([voc_object("cat", (9, 1, 5, 5))], "inverted box of a 'cat'"),
        ([voc_object("cat", ("", 1, 5, 5))], "not a number"),
        ([voc_object("cat", ("nan", 1, 5, 5))], "not a number"),
        (["<object>"], "damaged"),
        (["</annotation><annotation>"], "damaged"),
    ],
)
def test_voc_bad_xml_names_the_file(voc, objects, message):
    write_voc_image(voc, "2011_000007", objects)
    with pytest.raises(ValueError, match=message) as error:
        DatasetCatalog.get("voc_2012_val_box")
    assert "2011_000007.xml" in str(error.value)


def test_voc_entity_bomb_is_refused(voc):
    bomb = '<!DOCTYPE a [<!ENTITY e "eee">]><annotation>&e;</annotation>'
    (voc / "Annotations" / "2011_000007.xml").write_text(bomb)
    with pytest.raises(ValueError, match=r"2011_000007\.xml.*damaged"):
        DatasetCatalog.get("voc_2012_val_box")


def test_voc_missing_files(voc):
    (voc / "SegmentationObject" / "2011_000007.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    with pytest.raises(ValueError, match=r"2011_000007\.png.*damaged"):
        DatasetCatalog.get("voc_2012_val_instance")
    (voc / "JPEGImages" / "2011_000007.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of its 2 images.*2011_000007\.jpg"):
        DatasetCatalog.get("voc_2012_val_box")
    (voc / "Annotations" / "2011_000007.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"2011_000007\.xml"):
        DatasetCatalog.get("voc_2012_val_box")


def test_voc_list_with_a_repeated_image(voc):
    write_split(voc, "val", ["2007_000032", "2007_000032"])
    with pytest.raises(ValueError, match="twice"):
        DatasetCatalog.get("voc_2012_val_box")


# ------------------------------------------------------------------------------------------------ COCO


def test_coco_boxes(datasets_root):
    write_coco(datasets_root, coco_json())
    records = DatasetCatalog.get("coco_2017_train_box")
    assert [record["image_id"] for record in records] == [7, 9, 70]
    assert [[obj["id"] for obj in record["annotations"]] for record in records] == [[5], [11, 12], []]
    assert records[1]["annotations"][0] == {
        "id": 11, "bbox": [2, 2, 6, 6], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 79, "iscrowd": 0,
    }  # fmt: skip


def test_any_coco_json(datasets_root):
    path = write_coco(datasets_root, coco_json())
    datasets.register_coco_boxes("test_any", str(path), str(datasets_root / "coco" / "train2017"))
    metadata = MetadataCatalog.get("test_any")
    assert metadata.thing_classes == ["person", "toothbrush"]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 90: 1}
    assert [obj["category_id"] for obj in DatasetCatalog.get("test_any")[1]["annotations"]] == [1, 0]
    renamed = coco_json()
    renamed["categories"][0]["name"] = "broom"
    path.write_text(json.dumps(renamed))
    assert metadata.thing_classes == ["person", "broom"], "a changed file is read again"
    with pytest.raises(ValueError, match=r"unknown categories.*90 'broom'"):
        DatasetCatalog.get("coco_2017_train_box")


def test_published_voc_jsons(datasets_root):
    """Beside VOC, and in the folder tree of the release."""
    for json_folder, image_folder in (
        ("VOCSBD", "VOCSBD/VOC2012/JPEGImages"),
        ("VOC2012/annotations", "VOC2012/JPEGImages"),
    ):
        for image in coco_json()["images"]:
            write_jpeg(datasets_root / image_folder / image["file_name"])
        (datasets_root / json_folder).mkdir(exist_ok=True)
        path = datasets_root / json_folder / "voc_2012_train_aug_cocostyle.json"
        path.write_text(json.dumps(coco_json()))
        records = DatasetCatalog.get("voc_2012_train_aug_cocostyle_box")
        assert Path(records[0]["file_name"]).parent == datasets_root / image_folder
        assert datasets.dataset_source("voc_2012_train_aug_cocostyle_box").json_file == str(path)


def poison(value: Any, rng: random.Random) -> dict[str, Any]:
    """The same json with every mask and area replaced by nonsense."""
    value = copy.deepcopy(value)
    for obj in value["annotations"]:
        obj["area"] = rng.uniform(-1e6, 1e6)
        obj["segmentation"] = rng.choice([[], [[rng.random()]], "leak", {"counts": "leak", "size": [1, 1]}, None])
        obj["confidence"] = rng.random()
        obj["mask_area"] = rng.random()
    return value


@pytest.mark.parametrize("seed", range(5))
def test_box_only_sets_do_not_depend_on_masks(datasets_root, seed):
    path = write_coco(datasets_root, coco_json())
    datasets.register_coco_boxes("test_leak", str(path), str(datasets_root / "coco" / "train2017"))
    names = ("coco_2017_train_box", "coco60_2017_train_box", "test_leak")
    clean = [DatasetCatalog.get(name) for name in names]
    exported = [datasets.dataset_to_coco(name) for name in names]
    path.write_text(json.dumps(poison(coco_json(), random.Random(seed))))
    assert [DatasetCatalog.get(name) for name in names] == clean
    for data, before in zip(map(datasets.dataset_to_coco, names), exported, strict=True):
        for obj, old in zip(data["annotations"], before["annotations"], strict=True):
            if not obj.get("iscrowd"):
                assert "segmentation" not in obj
                assert obj["area"] == old["area"] == obj["bbox"][2] * obj["bbox"][3]
    for records in clean:
        for record in records:
            assert record.keys() == {"file_name", "height", "width", "image_id", "annotations"}
            for obj in record["annotations"]:
                assert obj.keys() == BOX_KEYS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["annotations"][0].update(bbox=[5, 5, -2, 3]), "inverted boxes"),
        (lambda d: d["annotations"][0].update(bbox=[5, 5, 2]), "not four numbers"),
        (lambda d: d["annotations"][0].update(bbox=[5, 5, 2, float("nan")]), "not four numbers"),
        (lambda d: d["annotations"][0].update(bbox=None), "not four numbers"),
        (lambda d: d["annotations"][0].update(image_id=1), "unknown images"),
        (lambda d: d["annotations"][0].update(image_id=[1]), "unknown images"),
        (lambda d: d["annotations"][0].update(category_id=4), "unknown categories"),
        (lambda d: d["annotations"][0].update(id=5), "repeated annotation ids"),
        (lambda d: d["annotations"][0].pop("id"), "without an integer id"),
        (lambda d: d["images"][0].update(id=9), "repeated image ids"),
        (lambda d: d["images"][0].pop("height"), "without a height and width"),
        (lambda d: d["categories"].append({"id": 1, "name": "again"}), "repeated category ids"),
        (lambda d: d["categories"].append({"name": "nameless"}), "without an integer id or a name"),
        (lambda d: d.pop("images"), "no list of objects 'images'"),
        (lambda d: d.update(annotations=[3]), "no list of objects 'annotations'"),
    ],
)
def test_bad_json_names_file_and_examples(datasets_root, change, message):
    data = coco_json()
    root = datasets_root / "coco" / "train2017"
    path = write_coco(datasets_root, data)
    change(data)
    path.write_text(json.dumps(data))
    datasets.register_coco_boxes("test_bad", str(path), str(root))
    with pytest.raises(ValueError, match=message) as error:
        DatasetCatalog.get("test_bad")
    assert str(path) in str(error.value)


def test_several_problems_come_in_one_message(datasets_root):
    data = coco_json()
    data["annotations"][0]["category_id"] = 4
    for obj in data["annotations"][1:]:
        obj["bbox"] = [1, 1, -1, 1]
    path = write_coco(datasets_root, data)
    datasets.register_coco_boxes("test_bad", str(path), str(datasets_root / "coco" / "train2017"))
    with pytest.raises(ValueError, match=r"1 annotations of unknown categories.*2 inverted boxes.*id 5.*id 12"):
        DatasetCatalog.get("test_bad")


@pytest.mark.parametrize("text", ['{"images": [', "[]", "", "\x00", "[" * 100_000])
def test_truncated_json(datasets_root, text):
    path = write_coco(datasets_root, coco_json())
    path.write_text(text)
    with pytest.raises(ValueError, match=r"instances_train2017\.json"):
        DatasetCatalog.get("coco_2017_train_box")


def test_json_that_is_not_text(datasets_root):
    path = write_coco(datasets_root, coco_json())
    path.write_bytes(b"\xff\xfe\x80")
    with pytest.raises(ValueError, match="no valid json"):
        DatasetCatalog.get("coco_2017_train_box")


def test_missing_coco_image(datasets_root):
    write_coco(datasets_root, coco_json())
    (datasets_root / "coco" / "train2017" / "000000000070.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of its 3 images.*000000000070\.jpg"):
        DatasetCatalog.get("coco_2017_train_box")


def test_empty_boxes_are_left_out(datasets_root, caplog):
    data = coco_json()
    data["annotations"][0]["bbox"] = [3, 3, 0, 5]
    write_coco(datasets_root, data)
    with caplog.at_level("WARNING", "boxsup_d2"):
        records = DatasetCatalog.get("coco_2017_train_box")
    assert [obj["id"] for obj in records[1]["annotations"]] == [12]
    assert "1 boxes of zero width or height" in caplog.text


# ------------------------------------------------------------------------------------------------ salient images


def test_salient(datasets_root):
    for suffix, name in (("", "dut_tr_single"), ("-new", "dut_tr_single_new")):
        images, masks = (datasets_root / "DUTS" / f"DUTS-TR-{kind}-single{suffix}" for kind in ("Image", "Mask"))
        for stem in ("b", "a"):
            write_jpeg(images / f"{stem}.jpg")
            write_jpeg(masks / f"{stem}.png")
        (images / "._a.jpg").write_text("left behind by an archiver")
        (images / "list.txt").write_text("no image")
        assert DatasetCatalog.get(name) == [
            {"file_name": str(images / f"{stem}.jpg"), "mask_file_name": str(masks / f"{stem}.png"), "image_id": key}
            for key, stem in ((1, "a"), (2, "b"))
        ]
        assert MetadataCatalog.get(name).evaluator_type == "salient"
        write_jpeg(images / "c.jpg")
        write_jpeg(masks / "d.png")
        with pytest.raises(ValueError, match=r"1 images without a mask \(e.g. c.jpg\); 1 masks .*d.png"):
            DatasetCatalog.get(name)


def test_salient_empty_folders(tmp_path):
    datasets.register_salient("test_salient", str(tmp_path), str(tmp_path))
    with pytest.raises(ValueError, match="folders without images"):
        DatasetCatalog.get("test_salient")


# ------------------------------------------------------------------------------------------------ pseudo masks


def test_pseudo_masks(datasets_root, tmp_path):
    write_coco(datasets_root, coco_json())
    path = write_pseudo(tmp_path / "a" / "test_pseudo.json", image_root="/nowhere")
    name = datasets.register_pseudo_masks(str(path))
    assert name == "test_pseudo"
    metadata = MetadataCatalog.get(name)
    assert metadata.evaluator_type == "coco"
    assert metadata.image_root == str(datasets_root / "coco" / "train2017")
    assert metadata.thing_classes == ["person", "toothbrush"]
    records = DatasetCatalog.get(name)
    unlabelled, crowd = records[0]["annotations"]
    labelled, kept = records[1]["annotations"]
    assert (labelled["confidence"], labelled["confidence_exact"], labelled["category_id"]) == (0.75, 1.0, 1)
    assert mask_util.area(labelled["segmentation"]) == 36
    assert (unlabelled["id"], unlabelled["confidence"], unlabelled["quality"]) == (5, 0.0, 0.0)
    assert labelled["quality"] == 0.75, "older files have none: the confidence stands for it"
    assert mask_util.decode(unlabelled["segmentation"]).shape == (20, 30)
    assert mask_util.area(unlabelled["segmentation"]) == 0
    assert crowd["iscrowd"] == 1
    assert mask_util.area(crowd["segmentation"]) == 40
    assert kept["segmentation"] == coco_json()["annotations"][3]["segmentation"]
    assert (kept["confidence"], kept["confidence_exact"], kept["quality"]) == (1.0, 1.0, 1.0)
    COCO(str(path))


def test_pseudo_masks_are_replaced_by_a_later_step(datasets_root, tmp_path):
    write_coco(datasets_root, coco_json())
    for step in ("one", "two"):
        path = write_pseudo(tmp_path / step / "test_pseudo.json", method=step)
        datasets.register_pseudo_masks(str(path))
        assert MetadataCatalog.get("test_pseudo").json_file == str(path)
        assert len(DatasetCatalog.get("test_pseudo")) == 3


def test_pseudo_masks_find_their_images(datasets_root, tmp_path):
    path = write_pseudo(tmp_path / "test_pseudo.json", source_dataset="no_such_set", image_root=str(tmp_path / "gone"))
    datasets.register_pseudo_masks(str(path))
    with pytest.raises(FileNotFoundError, match=r"test_pseudo\.json.*no_such_set.*gone"):
        DatasetCatalog.get("test_pseudo")
    for image in coco_json()["images"]:
        write_jpeg(tmp_path / "gone" / image["file_name"])
    assert len(DatasetCatalog.get("test_pseudo")) == 3
    path.write_text(json.dumps(coco_json()))
    with pytest.raises(ValueError, match="no pseudo-mask file"):
        DatasetCatalog.get("test_pseudo")


def test_pseudo_masks_of_pseudo_masks(datasets_root, tmp_path):
    """A later round labels what an earlier one registered."""
    write_coco(datasets_root, coco_json())
    datasets.register_pseudo_masks(str(write_pseudo(tmp_path / "test_pseudo.json")))
    datasets.register_pseudo_masks(str(write_pseudo(tmp_path / "test_again.json", source_dataset="test_pseudo")))
    assert len(DatasetCatalog.get("test_again")) == 3
    (tmp_path / "test_pseudo.json").unlink()
    with pytest.raises(FileNotFoundError, match="labelling step"):
        DatasetCatalog.get("test_pseudo")
    with pytest.raises(FileNotFoundError, match="register 'test_pseudo' before"):
        DatasetCatalog.get("test_again")


def test_pseudo_masks_from_cfg(datasets_root, tmp_path):
    write_coco(datasets_root, coco_json())
    cfg = get_cfg()
    add_boxsup_config(cfg)
    assert datasets.register_pseudo_masks_from_cfg(cfg) == []
    paths = [str(write_pseudo(tmp_path / f"test_cfg_{key}.json")) for key in range(2)]
    cfg.DATASETS.PSEUDO_MASKS = tuple(paths)
    assert datasets.register_pseudo_masks_from_cfg(cfg) == ["test_cfg_0", "test_cfg_1"]
    cfg.DATASETS.PSEUDO_MASKS = ("one/test_cfg.json", "two/test_cfg.json")
    with pytest.raises(ValueError, match=r"one/test_cfg\.json.*two/test_cfg\.json.*same name"):
        datasets.register_pseudo_masks_from_cfg(cfg)
    with pytest.raises(ValueError, match="Rename the file"):
        datasets.register_pseudo_masks(str(tmp_path / "coco_2017_train.json"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation": {"size": [3, 3], "counts": "04"}}, "no RLE of size"),
        ({"segmentation": "mask"}, "no RLE of size"),
        ({"confidence": 1.5}, "not in 0..1"),
        ({"confidence": None}, "not in 0..1"),
        ({"confidence_exact": float("nan")}, "not in 0..1"),
    ],
)
def test_pseudo_masks_that_are_damaged(datasets_root, tmp_path, change, message):
    write_coco(datasets_root, coco_json())
    path = write_pseudo(tmp_path / "test_pseudo.json")
    data = json.loads(path.read_text())
    data["annotations"][0].update(change)
    path.write_text(json.dumps(data))
    datasets.register_pseudo_masks(str(path))
    with pytest.raises(ValueError, match=message) as error:
        DatasetCatalog.get("test_pseudo")
    assert "annotation 11" in str(error.value)


# ------------------------------------------------------------------------------------------------ export


def test_voc_as_coco_json(voc, tmp_path):
    data = datasets.dataset_to_coco("voc_2012_val_box")
    assert [image["file_name"] for image in data["images"]] == ["2007_000032.jpg", "2011_000007.jpg"]
    assert [image["id"] for image in data["images"]] == [2007000032, 2011000007]
    assert data["annotations"][0] == {
        "id": 1, "image_id": 2007000032, "category_id": 8, "bbox": [1, 3, 8, 8], "area": 64, "iscrowd": 0,
        "difficult": 1,
    }  # fmt: skip
    assert data["categories"][0] == {"id": 1, "name": "aeroplane"}
    with_masks = datasets.dataset_to_coco("voc_2012_val_instance")
    assert [obj["area"] for obj in with_masks["annotations"]] == [36, 42, 25]
    path = tmp_path / "voc.json"
    path.write_text(json.dumps(with_masks))
    assert COCO(str(path)).annToMask(with_masks["annotations"][1]).sum() == 42
    # Back again: the same boxes, classes and ids.
    datasets.register_coco_boxes("test_back", str(path), str(voc / "JPEGImages"))
    for old, new in zip(DatasetCatalog.get("voc_2012_val_box"), DatasetCatalog.get("test_back"), strict=True):
        assert old["file_name"] == new["file_name"]
        for a, b in zip(old["annotations"], new["annotations"], strict=True):
            assert (a["id"], a["category_id"]) == (b["id"], b["category_id"])
            assert BoxMode.convert(b["bbox"], b["bbox_mode"], BoxMode.XYXY_ABS) == a["bbox"]


def test_json_backed_sets_keep_unknown_fields(datasets_root, tmp_path):
    write_coco(datasets_root, coco_json())
    data = datasets.dataset_to_coco("coco_2017_train_box")
    assert data["annotations"][0]["note"] == "unknown"
    assert data["images"] == coco_json()["images"]
    assert data["annotations"][2] == coco_json()["annotations"][2], "crowd regions are copied untouched"
    path = write_pseudo(tmp_path / "test_pseudo.json")
    datasets.register_pseudo_masks(str(path))
    assert datasets.dataset_to_coco("test_pseudo") == json.loads(path.read_text())


def test_export_errors(datasets_root):
    with pytest.raises(KeyError, match="not registered"):
        datasets.dataset_to_coco("no_such_set")
    for kind in ("Image", "Mask"):
        write_jpeg(datasets_root / "DUTS" / f"DUTS-TR-{kind}-single" / "a.jpg")
    with pytest.raises(ValueError, match="no boxes"):
        datasets.dataset_to_coco("dut_tr_single")


def test_sources_know_the_files_that_decide(datasets_root):
    """Of sets of ours and of Detectron2's, without a file being there."""
    json_file = "coco/annotations/instances_train2017.json"
    for name, files in {
        "voc_2012_val_instance": ["VOC2012/ImageSets/Segmentation/val.txt"],
        "voc_2012_train_aug_sem_seg": ["VOC2012/ImageSets/Segmentation/train_aug.txt"],
        "coco_2017_train_box": [json_file],
        "coco60_2017_train": [json_file],
        "dut_tr_single": ["DUTS/DUTS-TR-Mask-single", "DUTS/DUTS-TR-Image-single"],
    }.items():
        source = datasets.dataset_source(name)
        assert source.files() == [str(datasets_root / file) for file in files]
        assert source.json_file == (str(datasets_root / json_file) if json_file in files else None)
        assert MetadataCatalog.get(name).get("json_file") is None
    for name, files in {
        "coco_2017_train": [json_file],
        "coco_2017_val_100_panoptic_separated": [
            "coco/annotations/instances_val2017_100.json", "coco/annotations/panoptic_val2017_100.json",
        ],
        "voc_2007_trainval": ["VOC2007/ImageSets/Main/trainval.txt"],
        "cityscapes_fine_instance_seg_val": [],
    }.items():  # fmt: skip
        found = datasets.dataset_source(name).files()
        assert [path.endswith(file) for path, file in zip(found, files, strict=True)] == [True] * len(files)
    with pytest.raises(KeyError, match="no_such_set"):
        datasets.dataset_source("no_such_set")


# ------------------------------------------------------------------------------------------------ real files


@pytest.fixture
def real(shared, monkeypatch) -> Path:
    root = shared / "data"
    if not root.is_dir():
        pytest.skip("no real images beside the checkout")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    return root


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("voc_2012_train_box", 616),
        ("voc_2012_val_box", 195),
        ("voc_2012_trainval_box", 811),
        ("voc_2012_train_aug_box", 880),
        ("voc_2012_val_instance", 195),
        ("coco_2017_train_box", 258),
        ("coco_2017_val_box", 225),
        ("dut_tr_single", 916),
    ],
)
def test_real_counts(real, name, images):
    records = DatasetCatalog.get(name)
    assert len(records) == images
    assert len({record["image_id"] for record in records}) == images
    ids = [obj["id"] for record in records for obj in record.get("annotations", ())]
    assert len(set(ids)) == len(ids)
    if name.endswith("_box"):
        allowed = BOX_KEYS | {"difficult"}
        assert all(obj.keys() <= allowed for record in records for obj in record["annotations"])


def test_real_boxes_against_slow_reference(real):
    for record in DatasetCatalog.get("voc_2012_val_box"):
        stem = Path(record["file_name"]).stem
        expected = raw_boxes(real / "VOC2012" / "Annotations" / f"{stem}.xml")
        assert [tuple(obj["bbox"]) for obj in record["annotations"]] == expected
        for obj in record["annotations"]:
            x0, y0, x1, y1 = obj["bbox"]
            assert 0 <= x0 < x1 <= record["width"]
            assert 0 <= y0 < y1 <= record["height"]


def test_real_masks_lie_in_their_boxes(real):
    ious = []
    for record in DatasetCatalog.get("voc_2012_val_instance"):
        for obj in record["annotations"]:
            box = np.array([BoxMode.convert(obj["bbox"], obj["bbox_mode"], BoxMode.XYWH_ABS)])
            tight = mask_util.toBbox([obj["segmentation"]])
            ious.append(mask_util.iou(tight, box, [0])[0, 0])
    assert len(ious) == 353
    assert 0.85 < np.mean(ious) < 0.95
    assert np.mean(np.array(ious) > 0.5) > 0.95, "void borders cost small objects more"


def test_real_coco_against_json(real):
    data = json.loads((real / "coco" / "annotations" / "instances_train2017.json").read_text())
    expected = {obj["id"]: obj["bbox"] for obj in data["annotations"] if not obj["iscrowd"]}
    records = DatasetCatalog.get("coco_2017_train_box")
    assert {obj["id"]: obj["bbox"] for record in records for obj in record["annotations"]} == expected
