"""The report without a browser: mask sets, drawing, figures, the page's parts, and who writes one."""

from __future__ import annotations

import base64
import copy
import html.parser
import json
import os
import urllib.parse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from report_files import CLASSES, decoded, make_files, rle
from test_labelling import NAME, make_cfg, make_source

from boxsup_d2.data.formats.pseudo_masks import provenance_digest, read_provenance
from boxsup_d2.data.images import encode_label_map
from boxsup_d2.evaluation.metrics import mask_iou, summarize_box_to_mask
from boxsup_d2.labelling import report as label_report
from boxsup_d2.labelling.driver import label_datasets, pseudo_mask_path
from boxsup_d2.report import MaskSet, write_report
from boxsup_d2.report.drawing import COLORS, Canvas, crop_window
from boxsup_d2.report.mask_sets import load_collection, spread
from boxsup_d2.report.overlays import DrawnObject, draw_objects
from boxsup_d2.report.render import Measured, Renderer, render_scenes
from boxsup_d2.report.statistics import MEASURES, class_rows, histogram, summary_rows, suspicions
from boxsup_d2.same_work import Settings, split_settings


class Page(html.parser.HTMLParser):
    """What a browser would make of a page: its elements, texts of scripts, and the text that is shown."""

    def __init__(self, path: str | Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.text = ""
        self._script: str | None = None
        self.source = Path(path).read_text(encoding="utf-8")
        self.feed(self.source)
        self.data = json.loads(self.scripts["data"])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._script = dict(attrs).get("id") or tag
            self.scripts[self._script] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is None:
            self.text += data
        else:
            self.scripts[self._script] += data

    def picture(self, name: str) -> np.ndarray:
        data = base64.b64decode(self.scripts[name])
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def report(folder: Path, *names: str, **options: Any) -> Page:
    sets = [MaskSet(name, str(folder / f"{name}.json")) for name in names or ("masks",)]
    return Page(write_report(sets, str(folder / "images"), str(folder / "report.html"), progress=False, **options))


def save(folder: Path, name: str, data: dict[str, Any]) -> None:
    (folder / f"{name}.json").write_text(json.dumps(data))


# ------------------------------------------------------------------------------------------------ mask sets


def test_sample_is_spread_over_the_values():
    values = list(np.random.default_rng(1).permutation(100) / 100)
    chosen = spread(values, 11)
    assert sorted(values[i] for i in chosen) == [int(9.9 * n) / 100 for n in range(11)]
    assert chosen == sorted(chosen) == spread(values, 11)
    assert spread(values, 100) == list(range(100))
    assert len(spread([0.5] * 9, 4)) == 4, "ties"
    assert len(spread(values, 1)) == 1
    assert spread([], 5) == []


# ------------------------------------------------------------------------------------------------ drawing


def test_window_of_an_object_holds_its_box_and_lies_in_the_image():
    rng = np.random.default_rng(2)
    for _ in range(300):
        height, width = rng.integers(1, 60, 2)
        x, y, w, h = rng.uniform(-40, 90), rng.uniform(-40, 90), rng.uniform(0, 50), rng.uniform(0, 50)
        x0, y0, x1, y1 = crop_window((x, y, w, h), int(height), int(width))
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        if x < width and x + w > 0:
            assert x0 <= max(x, 0)
            assert x1 >= min(x + w, width) - 1


def test_mask_colours_its_pixels_only_and_is_seen_however_small():
    image = np.full((400, 600, 3), 90, np.uint8)
    mask = np.zeros((400, 600), bool)
    mask[100:200, 150:300] = True
    canvas = Canvas(image, (0, 0, 600, 400), 300)
    plain = canvas.copy()
    canvas.mask(mask, (0, 0, 255))
    changed = (canvas.pixels != plain.pixels).any(axis=2)
    expected = np.zeros((200, 300), bool)
    expected[50:100, 75:150] = True
    assert changed[expected].all()
    expected[48:102, 73:152] = True  # the outline is seen from outside as well
    assert not changed[~expected].any()
    mask[:] = False
    canvas = plain.copy()
    canvas.mask(mask, (0, 0, 255))
    assert np.array_equal(canvas.pixels, plain.pixels)
    mask[302:304, 402:404] = True
    canvas.mask(mask, (0, 0, 255))
    assert (canvas.pixels != plain.pixels).any(), "four pixels of an image at half its size"
    canvas.box((-1e9, 20, 2e9, 1e12))  # beyond OpenCV's integers


def test_mask_in_its_tight_box_is_drawn_as_in_the_whole_image():
    rng = np.random.default_rng(5)
    for number in range(100):
        height, width = (int(side) for side in rng.integers(20, 700, 2))
        image = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        x0, x1 = np.sort(rng.integers(0, width + 1, 2))
        y0, y1 = np.sort(rng.integers(0, height + 1, 2))
        part = rng.random((y1 - y0, x1 - x0)) > 0.4
        mask = np.zeros((height, width), bool)
        mask[y0:y1, x0:x1] = part
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        window = (0, 0, width, height) if number % 2 else (x, y, width, height)
        whole = Canvas(image, window, 240)
        tight, plain = whole.copy(), whole.copy()
        whole.mask(mask, (28, 159, 255))
        tight.mask(part, (28, 159, 255), (int(x0), int(y0)))
        assert np.array_equal(whole.pixels, tight.pixels)
        # What is drawn lies where the image, resized as a whole, has the mask, but for its outline.
        left, top, right, bottom = window
        how = cv2.INTER_AREA if max(right - left, bottom - top) >= 240 else cv2.INTER_NEAREST
        shares = cv2.resize(
            mask[top:bottom, left:right].astype(np.float32), whole.pixels.shape[1::-1], interpolation=how
        )
        changed = (whole.pixels != plain.pixels).any(axis=2)
        assert not changed[cv2.dilate(shares, np.ones((5, 5))) < 0.25].any()
        assert changed[shares > 0.5].mean() > 0.98 if (shares > 0.5).any() else True


def test_few_images_are_under_way_at_a_time(tmp_path):
    make_files(tmp_path, images=20)
    collection = load_collection([MaskSet("m", str(tmp_path / "masks.json"))])
    taken = []

    def scenes():
        for scene in collection.scenes:
            taken.append(scene)
            yield scene

    done = render_scenes(Renderer(str(tmp_path / "images"), 1, False, 64), scenes(), workers=2)
    for number in range(5):
        next(done)
        assert len(taken) <= number + 1 + 5
    done.close()
    assert len(taken) < 20


# ------------------------------------------------------------------------------------------------ figures


def test_page_holds_what_the_masks_are(tmp_path):
    masks = make_files(tmp_path)
    page = report(tmp_path, truth=str(tmp_path / "truth.json"), title="A title")
    data = page.data
    own = {str(a["id"]): a for a in masks["annotations"]}
    true = {str(a["id"]): a for a in json.loads((tmp_path / "truth.json").read_text())["annotations"]}
    by_image = [str(a["id"]) for i in masks["images"] for a in masks["annotations"] if a["image_id"] == i["id"]]
    assert data["ids"] == by_image
    assert data["classes"] == list(CLASSES.values())
    assert page.text.count("A title") >= 1
    ious = []
    for index, key in enumerate(data["ids"]):
        mask, box = decoded(own[key]), own[key]["bbox"]
        assert data["files"][data["image"][index]] == next(
            i["file_name"] for i in masks["images"] if i["id"] == own[key]["image_id"]
        )
        assert data["classes"][data["labels"][index]] == CLASSES[own[key]["category_id"]]
        assert data["areas"][0][index] == mask.sum()
        assert data["values"]["confidence"][0][index] == own[key]["confidence"]
        ious.append(float(mask_iou(mask, decoded(true[key]))))
        assert data["values"]["iou"][0][index] == pytest.approx(ious[-1], abs=1e-4)
        box_mask = np.zeros_like(mask)
        if mask.any():
            ys, xs = np.nonzero(mask)
            box_mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] = True
        filled = np.zeros_like(mask)
        filled[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = True
        assert data["values"]["box_iou"][0][index] == pytest.approx(float(mask_iou(box_mask, filled)), abs=1e-4)
        assert data["values"]["size"][index] == pytest.approx((box[2] * box[3]) ** 0.5, abs=0.06)
        crop = page.picture(f"objects/{index}-0")
        assert 60 < max(crop.shape) <= 240
    assert data["areas"][0][data["ids"].index(str(masks["annotations"][-1]["id"]))] == 0
    summary = summarize_box_to_mask(ious, data["labels"], len(CLASSES))
    assert f"{100 * summary.miou_present:.1f}" in page.text
    assert f"{100 * summary.iou_at[50]:.1f}" in page.text
    assert "abc123" in page.text, "provenance"
    labels = [attrs.get("aria-label") or "" for tag, attrs in page.elements if tag == "svg"]
    assert [label.split(":")[0] for label in labels] == [
        f"Histogram of {each}" for each in ("IoU with truth", "Confidence", "Box–mask IoU", "Size")
    ]


def test_sets_lie_side_by_side_whatever_their_order(tmp_path):
    masks = make_files(tmp_path)
    other = copy.deepcopy(masks)
    other["annotations"].reverse()
    other["images"] = list(reversed(other["images"]))
    for number, image in enumerate(other["images"]):  # numbered by another tool
        for annotation in other["annotations"]:
            if annotation["image_id"] == image["id"]:
                annotation["image_id"] = f"n{number}"
        image["id"] = f"n{number}"
    removed = other["annotations"].pop()
    extra = {**copy.deepcopy(other["annotations"][0]), "id": 1}
    other["annotations"].append(extra)
    for annotation in other["annotations"]:
        annotation["score"] = annotation.pop("confidence")
    save(tmp_path, "other", other)
    page = report(tmp_path, "masks", "other")
    values = page.data["values"]
    for index, key in enumerate(page.data["ids"]):
        if key == str(removed["id"]):
            assert values["confidence"][1][index] is None
            assert page.data["areas"][1][index] is None
        else:
            assert values["confidence"][1][index] == values["confidence"][0][index]
            empty = page.data["areas"][0][index] == 0
            assert values["agreement"][1][index] == (0 if empty else 1)
            assert np.array_equal(page.picture(f"objects/{index}-0"), page.picture(f"objects/{index}-1"))
    assert "iou" not in values
    assert "1 objects of 'other' have no partner in 'masks'" in page.text


def test_quality_is_shown_and_the_first_to_sort_by_where_a_file_has_it(tmp_path):
    masks = make_files(tmp_path)
    older = report(tmp_path)
    assert "quality" not in older.data["values"]
    assert '<th scope="col">Quality</th>' not in older.text
    for number, annotation in enumerate(masks["annotations"]):
        annotation["quality"] = number / 100
    masks["annotations"][0]["quality"] = None
    save(tmp_path, "newer", masks)
    page = report(tmp_path, "newer", "masks")
    assert [measure["key"] for measure in page.data["measures"]][:2] == ["quality", "confidence"]
    expected = {str(annotation["id"]): annotation["quality"] for annotation in masks["annotations"]}
    assert page.data["values"]["quality"][0] == [expected[key] for key in page.data["ids"]]
    assert set(page.data["values"]["quality"][1]) == {None}
    assert page.data["values"]["confidence"][0] == page.data["values"]["confidence"][1]


def test_sample_of_the_images_is_spread_over_the_qualities(tmp_path):
    masks = make_files(tmp_path, images=8)
    for annotation in masks["annotations"]:  # against the order of the confidences
        annotation["quality"] = 1 - annotation["confidence"]
    save(tmp_path, "newer", masks)
    lowest = {
        image["id"]: min((a["quality"] for a in masks["annotations"] if a["image_id"] == image["id"]), default=1.0)
        for image in masks["images"]
    }
    data = report(tmp_path, "newer", max_images=1).data
    worst = min(masks["images"], key=lambda image: lowest[image["id"]])
    assert data["files"] == [worst["file_name"]]


def test_summaries_are_means_over_what_is_there():
    rows = [
        [Measured(area=0, confidence=0.5, box_iou=0.0, iou=0.0), Measured()],
        [Measured(area=9, quality=0.4, confidence=1.0, box_iou=0.5, iou=0.6), Measured(area=4)],
        [Measured(area=9, confidence=None, box_iou=1.0, iou=None), Measured(area=4)],
    ]
    first, second = summary_rows(rows, [0, 0, 2], 3)
    assert (first["objects"], first["masks"], first["empty"], first["compared"]) == (3, 3, 1, 2)
    assert (first["confidence"], first["box_iou"], first["miou"], first["at"][50]) == (0.75, 0.5, 0.3, 0.5)
    assert first["quality"] == 0.4
    assert (second["masks"], second["compared"]) == (2, 0)
    assert np.isnan([second["miou"], second["confidence"]]).all()
    assert summary_rows([], [], 3) == []
    classes = class_rows(rows, [0, 0, 2], ["a", "b", "c"])
    assert [(entry["name"], entry["objects"]) for entry in classes] == [("a", 2), ("c", 1)]
    assert classes[0]["sets"][0]["mean_iou"] == 0.3


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (Measured(area=50, fill=0.5, quality=0.71, confidence=0.1), [False, False, False]),
        (Measured(area=50, fill=0.5, quality=0.69, confidence=1.0), [True, False, False]),
        (Measured(area=50, fill=0.5, confidence=0.5), [True, False, False]),
        (Measured(area=0, fill=0.0), [False, True, False]),
        (Measured(area=98, fill=0.98, quality=0.9), [False, False, True]),
        (Measured(), [False, False, False]),
    ],
)
def test_what_makes_a_mask_suspicious(row, expected):
    assert suspicions(row) == expected


