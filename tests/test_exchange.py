"""Other annotation formats in and out, and the inspection: frames, round trips, and that nothing good is lost."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from boxsup_d2.data.formats.coco import read_coco_json
from boxsup_d2.data.formats.coco_dicts import load_coco_boxes
from boxsup_d2.data.formats.export import write_mask_pngs, write_voc_png, write_yolo_seg
from boxsup_d2.data.formats.folders import list_files
from boxsup_d2.data.formats.inspection import Inspection, inspect_coco
from boxsup_d2.data.formats.polygons import mask_to_polygon, mask_to_polygons, to_polygons
from boxsup_d2.data.formats.problems import Problems
from boxsup_d2.data.formats.voc import read_voc_xml
from boxsup_d2.data.formats.yolo import read_yolo
from boxsup_d2.data.images import image_size, read_image
from boxsup_d2.masks.rle import encode_masks
from boxsup_d2.masks.segmentation import rle_runs, segmentation_fault, to_rle

H, W = 20, 30
POLYGON = [[2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]]


def write_image(path: Path, height: int = H, width: int = W, orientation: int | None = None, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=exif, **options)


def rle(mask: np.ndarray) -> dict[str, Any]:
    return encode_masks(mask[:, :, None])[0]


def block(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((H, W), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def random_mask(rng: np.random.Generator) -> np.ndarray:
    """Blobs, dust, holes in holes, full and empty masks, of any size."""
    height, width = rng.integers(1, 40, 2)
    mask = rng.random((height, width)) < rng.choice([0.0, 0.1, 0.4, 0.6, 0.9, 1.0])
    if rng.random() < 0.5:
        mask = np.kron(mask, np.ones((3, 3), bool))
    return mask


# ------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("extension", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 5, 6, 8])
def test_header_size_is_that_of_the_decoded_image(tmp_path: Path, extension: str, orientation: int | None) -> None:
    path = tmp_path / f"image.{extension}"
    write_image(path, orientation=orientation)
    assert image_size(str(path)) == read_image(str(path)).shape[:2]
    assert image_size(str(path)) == ((W, H) if orientation in (5, 6, 8) else (H, W))


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_images_that_end_early_are_seen_without_decoding(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"image.{extension}"
    write_image(path, 200, 200)
    content = path.read_bytes()
    path.write_bytes(content + b"appended by a camera")
    assert image_size(str(path)) == (200, 200)
    path.write_bytes(content + b"x" * 10_000)
    assert image_size(str(path)) == (200, 200)
    for share in (0, 0.01, 0.5, 0.99):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ValueError, match=rf"image\.{extension}"):
            image_size(str(path))
        with pytest.raises(ValueError, match=rf"image\.{extension}"):
            read_image(str(path))
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        image_size(str(tmp_path / "gone.png"))


# ------------------------------------------------------------------------------------------------- VOC xml


def write_xml(path: Path, objects: str, *, filename: str = "", size: tuple[int, int] = (H, W)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<annotation><filename>{filename}</filename><size><width>{size[1]}</width><height>{size[0]}</height></size>"
        f"{objects}</annotation>"
    )


def xml_object(name: str, box: tuple[float, ...], extra: str = "") -> str:
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>"


def test_voc_xml(tmp_path: Path) -> None:
    images, xml = tmp_path / "images", tmp_path / "xml"
    write_image(images / "a.PNG")
    write_image(images / "deep" / "b.jpeg")
    write_image(images / "photo.jpg", orientation=6)
    cat = xml_object("cat", (1, 1, W, H), "<difficult>1</difficult><truncated>1</truncated>")
    write_xml(xml / "a.xml", cat + xml_object("ant", (4, 5, 4, 5)))
    write_xml(xml / "deep" / "b.xml", xml_object("cat", (2, 3, 4.5, 6)))
    write_xml(xml / "other_name.xml", "", filename="photo.jpg", size=(0, 0))
    data = read_voc_xml(str(xml), str(images))
    assert data["categories"] == [{"id": 1, "name": "ant"}, {"id": 2, "name": "cat"}]
    assert [(image["file_name"], image["height"], image["width"]) for image in data["images"]] == [
        ("a.PNG", H, W),
        ("deep/b.jpeg", H, W),
        ("photo.jpg", W, H),  # its size is the header's, upright
    ]
    first, second, third = data["annotations"]
    # Ends are inclusive: from pixel 1 to pixel W is the whole width; a box of one pixel has an extent of 1.
    assert first == {
        "id": 1, "image_id": 1, "category_id": 2, "bbox": [0, 0, W, H], "area": W * H, "iscrowd": 0, "difficult": 1,
        "truncated": 1,
    }  # fmt: skip
    assert (second["bbox"], second["difficult"], second["truncated"]) == ([3, 4, 1, 1], 0, 0)
    assert (third["bbox"], third["image_id"]) == ([1, 2, 3.5, 4], 2)
    assert not inspect_coco(data, str(images), path=str(xml)).problems


def test_voc_xml_reports_everything_at_once(tmp_path: Path) -> None:
    images, xml = tmp_path / "images", tmp_path / "xml"
    for stem in ("a", "b"):
        write_image(images / f"{stem}.jpg")
    write_xml(xml / "a.xml", xml_object("cat", (5, 5, 2, 9)) + xml_object("cat", (1, 1, 2, 2)) + "<object/>")
    (xml / "b.xml").write_text("<annotation><obj")
    (xml / "entity.xml").write_text('<!DOCTYPE a [<!ENTITY e "x">]><annotation>&e;</annotation>')
    write_xml(xml / "c.xml", "")
    with pytest.raises(
        ValueError, match=r"2 objects that cannot be used \(e\.g\. 'a\.xml': inverted.*2 damaged XML files.*1 XML files"
    ):
        read_voc_xml(str(xml), str(images))
    report = Problems()
    data = read_voc_xml(str(xml), str(images), report)
    assert [obj["bbox"] for obj in data["annotations"]] == [[0, 0, 2, 2]]
    assert len(report) == 5
    for folder, image_folder in ((tmp_path / "none", images), (xml, tmp_path / "none"), (images, images)):
        with pytest.raises(FileNotFoundError, match=r"none|no XML file in"):
            read_voc_xml(str(folder), str(image_folder))


# ------------------------------------------------------------------------------------------------- YOLO


def write_labels(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize(
    ("base", "text"),
    [
        ("data.yaml", "names: [ant, cat]"),
        ("data.yaml", "nc: 2\nnames:\n  1: cat\n  0: ant\n"),
        ("labels/train/classes.txt", "ant\ncat\n\n"),
        ("labels/obj.names", "\ufeffant\r\ncat\r\n"),
    ],
)
def test_yolo(tmp_path: Path, base: str, text: str) -> None:
    images, labels = tmp_path / "images" / "train", tmp_path / "labels" / "train"
    for stem in ("a", "b", "sub/c"):
        write_image(images / f"{stem}.jpg", orientation=6 if stem == "b" else None)
    write_labels(labels / "a.txt", "1 0.5 0.5 1 1", "", "0 0.1 0.2 0.2 0.4 0.75")
    write_labels(labels / "b.txt", "0 0.5 0.5 0.5 0.5")
    write_labels(labels / "sub" / "c.txt")
    (tmp_path / base).write_bytes(text.encode())
    data = read_yolo(str(labels), str(images))
    assert data["categories"] == [{"id": 1, "name": "ant"}, {"id": 2, "name": "cat"}]
    assert [(image["file_name"], image["height"]) for image in data["images"]] == [
        ("a.jpg", H),
        ("b.jpg", W),
        ("sub/c.jpg", H),
    ]
    cat, ant, turned = data["annotations"]
    assert (cat["category_id"], cat["bbox"], "score" in cat) == (2, [0, 0, W, H], False)
    assert (ant["category_id"], ant["score"]) == (1, 0.75)
    assert ant["bbox"] == pytest.approx([0, 0, 0.2 * W, 0.4 * H])
    assert turned["bbox"] == pytest.approx([H / 4, W / 4, H / 2, W / 2]), "in the frame of the upright image"


def test_yolo_reports_everything_at_once(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(b"no image")
    bad = ["x", "0 1 1", "0 nan 0 0 0", "9 .5 .5 1 1", "0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "0 100 50 20 20", "0.5 0 0 1 1"]
    write_labels(tmp_path / "a.txt", *bad, "0 0.5 0.5 1 1")
    write_labels(tmp_path / "orphan.txt", "0 0.5 0.5 1 1")
    with pytest.raises(FileNotFoundError, match=r"classes\.txt"):
        read_yolo(str(tmp_path), str(tmp_path))
    names = tmp_path / "my_names.txt"
    names.write_text("ant\n")
    report = Problems()
    data = read_yolo(str(tmp_path), str(tmp_path), str(names), report)
    assert (len(data["images"]), len(data["annotations"])) == (1, 1)
    assert len(report) == len(bad) + 2
    with pytest.raises(ValueError, match=r"in pixels.*e\.g\. .*a\.txt, line 6: 0 100 50"):
        read_yolo(str(tmp_path), str(tmp_path), str(names))
    for text in ("names: 3", "names: {0: a, 2: b}", "names: [", ""):
        path = tmp_path / "bad.yaml"
        path.write_text(text)
        with pytest.raises(ValueError, match=r"bad\.yaml"):
            read_yolo(str(tmp_path), str(tmp_path), str(path))


# ------------------------------------------------------------------------------------------------- polygons


@pytest.mark.parametrize("seed", range(40))
def test_polygons_give_back_every_pixel(seed: int) -> None:
    """Holes, dust and parts that touch at a corner included; by pycocotools, and filled by OpenCV's rule."""
    mask = random_mask(np.random.default_rng(seed))
    height, width = mask.shape
    polygons, joined = mask_to_polygons(mask), mask_to_polygon(mask)
    assert bool(polygons) == bool(joined) == mask.any()
    if not mask.any():
        return
    for value in (polygons, [joined]):
        assert all(len(points) >= 8 for points in value)
        again = mask_util.decode(mask_util.merge(mask_util.frPyObjects(value, height, width))).astype(bool)
        np.testing.assert_array_equal(again, mask)
    assert len(polygons) == cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1


