"""What annotation tools write comes in, and what goes out to them comes back: their own layouts, made by hand."""

from __future__ import annotations

import base64
import json
import unicodedata
from operator import itemgetter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as mask_util

from boxsup_cli import main
from boxsup_d2.data.formats.annotations import read_annotations
from boxsup_d2.data.formats.brush_rle import decode_brush, encode_brush
from boxsup_d2.data.formats.coco import read_coco_json
from boxsup_d2.data.formats.coco_dialects import tidy_coco
from boxsup_d2.data.formats.export import write_yolo_seg, yolo_root
from boxsup_d2.data.formats.folders import ImageFinder, list_files
from boxsup_d2.data.formats.inspection import inspect_coco
from boxsup_d2.data.formats.label_studio import write_label_studio
from boxsup_d2.data.formats.labelme import write_labelme
from boxsup_d2.data.formats.polygons import decode_mask, mask_to_polygon
from boxsup_d2.data.formats.problems import Problems
from boxsup_d2.data.formats.pseudo_masks import PROVENANCE_KEY
from boxsup_d2.data.images import image_header, read_image
from boxsup_d2.masks.rle import encode_masks

H, W = 20, 30


def write_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (H, W, 3), dtype=np.uint8)).save(path)
    return path


def write_json(path: Path, content: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return str(path)


def read(path: Path | str, images: Path, suffix: str = "") -> tuple[dict[str, Any], Problems, Problems]:
    """COCO dict, problems and notes; what is read is usable."""
    problems, notes = Problems(), Problems()
    data = read_annotations(str(path), str(images), None, problems, notes, suffix).data
    if not problems:
        inspection = inspect_coco(data, str(images), path="x", outside_images=True)  # where YOLO's links lead
        assert not inspection.problems, str(inspection.problems)
        assert inspection.usable["annotations"] == data["annotations"]
    return data, problems, notes


def by_class(data: dict[str, Any]) -> list[tuple[str, list[float]]]:
    names = {category["id"]: category["name"] for category in data["categories"]}
    return [(names[a["category_id"]], [round(v, 3) for v in a["bbox"]]) for a in data["annotations"]]


def shape_mask() -> np.ndarray:
    """Two parts, one with a hole, and a pixel that touches at a corner."""
    mask = np.zeros((H, W), bool)
    mask[3:12, 4:15], mask[6:9, 7:11], mask[12, 15], mask[14:18, 20:28] = True, False, True, True
    return mask


# ------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_images_of_more_than_8_bits_are_stretched(tmp_path: Path, name: str) -> None:
    """12 of 16 bits, a hot pixel, floats that are no numbers: as many grey levels as there were, alike in grey."""
    ramp = np.linspace(2000, 4095, 64 * 64).reshape(64, 64)
    ramp[0, 0] = 65535
    path = str(tmp_path / name)
    kinds: list[Any] = [np.uint16] if name.endswith("png") else [np.uint16, np.float32, np.float64]
    for kind in kinds:
        for pixels in (ramp.astype(kind), np.stack([ramp] * 3, axis=-1).astype(kind)):
            if kind is np.float32:
                pixels[1, 1] = np.nan
            assert cv2.imwrite(path, pixels)
            image = read_image(path)
            assert image.shape == (64, 64, 3)
            assert image.dtype == np.uint8
            assert len(np.unique(image)) > 200
            np.testing.assert_allclose(read_image(path, "L")[:, :, 0], image[:, :, 0], atol=1)
            assert image_header(path) == (64, 64, True)
    data = {"images": [{"id": 1, "file_name": name}], "annotations": [], "categories": []}
    assert "more than 8 bits" in str(inspect_coco(data, str(tmp_path), path="x").notes)


def test_deep_masks_stay_black_and_white_and_alpha_is_left_out(tmp_path: Path) -> None:
    mask = np.zeros((100, 100), np.uint16)
    mask[3, 4:6] = 65535  # less than the percentile
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    np.testing.assert_array_equal(read_image(str(tmp_path / "mask.png"), "L")[:, :, 0], mask // 257)
    for mode, colour in (("RGBA", (9, 8, 7, 0)), ("LA", (7, 0))):
        Image.new(mode, (W, H), colour).save(tmp_path / "alpha.png")
        assert read_image(str(tmp_path / "alpha.png")).shape == (H, W, 3)
        assert image_header(str(tmp_path / "alpha.png")) == (H, W, False)


def test_images_over_pillows_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: Any) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", H * W // 3)
    path = str(write_image(tmp_path / "a.gif"))
    assert image_header(path)[:2] == read_image(path).shape[:2] == (H, W)
    assert Image.MAX_IMAGE_PIXELS == H * W // 3, "the program around keeps its own limit"
    assert not recwarn.list


# ------------------------------------------------------------------------------------------------- names and texts


def test_leftovers_of_systems_are_no_data(tmp_path: Path) -> None:
    leftovers = ("._a.jpg", ".ipynb_checkpoints/a-checkpoint.jpg", "__MACOSX/a.jpg", "__MACOSX/._a.jpg", "Thumbs.db")
    for name in ("a.jpg", *leftovers):
        write_image(tmp_path / "x.jpg").rename((tmp_path / name).parent.mkdir(exist_ok=True) or tmp_path / name)
    assert list_files(str(tmp_path)) == ["a.jpg"]
    (tmp_path / "._a.txt").write_text("")
    assert list_files(str(tmp_path), [".txt"]) == []


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("C:\\Users\\me\\train\\a.jpg", "train/a.jpg"),
        ("/data/upload/1/0a1b2c3d-only.png", "deep/er/only.png"),
        ("/data/local-files/?d=my%20photos/caf%C3%A9.jpg", unicodedata.normalize("NFD", "café.jpg")),
        ("images/ONLY.PNG", "deep/er/only.png"),
        ("./val/a.jpg", "val/a.jpg"),
        ("a.jpg", None),  # there are two
        ("deep/only.png", "deep/er/only.png"),
        ("train/only.png", None),  # that folder is here, without it
        ("b.jpg", None),
        ("", None),
    ],
)
def test_names_of_other_systems(tmp_path: Path, name: str, found: str | None) -> None:
    for path in ("train/a.jpg", "val/a.jpg", "deep/er/only.png", unicodedata.normalize("NFD", "café.jpg")):
        write_image(tmp_path / path)
    assert ImageFinder(str(tmp_path)).named(name) == found