def test_histograms_count_every_value_once():
    values = [0.0, 0.049, 0.05, 0.999, 1.0, None]
    chart = histogram(MEASURES[0], [values, []])
    assert [sum(counts) for counts in chart.counts] == [5, 0]
    assert (chart.counts[0][0], chart.counts[0][-1], len(chart.labels)) == (2, 2, 20)
    sizes = histogram(MEASURES[-1], [[0, 15.9, 16, 95, 96, 1e6]])
    assert sizes.counts == [[2, 1, 0, 1, 1, 0, 0, 0, 1]]
    assert len(sizes.labels) == 9


# ------------------------------------------------------------------------------------------------ the page


def test_names_are_shown_and_never_run(tmp_path):
    masks = make_files(tmp_path, images=3)
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;"
    name = "</script><script>window.hacked=1<!--.jpg".replace("/", "\u2215")
    os.rename(tmp_path / "images" / "0002.jpg", tmp_path / "images" / name)
    masks["images"][2]["file_name"] = name
    masks["categories"][0]["name"] = evil
    masks["categories"][1]["name"] = "</script><script>alert(3)</script>"
    masks["info"]["boxsup_d2"][evil] = evil
    save(tmp_path, "masks", masks)
    plain = report(tmp_path)
    page = Page(
        write_report(
            [MaskSet(evil, str(tmp_path / "masks.json"))],
            str(tmp_path / "images"),
            str(tmp_path / "evil.html"),
            title=evil,
            progress=False,
        )
    )
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements], "names make no elements"
    assert page.data["classes"][:2] == [evil, "</script><script>alert(3)</script>"]
    assert page.data["files"][2] == name
    assert page.data["sets"] == [evil]
    assert evil in page.text