@pytest.mark.parametrize("tolerance", [0.2, 1.0, 2.0])
def test_simpler_polygons_stay_near_the_mask(tolerance: float) -> None:
    mask = np.zeros((140, 200), np.uint8)
    cv2.ellipse(mask, (80, 70), (60, 40), 25, 0, 360, 1, -1)
    cv2.ellipse(mask, (70, 70), (20, 9), -30, 0, 360, 0, -1)  # a hole, and one that is no larger than the tolerance
    mask[95, 90] = 0
    mask[20:100, 160:190] = 1
    mask[130, 10:12] = mask[3, 3] = 1  # dust
    rings, exact = mask_to_polygons(mask > 0, tolerance), mask_to_polygons(mask > 0)
    again = mask_util.decode(mask_util.merge(mask_util.frPyObjects(rings, *mask.shape)))
    if tolerance < 0.5:
        assert rings == exact
        return
    points, before = (sum(len(ring) // 2 for ring in polygons) for polygons in (rings, exact))
    assert points < before / 3
    assert len(rings) == len(exact), "no part goes"
    assert again[[130, 3, 70], [10, 3, 70]].tolist() == [1, 1, 0], "what is small stays, and what is a hole"
    rectangle = min(rings, key=lambda ring: abs(np.mean(ring[0::2]) - 175))
    assert len(rectangle) == 8
    # A pixel counts as its centre, half a pixel from its edges.
    off = cv2.distanceTransform(mask, cv2.DIST_L2, 5) + cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5) - 0.5
    assert off[again != mask].max() <= tolerance + 0.5
    assert again[95, 90]
    # As one polygon, painted by OpenCV as well, which paints the cuts between parts, too.
    single = mask_to_polygon(mask > 0, tolerance)
    assert len(single) < len(mask_to_polygon(mask > 0)) / 2.5
    again = mask_util.decode(mask_util.frPyObjects([single], *mask.shape)[0])
    assert off[again != mask].max() <= tolerance + 0.5
    whole = (mask > 0) & (cv2.connectedComponents(mask)[1] == cv2.connectedComponents(mask)[1][70, 40])
    points = np.array(mask_to_polygon(whole, tolerance)).reshape(1, -1, 2).astype(np.int32)
    painted = cv2.fillPoly(np.zeros_like(mask), points, 1) > 0
    assert (painted & whole).sum() / (painted | whole).sum() > 0.94


def test_to_polygons(tmp_path: Path) -> None:
    ring = block(2, 2, 12, 12) & ~block(5, 5, 8, 8)
    data = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": H, "width": W}],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [
            {"id": key, "image_id": 1, "category_id": 1, "bbox": [2, 2, 10, 10], "iscrowd": crowd, "area": 1.0, **mask}
            for key, (crowd, mask) in enumerate(
                [
                    (0, {"segmentation": rle(ring)}),
                    (0, {"segmentation": POLYGON}),
                    (1, {"segmentation": rle(ring)}),
                    (0, {"segmentation": rle(ring & False)}),
                    (0, {}),
                ]
            )
        ],
    }
    before = copy.deepcopy(data)
    result = to_polygons(data)
    assert data == before
    assert [type(a.get("segmentation")) for a in result["annotations"]] == [list, list, dict, dict, type(None)]
    assert result["annotations"][1:] == data["annotations"][1:]
    path = tmp_path / "polygons.json"
    result["annotations"].pop()
    path.write_text(json.dumps(result))
    coco = COCO(str(path))
    for index, expected in enumerate((ring, block(2, 2, 8, 8), ring, ring & False)):
        np.testing.assert_array_equal(coco.annToMask(coco.anns[index]).astype(bool), expected)


