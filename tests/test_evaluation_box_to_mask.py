"""Masks from given boxes: metrics against golden numbers and a slow reference, the evaluator, two processes."""

import json
import math
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm

from boxsup_d2.evaluation import BoxToMaskEvaluator, bootstrap_interval, evaluate_mask_json
from boxsup_d2.evaluation.metrics import IOU_THRESHOLDS, mask_iou, summarize_box_to_mask
from boxsup_d2.evaluation.tables import format_table
from boxsup_d2.masks.rle import decode

CLASSES = ["cat", "dog", "cow", "bus"]
H, W = 24, 30


def rle(mask: np.ndarray) -> dict:
    encoded = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def make_records(num_images: int = 9, seed: int = 0) -> list[dict]:
    """Images with 0..4 objects of three of the four classes, some with void, some with a crowd region in between."""
    rng = np.random.default_rng(seed)
    records = []
    for image in range(num_images):
        annotations = []
        for _ in range(image % 5):
            x0, y0 = rng.integers(0, W - 6), rng.integers(0, H - 6)
            x1, y1 = x0 + rng.integers(3, 6), y0 + rng.integers(3, 6)
            mask = np.zeros((H, W), bool)
            mask[y0:y1, x0:x1] = rng.random((y1 - y0, x1 - x0)) < 0.8
            annotations.append(
                {
                    "id": 100 * image + len(annotations),
                    "bbox": [float(v) for v in (x0, y0, x1, y1)],
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": int(rng.integers(0, 3)),
                    "iscrowd": 0,
                    "segmentation": rle(mask),
                }
            )
        if image % 3 == 2 and annotations:
            annotations.insert(1, {**annotations[0], "id": 100 * image + 99, "iscrowd": 1})
        record = {"file_name": f"{image}.jpg", "height": H, "width": W, "image_id": 7000 + image}
        if image % 2:
            record["void_mask"] = rle(rng.random((H, W)) < 0.1)
        records.append({**record, "annotations": annotations})
    return records


def register(name: str, records: list[dict], classes: list[str] = CLASSES) -> str:
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=classes, evaluator_type="voc_instance")
    return name


def prompts(record: dict) -> list[dict]:
    return [a for a in record["annotations"] if not a["iscrowd"]]


def noisy_masks(record: dict) -> torch.Tensor:
    rng = np.random.default_rng(record["image_id"])
    masks = [decode(a["segmentation"], H, W).T ^ (rng.random((H, W)) < 0.02) for a in prompts(record)]
    return torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, H, W))


def output_of(masks: torch.Tensor) -> dict:
    return {"instances": Instances((H, W), pred_masks=masks)}


def feed(evaluator: BoxToMaskEvaluator, records: list[dict]) -> BoxToMaskEvaluator:
    evaluator.reset()
    for record in records:
        ids = [a["id"] for a in prompts(record)]
        evaluator.process([{"image_id": record["image_id"], "annotation_ids": ids}], [output_of(noisy_masks(record))])
    return evaluator


def slow_iou(pred: np.ndarray, gt: np.ndarray, void: np.ndarray) -> float:
    both = either = 0
    for p, g, v in zip(pred.ravel(), gt.ravel(), void.ravel(), strict=True):
        if not v:
            both += bool(p and g)
            either += bool(p or g)
    return both / either if either else 0.0


# ------------------------------------------------------------------------------------------------ pure functions


