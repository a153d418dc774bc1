"""Instance AP: both scorers against pycocotools, Detectron2's evaluator, VOC thresholds, void, no predictions."""

import contextlib
import copy
import io
import json
import math
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from boxsup_d2.config import add_boxsup_config
from boxsup_d2.evaluation import BoxToMaskEvaluator, InstanceAPEvaluator, build_evaluator, register_evaluator
from boxsup_d2.evaluation.instance_ap import average_precision_array
from boxsup_d2.evaluation.metrics import IOU_THRESHOLDS

H, W = 60, 80
CLASSES = [f"class{k}" for k in range(6)]  # the last one never occurs
THRESHOLDS = np.r_[0.25, np.linspace(0.5, 0.95, 10)]


def blob(rng: np.random.Generator) -> np.ndarray:
    y, x = np.ogrid[:H, :W]
    cx, cy, a, b = rng.uniform(8, W - 8), rng.uniform(8, H - 8), rng.uniform(2, 25), rng.uniform(2, 25)
    return ((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 <= 1


def rle(mask: np.ndarray) -> dict:
    encoded = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def box_of(mask: np.ndarray) -> list[float]:
    return [float(v) for v in mask_util.toBbox(rle(mask))]


def make_coco(seed: int, num_images: int = 12) -> tuple[dict, dict[int, list[dict]]]:
    """A COCO json (crowds, images without objects, category ids with gaps) and, by image, predictions with masks.

    Scores are rounded, so that many tie; some images have no prediction.
    """
    rng = np.random.default_rng(seed)
    ids = [3 + 2 * k for k in range(len(CLASSES))]
    images, annotations = [], []
    predictions: dict[int, list[dict]] = {}
    for image in range(1, num_images + 1):
        images.append({"id": image, "height": H, "width": W, "file_name": f"{image}.jpg"})
        predictions[image] = []
        for _ in range(rng.integers(0, 6)):
            mask, k = blob(rng), int(rng.integers(0, len(CLASSES) - 1))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": ids[k],
                    "iscrowd": int(rng.random() < 0.15),
                    "segmentation": rle(mask),
                    "area": float(mask.sum()),
                    "bbox": box_of(mask),
                }
            )
            for _ in range(rng.integers(0, 3)):
                moved = np.roll(mask, rng.integers(-3, 4, 2), (0, 1))
                predictions[image].append({"mask": moved, "class": k, "score": float(rng.random().__round__(1))})
        for _ in range(rng.integers(0, 3) if annotations else 0):
            predictions[image].append({"mask": blob(rng), "class": int(rng.integers(0, len(CLASSES))), "score": 0.5})
        if image % 4 == 0:
            predictions[image] = []
    categories = [{"id": i, "name": name} for i, name in zip(ids, CLASSES, strict=True)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}, predictions


def as_results(coco: dict, predictions: dict[int, list[dict]]) -> list[dict]:
    return [
        {
            "image_id": image,
            "category_id": coco["categories"][p["class"]]["id"],
            "score": p["score"],
            "bbox": box_of(p["mask"]),
            "segmentation": rle(p["mask"]),
        }
        for image, found in predictions.items()
        for p in found
    ]


def as_instances(found: list[dict], masks: bool = True) -> Instances:
    result = Instances((H, W))
    boxes = torch.tensor([box_of(p["mask"]) for p in found]).reshape(-1, 4)
    result.pred_boxes = Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS))
    result.scores = torch.tensor([p["score"] for p in found])
    result.pred_classes = torch.tensor([p["class"] for p in found], dtype=torch.int64)
    if masks:
        result.pred_masks = torch.from_numpy(np.array([p["mask"] for p in found], dtype=bool).reshape(-1, H, W))
    return result


def feed(evaluator: COCOEvaluator, predictions: dict[int, list[dict]], masks: bool = True) -> dict:
    evaluator.reset()
    for image, found in predictions.items():
        evaluator.process([{"image_id": image}], [{"instances": as_instances(found, masks)}])
    return evaluator.evaluate()


def forget(name: str) -> str:
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
    if name in MetadataCatalog.list():
        MetadataCatalog.remove(name)
    return name