# ------------------------------------------------------------------------------------------------- export


@pytest.fixture
def labelled() -> dict[str, Any]:
    """Two images; overlapping masks, one of two parts with a hole, an empty one, none, one hidden, a crowd region."""
    ragged = (block(0, 0, 6, 6) & ~block(2, 2, 4, 4)) | block(20, 10, 25, 15)
    annotations: list[dict[str, Any]] = [
        {"image_id": 5, "category_id": 7, "segmentation": rle(block(4, 4, 9, 9))},
        {"image_id": 5, "category_id": 3, "segmentation": rle(block(4, 4, 20, 18))},
        {"image_id": 5, "category_id": 3, "iscrowd": 1, "segmentation": rle(block(0, 0, W, 8))},
        {"image_id": 5, "category_id": 7, "segmentation": rle(ragged)},
        {"image_id": 5, "category_id": 7, "segmentation": rle(ragged & False)},
        {"image_id": 5, "category_id": 7},
        {"image_id": 5, "category_id": 3, "segmentation": rle(block(4, 4, 9, 9))},
        {"image_id": 2, "category_id": 3, "segmentation": POLYGON},
    ]
    for key, annotation in enumerate(annotations):
        annotation.update(id=10 + key, bbox=[1, 1, 2, 2])
    return {
        "images": [
            {"id": 5, "file_name": "a.jpg", "height": H, "width": W},
            {"id": 2, "file_name": "sub/b.png", "height": H, "width": W},
        ],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "ant"}],
    }