def test_page_needs_nothing_from_elsewhere(tmp_path):
    make_files(tmp_path)
    page = report(tmp_path, truth=str(tmp_path / "truth.json"))
    links = [attrs.get(key) for _, attrs in page.elements for key in ("src", "href") if attrs.get(key)]
    assert links == ["data:,", "#gallery"]
    assert "http:" not in page.source
    assert "https:" not in page.source
    assert "url(" not in page.scripts["style"]
    assert sorted(os.listdir(tmp_path)) == ["images", "masks.json", "report.html", "truth.json"]
    wanted = {f"images/{i}-{c}" for i in range(6) for c in range(3)} | {
        f"objects/{o}-{c}" for o in range(len(page.data["ids"])) for c in range(2)
    }
    assert wanted == {name for name in page.scripts if "/" in name}


def test_many_images_go_to_a_folder_beside_the_page(tmp_path):
    make_files(tmp_path)
    out = tmp_path / "a #1 100% page"
    sets = [MaskSet("m", str(tmp_path / "masks.json"))]
    path = write_report(sets, str(tmp_path / "images"), str(out), max_embedded=5, progress=False)
    assert path == f"{out}.html"
    page = Page(path)
    assert not [name for name in page.scripts if "/" in name]
    folder = tmp_path / urllib.parse.unquote(page.data["folder"])
    assert folder.name == "a #1 100% page_files"
    assert page.data["folder"] == urllib.parse.quote(folder.name)
    assert len(list((folder / "images").iterdir())) == 12
    assert {p.name for p in (folder / "objects").iterdir()} == {f"{n}-0.jpg" for n in range(len(page.data["ids"]))}
    # Written again with fewer images: nothing of the former pictures is left.
    write_report(sets, str(tmp_path / "images"), path, max_images=2, max_embedded=1, progress=False)
    assert len(list((folder / "images").iterdir())) == 4
    write_report(sets, str(tmp_path / "images"), path, progress=False)
    assert not folder.exists()
    folder.mkdir()
    (folder / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="was not made by a report"):
        write_report(sets, str(tmp_path / "images"), path, max_embedded=1, progress=False)
    write_report(sets, str(tmp_path / "images"), path, progress=False)
    assert os.listdir(folder) == ["mine.txt"], "no folder of somebody else's is touched"