def register_json(name: str, coco: dict, folder: Path) -> str:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(coco))
    DatasetCatalog.register(forget(name), lambda: load_coco_json(str(path), str(folder), name))
    ids = {c["id"]: k for k, c in enumerate(coco["categories"])}
    MetadataCatalog.get(name).set(
        json_file=str(path), thing_classes=CLASSES, thing_dataset_id_to_contiguous_id=ids, evaluator_type="coco"
    )
    return name


def register_records(name: str, coco: dict, void: dict[int, np.ndarray] | None = None, masks: bool = True) -> str:
    """The same set in Detectron2's own form, without a json."""
    contiguous = {c["id"]: k for k, c in enumerate(coco["categories"])}
    records = []
    for image in coco["images"]:
        record = {"file_name": image["file_name"], "height": H, "width": W, "image_id": image["id"], "annotations": []}
        if void and image["id"] in void:
            record["void_mask"] = rle(void[image["id"]])
        for a in coco["annotations"]:
            if a["image_id"] == image["id"]:
                kept = {k: a[k] for k in ("id", "bbox", "iscrowd", *(["segmentation"] if masks else []))}
                kept |= {"bbox_mode": BoxMode.XYWH_ABS, "category_id": contiguous[a["category_id"]]}
                record["annotations"].append(kept)
        records.append(record)
    DatasetCatalog.register(forget(name), lambda: copy.deepcopy(records))
    MetadataCatalog.get(name).set(thing_classes=CLASSES, evaluator_type="voc_instance")
    return name