def test_texts_in_the_encodings_of_windows(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_bytes("0 .5 .5 .5 .5\n".encode("utf-16"))
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "cp1252"):
        (tmp_path / "classes.txt").write_bytes("Äpfel\n".encode(encoding))
        data, *_ = read(tmp_path / "labels", tmp_path / "images")
        assert by_class(data) == [("Äpfel", [W / 4, H / 4, W / 2, H / 2])]
    xml = (
        '<?xml version="1.0"?><annotation><object><name>Äpfel</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax>'
    )
    xml += "<ymax>9</ymax></bndbox></object></annotation>"
    (tmp_path / "a.xml").write_bytes(xml.encode("cp1252"))
    assert by_class(read(tmp_path, tmp_path, ".xml")[0]) == [("Äpfel", [0, 0, 9, 9])]
    content = json.dumps(
        {"images": [], "annotations": [], "categories": [{"id": 1, "name": "Äpfel"}]}, ensure_ascii=False
    )
    (tmp_path / "x.json").write_bytes(content.encode("cp1252"))
    assert read_coco_json(str(tmp_path / "x.json"), "x")["categories"][0]["name"] == "Äpfel"


def test_a_stale_name_inside_an_xml_does_not_win(tmp_path: Path) -> None:
    for stem in ("a", "b"):
        write_image(tmp_path / f"{stem}.jpg")
    box = "<object><name>x</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
    for stem, inner in (("a", "b.jpg"), ("renamed", "C:\\old\\b.jpg")):
        (tmp_path / f"{stem}.xml").write_text(f"<annotation><filename>{inner}</filename>{box}</annotation>")
    data, _, notes = read(tmp_path, tmp_path)
    assert [image["file_name"] for image in data["images"]] == ["a.jpg", "b.jpg"]
    assert [(count, examples) for _, count, examples in notes.kinds()] == [(1, ["a.xml: b.jpg"])]


# ------------------------------------------------------------------------------------------------- COCO's dialects