def test_failure_leaves_the_former_report(tmp_path, monkeypatch):
    make_files(tmp_path)
    report(tmp_path, max_embedded=1)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def broken(self, scene):
        raise RuntimeError("no more")

    monkeypatch.setattr(Renderer, "__call__", broken)
    with pytest.raises(RuntimeError, match="no more"):
        report(tmp_path, max_embedded=1)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_sample_of_the_images_is_said_to_be_one(tmp_path):
    masks = make_files(tmp_path, images=12)
    page = report(tmp_path, max_images=5)
    assert len(page.data["files"]) == 5
    assert "5 of 12" in " ".join(page.text.split())
    lowest = min(masks["annotations"], key=lambda a: a["confidence"])
    assert str(lowest["id"]) in page.data["ids"], "the worst is always there"


def test_file_without_objects_makes_a_page(tmp_path):
    masks = make_files(tmp_path)
    masks["annotations"] = []
    save(tmp_path, "masks", masks)
    page = report(tmp_path)
    assert page.data["image"] == []
    masks["images"] = []
    save(tmp_path, "masks", masks)
    assert report(tmp_path).data["files"] == []


# ------------------------------------------------------------------------------------------------ bad input


def test_what_cannot_be_read_is_grey_and_listed(tmp_path):
    masks = make_files(tmp_path)
    (tmp_path / "images" / "0002.jpg").write_bytes(b"\xff\xd8 no image")
    masks["images"][1]["height"] = 61
    masks["annotations"][-2]["segmentation"] = {"size": [60, 80], "counts": "\u00ff"}
    masks["annotations"][-3]["segmentation"] = {"size": [5, 5], "counts": "P1"}
    masks["annotations"].append({"id": 4, "image_id": 47, "category_id": 99, "bbox": [1, 1, 5, 5]})
    masks["annotations"].append({"id": 5, "image_id": 47, "category_id": 7, "bbox": [1, 1, 5]})
    masks["annotations"].append({"id": 6, "image_id": 47, "category_id": 7, "bbox": [1, 1, 5, 5], "iscrowd": 1})
    masks["images"].append({"id": 1})
    save(tmp_path, "masks", masks)
    page = report(tmp_path)
    text = " ".join(page.text.split())
    for problem in (
        "1 images that cannot be read",
        "0002.jpg",
        "1 images of another size",
        "annotations of unknown categories (e.g. 4)",
        "boxes that are not four numbers (e.g. id 5: [1, 1, 5])",
        "1 images without an id or a file_name",
        "masks that cannot be read",
    ):
        assert problem in text
    grey = page.picture("images/2-1")
    assert grey.min() == grey.max()
    assert not {"4", "5", "6"} & set(page.data["ids"])
    index = page.data["ids"].index(str(masks["annotations"][-6]["id"]))
    assert page.data["areas"][0][index] is None