def masks_of(data: dict[str, Any]) -> dict[int, np.ndarray]:
    return {
        a["id"]: mask_util.decode(a["segmentation"]).astype(bool)
        if isinstance(a["segmentation"], dict)
        else block(2, 2, 8, 8)
        for a in data["annotations"]
        if a.get("segmentation") and not a.get("iscrowd")
    }


def test_yolo_seg(tmp_path: Path, labelled: dict[str, Any]) -> None:
    counts = write_yolo_seg(labelled, str(tmp_path))
    assert counts == {"files": 2, "objects": 5, "without_mask": 2, "crowds": 1, "images_of_crowds": 0}
    assert yaml.safe_load((tmp_path / "data.yaml").read_text())["names"] == {0: "ant", 1: "cat"}
    masks = masks_of(labelled)
    expected = [(1, masks[10]), (0, masks[11]), (1, masks[13]), (0, masks[16])]
    lines = (tmp_path / "labels" / "a.txt").read_text().splitlines()
    for line, (class_number, mask) in zip(lines, expected, strict=True):
        number, *values = line.split()
        points = np.array(values, float).reshape(-1, 2)
        assert points.min() >= 0
        assert points.max() <= 1
        points = (points * (W, H)).reshape(-1).tolist()
        assert int(number) == class_number
        np.testing.assert_array_equal(mask_util.decode(mask_util.frPyObjects([points], H, W)[0]).astype(bool), mask)
    (line,) = (tmp_path / "labels" / "sub" / "b.txt").read_text().splitlines()
    corners = np.array(line.split()[1:], float).reshape(-1, 2) * (W, H)
    assert {tuple(corner) for corner in corners.round().tolist()} == {(2, 2), (8, 2), (8, 8), (2, 8)}
    # The same classes when the names are read again.
    write_image(tmp_path / "images" / "a.jpg")
    names = read_yolo(str(tmp_path / "labels"), str(tmp_path / "images"), None, Problems())["categories"]
    assert [entry["name"] for entry in names] == ["ant", "cat"]


def test_voc_png(tmp_path: Path, labelled: dict[str, Any]) -> None:
    counts = write_voc_png(labelled, str(tmp_path))
    assert counts == {"files": 4, "objects": 4, "without_mask": 2, "covered": 1, "crowds": 1}
    objects = Image.open(tmp_path / "SegmentationObject" / "a.png")
    assert objects.mode == "P"
    assert objects.getpalette()[3:6] == [128, 0, 0]
    ids = np.asarray(objects)
    masks = masks_of(labelled)
    # Slow reference. The i-th annotation that is no crowd region has id i; from the largest mask to the smallest.
    expected = np.zeros((H, W), np.uint8)
    for value, key in ((2, 11), (3, 13), (6, 16), (1, 10)):
        expected[masks[key]] = value
    expected[block(0, 0, W, 8) & (expected == 0)] = 255
    np.testing.assert_array_equal(ids, expected)
    classes = np.asarray(Image.open(tmp_path / "SegmentationClass" / "a.png"))
    np.testing.assert_array_equal(classes, np.array([0, 2, 1, 2] + [0] * 251 + [255], np.uint8)[expected])
    assert set(np.unique(np.asarray(Image.open(tmp_path / "SegmentationClass" / "sub" / "b.png")))) == {0, 1}
    assert (tmp_path / "class_names.txt").read_text().split() == ["ant", "cat"]

    labelled["annotations"] = [{**labelled["annotations"][0], "id": key} for key in range(255)]
    with pytest.raises(ValueError, match=r"room for 254 objects, and 'a\.jpg'"):
        write_voc_png(labelled, str(tmp_path / "more"))
    assert not (tmp_path / "more").exists()