def test_dialects_of_coco(tmp_path: Path) -> None:
    """Each entry as a tool writes it, and what it means."""
    triangle, mask = [2.0, 2.0, 9.0, 2.0, 9.0, 9.0], encode_masks(shape_mask()[:, :, None])[0]
    pairs = [[2.0, 2.0], [9.0, 2.0], [9.0, 9.0]]
    attributes = {"occluded": False, "rotation": 90.0}
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"segmentation": triangle}, {"segmentation": [triangle]}),
        ({"segmentation": pairs}, {"segmentation": [triangle]}),
        ({"segmentation": [pairs]}, {"segmentation": [triangle]}),
        ({"segmentation": [[1.0, 1.0, 2.0, 2.0], triangle, [3.0, 3.0]]}, {"segmentation": [triangle]}),
        ({"segmentation": mask, "iscrowd": 1, "attributes": {"occluded": False}}, {"iscrowd": 0}),
        ({"segmentation": mask, "iscrowd": 1}, {"iscrowd": 1}),
        (
            {"bbox": [10, 4, 10, 4], "attributes": attributes},
            {"bbox": pytest.approx([13, 1, 4, 10]), "rotated_box": [15, 6, 10, 4, -90.0]},
        ),
        ({"id": "ann_7"}, {"source_id": "ann_7"}),
        ({"id": "12"}, {"id": 12}),
    ]
    entries = [
        {"id": 100 + n, "image_id": "007", "category_id": 1, "bbox": [2, 2, 7, 7], **case}
        for n, (case, _) in enumerate(cases)
    ]
    data = {
        "images": [{"id": "007", "file_name": "a.jpg", "height": H, "width": W}],
        "annotations": entries,
        "categories": [{"id": 1, "name": "x"}],
    }
    write_image(tmp_path / "a.jpg")
    before = json.dumps(data)
    notes = Problems()
    tidy = tidy_coco(data, notes)
    assert json.dumps(data) == before
    for annotation, (_, expected) in zip(tidy["annotations"], cases, strict=True):
        assert {key: annotation[key] for key in expected} == expected
        assert annotation["image_id"] == 7
    told = {kind.split(":")[0].split(",")[0]: count for kind, count, _ in notes.kinds()}
    assert told == {
        "ids that are texts": 3,
        "masks with parts of fewer than three points": 1,
        "brushed masks of CVAT": 1,
        "rotated boxes": 1,
    }
    assert tidy_coco(tidy) == tidy
    notes = Problems()
    tidy_coco({**data, "annotations": [entry for entry in data["annotations"] if entry.get("iscrowd")]}, notes)
    assert "crowd regions" not in str(notes), "one of them is CVAT's"
    tidy_coco({**data, "annotations": [data["annotations"][5]]}, notes)
    assert "1 images with crowd regions (iscrowd 1) alone" in str(notes)
    path = Path(write_json(tmp_path / "boxes.json", data))
    assert read_coco_json(str(path), "x") == tidy, "whoever reads it"
    assert len(read(path, tmp_path)[0]["annotations"]) == len(cases)


# ------------------------------------------------------------------------------------------------- tools, in