def test_errors_name_the_file(tmp_path):
    masks = make_files(tmp_path)
    sets = [MaskSet("m", str(tmp_path / "masks.json"))]
    images, out = str(tmp_path / "images"), str(tmp_path / "r.html")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json.*Check the path"):
        write_report([MaskSet("m", str(tmp_path / "nowhere.json"))], images, out)
    with pytest.raises(FileNotFoundError, match=r"lacks 6 of its 6 images.*masks\.json"):
        write_report(sets, str(tmp_path), out)
    truth = json.loads((tmp_path / "truth.json").read_text())
    for annotation in truth["annotations"]:
        annotation["segmentation"] = []
    save(tmp_path, "boxes", truth)
    boxes = str(tmp_path / "boxes.json")
    for options in ({"mask_sets": [MaskSet("b", boxes)]}, {"mask_sets": sets, "truth": boxes}):
        with pytest.raises(ValueError, match=r"boxes\.json' has no masks: 7 boxes alone.*boxsup label"):
            write_report(image_root=images, out=out, **options)
    with pytest.raises(ValueError, match="at least one"):
        write_report([], images, out)
    with pytest.raises(ValueError, match="different names"):
        write_report(sets * 2, images, out)
    with pytest.raises(ValueError, match="16 pixels"):
        write_report(sets, images, out, thumbnail=16)
    (tmp_path / "half.json").write_text(json.dumps(masks)[:-9])
    with pytest.raises(ValueError, match=r"half\.json"):
        write_report([MaskSet("m", str(tmp_path / "half.json"))], images, out)
    save(tmp_path, "x_pseudo_sem_seg", {"info": {}, "stuff_classes": ["background", "a"], "images": []})
    maps = MaskSet("l", str(tmp_path / "x_pseudo_sem_seg.json"))
    with pytest.raises(ValueError, match="cannot be compared"):
        write_report([*sets, maps], images, out)
    with pytest.raises(ValueError, match="truth"):
        write_report([maps], images, out, truth=str(tmp_path / "truth.json"))
    assert not os.path.exists(out)