def test_golden_metrics(shared: Path) -> None:
    golden = np.load(shared / "golden" / "seed_ops.npz")
    objects, masks, classes = golden["metric.gt_objects"], golden["paste.masks"], golden["metric.classes"] - 1
    ious = [float(mask_iou(masks[i], objects[i // 3] == i % 3 + 1, objects[i // 3] == 255)) for i in range(len(masks))]
    summary = summarize_box_to_mask(ious, classes, num_classes=20)
    # The reference divides by the union plus 1e-6.
    np.testing.assert_allclose(np.nan_to_num(summary.per_class_iou), golden["metric.miou_per_class"], rtol=1e-8)
    ours = [summary.miou_published, *(summary.iou_at[k] for k in IOU_THRESHOLDS)]
    np.testing.assert_allclose(ours, golden["metric.summary_miou_iou25_iou50_iou70_iou75"], rtol=1e-8)
    # The reference averages over all 20 classes; over the six present it is the mean of six numbers.
    assert summary.miou_present == pytest.approx(np.mean(ious), rel=1e-12)


def test_mask_iou_equals_a_loop_over_pixels() -> None:
    rng = np.random.default_rng(0)
    for density in (0.0, 0.2, 0.7, 1.0):
        pred, gt, void = (rng.random((5, 8, 9)) < p for p in (density, 0.4, 0.3))
        expected = [slow_iou(*triple) for triple in zip(pred, gt, void, strict=True)]
        np.testing.assert_allclose(mask_iou(pred, gt, void), expected, rtol=1e-15)


def test_mask_iou_without_void_equals_pycocotools() -> None:
    rng = np.random.default_rng(1)
    pred, gt = rng.random((2, 6, 10, 12)) < 0.5
    pred[0] = gt[0] = False
    expected = [mask_util.iou([rle(p)], [rle(g)], [0])[0, 0] for p, g in zip(pred, gt, strict=True)]
    np.testing.assert_allclose(mask_iou(pred, gt), expected, rtol=1e-15)


def test_void_pixels_count_for_neither_side() -> None:
    rng = np.random.default_rng(2)
    pred, gt, void = rng.random((3, 10, 12)) < 0.4
    assert (
        mask_iou(pred | void, gt & ~void, void) == mask_iou(pred & ~void, gt | void, void) == mask_iou(pred, gt, void)
    )
    assert mask_iou(gt ^ void, gt, void) == 1
    assert mask_iou(pred, gt, np.ones_like(void)) == 0


def test_masks_of_another_frame_are_refused() -> None:
    with pytest.raises(ValueError, match="frame of the original image"):
        mask_iou(np.zeros((4, 5)), np.zeros((5, 4)))
    with pytest.raises(ValueError, match="different sizes"):
        mask_iou(np.zeros((4, 5)), np.zeros((4, 5)), np.zeros((1, 1)))


def test_summary_equals_averages_by_hand() -> None:
    ious, classes = [0.25, 0.75, 0.7, 0.1, 0.5], [0, 0, 2, 2, 2]
    summary = summarize_box_to_mask(ious, classes, num_classes=4)
    cat, cow = 0.5, 1.3 / 3
    assert summary.miou_present == pytest.approx((cat + cow) / 2)
    assert summary.miou_published == pytest.approx((cat + cow) / 4)
    assert summary.mean_iou == pytest.approx(2.3 / 5)
    assert summary.iou_at == pytest.approx({25: 4 / 5, 50: 3 / 5, 70: 2 / 5, 75: 1 / 5})
    assert summary.counts.tolist() == [2, 0, 3, 0]
    assert np.isnan(summary.per_class_iou).tolist() == [False, True, False, True]
    assert summary.per_class_iou_at[70].tolist() == pytest.approx([0.5, math.nan, 1 / 3, math.nan], nan_ok=True)


@pytest.mark.parametrize("k", IOU_THRESHOLDS)
def test_an_iou_of_exactly_the_threshold_reaches_it(k: int) -> None:
    for union in range(1, 400):
        if union * k % 100 == 0:
            pred = np.arange(union)[None] < union * k // 100
            iou = float(mask_iou(pred, np.ones((1, union), bool)))
            assert summarize_box_to_mask([iou], [0], 1).iou_at[k] == 1


def test_both_averages_agree_where_every_class_occurs_and_order_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    ious, classes = rng.random(60), np.arange(60) % 6
    one = summarize_box_to_mask(ious, classes, 6)
    order = rng.permutation(60)
    other = summarize_box_to_mask(ious[order], classes[order], 6)
    assert one.miou_present == pytest.approx(one.miou_published)
    assert other.miou_present == pytest.approx(one.miou_present)
    assert other.iou_at == pytest.approx(one.iou_at)
    # Class names are interchangeable.
    assert summarize_box_to_mask(ious, 5 - classes, 6).miou_present == pytest.approx(one.miou_present)


def test_no_instances() -> None:
    summary = summarize_box_to_mask([], [], num_classes=3)
    assert math.isnan(summary.miou_present)
    assert math.isnan(summary.mean_iou)
    assert summary.miou_published == 0
    assert all(math.isnan(v) for v in bootstrap_interval([], [], []))


def test_wrong_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="0-based"):
        summarize_box_to_mask([0.5], [20], num_classes=20)
    with pytest.raises(ValueError, match="2 classes"):
        summarize_box_to_mask([0.5], [1, 2], num_classes=20)


def test_bootstrap_equals_resampling_by_hand() -> None:
    rng = np.random.default_rng(4)
    images, classes, ious = rng.integers(0, 12, 40), rng.integers(0, 3, 40), rng.random(40)
    unique = np.unique(images)
    draws = np.random.default_rng(5).multinomial(len(unique), np.full(len(unique), 1 / len(unique)), size=50)
    scores = []
    for draw in draws:
        chosen = np.concatenate(
            [np.flatnonzero(images == i) for i, n in zip(unique, draw, strict=True) for _ in range(n)]
        )
        scores.append(summarize_box_to_mask(ious[chosen], classes[chosen], 3).miou_present)
    expected = np.quantile(scores, [0.05, 0.95])
    assert bootstrap_interval(ious, classes, images, num=50, seed=5, level=0.9) == pytest.approx(tuple(expected))


def test_bootstrap_narrows_with_the_number_of_images() -> None:
    rng = np.random.default_rng(6)
    ious, classes = rng.random(2000), rng.integers(0, 4, 2000)
    few = bootstrap_interval(ious[:80], classes[:80], np.arange(80) // 2)
    many = bootstrap_interval(ious, classes, np.arange(2000) // 2)
    truth = summarize_box_to_mask(ious, classes, 4).miou_present
    assert many[0] < truth < many[1]
    assert many[1] - many[0] < 0.5 * (few[1] - few[0])
    assert bootstrap_interval(ious, classes, np.arange(2000)) == bootstrap_interval(ious, classes, np.arange(2000))


# ------------------------------------------------------------------------------------------------ the evaluator


def test_evaluator_equals_a_slow_reference(tmp_path: Path) -> None:
    records = make_records()
    evaluator = feed(BoxToMaskEvaluator(register("eval_toy", records), str(tmp_path)), records)
    results = evaluator.evaluate()["box_to_mask"]

    ious, classes = [], []
    for record in records:
        void = decode(record["void_mask"], H, W).T if "void_mask" in record else np.zeros((H, W), bool)
        for annotation, mask in zip(prompts(record), noisy_masks(record), strict=True):
            ious.append(slow_iou(mask.numpy(), decode(annotation["segmentation"], H, W).T, void))
            classes.append(annotation["category_id"])
    per_class = [np.mean([i for i, c in zip(ious, classes, strict=True) if c == k]) for k in range(3)]
    assert results["mIoU*"] == pytest.approx(100 * np.mean(per_class))
    assert results["mIoU*_published"] == pytest.approx(100 * np.sum(per_class) / 4)
    assert results["mean IoU"] == pytest.approx(100 * np.mean(ious))
    for k in IOU_THRESHOLDS:
        assert results[f"IoU@{k}"] == pytest.approx(100 * np.mean(np.array(ious) >= k / 100))
    assert results["mIoU*-dog"] == pytest.approx(100 * per_class[1])
    assert math.isnan(results["mIoU*-bus"])

    saved = json.loads((tmp_path / "box_to_mask_instances.json").read_text())
    assert [i["iou"] for i in saved["instances"]] == pytest.approx(ious)
    assert [i["category_id"] for i in saved["instances"]] == classes
    assert saved["instances"][0].keys() == {"image_id", "position", "annotation_id", "category_id", "iou", "box_area"}
    first = prompts(records[1])[0]
    x0, y0, x1, y1 = first["bbox"]
    assert saved["instances"][0]["box_area"] == (x1 - x0) * (y1 - y0)
    assert saved["metrics_percent"]["mIoU*-bus"] is None


def test_true_masks_score_100_and_empty_ones_0() -> None:
    # Without void over them: a void object is nothing to be found.
    records = [{k: v for k, v in r.items() if k != "void_mask"} for r in make_records()]
    evaluator = BoxToMaskEvaluator(register("eval_toy", records))
    for expected in (100.0, 0.0):
        evaluator.reset()
        for record in records:
            masks = [decode(a["segmentation"], H, W).T & (expected > 0) for a in prompts(record)]
            masks = torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, H, W))
            evaluator.process([record], [output_of(masks)])
        results = evaluator.evaluate()["box_to_mask"]
        averages = ["mIoU*", "mean IoU", *(f"IoU@{k}" for k in IOU_THRESHOLDS)]
        assert [results[name] for name in averages] == [expected] * len(averages)
        assert results["mIoU*_published"] == expected * 3 / 4


def test_order_batches_and_duplicates_do_not_matter() -> None:
    records = make_records()
    evaluator = BoxToMaskEvaluator(register("eval_toy", records))
    expected = feed(evaluator, records).evaluate()
    shuffled = [records[i] for i in np.random.default_rng(0).permutation(len(records))]
    evaluator.reset()
    for batch in (shuffled[:4], shuffled[4:], shuffled[:2]):  # a padded shard repeats images
        evaluator.process(batch, [output_of(noisy_masks(r)) for r in batch])
    # Bit for bit: summed in the order of the data set, whatever the order of the batches.
    np.testing.assert_equal(evaluator.evaluate(), expected)


def test_nothing_scored_and_partly_scored(caplog: pytest.LogCaptureFixture) -> None:
    records = make_records()
    evaluator = BoxToMaskEvaluator(register("eval_toy", records))
    evaluator.reset()
    evaluator.process([records[0]], [output_of(torch.zeros(0, H, W, dtype=torch.bool))])
    with caplog.at_level("WARNING", logger="boxsup_d2"):
        results = evaluator.evaluate()["box_to_mask"]
    assert math.isnan(results["mIoU*"])
    assert "Only 0 of the" in caplog.text


def test_mistakes_are_named() -> None:
    records = make_records()
    evaluator = BoxToMaskEvaluator(register("eval_toy", records))
    evaluator.reset()
    masks = noisy_masks(records[3])
    with pytest.raises(ValueError, match="3 annotated objects, but 2 masks"):
        evaluator.process([records[3]], [output_of(masks[:2])])
    with pytest.raises(ValueError, match="is not in data set 'eval_toy'"):
        evaluator.process([{"image_id": 1}], [output_of(masks)])
    with pytest.raises(ValueError, match="load and evaluate the same data set"):
        evaluator.process([{"image_id": 7003, "annotation_ids": [1, 2, 3]}], [output_of(masks)])
    with pytest.raises(ValueError, match="frame of the original image"):
        evaluator.process([records[3]], [output_of(masks[:, :5])])
    boxes_alone = [
        {**r, "annotations": [{k: v for k, v in a.items() if k != "segmentation"} for a in r["annotations"]]}
        for r in records
    ]
    with pytest.raises(ValueError, match="has no mask to compare with"):
        BoxToMaskEvaluator(register("eval_toy_boxes", boxes_alone))
    with pytest.raises(ValueError, match="holds image id 7000 twice"):
        BoxToMaskEvaluator(register("eval_toy_twice", [records[0], records[0]]))


@pytest.mark.parametrize("form", ["polygons", "uncompressed", "bytes", "str"])
def test_every_form_of_segmentation(form: str) -> None:
    polygons = [[2.0, 3.0, 12.0, 3.0, 12.0, 9.0, 2.0, 9.0], [20.0, 10.0, 26.0, 10.0, 26.0, 20.0]]
    mask = mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, H, W))).astype(bool)
    runs = np.diff(np.flatnonzero(np.diff(np.r_[-1, mask.ravel(order="F"), -1])), prepend=0)
    counts = [int(r) for r in runs if r]
    segmentation = {
        "polygons": polygons,
        "uncompressed": {"size": [H, W], "counts": counts},
        "bytes": mask_util.encode(np.asfortranarray(mask.astype(np.uint8))),
        "str": rle(mask),
    }[form]
    assert np.array_equal(decode(segmentation, H, W).T, mask)