def test_yolo_as_whole_exports_have_it(tmp_path: Path) -> None:
    """As Roboflow writes it: READMEs beside it, splits, polygons, and boxes among them."""
    for split in ("train", "valid"):
        write_image(tmp_path / split / "images" / "a.jpg")
        (tmp_path / split / "labels").mkdir()
        (tmp_path / split / "labels" / "a.txt").write_text("0 .1 .2 .5 .2 .5 .6\n0 .5 .5 .5 .5\n")
    (tmp_path / "README.roboflow.txt").write_text("Exported on\nAugust 1\n")
    (tmp_path / "data.yaml").write_text("names: [x]\n")
    data, problems, _ = read(tmp_path, tmp_path)
    assert not problems
    assert by_class(data)[:2] == [("x", [3, 4, 12, 8]), ("x", [7.5, 5, 15, 10])]
    assert [len(data["images"]), len(data["annotations"])] == [2, 4]
    assert data["annotations"][0]["segmentation"] == [pytest.approx([3, 4, 15, 4, 15, 12])]
    for split in ("train", "valid"):  # rotated boxes alone
        (tmp_path / split / "labels" / "a.txt").write_text("0 .1 .2 .5 .2 .5 .6 .1 .6\n")
    data, _, notes = read(tmp_path, tmp_path)
    assert by_class(data) == [("x", [3, 4, 12, 8])] * 2
    assert "segmentation" not in data["annotations"][0]
    assert "rotated boxes" in str(notes)


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<meta><task><id>7</id><labels><label><name>zebra</name><color>#ff00ff</color><type>any</type><attributes/></label>
<label><name>ant</name></label></labels></task></meta>
<image id="3" name="frames\\a.jpg" subset="default" task_id="7" width="30" height="20">
<box label="ant" source="manual" occluded="1" xtl="2.50" ytl="3.00" xbr="10.50" ybr="9.00" z_order="0">
<attribute name="age">old</attribute></box>
<box label="ant" source="manual" occluded="0" xtl="10" ytl="4" xbr="20" ybr="8" rotation="90.0" z_order="0"/>
<polygon label="zebra" source="manual" occluded="0" points="1.00,1.00;9.00,1.00;9.00,9.00" z_order="1" group_id="4"/>
<polygon label="zebra" source="manual" occluded="0" points="20,10;29,10;29,19" z_order="1" group_id="4"/>
<mask label="zebra" source="semi-auto" occluded="0" rle="1, 2, 3" left="4" top="5" width="3" height="2" z_order="0"/>
<polyline label="ant" source="manual" occluded="0" points="1,1;2,2" z_order="0"/>
<mask label="zebra" occluded="0" rle="1, 2" left="4" top="5" width="3" height="2"/>
</image></annotations>"""


def test_cvat_xml(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "frames" / "a.jpg")
    (tmp_path / "annotations.xml").write_text(CVAT)
    data, problems, notes = read(tmp_path, tmp_path / "images")
    assert [category["name"] for category in data["categories"]] == ["zebra", "ant"]
    assert data["images"][0]["file_name"] == "frames/a.jpg"
    assert by_class(data) == [
        ("ant", [2.5, 3, 8, 6]), ("ant", [13, 1, 4, 10]), ("zebra", [1, 1, 28, 18]), ("zebra", [5, 5, 2, 1])
    ]  # fmt: skip
    first, turned, parts, brushed = data["annotations"]
    assert first["attributes"] == {"age": "old", "occluded": True}
    assert turned["rotated_box"] == [15, 6, 10, 4, -90]
    assert len(parts["segmentation"]) == 2
    expected = np.zeros((H, W), bool)
    expected[5, 5:7] = True
    np.testing.assert_array_equal(decode_mask(brushed, H, W), expected)
    assert brushed["area"] == 2
    assert "polyline" in str(notes)
    assert "runs cover 3 pixels of 3×2" in str(problems)
    (tmp_path / "video.xml").write_text("<annotations><track id='0' label='x'><box frame='0'/></track></annotations>")
    with pytest.raises(ValueError, match=r"video\.xml' is CVAT's XML of a video.*Export"):
        read(tmp_path / "video.xml", tmp_path)


def test_labelme(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    _, png = cv2.imencode(".png", np.array([[0, 255], [255, 255]], np.uint8))
    shapes = [
        {"label": "cat", "points": [[10.0, 9.0], [2.0, 3.0]], "group_id": None, "shape_type": "rectangle", "flags": {}},
        {
            "label": "cat",
            "points": [[1, 1], [9, 1], [9, 9]],
            "group_id": 1,
            "shape_type": "polygon",
            "flags": {"t": True},
        },
        {"label": "cat", "points": [[20, 10], [29, 10], [29, 19]], "group_id": 1, "shape_type": "polygon", "flags": {}},
        {"label": "dog", "points": [[10, 10], [13, 14]], "group_id": None, "shape_type": "circle", "flags": {}},
        {"label": "dog", "points": [[5, 6], [6, 7]], "shape_type": "mask", "mask": base64.b64encode(png).decode()},
        {"label": "dog", "points": [[5, 6]], "shape_type": "point"},
        {"label": "dog", "points": [[5, 6], [7, 8]], "shape_type": "polygon"},
    ]
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": "..\\photos\\a.jpg", "imageData": None}
    write_json(tmp_path / "json" / "other.json", content | {"imageHeight": H, "imageWidth": W})
    data, problems, notes = read(tmp_path / "json", tmp_path)
    assert by_class(data)[:2] == [("cat", [2, 3, 8, 6]), ("cat", [1, 1, 28, 18])]
    assert data["annotations"][1]["flags"] == {"t": True}
    circle, mask = data["annotations"][2:]
    assert circle["area"] == pytest.approx(np.pi * 25, rel=0.1)
    assert mask["area"] == 3
    assert decode_mask(mask, H, W)[6, 6]
    assert not decode_mask(mask, H, W)[6, 5]
    assert "point" in str(notes)
    assert "no polygon of three points" in str(problems)


def test_brush_run_lengths_of_label_studio() -> None:
    """Runs as its packing defines them: a repeated value, single values, soft edges."""
    bits = f"{4 * 6:032b}" + "00111" + "0010" + "0011" + "0111" + "1111"
    bits += "1" + "00" + "111" + f"{0:08b}"  # 8 values of 0: two pixels
    bits += "0" + "00" + "111" + "".join(f"{v:08b}" for v in (9, 9, 9, 255, 9, 9, 9, 100))  # inside; a soft edge
    bits += "1" + "01" + f"{7:04b}" + f"{255:08b}"
    bits += "0" * (-len(bits) % 8)
    rle = [int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)]
    assert decode_brush(rle, 2, 3).tolist() == [[False, False, True], [False, True, True]]
    rng = np.random.default_rng(0)
    for share in (0.0, 0.3, 1.0):
        mask = rng.random((150, 200)) < share
        np.testing.assert_array_equal(decode_brush(encode_brush(mask), 150, 200), mask)
    for damaged in (rle[:-2], rle[:3], [300], "text", None):
        with pytest.raises(ValueError, match="run lengths"):
            decode_brush(damaged, 2, 3)


def test_label_studio(tmp_path: Path) -> None:
    write_image(tmp_path / "photo.jpg")
    frame = {"original_width": W, "original_height": H, "image_rotation": 0}
    box = {"x": 10.0, "y": 10.0, "width": 50.0, "height": 40.0, "rotation": 0}
    mask = np.zeros((H, W), bool)
    mask[3:9, 5:15] = True
    brush = {"format": "rle", "rle": encode_brush(mask)}
    polygon = {"points": [[10, 10], [50, 10], [50, 50]], "closed": True}
    result = [
        {**frame, "id": "b", "type": "rectanglelabels", "value": {**box, "rectanglelabels": ["cat"]}},
        {**frame, "id": "m", "parentID": "b", "type": "brushlabels", "value": {**brush, "brushlabels": ["cat"]}},
        {**frame, "id": "p", "type": "polygonlabels", "value": {**polygon, "polygonlabels": ["dog"]}},
        {**frame, "id": "r", "type": "rectanglelabels", "value": {**box, "rotation": 90, "rectanglelabels": ["cat"]}},
        {"id": "c", "type": "choices", "value": {"choices": ["good"]}},
    ]
    cancelled = {"id": 2, "was_cancelled": True, "result": []}
    task = {"id": 5, "data": {"image": "/data/upload/1/0a1b2c3d-photo.jpg"}, "file_upload": "0a1b2c3d-photo.jpg"}
    path = write_json(tmp_path / "full.json", [task | {"annotations": [{"id": 1, "result": result}, cancelled]}])
    data, problems, notes = read(path, tmp_path)
    assert not problems
    assert data["images"][0]["file_name"] == "photo.jpg"
    assert by_class(data) == [
        ("cat", [3, 2, 15, 8]), ("dog", [3, 2, 12, 8]), ("cat", [-5, 2, 8, 15])
    ]  # fmt: skip
    np.testing.assert_array_equal(decode_mask(data["annotations"][0], H, W), mask)
    assert "choices" in str(notes)
    minimal = [
        {
            "image": "/data/upload/1/0a1b2c3d-photo.jpg",
            "id": 5,
            "label": [{**box, "rectanglelabels": ["cat"], "original_width": W, "original_height": H}],
            "brush": [{**brush, "brushlabels": ["dog"], "original_width": W, "original_height": H}],
            "annotator": 1,
            "annotation_id": 7,
        }
    ]
    data, *_ = read(write_json(tmp_path / "min.json", minimal), tmp_path)
    assert by_class(data) == [("cat", [3, 2, 15, 8]), ("dog", [5, 3, 10, 6])]


def test_via(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    regions = [
        {
            "shape_attributes": {"name": "rect", "x": 2, "y": 3, "width": 8, "height": 6},
            "region_attributes": {"label": "cat", "truncated": "no"},
        },
        {
            "shape_attributes": {"name": "polygon", "all_points_x": [1, 9, 9], "all_points_y": [1, 1, 9]},
            "region_attributes": {"animal": {"dog": True}},
        },
        {"shape_attributes": {"name": "point", "cx": 1, "cy": 1}, "region_attributes": {}},
        {"shape_attributes": {"name": "rect", "x": "wide"}, "region_attributes": {"label": "cat"}},
    ]
    entry = {"filename": "a.jpg", "size": 999, "regions": regions, "file_attributes": {}}
    for content in ({"a.jpg999": entry}, {"_via_settings": {}, "_via_img_metadata": {"a.jpg999": entry}}):
        data, problems, notes = read(write_json(tmp_path / "via.json", content), tmp_path)
        assert by_class(data) == [("cat", [2, 3, 8, 6]), ("dog", [1, 1, 8, 8])]
        assert "point" in str(notes)
        assert "regions that cannot be used" in str(problems)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"description": "", "tags": [], "size": {"height": 1, "width": 1}, "objects": []}, r"Supervisely.*COCO"),
        ({"name": "x", "samples": []}, r"FiftyOne.*COCODetectionDataset"),
        ({"type": "FeatureCollection", "features": []}, "GeoJSON.*pixels"),
        ([{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 1}], "bare list: detection results"),
        ({"hello": 1}, "no list of objects 'images'"),
    ],
)
def test_formats_that_are_not_read_are_named(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"x\.json' .*{message}"):
        read(write_json(tmp_path / "x.json", content), tmp_path)


def test_folders_are_recognised_by_what_is_in_them(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "a.jpg")
    coco = {"images": [{"id": 1, "file_name": "a.jpg", "height": H, "width": W}], "categories": [], "annotations": []}
    write_json(tmp_path / "meta.json", {"classes": []})
    path = write_json(tmp_path / "train" / "_annotations.coco.json", coco)
    found = read_annotations(str(tmp_path), str(tmp_path), None, Problems(), Problems())
    assert (found.path, found.as_it_is) == (path, False)
    assert found.data["images"][0]["file_name"] == "train/a.jpg"
    write_json(tmp_path / "valid" / "_annotations.coco.json", coco)
    with pytest.raises(ValueError, match=r"holds several jsons of annotations.*name one"):
        read(tmp_path, tmp_path)

    # What this program wrote into a folder is none of its annotations, but where there is nothing else.
    (tmp_path / "yolo" / "labels").mkdir(parents=True)
    write_image(tmp_path / "yolo" / "images" / "b.jpg")
    (tmp_path / "yolo" / "classes.txt").write_text("dog\n")
    (tmp_path / "yolo" / "labels" / "b.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    write_json(tmp_path / "yolo" / "masks.json", {"info": {PROVENANCE_KEY: {"method": "GrabCut"}}, **coco})
    write_json(tmp_path / "yolo" / "run" / "rounds.json", {})
    write_json(tmp_path / "yolo" / "run" / "configs" / "usable.json", coco)
    assert by_class(read(tmp_path / "yolo", tmp_path / "yolo")[0]) == [("dog", [7.5, 5.0, 15.0, 10.0])]
    (tmp_path / "yolo" / "labels" / "b.txt").rename(tmp_path / "b.txt")
    (tmp_path / "yolo" / "classes.txt").rename(tmp_path / "yolo" / "README.txt")  # which is no label file
    alone = read_annotations(str(tmp_path / "yolo"), str(tmp_path), None, Problems(), Problems())
    assert alone.path.endswith("masks.json")
    (tmp_path / "train" / "a.xml").write_text("<annotation/>")
    assert "xml files that are not read" in str(read(tmp_path / "train", tmp_path)[2])

    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no json, xml or txt file of annotations"):
        read(tmp_path / "empty", tmp_path)


# ------------------------------------------------------------------------------------------------- out, and back


@pytest.fixture
def labelled(tmp_path: Path) -> dict[str, Any]:
    """Ids with gaps, attributes, loose boxes, masks of parts with holes, a polygon over the border, a box alone."""
    for name in ("images/a.png", "sub/images/b.png", "c.png"):
        write_image(tmp_path / name)
    rle = encode_masks(shape_mask()[:, :, None])[0]
    over = [[-20.0, 10.0, 12.0, -3.0, 12.0, 19.0]]
    return {
        "images": [
            {"id": 40, "file_name": "images/a.png", "height": H, "width": W, "camera": "x"},
            {"id": 9, "file_name": "sub/images/b.png", "height": H, "width": W},
            {"id": 3, "file_name": "c.png", "height": H, "width": W},
        ],
        "annotations": [
            {"id": 11, "image_id": 40, "category_id": 7, "bbox": [2.5, 1, 27, 18], "segmentation": rle, "track": 5},
            {"id": 5, "image_id": 40, "category_id": 3, "bbox": [-20, -3, 32, 22], "segmentation": over, "iscrowd": 0},
            {"id": 20, "image_id": 9, "category_id": 3, "bbox": [1, 2, 3, 4], "attributes": {"age": "old"}},
            {"id": 30, "image_id": 3, "category_id": 3, "bbox": [0, 0, W, H], "segmentation": rle, "iscrowd": 1},
        ],
        "categories": [{"id": 7, "name": "zebra"}, {"id": 3, "name": "ant"}],
    }


def fill(line: str) -> tuple[int, np.ndarray]:
    """A line of YOLO-seg as ``yolo train`` rasterises it: 32-bit shares, coordinates cut to whole numbers."""
    number, *shares = line.split()
    points = np.array(shares, np.float32).reshape(-1, 2) * np.array([W, H], np.float32)
    mask = np.zeros((H, W), np.uint8)
    cv2.fillPoly(mask, points.astype(np.int32)[None], 1)
    return int(number), mask.astype(bool)


def test_yolo_seg_is_found_and_filled_by_its_consumers(tmp_path: Path, labelled: dict[str, Any]) -> None:
    out = tmp_path / "out"
    counts = write_yolo_seg(labelled, str(out), str(tmp_path))
    assert counts == {"files": 2, "objects": 2, "without_mask": 1, "crowds": 1, "images_of_crowds": 1}
    names = yaml.safe_load((out / "data.yaml").read_text())
    assert names["names"] == {0: "ant", 1: "zebra"}
    assert names["train"] == names["val"] == ["images", "sub/images"]
    for folder in names["train"]:
        for image in (out / folder).iterdir():
            assert image.samefile(tmp_path / folder / image.name)
            assert "/labels/".join(str(image).rsplit("/images/", 1)).replace(".png", ".txt") in map(str, out.rglob("*"))
    zebra, ant = (fill(line) for line in (out / "labels" / "a.txt").read_text().splitlines())
    assert (zebra[0], ant[0]) == (1, 0)
    assert not (shape_mask() & ~zebra[1]).any()
    assert (zebra[1] & ~shape_mask()).sum() <= 6, "no more than the cut between the parts"
    np.testing.assert_array_equal(ant[1], decode_mask(labelled["annotations"][1], H, W))
    assert (out / "sub" / "labels" / "b.txt").read_text() == ""
    assert not (out / "labels" / "c.txt").exists(), "an image of a crowd is no background"
    again, *_ = read(out, out, ".txt")
    masks = [decode_mask(annotation, H, W) for annotation in again["annotations"]]
    np.testing.assert_array_equal(masks, [decode_mask(a, H, W) for a in labelled["annotations"][:2]])
    assert yolo_root(str(out / "labels")) == str(out)


@pytest.mark.parametrize("seed", range(20))
def test_polygons_for_opencv_give_back_every_pixel(seed: int) -> None:
    """Of one part, whatever holes and corners it has; cuts between parts are painted."""
    rng = np.random.default_rng(seed)
    mask = (rng.random((H, W)) < rng.choice([0.4, 0.6, 0.9])).astype(np.uint8)
    _, parts, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    largest = parts == 1 + statistics[1:, cv2.CC_STAT_AREA].argmax()
    shares = (np.array(mask_to_polygon(largest)).reshape(-1, 2) / (W, H)).reshape(-1)
    _, filled = fill(" ".join(["0", *(f"{share:.6g}" for share in shares)]))
    np.testing.assert_array_equal(filled, largest)


def test_many_parts_are_joined_in_time() -> None:
    mask = np.zeros((100, 100), bool)
    mask[::3, ::3] = True  # more than are joined by the shortest cuts
    polygon = mask_to_polygon(mask)
    again = mask_util.decode(mask_util.frPyObjects([polygon], 100, 100)[0]).astype(bool)
    np.testing.assert_array_equal(again, mask)


def as_objects(data: dict[str, Any]) -> list[Any]:
    """What must come back of every object: ids, class, box, other fields, mask."""
    names = {category["id"]: category["name"] for category in data["categories"]}
    made = ("id", "image_id", "category_id", "bbox", "segmentation", "area", "iscrowd")
    return [
        (
            *(a["id"], a["image_id"], a["category_id"], names[a["category_id"]]),
            [round(value, 6) for value in a["bbox"]],
            {key: value for key, value in a.items() if key not in made},
            decode_mask(a, H, W).tolist(),
        )
        for a in data["annotations"]
        if not a.get("iscrowd")
    ]


def test_round_trips(tmp_path: Path, labelled: dict[str, Any]) -> None:
    labelled["categories"].append({"id": 90, "name": "yak", "supercategory": "cattle"})  # of which there is none
    write_labelme(labelled, str(tmp_path / "labelme"), str(tmp_path))
    write_label_studio(labelled, str(tmp_path / "studio"))
    # As CVAT exports what it imported as COCO: run lengths that are lists, and called crowds; its own attributes.
    cvat = json.loads(json.dumps(labelled))
    for annotation in cvat["annotations"][:2]:
        mask = decode_mask(annotation, H, W).flatten(order="F")
        edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
        runs = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
        annotation.update(iscrowd=1, segmentation={"size": [H, W], "counts": runs}, attributes={"occluded": False})
    for folder in ("labelme", "studio", "cvat"):
        if folder == "cvat":
            write_json(tmp_path / "cvat" / "instances_default.json", cvat)
            for annotation in labelled["annotations"][:2]:
                annotation["attributes"] = {"occluded": False}
        data, problems, _ = read(tmp_path / folder, tmp_path)
        assert not problems
        assert as_objects(data) == as_objects(labelled), folder
        assert data["categories"] == labelled["categories"], folder
        images = sorted(data["images"], key=itemgetter("id"))
        assert images == sorted(labelled["images"], key=itemgetter("id")), folder
    config = (tmp_path / "studio" / "config.xml").read_text()
    assert '<Label value="zebra"/>' in config


def relabelled(value: Any, before: str, after: str, kinds: tuple[str, ...]) -> Any:
    """A tool's file in which the shapes of these kinds and of a class were given another one."""
    if isinstance(value, dict):
        here = kinds if value.get("shape_type", value.get("type", kinds[0])) in kinds else ("",)
        return {key: v if key == "boxsup_d2" else relabelled(v, before, after, here) for key, v in value.items()}
    if isinstance(value, list):
        return [relabelled(v, before, after, kinds) for v in value]
    return after if value == before and kinds != ("",) else value