def test_mask_pngs(tmp_path: Path, labelled: dict[str, Any]) -> None:
    counts = write_mask_pngs(labelled, str(tmp_path))
    assert counts == {"files": 5, "objects": 5, "without_mask": 2, "crowds": 1}
    for key, mask in masks_of(labelled).items():
        path = tmp_path / ("sub/b" if key == 17 else "a") / f"{key}.png"
        if key != 14:
            np.testing.assert_array_equal(np.asarray(Image.open(path)), mask * np.uint8(255))


@pytest.mark.parametrize("write", [write_yolo_seg, write_voc_png, write_mask_pngs])
def test_writers_stay_in_their_folder(tmp_path: Path, labelled: dict[str, Any], write: Any) -> None:
    out = tmp_path / "deep" / "out"
    labelled["images"][0]["file_name"] = "../../../../escape.jpg"
    labelled["images"][1]["file_name"] = str(tmp_path / "absolute.jpg")
    write(labelled, str(out))
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {
        path for path in out.rglob("*") if path.is_file()
    }
    labelled["images"][0]["file_name"], labelled["images"][1]["file_name"] = "x/a.jpg", "x/a.png"
    with pytest.raises(ValueError, match=r"'x/a\.jpg' and 'x/a\.png'"):
        write(labelled, str(out))


# ------------------------------------------------------------------------------------------------- checks


@pytest.mark.parametrize("seed", range(20))
def test_rle_runs_against_slow_reference(seed: int) -> None:
    mask = random_mask(np.random.default_rng(seed))
    value = rle(mask)
    pixels = mask.T.reshape(-1)
    changes = np.flatnonzero(np.diff(np.concatenate([[False], pixels]).astype(int)))
    runs = np.diff([0, *changes, len(pixels)])
    found = rle_runs(value["counts"])
    assert found is not None
    assert found.tolist() == runs[: len(found)].tolist()
    assert runs[len(found) :].sum() == 0
    assert segmentation_fault(value, *mask.shape) is None
    assert segmentation_fault({"size": list(mask.shape), "counts": runs.tolist()}, *mask.shape) is None
    height, width = mask.shape
    assert segmentation_fault(value, height, width + 1) is not None
    assert segmentation_fault({"size": [height, width + 1], "counts": value["counts"]}, height, width + 1) is not None


@pytest.mark.parametrize(
    "value",
    [
        "text", 3, {}, {"size": [H, W]}, {"size": [H, W], "counts": ""}, {"size": [H, W], "counts": "0" * 50},
        {"size": [H, W], "counts": "\x00"}, {"size": [H, W], "counts": "é"}, {"size": [H, W], "counts": "oooooooo"},
        {"size": [H, W], "counts": [H * W + 1, -1]}, {"size": [H, W], "counts": [1.0, H * W - 1]},
        {"size": [W, H], "counts": [H * W]}, {"size": [H, W], "counts": ["1"]}, [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]],
        [3], [None], [["a"] * 6], [[1, 1, 5, 1, 5, float("inf")]], [[1, 1, 5, 1, 5, float("nan")]],
        [[1, 1, 5, 1, 5, 10**400]], [[1, 1, 5, 1, 5, 1e9]], [[1, 1, 5, 1, True, 5]], [[[1, 2], [3, 4], [5, 6]]],
    ],
)  # fmt: skip
def test_what_would_harm_pycocotools_is_found(value: Any) -> None:
    fault = segmentation_fault(value, H, W)
    assert fault is None if value == {} else fault is not None


# ------------------------------------------------------------------------------------------------- inspection


def good_json() -> dict[str, Any]:
    """Three images; an unknown field, a crowd region, a mask of its own, ids with gaps, a box over the border."""
    return {
        "info": {"year": 2024},
        "images": [{"id": k, "file_name": f"{k}.jpg", "height": H, "width": W, "camera": "x"} for k in (7, 9, 70)],
        "annotations": [
            {"id": 11, "image_id": 9, "category_id": 90, "bbox": [2, 2, 6, 6], "segmentation": POLYGON, "note": [1]},
            {"id": 5, "image_id": 7, "category_id": 1, "bbox": [-3, 2, 6.5, 6]},
            {"id": 900, "image_id": 7, "category_id": 1, "bbox": [0, 0, W, H], "iscrowd": 1,
             "segmentation": {"size": [H, W], "counts": [100, 40, 460]}},
            {"id": 12, "image_id": 9, "category_id": 1, "bbox": [4, 4, 6, 6]},
        ],
        "categories": [{"id": 90, "name": "broom"}, {"id": 1, "name": "person"}],
    }  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for image in good_json()["images"]:
        write_image(tmp_path / image["file_name"])
    return tmp_path