# ------------------------------------------------------------------------------------------------ several processes


# Uneven shards, a shard padded with an image of the other, and an empty one.
SHARDS = [[[0, 1, 2, 3, 4, 5, 6], [7, 8]], [[8, 6, 4, 2, 0], [7, 5, 3, 1, 8]], [list(range(9)), []]]


def _worker(folder: str) -> None:
    rank = comm.get_rank()
    records = make_records()
    for number, shards in enumerate(SHARDS):
        evaluator = BoxToMaskEvaluator(register("eval_toy", records), f"{folder}/{number}")
        results = feed(evaluator, [records[i] for i in shards[rank]]).evaluate()
        assert (results is None) == (rank > 0)


def test_two_processes_equal_one(tmp_path: Path, in_two_processes) -> None:
    records = make_records()
    feed(BoxToMaskEvaluator(register("eval_toy", records), str(tmp_path / "one")), records).evaluate()
    in_two_processes(_worker, str(tmp_path))
    saved = [(tmp_path / name / "box_to_mask_instances.json").read_text() for name in ("one", "0", "1", "2")]
    assert saved[0] == saved[1] == saved[2] == saved[3]


# ------------------------------------------------------------------------------------------------ files and tables


def test_mask_json_is_scored_like_the_evaluator(tmp_path: Path) -> None:
    records = make_records()
    results = feed(BoxToMaskEvaluator(register("eval_toy", records)), records).evaluate()["box_to_mask"]
    annotations = []
    for record in records:
        for mask in noisy_masks(record):
            fields = {"image_id": record["image_id"], "category_id": 1, "iscrowd": 0}
            annotations.append({**fields, "id": len(annotations) + 1, "segmentation": rle(mask.numpy())})
    annotations.insert(0, {"image_id": 7004, "iscrowd": 1, "category_id": 1, "id": 999})
    images = [{"id": r["image_id"]} for r in records]
    path = tmp_path / "pseudo.json"
    # An image that the data set does not hold.
    content = {"images": [*images, {"id": 1}], "annotations": [*annotations, {"id": 1000, "image_id": 1}]}
    path.write_text(json.dumps(content))
    summary = evaluate_mask_json(str(path), "eval_toy")
    assert 100 * summary.miou_present == pytest.approx(results["mIoU*"])
    assert summary.counts.sum() == len(annotations) - 1

    del annotations[-1]["segmentation"]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    with pytest.raises(ValueError, match=r"pseudo\.json' has no mask"):
        evaluate_mask_json(str(path), "eval_toy")
    with pytest.raises(FileNotFoundError, match="label the data set first"):
        evaluate_mask_json(str(tmp_path / "absent.json"), "eval_toy")