BOXES, MASKS = ("rectangle", "rectanglelabels"), ("polygon", "brushlabels")


@pytest.mark.parametrize("kinds", [BOXES + MASKS, BOXES, MASKS])
@pytest.mark.parametrize(
    ("before", "after", "classes"),
    [("zebra", "ant", [3, 3]), ("zebra", "yak", [90, 3]), ("ant", "gnu", [7, 92]), ("ant", "ant", [7, 3])],
)
@pytest.mark.parametrize("tool", ["labelme", "studio"])
def test_another_class_given_in_a_tool(
    tmp_path: Path,
    labelled: dict[str, Any],
    tool: str,
    before: str,
    after: str,
    classes: list[int],
    kinds: tuple[str, ...],
) -> None:
    """It has the number that the json had for it, drawn before or not; a new one has a new number. The box or the mask
    alone may have been given it."""
    labelled["categories"] += [{"id": 90, "name": "yak"}, {"id": 91, "name": " yak "}]
    if tool == "labelme":
        write_labelme(labelled, str(tmp_path / "out"), str(tmp_path))
    else:
        write_label_studio(labelled, str(tmp_path / "out"))
    for path in (tmp_path / "out").rglob("*.json"):
        path.write_text(json.dumps(relabelled(json.loads(path.read_text()), before, after, kinds)))
    data, problems, _ = read(tmp_path / "out", tmp_path)
    assert not problems
    objects = {annotation["id"]: annotation for annotation in data["annotations"]}
    assert sorted(objects) == [5, 11, 20]
    assert [objects[11]["category_id"], objects[5]["category_id"]] == classes
    assert decode_mask(objects[11], H, W).any()
    assert data["categories"][:4] == labelled["categories"]