# ------------------------------------------------------------------------------------------------ label maps


def write_label_maps(folder: Path, name: str, shift: int = 0) -> None:
    make_files(folder)
    images = json.loads((folder / "masks.json").read_text())["images"]
    (folder / f"{name}_pseudo_sem_seg").mkdir()
    for number, image in enumerate(images):
        labels = np.zeros((60, 80), np.uint8)
        labels[10:30, 20 + shift : 40 + shift] = number % 3
        labels[0] = 255
        image["png"] = f"{name}_pseudo_sem_seg/{number}.png"
        if number < 5:
            (folder / image["png"]).write_bytes(encode_label_map(labels))
    content = {"info": {}, "stuff_classes": ["background", "cat", "dog"], "images": images}
    save(folder, f"{name}_pseudo_sem_seg", content)


def test_label_maps_are_shown_by_image(tmp_path):
    write_label_maps(tmp_path, "one")
    write_label_maps(tmp_path, "two", shift=1)
    page = report(tmp_path, "one_pseudo_sem_seg", "two_pseudo_sem_seg")
    assert page.data["semantic"]
    assert page.data["classes"] == ["cat", "dog"]
    assert page.data["labels"][:5] == [[], [0], [1], [], [0]]
    assert page.data["values"]["share"][0][:3] == pytest.approx([0, 400 / 4800, 400 / 4800], abs=1e-4)
    assert page.data["values"]["agreement"][1][1] == pytest.approx(1 - 40 / 4800, abs=1e-4)
    assert page.data["areas"][0][5] is None
    assert "label maps that are missing" in page.text
    plain, shown = page.picture("images/1-0").astype(int), page.picture("images/1-1").astype(int)
    changed = np.abs(plain - shown).max(axis=2) > 30
    assert changed[12:28, 22:38].mean() > 0.8
    assert changed[35:, :].mean() < 0.05
    for picture, label in ((1, 0), (2, 1)):
        red, green, blue = bytes.fromhex(page.data["colors"][label][1:])
        plain, shown = (page.picture(f"images/{picture}-{column}").astype(float) for column in (0, 1))
        tint = (2 * shown - plain)[14:26, 24:36].mean(axis=(0, 1))
        assert tint == pytest.approx([blue, green, red], abs=12), "the legend has the colours of the picture"


# ------------------------------------------------------------------------------------------------ who writes one