def test_tables() -> None:
    table = format_table(["masks", "mIoU* (%)"], [["filled box", 55.38], ["GrabCut", float("nan")], ["n", 3]])
    assert [line.split("|")[2].strip() for line in table.splitlines()[2:]] == ["55.4", "-", "3"]
    assert "0.554" in format_table(["a", "b"], [["x", 0.55412]], digits=3)
    assert "masks" in format_table(["masks", "b"], [])


# ------------------------------------------------------------------------------------------------ real images


def test_filled_boxes_on_real_images(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published table of the development images: 353 objects, void ignored."""
    import boxsup_d2.data.datasets  # noqa: F401

    monkeypatch.setenv("DETECTRON2_DATASETS", str(shared / "data"))
    evaluator = BoxToMaskEvaluator("voc_2012_val_instance")
    evaluator.reset()
    for record in DatasetCatalog.get("voc_2012_val_instance"):
        masks = torch.zeros(len(record["annotations"]), record["height"], record["width"], dtype=torch.bool)
        for mask, annotation in zip(masks, record["annotations"], strict=True):
            x0, y0, x1, y1 = map(int, annotation["bbox"])
            mask[y0:y1, x0:x1] = True
        size = (record["height"], record["width"])
        evaluator.process([record], [{"instances": Instances(size, pred_masks=masks)}])
    results = evaluator.evaluate()["box_to_mask"]
    expected = {"mIoU*": 55.4, "mean IoU": 56.1, "IoU@50": 64.6, "IoU@70": 23.2, "IoU@75": 16.4}
    assert {name: round(results[name], 1) for name in expected} == expected
    assert results["mIoU*_published"] == pytest.approx(results["mIoU*"] * 19 / 20)  # no diningtable
