"""Masks of one json against those of another: matching, figures, and that nothing disappears unsaid."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_util

from boxsup_d2.evaluation.label_comparison import compare_labellings
from boxsup_d2.evaluation.mask_files import MaskFileScores, compare_mask_files
from boxsup_d2.evaluation.mask_matching import match_images, match_objects
from boxsup_d2.masks.rle import encode_masks

H, W = 24, 32
Json = dict[str, Any]


def shape(rng: np.random.Generator) -> tuple[np.ndarray, list[float]]:
    """A random ellipse-like mask and its tight box."""
    cx, cy, rx, ry = rng.uniform(6, W - 6), rng.uniform(6, H - 6), rng.uniform(3, 6), rng.uniform(3, 6)
    y, x = np.mgrid[:H, :W]
    mask = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
    return mask, mask_util.toBbox(encode_masks(mask[:, :, None])[0]).tolist()


def eroded(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return mask & (rng.random(mask.shape) < rng.uniform(0.3, 1))


def make_files(seed: int = 0) -> tuple[Json, Json]:
    """Predicted and true: 4 images, up to 4 objects each, ids shared, the classes numbered differently."""
    rng = np.random.default_rng(seed)
    images = [{"id": 10 + key, "file_name": f"{key}.jpg", "height": H, "width": W} for key in range(4)]
    predicted: Json = {
        "images": images,
        "annotations": [],
        "categories": [{"id": 1, "name": "b"}, {"id": 2, "name": "a"}],
    }
    true: Json = {"images": images, "annotations": [], "categories": [{"id": 4, "name": "a"}, {"id": 9, "name": "b"}]}
    for image in images:
        for _ in range(rng.integers(1, 5)):
            mask, box = shape(rng)
            key, name = 100 + len(true["annotations"]), rng.choice(["a", "b"])
            shared = {"id": key, "image_id": image["id"], "bbox": box}
            true["annotations"].append(
                {**shared, "category_id": {"a": 4, "b": 9}[name], "segmentation": encode_masks(mask[:, :, None])[0]}
            )
            predicted["annotations"].append(
                {
                    **shared,
                    "category_id": {"b": 1, "a": 2}[name],
                    "segmentation": encode_masks(eroded(mask, rng)[:, :, None])[0],
                    "confidence": rng.uniform(),
                }
            )
    return predicted, true


@pytest.fixture
def compare(tmp_path: Path) -> Callable[..., MaskFileScores]:
    def run(predicted: Json, true: Json, **options: Any) -> MaskFileScores:
        for name, data in (("predicted", predicted), ("true", true)):
            (tmp_path / f"{name}.json").write_text(json.dumps(data))
        return compare_mask_files(str(tmp_path / "predicted.json"), str(tmp_path / "true.json"), **options)

    return run


def iou(first: Json, second: Json) -> float:
    a, b = mask_util.decode(first["segmentation"]), mask_util.decode(second["segmentation"])
    return (a & b).sum() / max((a | b).sum(), 1)


def values(scores: MaskFileScores) -> list[tuple[int, float]]:
    return [(row.truth_id, row.iou) for row in scores.rows]


@pytest.mark.parametrize("seed", range(4))
def test_against_slow_reference(compare: Callable[..., MaskFileScores], seed: int) -> None:
    predicted, true = make_files(seed)
    scores = compare(predicted, true)
    expected = [iou(a, b) for a, b in zip(predicted["annotations"], true["annotations"], strict=True)]
    assert [row.iou for row in scores.rows] == pytest.approx(expected)
    assert [row.annotation_id for row in scores.rows] == [a["id"] for a in predicted["annotations"]]
    assert all(row.by_id and row.annotation_id == row.truth_id for row in scores.rows)
    names = [{4: "a", 9: "b"}[a["category_id"]] for a in true["annotations"]]
    assert [row.class_name for row in scores.rows] == names
    assert scores.class_names == ["a", "b"]
    assert not scores.unmatched
    per_class = [np.mean([v for v, n in zip(expected, names, strict=True) if n == name]) for name in set(names)]
    assert scores.summary.miou_present == pytest.approx(np.mean(per_class))
    assert scores.results()["IoU@50"] == pytest.approx(100 * np.mean(np.array(expected) >= 0.5))
    assert scores.summary.counts.tolist() == [names.count("a"), names.count("b")]


def test_matched_alike_by_id_by_box_and_by_name(compare: Callable[..., MaskFileScores]) -> None:
    """Ids of images and annotations may be anything: the figures stay."""
    predicted, true = make_files()
    expected = compare(predicted, true)
    rng = np.random.default_rng(1)

    other = copy.deepcopy(predicted)
    for annotation in other["annotations"]:
        annotation["id"] += 10_000
        annotation["bbox"] = [v + d for v, d in zip(annotation["bbox"], rng.uniform(-0.3, 0.3, 4), strict=True)]
    rng.shuffle(other["annotations"])
    by_box = compare(other, true)
    assert values(by_box) == values(expected)
    assert not any(row.by_id for row in by_box.rows)
    assert by_box.ap == expected.ap

    for folder, extension in (("", ".jpg"), ("some/folder/", ".png"), ("C:\\data\\", ".bmp")):
        # Numbered the other way round: an id then names another image.
        new_id = {image["id"]: 23 - image["id"] for image in predicted["images"]}
        renumbered = copy.deepcopy(other)
        for image in renumbered["images"]:
            stem = image["file_name"].removesuffix(".jpg")
            image.update(id=new_id[image["id"]], file_name=f"{folder}{stem}{extension}")
        for annotation in renumbered["annotations"]:
            annotation["image_id"] = new_id[annotation["image_id"]]
        assert values(compare(renumbered, true)) == values(expected)

    # No name in common: then the numbers count.
    unnamed = copy.deepcopy(predicted)
    for image in unnamed["images"]:
        image["file_name"] = f"upload_{image['file_name']}"
    assert values(compare(unnamed, true)) == values(expected)
    without_ids = copy.deepcopy(predicted)
    for annotation in without_ids["annotations"]:
        del annotation["id"]
    assert values(compare(without_ids, true)) == values(expected)


def test_ids_that_agree_by_chance_are_no_match(compare: Callable[..., MaskFileScores]) -> None:
    predicted, true = make_files()
    expected = values(compare(predicted, true))
    ids = [annotation["id"] for annotation in predicted["annotations"]]
    for annotation, new in zip(predicted["annotations"], ids[1:] + ids[:1], strict=True):
        annotation["id"] = new
    scores = compare(predicted, true)
    # Of the pairs that touch and have the class in common the id is believed; no others.
    by_box = {row.truth_id: row.iou for row in scores.rows if not row.by_id}
    assert by_box
    assert all(by_box[key] == value for key, value in expected if key in by_box)


def test_greedy_matching_takes_the_most_similar_pairs_first() -> None:
    def annotation(key: int, *box: float) -> Json:
        return {"id": key, "bbox": list(box)}

    ours = [annotation(1, 1, 0, 10, 10), annotation(2, 0, 0, 10, 10), annotation(3, 0, 0, 10, 10)]
    theirs = [annotation(11, 0, 0, 10, 10), annotation(12, 2, 0, 10, 10), annotation(13, 8, 0, 10, 10)]
    assert match_objects(ours, theirs, ["x", "x", "y"], ["x", "x", "x"]) == [(0, 1, False), (1, 0, False)]
    assert match_objects([], theirs, [], ["x"] * 3) == []
    assert match_objects(ours, [], ["x"] * 3, []) == []


def test_objects_are_matched_by_id_else_by_class_and_box() -> None:
    own: list[Json] = [{"id": n, "bbox": [9 * n, 5, 10, 12]} for n in range(5)]
    names = ["b", "a", "b", "a", "b"]

    def found(other: list[Json], classes: list[str]) -> dict[int, int]:
        return {pair.ours: other[pair.theirs]["id"] for pair in match_objects(own, other, names, classes)}

    other = [copy.deepcopy(own[n]) for n in (3, 0, 4)]
    assert found(other, ["a", "b", "b"]) == {0: 0, 3: 3, 4: 4}
    other[1]["bbox"] = [2, 7, 3, 3]
    assert found(other, ["a", "b", "b"]) == {0: 0, 3: 3, 4: 4}, "the id decides"
    other[1]["bbox"] = [300, 7, 3, 3]
    assert found(other, ["a", "b", "b"]) == {3: 3, 4: 4}, "no touch"
    # Another tool's file: other ids, another order, boxes a pixel off.
    order = (4, 2, 0, 1, 3)
    other = [{"id": 100 + n, "bbox": [9 * n + 1, 5, 10, 12]} for n in order]
    classes = [names[n] for n in order]
    assert found(other, classes) == {n: 100 + n for n in range(5)}
    assert found(other, ["c"] * 5) == {}, "no class in common"
    for annotation in other:
        annotation["bbox"] = [500, 5, 10, 12]
    assert found(other, classes) == {}, "boxes elsewhere"
    twins: list[Json] = [{"bbox": [0, 0, 5, 5]} for _ in range(2)]
    assert match_objects(twins, twins, ["a"] * 2, ["a"] * 2) == [(0, 0, False), (1, 1, False)], "without ids"


def test_images_are_matched_by_name_else_by_id_and_size() -> None:
    names = {1: "x/a.jpg", 2: "b.jpg", 3: "y/a.jpg", 4: "z/c.png"}
    others = [{"id": key, "file_name": name, "height": 5, "width": 6} for key, name in names.items()]

    def found(key: int, name: str, height: int = 5) -> int | None:
        image = {"id": key, "file_name": name, "height": height, "width": 6}
        (position,) = match_images([image], others, "id")
        return None if position is None else int(others[position]["id"])

    assert found(1, "b.jpg") == 2, "another file numbers its images otherwise"
    assert found(9, "w/c.jpg") == 4, "folder and extension aside"
    assert found(9, "a.jpg") is None, "two folders have an a.jpg"
    assert found(9, "y/a.jpg") == 3
    assert found(2, "renamed.jpg") == 2
    assert found(2, "renamed.jpg", height=7) is None
    nameless = [{"id": 2, "file_name": name, "height": 5, "width": 6} for name in ("b.jpg", "renamed.jpg")]
    assert match_images(nameless, others, "id") == [1, None], "each partner once"


def test_what_has_no_partner_is_counted(compare: Callable[..., MaskFileScores]) -> None:
    predicted, true = make_files(3)
    number = len(true["annotations"])
    rows = compare(predicted, true).rows
    lost, empty, bare, moved, renamed = (copy.deepcopy(a) for a in predicted["annotations"][:5])
    predicted["annotations"] = predicted["annotations"][1:]  # `lost`
    by_id = {a["id"]: a for a in predicted["annotations"]}
    del by_id[empty["id"]]["segmentation"]
    del next(a for a in true["annotations"] if a["id"] == bare["id"])["segmentation"]
    by_id[moved["id"]]["bbox"] = [0, 0, 1, 1]
    by_id[moved["id"]]["id"] = 5000
    predicted["categories"].append({"id": 3, "name": "unknown to the other"})
    by_id[renamed["id"]]["category_id"] = 3
    predicted["images"] = [*predicted["images"], {"id": 1, "file_name": "more.jpg", "height": H, "width": W}]
    true["images"] = [*true["images"], {"id": 2, "file_name": "most.jpg", "height": H, "width": W}]
    true["annotations"].append({**true["annotations"][0], "id": 7000, "image_id": 2})
    scores = compare(predicted, true)
    assert scores.unmatched == {
        "predicted images without a partner": 1,
        "true images without a partner": 1,
        "predicted objects without a partner": 3,  # bare, moved, renamed
        "true objects without a partner": 4,  # lost, moved, renamed, and that of the other image
        "true objects without a mask": 1,
        "predicted objects without a mask, scored 0": 1,
    }
    assert len(scores.rows) == number - 4
    assert {row.iou for row in scores.rows if row.truth_id == empty["id"]} == {0.0}
    gone = {lost["id"], bare["id"], moved["id"], renamed["id"], empty["id"]}
    assert [row for row in scores.rows if row.truth_id != empty["id"]] == [r for r in rows if r.truth_id not in gone]


def test_crowd_regions_are_no_objects(compare: Callable[..., MaskFileScores]) -> None:
    predicted, true = make_files()
    expected = compare(predicted, true)
    everything = encode_masks(np.ones((H, W, 1), bool))[0]
    for data, category in ((predicted, 1), (true, 9)):
        crowd = {"image_id": 10, "category_id": category, "bbox": [0, 0, W, H], "iscrowd": 1}
        data["annotations"] += [{**crowd, "id": 1, "segmentation": everything}, {**crowd, "id": 2, "image_id": 11}]
    scores = compare(predicted, true)
    assert (scores.rows, scores.unmatched) == (expected.rows, {})
    # A true crowd region excuses a mask on it that is no object.
    alone = {"id": 3, "image_id": 10, "category_id": 1, "bbox": [0, 0, 3, 3], "confidence": 2.0}
    alone["segmentation"] = encode_masks(np.pad(np.ones((3, 3, 1), bool), ((0, H - 3), (0, W - 3), (0, 0))))[0]
    predicted["annotations"].append(alone)
    assert compare(predicted, true).ap == pytest.approx(scores.ap, nan_ok=True)
    true["annotations"] = [a for a in true["annotations"] if not a.get("iscrowd")]
    assert compare(predicted, true).ap["AP25"] < scores.ap["AP25"]


def test_ap_and_its_ranking(compare: Callable[..., MaskFileScores]) -> None:
    _, true = make_files()
    assert compare(true, true).ap == {}
    assert compare(true, true).ranking is None
    perfect = copy.deepcopy(true)
    for annotation in perfect["annotations"]:
        annotation["confidence"] = 0.5
    assert set(compare(perfect, true).ap.values()) == {1.0}
    assert list(compare(perfect, true).ap) == ["AP", "AP25", "AP50", "AP70", "AP75"]
    # An empty mask of high rank costs precision.
    bad = copy.deepcopy(perfect)
    extra = {"id": 1, "image_id": 10, "category_id": 4, "bbox": [0, 0, 1, 1], "confidence": 1.0}
    bad["annotations"].append({**extra, "segmentation": encode_masks(np.zeros((H, W, 1), bool))[0]})
    high = compare(bad, true).ap["AP"]
    assert high < 1
    for annotation in bad["annotations"]:
        annotation["score"] = 1 - annotation["confidence"]
    assert compare(bad, true).ranking == "score"
    assert compare(bad, true).ap["AP"] == 1.0
    assert compare(bad, true, rank_by="confidence").ap["AP"] == high
    del bad["annotations"][0]["score"]
    for annotation in bad["annotations"]:
        annotation["quality"] = 1 - annotation["confidence"]
    assert compare(bad, true).ranking == "quality"
    assert compare(bad, true).ap["AP"] == 1.0
    del bad["annotations"][0]["quality"]
    assert compare(bad, true).ranking == "confidence"
    with pytest.raises(ValueError, match=r"predicted\.json': 1 annotations have no number 'score'.*first id 100"):
        compare(bad, true, rank_by="score")


def test_polygons_count_as_their_pixels(compare: Callable[..., MaskFileScores]) -> None:
    from boxsup_d2.data.formats.polygons import to_polygons

    predicted, true = make_files()
    expected = compare(predicted, true)
    for annotation in predicted["annotations"] + true["annotations"]:
        annotation["iscrowd"] = 0
    scores = compare(to_polygons(predicted), to_polygons(true))
    assert (scores.rows, scores.ap) == (expected.rows, expected.ap)


def test_true_box_far_outside_costs_nothing(compare: Callable[..., MaskFileScores]) -> None:
    """Boxes without a mask are outlines in AP, which rasterisers take memory for in proportion to their length."""
    predicted, true = make_files()
    for annotation in predicted["annotations"]:
        annotation["score"] = 0.5
    far = {"id": 1, "image_id": 10, "category_id": 4, "bbox": [-1e9, -1e9, 3e9, 3e9]}
    true["annotations"].append(far)
    assert compare(predicted, true).unmatched["true objects without a mask"] == 1


def test_errors_name_the_file(compare: Callable[..., MaskFileScores], tmp_path: Path) -> None:
    predicted, true = make_files()
    compare(predicted, true)
    good = str(tmp_path / "true.json")
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        compare_mask_files(str(tmp_path / "absent.json"), good)
    broken = copy.deepcopy(predicted)
    broken["annotations"][0]["segmentation"]["counts"] = "0"
    with pytest.raises(ValueError, match=r"predicted\.json', annotation 100: its segmentation is damaged"):
        compare(broken, true)
    for change in ({"height": H + 1}, {"height": H + 1, "id": 1}):
        broken = copy.deepcopy(predicted)
        broken["images"][3].update(change)
        broken["annotations"] = [a for a in broken["annotations"] if a["image_id"] != 13]
        with pytest.raises(ValueError, match=r"predicted\.json' cannot be used: 1 images of different height.*3\.jpg"):
            compare(broken, true)
    for change, message in (([], "holds no object"), (predicted["annotations"], r"No object of .*predicted\.json")):
        with pytest.raises(ValueError, match=message):
            compare({**predicted, "annotations": change}, {**true, "annotations": []})


def test_number_in_common_takes_nobodys_partner() -> None:
    ours = [{"id": 5, "file_name": "x.jpg"}, {"id": 9, "file_name": "y.jpg"}]
    theirs = [{"id": 5, "file_name": "y.jpg"}]
    assert match_images(ours, theirs, "id") == [None, 0]


# ------------------------------------------------------------------------------------------------- two labellings
def test_a_student_is_compared_with_its_teacher_object_by_object(tmp_path: Path) -> None:
    teacher, true = make_files()
    student = copy.deepcopy(teacher)
    for ours, theirs, truth in zip(student["annotations"], teacher["annotations"], true["annotations"], strict=True):
        ours |= {"segmentation": truth["segmentation"], "quality": 0.9, "confidence_exact": 0.8}
        theirs |= {"quality": 0.8, "confidence_exact": 0.5}
    kept = student["annotations"][0]["id"]
    for file in (student, teacher):
        file["annotations"][0] |= {"quality": 1.0, "segmentation": true["annotations"][0]["segmentation"]}
    teacher["annotations"][1]["bbox"][2:] = student["annotations"][1]["bbox"][2:] = [40, 40]
    paths = []
    for name, file in (("teacher", teacher), ("student", student), ("true", true)):
        paths.append(str(tmp_path / f"{name}.json"))
        Path(paths[-1]).write_text(json.dumps(file))
    rows = [row for row in compare_mask_files(paths[0], paths[2]).rows if row.annotation_id != kept]
    compared = {row.name: row for row in compare_labellings(*paths)}
    assert list(compared) == ["all", "small", "medium", "mean of classes"]
    whole = compared["all"]
    assert whole.count == len(rows) == compared["small"].count + 1
    assert whole.after == 1
    assert whole.before == whole.agreement == pytest.approx(np.mean([row.iou for row in rows]))
    by_class = [np.mean([row.iou for row in rows if row.class_name == name]) for name in "ab"]
    assert compared["mean of classes"].before == pytest.approx(np.mean(by_class))
    assert 0 < whole.low <= whole.after - whole.before <= whole.high
    alone = compare_labellings(*paths[:2])[0]
    assert (alone.before, alone.after) == pytest.approx((0.5, 0.8))
    assert alone.agreement == whole.agreement
    assert compare_labellings(paths[1], paths[1], paths[2])[0].low == 0