def inspect(root: Path, data: dict[str, Any], **options: Any) -> Inspection:
    before = copy.deepcopy(data)
    result = inspect_coco(data, str(root), path="boxes.json", **options)
    assert repr(data) == repr(before), "what is inspected is not changed"
    # What is usable is so for the strict reader too, and without a further problem.
    path = root / "usable.json"
    path.write_text(json.dumps(result.usable))
    load_coco_boxes(str(path), str(root), "usable")
    again = inspect_coco(result.usable, str(root), path="boxes.json")
    assert not again.problems, str(again.problems)
    assert again.usable == result.usable
    assert not again.filled
    return result


def test_a_good_json_is_left_alone(root: Path) -> None:
    data = good_json()
    result = inspect(root, data)
    assert not result.problems
    assert result.usable == data
    assert list(result.usable) == list(data)
    assert not result.filled
    *_, (kind, count, (example,)) = result.notes.kinds()
    assert (kind, count) == ("boxes partly outside of their image", 1)
    assert "id 5" in example
    assert (result.images, result.annotations) == (3, 4)
    result.raise_if_any()


def change(data: dict[str, Any], key: str, index: int, **values: Any) -> None:
    data[key][index].update(values)


# What is done to the json, the kind of problem, and the ids of images and annotations that are left.
PROBLEMS = [
    (lambda d: change(d, "images", 0, file_name="gone.jpg"), "not in", [9, 70], [11, 12]),
    (lambda d: change(d, "images", 0, file_name=""), "file_name", [9, 70], [11, 12]),
    (lambda d: change(d, "images", 1, height=H + 1), "another size", [7, 70], [5, 900]),
    (lambda d: change(d, "images", 1, id=7), "repeated image ids", [70], []),
    (lambda d: d["images"].append(dict(d["images"][0])), "repeated image ids", [7, 9, 70], [11, 5, 900, 12]),
    (lambda d: change(d, "images", 1, file_name="7.jpg"), "repeated file names", [7, 70], [5, 900]),
    (lambda d: change(d, "images", 1, id="9"), "without an integer id", [7, 70], [5, 900]),
    (lambda d: change(d, "annotations", 0, image_id=1), "unknown images", [7, 9, 70], [5, 900, 12]),
    (lambda d: change(d, "annotations", 0, category_id=[1]), "unknown categories", [7, 9, 70], [5, 900, 12]),
    (lambda d: change(d, "annotations", 0, bbox=[1, 2, 3]), "not four numbers", [7, 9, 70], [5, 900, 12]),
    (lambda d: change(d, "annotations", 0, bbox=[1, 2, 3, float("nan")]), "not four", [7, 9, 70], [5, 900, 12]),
    (lambda d: change(d, "annotations", 0, bbox=[1, 2, 3, 10**400]), "not four", [7, 9, 70], [5, 900, 12]),
    (lambda d: change(d, "annotations", 0, bbox=[5, 5, -2, 2]), "inverted", [7, 9, 70], [5, 900, 12]),
    (lambda d: change(d, "annotations", 0, bbox=[5, 5, 0, 2]), "without width", [7, 9, 70], [5, 900, 12]),
    (lambda d: change(d, "annotations", 0, bbox=[0.2, 0.2, 0.5, 0.5]), "than a pixel", [7, 9, 70], [5, 900, 12]),
    (lambda d: change(d, "annotations", 0, bbox=[W, 2, 5, 5]), "outside of", [7, 9, 70], [5, 900, 12]),
    (lambda d: change(d, "annotations", 0, bbox=[2, -9, 5, 5]), "outside of", [7, 9, 70], [5, 900, 12]),
    (lambda d: change(d, "annotations", 0, iscrowd="yes"), "iscrowd", [7, 9, 70], [5, 900, 12]),
    (lambda d: change(d, "annotations", 1, id=11), "repeated annotation ids", [7, 9, 70], [11, 901, 900, 12]),
    (lambda d: d["annotations"].append(d["annotations"][0]), "repeated annotation", [7, 9, 70], [11, 5, 900, 12]),
    (lambda d: change(d, "annotations", 1, id="five"), "integer id", [7, 9, 70], [11, 901, 900, 12]),
    (lambda d: change(d, "annotations", 0, segmentation=[[1, 2]]), "damaged masks", [7, 9, 70], [11, 5, 900, 12]),
    (lambda d: d["categories"].append({"id": 1, "name": "x"}), "repeated category", [7, 9, 70], [11, 5, 900, 12]),
    (lambda d: d["categories"].append({"id": 2}), "categories without", [7, 9, 70], [11, 5, 900, 12]),
    (lambda d: change(d, "categories", 0, name=" "), "categories without", [7, 9, 70], [5, 900, 12]),
]