def reference(coco: dict, results: list[dict], task: str, max_dets: list[int]) -> COCOeval:
    """pycocotools itself, called as its own documentation does."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(coco)
        truth.createIndex()
        results = copy.deepcopy(results)
        if task == "segm":
            for result in results:
                del result["bbox"]
        evaluation = COCOeval(truth, truth.loadRes(results), task)
        evaluation.params.iouThrs = THRESHOLDS
        evaluation.params.maxDets = max_dets
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("fast", [True, False])
def test_precision_equals_pycocotools_to_the_last_bit(task: str, fast: bool) -> None:
    if fast:
        pytest.importorskip("hotcoco")
    for seed in range(12):
        coco, predictions = make_coco(seed)
        results = as_results(coco, predictions)
        for max_dets in ([1, 10, 100], [1, 2, 3]):
            ours = average_precision_array(
                coco, results, task, thresholds=THRESHOLDS, max_dets=max_dets, use_fast_impl=fast
            )
            expected = reference(coco, results, task, max_dets).eval["precision"]
            assert ours.shape == expected.shape
            assert np.array_equal(ours, expected)


def test_inputs_stay_as_they_are() -> None:
    coco, predictions = make_coco(0)
    results = as_results(coco, predictions)
    before = json.dumps([coco, results])
    for fast in (True, False):
        average_precision_array(coco, results, "segm", thresholds=THRESHOLDS, use_fast_impl=fast)
        assert json.dumps([coco, results]) == before


@pytest.mark.parametrize("fast", [True, False])
def test_evaluator_equals_detectron2(tmp_path: Path, fast: bool) -> None:
    coco, predictions = make_coco(3)
    name = register_json("ap_toy", coco, tmp_path)
    expected = feed(COCOEvaluator(name, output_dir=str(tmp_path / "stock"), use_fast_impl=False), predictions)
    ours = feed(InstanceAPEvaluator(name, output_dir=str(tmp_path / "ours"), use_fast_impl=fast), predictions)
    assert ours.keys() == expected.keys() == {"bbox", "segm"}
    for task, metrics in expected.items():
        assert list(ours[task]) == list(metrics)
        np.testing.assert_allclose(list(ours[task].values()), list(metrics.values()), rtol=1e-12)
    saved = [json.loads((tmp_path / d / "coco_instances_results.json").read_text()) for d in ("stock", "ours")]
    assert saved[0] == saved[1]


def test_voc_thresholds(tmp_path: Path) -> None:
    coco, predictions = make_coco(4)
    plain = feed(InstanceAPEvaluator(register_json("ap_toy", coco, tmp_path)), predictions)
    ours = feed(InstanceAPEvaluator("ap_toy", iou_thresholds=IOU_THRESHOLDS), predictions)
    for task in ("bbox", "segm"):
        # The average stays over COCO's ten thresholds.
        np.testing.assert_equal({k: ours[task][k] for k in plain[task]}, plain[task])
        precision = reference(coco, as_results(coco, predictions), task, [1, 10, 100]).eval["precision"][..., 0, -1]
        for k, index in {25: 0, 50: 1, 70: 5, 75: 6}.items():
            at = precision[index]
            assert ours[task][f"AP{k}"] == pytest.approx(100 * at[at > -1].mean(), rel=1e-12)
        assert ours[task]["AP25"] >= ours[task]["AP50"] >= ours[task]["AP70"] >= ours[task]["AP75"] > 0


@pytest.mark.parametrize("fast", [True, False])
def test_a_model_that_predicts_nothing_has_an_ap_of_0(tmp_path: Path, fast: bool) -> None:
    coco, predictions = make_coco(5)
    evaluator = InstanceAPEvaluator(
        register_json("ap_toy", coco, tmp_path), iou_thresholds=IOU_THRESHOLDS, use_fast_impl=fast
    )
    results = feed(evaluator, {image: [] for image in predictions})
    assert results.keys() == {"bbox", "segm"}
    for metrics in results.values():
        assert {metrics[k] for k in ("AP", "AP25", "AP50", "AP70", "AP75", "AP-class0")} == {0.0}
        assert math.isnan(metrics["AP-class5"])
    # No image at all: Detectron2's convention.
    evaluator.reset()
    assert evaluator.evaluate() == {}


def test_boxes_alone(tmp_path: Path) -> None:
    coco, predictions = make_coco(6)
    name = register_json("ap_toy", coco, tmp_path)
    assert feed(InstanceAPEvaluator(name), predictions, masks=False).keys() == {"bbox"}
    with pytest.raises(ValueError, match="MASK_ON"):
        feed(InstanceAPEvaluator(name, ("segm",)), predictions, masks=False)
    with pytest.raises(ValueError, match="Unknown tasks"):
        InstanceAPEvaluator(name, ("keypoints",))
    name = register_records("ap_toy_boxes", coco, masks=False)
    assert feed(InstanceAPEvaluator(name), predictions).keys() == {"bbox"}
    with pytest.raises(ValueError, match="only boxes"):
        feed(InstanceAPEvaluator(name, ("segm",)), predictions)


def test_too_many_classes_are_named(tmp_path: Path) -> None:
    coco, predictions = make_coco(6)
    predictions[1] = [{"mask": np.ones((H, W), bool), "class": 6, "score": 1.0}]
    with pytest.raises(ValueError, match="NUM_CLASSES"):
        feed(InstanceAPEvaluator(register_json("ap_toy", coco, tmp_path)), predictions)


def test_data_sets_without_a_json(tmp_path: Path) -> None:
    coco, predictions = make_coco(7)
    expected = feed(InstanceAPEvaluator(register_json("ap_toy", coco, tmp_path)), predictions)
    results = feed(InstanceAPEvaluator(register_records("ap_toy_d2", coco)), predictions)
    np.testing.assert_equal(results, expected)
    # Nothing is left behind that a later evaluator could mistake for the data: here they change.
    assert not hasattr(MetadataCatalog.get("ap_toy_d2"), "json_file")
    other, _ = make_coco(8)
    records = register_records("ap_toy_d2", other)
    expected = feed(InstanceAPEvaluator(register_json("ap_toy", other, tmp_path)), predictions)
    np.testing.assert_equal(feed(InstanceAPEvaluator(records, output_dir=str(tmp_path)), predictions), expected)


def test_void_counts_for_neither_side() -> None:
    coco, predictions = make_coco(9)
    rng = np.random.default_rng(0)
    # Void is what no true object holds.
    void = {i["id"]: rng.random((H, W)) < 0.3 for i in coco["images"] if i["id"] % 2}
    for a in coco["annotations"]:
        if a["image_id"] in void:
            void[a["image_id"]] &= ~mask_util.decode(a["segmentation"]).astype(bool)
    name = register_records("ap_toy_void", coco, void)
    spilled = {
        image: [{**p, "mask": p["mask"] | void.get(image, False)} for p in found]
        for image, found in predictions.items()
    }
    dry = {
        image: [{**p, "mask": p["mask"] & ~void.get(image, np.zeros((H, W), bool))} for p in found]
        for image, found in predictions.items()
    }
    outputs = [{"instances": as_instances(spilled[1])}]
    before = outputs[0]["instances"].pred_masks.clone()
    evaluator = InstanceAPEvaluator(name, ("segm",))
    evaluator.reset()
    evaluator.process([{"image_id": 1}], outputs)
    assert torch.equal(outputs[0]["instances"].pred_masks, before)  # others evaluate the same output

    expected = feed(InstanceAPEvaluator(name, ("segm",)), dry)
    np.testing.assert_equal(feed(evaluator, spilled), expected)
    published = feed(InstanceAPEvaluator(name, ("segm",), ignore_void=False), spilled)
    assert published["segm"]["AP"] < expected["segm"]["AP"]
    plain = feed(InstanceAPEvaluator(register_records("ap_toy_plain", coco), ("segm",)), spilled)
    np.testing.assert_equal(published, plain)


def _worker(folder: str) -> None:
    rank = comm.get_rank()
    coco, predictions = make_coco(10)
    # Uneven shards; the second one is padded with an image of the first.
    shard = {i: p for i, p in predictions.items() if (i <= 9) == (rank == 0) or i == 5}
    results = feed(InstanceAPEvaluator(register_records("ap_toy_d2", coco)), shard)
    assert (results == {}) == (rank > 0)
    if rank == 0:
        Path(folder, "results.json").write_text(json.dumps(results))


def test_two_processes_equal_one(tmp_path: Path, in_two_processes) -> None:
    coco, predictions = make_coco(10)
    expected = feed(InstanceAPEvaluator(register_records("ap_toy_d2", coco)), predictions)
    in_two_processes(_worker, str(tmp_path))
    np.testing.assert_equal(json.loads((tmp_path / "results.json").read_text()), expected)


def test_build_evaluator(tmp_path: Path) -> None:
    cfg = get_cfg()
    add_boxsup_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    coco, predictions = make_coco(11)
    on_coco = build_evaluator(cfg, register_json("ap_toy", coco, tmp_path), "instances")
    assert type(on_coco) is InstanceAPEvaluator
    assert "AP25" not in feed(on_coco, predictions)["segm"]
    assert (tmp_path / "inference" / "ap_toy" / "coco_instances_results.json").is_file()

    void = {1: np.ones((H, W), bool)}
    on_voc = build_evaluator(cfg, register_records("ap_toy_d2", coco, void), "instances", str(tmp_path / "elsewhere"))
    assert {"AP25", "AP70"} <= feed(on_voc, predictions)["segm"].keys()
    ignored = on_voc.evaluate()
    cfg.TEST.AP_IGNORE_VOID = False
    published = feed(build_evaluator(cfg, "ap_toy_d2", "instances"), predictions)
    assert published["segm"] != ignored["segm"]
    assert (tmp_path / "elsewhere" / "coco_instances_results.json").is_file()
    assert type(build_evaluator(cfg, "ap_toy_d2", "box_to_mask")) is BoxToMaskEvaluator

    MetadataCatalog.get(register_json("ap_toy_box", coco, tmp_path)).__dict__["evaluator_type"] = "box"
    # The json holds masks, the set promises to be box-only.
    assert feed(build_evaluator(cfg, "ap_toy_box", "instances"), predictions).keys() == {"bbox"}


def test_build_evaluator_names_mistakes(tmp_path: Path) -> None:
    cfg = get_cfg()
    with pytest.raises(ValueError, match="use box_to_mask, box_to_sem_seg, instances"):
        build_evaluator(cfg, "ap_toy", "instance")
    MetadataCatalog.get(forget("ap_toy_salient")).set(evaluator_type="salient")
    with pytest.raises(ValueError, match=r"evaluator_type is 'salient'.*for box, coco, voc_instance"):
        build_evaluator(cfg, "ap_toy_salient", "instances")
    with pytest.raises(ValueError, match="already"):
        register_evaluator("box_to_mask")(lambda cfg, name, folder: None)
    with pytest.raises(ValueError, match="no thing_classes"):
        build_evaluator(cfg, "ap_toy_salient", "box_to_mask")