@pytest.mark.parametrize("label_format", ["instances", "sem_seg"])
def test_labelling_leaves_a_page(tmp_path, label_format):
    from detectron2.modeling import build_model

    make_source(tmp_path)
    cfg = make_cfg(tmp_path)
    cfg.PSEUDO_MASKS.FORMAT = label_format
    cfg.PSEUDO_MASKS.REPORT_IMAGES = 3
    model = build_model(cfg)
    label_datasets(cfg, model)
    labels = pseudo_mask_path(cfg.OUTPUT_DIR, NAME, label_format)
    path = Path(label_report.label_report_path(labels))
    assert path.parent == Path(labels).parent
    assert len(Page(path).data["files"]) == 3
    assert NAME in Page(path).text
    # What is done already stays as it is, and a page that was lost comes back.
    path.write_text("mine")
    label_datasets(cfg, model)
    assert path.read_text() == "mine"
    path.unlink()
    label_datasets(cfg, model)
    assert path.exists()
    cfg.PSEUDO_MASKS.REPORT_IMAGES = 0
    path.unlink()
    label_datasets(cfg, model)
    assert not path.exists()


def test_page_that_fails_is_a_warning(tmp_path, monkeypatch, caplog):
    from detectron2.modeling import build_model

    make_source(tmp_path)
    cfg = make_cfg(tmp_path)
    cfg.PSEUDO_MASKS.REPORT_IMAGES = 3

    def broken(*args, **kwargs):
        raise OSError("the disk is full")

    monkeypatch.setattr(label_report, "write_report", broken)
    results = label_datasets(cfg, build_model(cfg))
    assert results[NAME]["pseudo_masks"]["instances"] > 0
    assert os.path.exists(pseudo_mask_path(cfg.OUTPUT_DIR, NAME))
    warnings = [r.getMessage() for r in caplog.records if r.name == "boxsup_d2.labelling.report"]
    assert len(warnings) == 1
    assert "OSError: the disk is full" in warnings[0]


def test_key_of_the_page_changes_nothing_else(tmp_path):
    from detectron2.modeling import build_model

    assert split_settings({"PSEUDO_MASKS.REPORT_IMAGES": 7}) == Settings()
    make_source(tmp_path)
    digests = set()
    for images in (0, 2):
        cfg = make_cfg(tmp_path / str(images))
        cfg.PSEUDO_MASKS.REPORT_IMAGES = images
        label_datasets(cfg, build_model(cfg))
        digests.add(provenance_digest(read_provenance(pseudo_mask_path(cfg.OUTPUT_DIR, NAME)) or {}))
    assert len(digests) == 1


def test_helpers_agree_with_each_other():
    mask = np.zeros((5, 7), bool)
    mask[1:3, 2:6] = True
    assert np.array_equal(decoded({"segmentation": rle(mask)}), mask)


def test_labels_of_boxes_that_lie_together_do_not_cover_each_other() -> None:
    image = np.zeros((200, 300, 3), np.uint8)
    boxes = [[100, 60, 80, 90], [102, 61, 80, 90], [101, 60, 80, 60], [130, 75, 40, 30, 30.0], [290, -5, 40, 9]]
    alone = [draw_objects(image, [DrawnObject(None, box, number, "cat")]) for number, box in enumerate(boxes)]
    together = draw_objects(image, [DrawnObject(None, box, number, "cat") for number, box in enumerate(boxes)])
    for number, picture in enumerate(alone):
        # Of the plate under the text, all that shows when it is alone: a box's own lines are a pixel wide.
        plain = draw_objects(image, [DrawnObject(None, boxes[number], number)])
        plate = ((picture == COLORS[number]).all(axis=2) & ~(plain == COLORS[number]).all(axis=2)).sum()
        lines = (draw_objects(image, [DrawnObject(None, box, i) for i, box in enumerate(boxes)]) == COLORS[number]).all(
            2
        )
        shown = ((together == COLORS[number]).all(axis=2) & ~lines).sum()
        assert shown > 0.8 * plate, number
    assert together.shape == image.shape
    for height in (1e12, float("inf")):
        assert draw_objects(image, [DrawnObject(None, [5, 5, 20, height], 0, "cat")]).shape == image.shape