@pytest.mark.parametrize(("damage", "kind", "images", "annotations"), PROBLEMS)
def test_problems(root: Path, damage: Any, kind: str, images: list[int], annotations: list[int]) -> None:
    data = good_json()
    damage(data)
    result = inspect(root, data)
    assert any(kind in found for found, _, _ in result.problems.kinds()), str(result.problems)
    assert [image["id"] for image in result.usable["images"]] == images
    assert [annotation["id"] for annotation in result.usable["annotations"]] == annotations
    # All else is as it was, unknown fields too.
    for key, kept in (("images", images), ("annotations", annotations)):
        originals = [entry for entry in data[key] if entry in result.usable[key]]
        assert len(originals) >= len(kept) - 1
    with pytest.raises(ValueError, match=r"'boxes\.json' cannot be used"):
        result.raise_if_any()


def test_a_damaged_mask_is_taken_away_and_its_box_kept(root: Path) -> None:
    data = good_json()
    data["annotations"][0]["segmentation"] = {"size": [H, W], "counts": "0"}
    result = inspect(root, data)
    assert result.usable["annotations"][0] == {
        "id": 11, "image_id": 9, "category_id": 90, "bbox": [2, 2, 6, 6], "note": [1],
    }  # fmt: skip


def test_all_problems_come_in_one_summary(root: Path) -> None:
    data = good_json()
    (root / "70.jpg").write_bytes((root / "70.jpg").read_bytes()[:-40])
    data["images"][0]["file_name"] = "gone.jpg"
    for key in range(10):
        data["annotations"].append({"id": 1000 + key, "image_id": 9, "category_id": 4, "bbox": [1, 1, 2, 2]})
    kinds = {kind: (count, examples) for kind, count, examples in inspect(root, data).problems.kinds()}
    assert len(kinds) == 3
    assert kinds["annotations of unknown categories"] == (10, [f"id {1000 + k}: category 4" for k in range(3)])
    assert kinds["images that cannot be read"][0] == 1
    with pytest.raises(ValueError, match=r"gone\.jpg.*70\.jpg.*category 4"):
        inspect(root, data).raise_if_any()


def test_sizes_and_ids_are_filled_in(root: Path) -> None:
    data = good_json()
    write_image(root / "9.jpg", orientation=8)
    del data["images"][0]["height"]
    data["images"][1].update(height=None, width=0)
    for annotation in (data["annotations"][1], data["annotations"][3]):
        annotation.pop("id")
    result = inspect(root, data)
    assert not result.problems
    assert result.filled == {"image sizes read from the files": 2, "annotation ids made": 2}
    assert [(image["height"], image["width"]) for image in result.usable["images"]] == [(H, W), (W, H), (H, W)]
    assert [annotation["id"] for annotation in result.usable["annotations"]] == [11, 901, 900, 902]
    assert result.usable["images"][2] is data["images"][2]
    for annotation in data["annotations"]:
        annotation["id"] = None
    data["annotations"][0]["id"] = 2**63 - 1
    assert [a["id"] for a in inspect(root, data).usable["annotations"]] == [2**63 - 1, 1, 2, 3]


def test_exif_turned_images(root: Path) -> None:
    """Sizes are compared upright; a json in the frame of the stored pixels is told why it does not fit."""
    write_image(root / "7.jpg", orientation=6)
    data = good_json()
    with pytest.raises(ValueError, match=r"7\.jpg: 30×20, the file has 20×30, which its EXIF data turn"):
        inspect(root, data).raise_if_any()
    data["images"][0].update(height=W, width=H)
    data["annotations"][2].pop("segmentation")
    assert not inspect(root, data).problems


def test_without_headers_only_missing_sizes_are_read(root: Path) -> None:
    data = good_json()
    data["images"][0]["height"] += 1
    del data["annotations"][2]["segmentation"]
    del data["images"][1]["width"]
    result = inspect_coco(data, str(root), path="boxes.json", headers=False)
    assert not result.problems
    assert result.filled == {"image sizes read from the files": 1}
    (root / "70.jpg").unlink()
    assert len(inspect_coco(data, str(root), path="boxes.json", headers=False).problems) == 1


def test_strict_reader_and_inspection_agree(root: Path) -> None:
    """What the strict reader refuses is a problem; the rules of both are the same functions."""
    path = root / "boxes.json"
    for damage, *_ in PROBLEMS:
        data = good_json()
        damage(data)
        path.write_text(json.dumps(data))
        try:
            load_coco_boxes(str(path), str(root), "strict")
        except (ValueError, FileNotFoundError):
            assert inspect(root, data).problems