@pytest.mark.parametrize("tool", ["labelme", "studio"])
def test_nothing_of_a_json_is_lost_in_a_tool(tmp_path: Path, labelled: dict[str, Any], tool: str) -> None:
    """Not what has the name of a key of ours either, nor classes of one name or with spaces around."""
    labelled["categories"] += [{"id": 8, "name": "zebra"}, {"id": 12, "name": " dog"}]
    first, second, third, _ = labelled["annotations"]
    first |= {"name": "Fido", "flags": {"bad": True}, "description": "old"}
    second |= {"category_id": 8, "flags": 3}
    third |= {"category_id": 12}
    labelled["images"][0] |= {"categories": ["indoor"]}
    if tool == "labelme":
        write_labelme(labelled, str(tmp_path / "out"), str(tmp_path))
        shapes = json.loads((tmp_path / "out/images/a.json").read_text())["shapes"]
        assert (shapes[0]["flags"], shapes[0]["description"]) == ({"bad": True}, "old"), "to be seen and changed"
    else:
        write_label_studio(labelled, str(tmp_path / "out"))
    data, problems, _ = read(tmp_path / "out", tmp_path)
    assert not problems
    assert as_objects(data) == as_objects(labelled)
    assert data["categories"] == labelled["categories"]
    assert sorted(data["images"], key=itemgetter("id")) == sorted(labelled["images"], key=itemgetter("id"))


def test_classes_are_kept_once(tmp_path: Path, labelled: dict[str, Any]) -> None:
    """Of thousands, in every file they would be gigabytes."""
    labelled["categories"] += [{"id": 100 + i, "name": f"class {i}"} for i in range(1000)]
    write_labelme(labelled, str(tmp_path / "labelme"), str(tmp_path))
    write_label_studio(labelled, str(tmp_path / "studio"))
    for folder in ("labelme", "studio"):
        assert sum(path.read_text().count("class 999") for path in (tmp_path / folder).rglob("*.json")) == 1


def test_tighten(tmp_path: Path, labelled: dict[str, Any]) -> None:
    path, out = write_json(tmp_path / "masks.json", labelled), tmp_path / "tight.json"
    assert main(["tighten", path, "--out", str(out)]) == 0
    first, second, *others = json.loads(out.read_text())["annotations"]
    assert (first["bbox"], first["loose_bbox"]) == ([4, 3, 24, 15], [2.5, 1, 27, 18])
    assert second["bbox"] == mask_util.toBbox(encode_masks(decode_mask(second, H, W)[:, :, None])[0]).tolist()
    assert others == labelled["annotations"][2:]
    assert main(["tighten", path, "--out", str(out)]) == 2, "it is there"
    assert main(["tighten", path, "--out", path, "--force"]) == 2
    assert main(["tighten", str(out), "--out", str(tmp_path / "again.json")]) == 0
    assert json.loads((tmp_path / "again.json").read_text())["annotations"] == [first, second, *others]