def test_forms_that_tools_write(root: Path) -> None:
    path = root / "boxes.json"
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        path.write_bytes(json.dumps(good_json()).encode(encoding))
        assert read_coco_json(str(path), "x") == good_json()
    path.write_text(json.dumps([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]))
    with pytest.raises(ValueError, match=r"boxes\.json' holds a bare list: detection results"):
        read_coco_json(str(path), "x")
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"boxes\.json' holds a bare list: no COCO json"):
        read_coco_json(str(path), "x")
    (root / "boxes.coco.json").write_text("{}")
    with pytest.raises(ValueError, match=r"'boxsup predict' wrote these as well: '.*boxes\.coco\.json'"):
        read_coco_json(str(path), "x")  # nothing was found
    path.write_text(" ")
    with pytest.raises(ValueError, match=r"boxes\.json' is no valid json \(it is empty\)"):
        read_coco_json(str(path), "x")
    path.write_text('{"images": [1' + "0" * 5000 + "]}")
    with pytest.raises(ValueError, match=r"boxes\.json' is no valid json"):
        read_coco_json(str(path), "x")
    with pytest.raises(FileNotFoundError, match="cannot be read"):
        read_coco_json(str(root), "x")


def test_same_names_of_categories_are_a_note(root: Path) -> None:
    data = good_json()
    data["categories"].append({"id": 0, "name": "person"})
    result = inspect(root, data)
    assert not result.problems
    assert result.usable == data
    assert any("name of another" in kind for kind, _, _ in result.notes.kinds())


def test_examples_are_short_and_printable() -> None:
    problems = Problems()
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    for example in (deep, {"a": deep}, "x" * 10_000, "tab\tbell\x07\ud800\nline", list(range(10_000))):
        problems.add("kind", example)
    ((_, count, examples),) = problems.kinds()
    assert (count, len(examples)) == (5, 3)
    problems = Problems()
    problems.add("kind", "tab\tbell\x07\ud800\nline")
    assert str(problems).isprintable()
    str(problems).encode("utf-8")


@pytest.mark.slow
def test_inspection_is_fast(tmp_path: Path) -> None:
    """200,000 annotations of 20,000 images in a few seconds of one core."""
    import time

    write_image(tmp_path / "0.jpg")
    images = [{"id": key, "file_name": f"{key}.jpg", "height": H, "width": W} for key in range(20_000)]
    for image in images[1:]:
        (tmp_path / image["file_name"]).hardlink_to(tmp_path / "0.jpg")
    annotations = [
        {"id": key, "image_id": key % 20_000, "category_id": 1, "bbox": [2, 2, 6, 6], "segmentation": POLYGON}
        for key in range(200_000)
    ]
    data = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "x"}]}
    start = time.process_time()
    assert inspect_coco(data, str(tmp_path), path="x").usable == data
    assert time.process_time() - start < 20


def test_link_to_a_folder_above_is_walked_once(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "again").symlink_to(tmp_path)
    assert list_files(str(tmp_path)) == ["a.jpg"]


def test_every_form_of_a_mask_becomes_the_same_rle():
    mask = np.zeros((20, 30), bool)
    mask[4:10, 5:12] = True
    compressed = encode_masks(mask[:, :, None])[0]
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [False]])))
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    polygon = [5.0, 4.0, 12.0, 4.0, 12.0, 10.0, 5.0, 10.0]
    forms = [
        compressed,
        {"size": (20, 30), "counts": compressed["counts"].encode()},
        {"size": np.array([20, 30]), "counts": runs},
        {"size": [20, 30], "counts": np.array(runs).tolist()},
        [polygon],
        [polygon, [1.0, 2.0, 3.0, 4.0]],  # fewer than three points count for nothing
        [np.array(polygon)],
        [[np.float32(value) for value in polygon]],
    ]
    assert [to_rle(form, 20, 30) for form in forms] == [compressed] * len(forms)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"size": [30, 20], "counts": [600]}, r"size \[30, 20\], its image \[20, 30\]"),
        ({"size": [20, 30], "counts": [10]}, "counts 10 pixels"),
        ({"size": [20, 30], "counts": b"\xff"}, "cannot be read"),
        ({"size": [20, 30]}, "no RLE"),
        ([[1.0, 2.0, 3.0, 4.0]], "no polygon of three points"),
        ([[0.0, 0.0, 1e9, 0.0, 0.0, 5.0]], "far outside"),
        ([], "there is none"),
        ([[]], "there is none"),
        (None, "there is none"),
        (np.zeros((20, 30)), "there is none"),
    ],
)
def test_damaged_masks_do_not_reach_pycocotools(value, message, monkeypatch):
    monkeypatch.setattr("boxsup_d2.masks.segmentation.mask_util", None)
    with pytest.raises(ValueError, match=message):
        to_rle(value, 20, 30)
