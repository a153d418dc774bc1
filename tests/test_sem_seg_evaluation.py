"""Semantic segmentation metrics, their evaluator, and DenseCRF in several processes."""

import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from PIL import Image
from torch import nn

from boxsup_d2.config import add_boxsup_config
from boxsup_d2.crf.pool import CRFPool, refine_label_map
from boxsup_d2.crf.refine import CRF_RESNET101, CRFRefinedModel
from boxsup_d2.crf.workers import default_workers
from boxsup_d2.engine.trainer import _tested_model
from boxsup_d2.evaluation import (
    BoxToMaskEvaluator,
    BoxToSemSegEvaluator,
    SemanticEvaluator,
    build_evaluator,
)
from boxsup_d2.evaluation.semantic_metrics import confusion_matrix, summarize_semantic
from boxsup_d2.modeling.deeplab import SemanticSegmenterWithTTA

CLASSES = ["background", "cat", "dog", "cow"]
H, W = 12, 16


# ------------------------------------------------------------------------------------------------- metrics
def summed(gts, preds, num_classes):
    return summarize_semantic(sum(confusion_matrix(pred, gt, num_classes) for gt, pred in zip(gts, preds, strict=True)))


def test_golden_metrics(shared):
    golden = np.load(shared / "golden/seed_ops.npz")
    summary = summed(golden["semseg.gt"], golden["semseg.pred"], 21)
    assert summary.miou == pytest.approx(float(golden["semseg.miou"]), abs=1e-9)
    assert summary.pixel_accuracy == pytest.approx(float(golden["semseg.pixel_acc"]), abs=1e-9)
    assert summary.fwiou == pytest.approx(float(golden["semseg.fwiou"]), abs=1e-9)


def test_golden_metrics_with_classes_that_do_not_occur(shared):
    golden = np.load(shared / "golden/seed_semseg_absent.npz")
    summary = summed(golden["gt"], golden["pred"], int(golden["num_classes"]))
    assert summary.miou == pytest.approx(float(golden["miou"]), abs=1e-9)
    assert summary.pixel_accuracy == pytest.approx(float(golden["pixel_acc"]), abs=1e-9)
    assert summary.fwiou == pytest.approx(float(golden["fwiou"]), abs=1e-9)
    assert np.isnan(summary.class_iou[[4, 5]]).all()


def test_confusion_matrix_counts_pixel_by_pixel():
    rng = np.random.default_rng(0)
    gt, pred = rng.integers(0, 4, (H, W)), rng.integers(-1, 7, (H, W))
    gt[rng.random(gt.shape) < 0.2] = 255
    expected = np.zeros((4, 5), int)
    for t, p in zip(gt.flat, pred.flat, strict=True):
        if t != 255:
            expected[t, p if 0 <= p < 4 else 4] += 1
    assert np.array_equal(confusion_matrix(pred, gt, 4), expected)
    assert np.array_equal(confusion_matrix(pred.astype(np.int8), gt.astype(np.uint8), 4), expected)
    iou = [((gt == c) & (pred == c)).sum() / ((gt == c) | ((pred == c) & (gt != 255))).sum() for c in range(4)]
    assert summarize_semantic(expected).class_iou == pytest.approx(iou)
    assert summarize_semantic(expected).miou == pytest.approx(np.mean(iou))


def test_mean_is_over_the_classes_of_the_ground_truth():
    gt = np.zeros((2, 4), np.uint8)
    pred = np.array([[0, 0, 0, 0], [0, 0, 3, 3]])
    summary = summarize_semantic(confusion_matrix(pred, gt, 4))
    assert summary.miou == pytest.approx(0.75)
    assert summary.mean_accuracy == summary.pixel_accuracy == pytest.approx(0.75)


def test_nothing_to_score_has_no_score():
    matrix = confusion_matrix(np.zeros((2, 2)), np.full((2, 2), 255), 3)
    assert matrix.sum() == 0
    assert np.isnan(summarize_semantic(matrix).miou)
    assert np.isnan(summarize_semantic(matrix).class_iou).all()


def test_maps_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        confusion_matrix(np.zeros((2, 3)), np.zeros((3, 2)), 2)
    with pytest.raises(ValueError, match=r"labels \[7\].*3 classes"):
        confusion_matrix(np.zeros((1, 2)), np.array([[7, 255]]), 3)


# ------------------------------------------------------------------------------------------------- evaluator
def register(folder: Path, count: int = 6, name: str = "sem_seg_toy") -> list[dict]:
    """Images with palette PNGs of three of the four classes and some ignored pixels."""
    rng = np.random.default_rng(3)
    records = []
    for i in range(count):
        labels = rng.integers(0, 3, (H, W)).astype(np.uint8)
        labels[rng.random((H, W)) < 0.2] = 255
        png = Image.fromarray(labels, mode="P")
        png.putpalette([v for index in range(256) for v in (index, 255 - index, 7)])
        png.save(folder / f"{i}.png")
        records.append({"file_name": f"{i}.jpg", "sem_seg_file_name": str(folder / f"{i}.png"), "image_id": i})
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(
        stuff_classes=CLASSES, thing_classes=CLASSES[1:], ignore_label=255, evaluator_type="sem_seg"
    )
    return records


def output_of(record: dict) -> dict:
    """Unsure probabilities that are right for about half of the pixels; the fourth class never occurs."""
    rng = np.random.default_rng(int(record["image_id"]))
    truth = np.asarray(Image.open(record["sem_seg_file_name"]))
    guess = np.where(rng.random((H, W)) < 0.5, np.minimum(truth, 3), rng.integers(0, 4, (H, W)))
    scores = nn.functional.one_hot(torch.from_numpy(guess).long(), 4).permute(2, 0, 1) * 0.2 + 0.2
    return {"sem_seg": scores}


def feed(evaluator, records):
    evaluator.reset()
    for record in records:
        image = torch.from_numpy(np.random.default_rng(record["image_id"]).integers(0, 256, (3, H, W), dtype=np.uint8))
        evaluator.process([{**record, "image": image}], [output_of(record)])
    return evaluator


def test_evaluator_scores_the_data_set(tmp_path, caplog):
    records = register(tmp_path)
    results = feed(SemanticEvaluator("sem_seg_toy", str(tmp_path / "out")), records).evaluate()["sem_seg"]
    gts = [np.asarray(Image.open(r["sem_seg_file_name"])) for r in records]
    expected = summed(gts, [output_of(r)["sem_seg"].argmax(0).numpy() for r in records], 4)
    assert results["mIoU"] == pytest.approx(100 * expected.miou)
    assert results["pACC"] == pytest.approx(100 * expected.pixel_accuracy)
    assert results["fwIoU"] == pytest.approx(100 * expected.fwiou)
    assert results["IoU-dog"] == pytest.approx(100 * expected.class_iou[2])
    assert np.isnan(results["IoU-cow"])
    assert 20 < results["mIoU"] < 80
    saved = json.loads((tmp_path / "out/sem_seg_evaluation.json").read_text())
    assert saved["images"] == 6
    assert saved["metrics_percent"]["mIoU"] == results["mIoU"]
    assert saved["metrics_percent"]["IoU-cow"] is None
    assert np.sum(saved["confusion_true_by_predicted"]) == sum((gt != 255).sum() for gt in gts)
    assert "images of" not in caplog.text


def test_evaluating_twice_gives_the_same(tmp_path):
    records = register(tmp_path)
    evaluator = SemanticEvaluator("sem_seg_toy")
    first = feed(evaluator, records).evaluate()
    assert repr(feed(evaluator, records).evaluate()) == repr(first)


def test_a_part_of_the_data_set_is_said_to_be_one(tmp_path, caplog):
    records = register(tmp_path)
    feed(SemanticEvaluator("sem_seg_toy"), records[:4]).evaluate()
    assert "Only 4 of the 6 images of sem_seg_toy" in caplog.text


@pytest.mark.parametrize("by_class", [True, False])
def test_label_maps_of_box_to_mask_outputs_are_scored(tmp_path, by_class):
    """The method's own one, of masks alone the painted ones: what the writer of pseudo labels would write."""
    records = register(tmp_path)
    evaluator = build_evaluator(make_cfg(), "sem_seg_toy", "box_to_sem_seg", str(tmp_path / "out"))
    assert isinstance(evaluator, BoxToSemSegEvaluator)
    gts, preds = [], []
    for record in records:
        own = output_of(record)["sem_seg"].argmax(dim=0)
        prompts = Instances((H, W), gt_classes=torch.tensor([2, 0]))
        prompts.gt_boxes = Boxes(torch.tensor([[0.0, 0, W, H], [0, 0, 5, H]]))
        masks = torch.zeros(2, H, W, dtype=torch.bool)
        masks[0], masks[1, :, :5] = True, True
        output = {"instances": Instances((H, W), pred_masks=masks), **({"label_map": own} if by_class else {})}
        evaluator.process([{**record, "instances": prompts, "num_classes": 3}], [output])
        painted = np.full((H, W), 3)
        painted[:, :5] = 1
        gts.append(np.asarray(Image.open(record["sem_seg_file_name"])))
        preds.append(own.numpy() if by_class else painted)
    results = evaluator.evaluate()["box_to_sem_seg"]
    assert results["mIoU"] == pytest.approx(100 * summed(gts, preds, 4).miou)
    assert (tmp_path / "out" / "box_to_sem_seg_evaluation.json").is_file()


def test_what_does_not_fit_is_named(tmp_path):
    records = register(tmp_path)
    evaluator = SemanticEvaluator("sem_seg_toy")
    with pytest.raises(ValueError, match=r"'x.jpg' is not in data set 'sem_seg_toy'"):
        evaluator.process([{"file_name": "x.jpg"}], [output_of(records[0])])
    with pytest.raises(ValueError, match=r"0\.png' of image '0.jpg'.*different sizes"):
        evaluator.process([records[0]], [{"sem_seg": torch.rand(4, 5, 5)}])
    Path(records[1]["sem_seg_file_name"]).write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"1\.png' is damaged"):
        evaluator.process([records[1]], [output_of(records[0])])
    Path(records[1]["sem_seg_file_name"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.png.*DETECTRON2_DATASETS"):
        evaluator.process([records[1]], [output_of(records[0])])
    Image.new("RGB", (W, H)).save(tmp_path / "2.png")
    with pytest.raises(ValueError, match=r"2\.png'.*mode is RGB"):
        evaluator.process([records[2]], [output_of(records[0])])
    del records[3]["sem_seg_file_name"]
    with pytest.raises(ValueError, match=r"'3.jpg' has no sem_seg_file_name"):
        SemanticEvaluator("sem_seg_toy")
    MetadataCatalog.get("sem_seg_toy_2").thing_classes = ["a"]
    DatasetCatalog.register("sem_seg_toy_2", list)
    with pytest.raises(ValueError, match="no stuff_classes"):
        SemanticEvaluator("sem_seg_toy_2")
    DatasetCatalog.remove("sem_seg_toy_2")


def make_cfg(**test):
    cfg = get_cfg()
    add_boxsup_config(cfg)
    for key, value in test.items():
        setattr(cfg.TEST, key, value)
    return cfg


def test_the_task_builds_its_evaluator(tmp_path):
    register(tmp_path)
    assert isinstance(build_evaluator(make_cfg(), "sem_seg_toy", "sem_seg", str(tmp_path)), SemanticEvaluator)
    with pytest.raises(ValueError, match=r"SEM_SEG_CRF is 'vgg'.*'vgg16'"):
        build_evaluator(make_cfg(SEM_SEG_CRF="vgg"), "sem_seg_toy", "sem_seg")
    MetadataCatalog.get("sem_seg_other").evaluator_type = "coco"
    with pytest.raises(ValueError, match=r"'sem_seg' cannot be evaluated on 'sem_seg_other'"):
        build_evaluator(make_cfg(), "sem_seg_other", "sem_seg")
    assert not issubclass(SemanticEvaluator, BoxToMaskEvaluator)


def test_the_config_decides_what_goes_around_the_model():
    model = nn.Identity()
    assert _tested_model(make_cfg(), model, "sem_seg") is model
    several = _tested_model(make_cfg(SEM_SEG_SCALES=(1.0, 1.5)), model, "sem_seg")
    assert isinstance(several, SemanticSegmenterWithTTA)
    assert several.scales == (1.0, 1.5)
    assert not several.flip
    assert _tested_model(make_cfg(SEM_SEG_FLIP=True), model, "sem_seg").flip
    cfg = make_cfg(SEM_SEG_FLIP=True)
    cfg.PSEUDO_MASKS.CRF = True
    assert _tested_model(cfg, model, "instances") is model
    pytest.importorskip("pydensecrf", reason="pydensecrf2 is optional")
    for task in ("box_to_mask", "box_to_sem_seg"):
        assert isinstance(_tested_model(cfg, model, task), CRFRefinedModel)


# Uneven shards, and one that is padded with an image of the other.
SHARDS = [[[0, 1, 2, 3], [4, 5]], [[0, 2, 4, 5], [1, 3, 5]], [[0, 1, 2, 3, 4, 5], []]]


def _worker(folder: str) -> None:
    rank = comm.get_rank()
    records = [{"file_name": f"{i}.jpg", "sem_seg_file_name": f"{folder}/{i}.png", "image_id": i} for i in range(6)]
    DatasetCatalog.register("sem_seg_toy", lambda: records)
    MetadataCatalog.get("sem_seg_toy").set(stuff_classes=CLASSES, ignore_label=255)
    for number, shards in enumerate(SHARDS):
        evaluator = SemanticEvaluator("sem_seg_toy", f"{folder}/{number}")
        results = feed(evaluator, [records[i] for i in shards[rank]]).evaluate()
        assert (results is None) == (rank > 0)


def test_two_processes_equal_one(tmp_path, in_two_processes):
    records = register(tmp_path)
    feed(SemanticEvaluator("sem_seg_toy", str(tmp_path / "one")), records).evaluate()
    in_two_processes(_worker, str(tmp_path))
    saved = [(tmp_path / name / "sem_seg_evaluation.json").read_text() for name in ("one", "0", "1", "2")]
    assert saved[0] == saved[1] == saved[2] == saved[3]


# ------------------------------------------------------------------------------------------------- DenseCRF
@pytest.fixture(scope="module")
def pool():
    pytest.importorskip("pydensecrf", reason="pydensecrf2 is optional")
    with CRFPool(CRF_RESNET101, workers=2, max_pending=3) as pool:
        yield pool


def crf_inputs(count: int = 8):
    """Images of two colours, with noisy probabilities of which half is which; every one of another size."""
    rng = np.random.default_rng(0)
    inputs = []
    for i in range(count):
        height, width = 20 + i, 30 + 2 * (i % 3)
        image = rng.integers(0, 40, (height, width, 3)).astype(np.uint8)
        image[:, width // 2 :] += 180
        prob = rng.dirichlet([1.5, 1, 1], (height, width)).transpose(2, 0, 1).astype(np.float32)
        prob[1, :, width // 2 :] += 0.5
        inputs.append((image, prob / prob.sum(0)))
    return inputs


def test_pool_gives_every_image_its_result_in_order_and_bounds_what_is_under_way(pool):
    inputs = crf_inputs()
    results, largest = [], 0
    for key, (image, prob) in enumerate(inputs):
        results += pool.submit(key, image, prob)
        largest = max(largest, len(pool._pool._pending))
    assert largest <= 2, "the third makes submit wait"
    results += pool.drain()
    assert [key for key, _ in results] == list(range(len(inputs)))
    for (_, found), (image, prob) in zip(results, inputs, strict=True):
        assert found.dtype == np.uint8
        assert np.array_equal(found, refine_label_map(image, prob, CRF_RESNET101))
    assert not np.array_equal(results[0][1], inputs[0][1].argmax(0)), "the CRF changed nothing"


def _page_faults_of_a_second_large_block() -> int:
    """Runs in a worker."""
    import resource

    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        bytearray(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(
    not (sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt")), reason="glibc's allocator has the switch"
)
def test_workers_reuse_the_memory_that_they_freed(pool):
    faults = pool._pool._executor.submit(_page_faults_of_a_second_large_block).result()
    assert faults < 100  # of the block's 4,096 pages


def test_scores_that_are_no_probabilities_are_refused_with_the_images_name(pool):
    def refine(*inputs):  # a quick worker is done before submit returns
        return [*pool.submit(*inputs), *pool.drain()]

    image, prob = crf_inputs(1)[0]
    with pytest.raises(ValueError, match=r"'a.jpg'.*sum to 1.*SEM_SEG_CRF"):
        refine("a.jpg", image, 2 * prob)
    with pytest.raises(ValueError, match=r"'b.jpg'.*expected"):
        refine("b.jpg", image[1:], prob)


def test_evaluator_with_crf_scores_the_refined_maps(tmp_path, monkeypatch):
    pytest.importorskip("pydensecrf", reason="pydensecrf2 is optional")
    records = register(tmp_path)
    evaluator = SemanticEvaluator("sem_seg_toy", crf=CRF_RESNET101, crf_workers=1)
    found = feed(evaluator, records).evaluate()
    assert evaluator._pool is None, "no process is left behind"

    class Serial(SemanticEvaluator):
        def label_map(self, sample, output):
            image = sample["image"].permute(1, 2, 0).contiguous().numpy()
            return refine_label_map(image, output["sem_seg"].numpy(), CRF_RESNET101)

    assert repr(found) == repr(feed(Serial("sem_seg_toy"), records).evaluate())
    assert repr(found) != repr(feed(SemanticEvaluator("sem_seg_toy"), records).evaluate())


def test_a_worker_that_dies_is_an_error_and_not_a_hang():
    pytest.importorskip("pydensecrf", reason="pydensecrf2 is optional")
    image, prob = crf_inputs(1)[0]
    with CRFPool(CRF_RESNET101, workers=1) as pool:
        pool.submit("a", image, prob)
        list(pool.drain())
        (process,) = pool._pool._executor._processes
        os.kill(process, signal.SIGKILL)

        def go_on():
            for _ in range(50):
                pool.submit("b", image, prob)
                list(pool.drain())

        with pytest.raises(RuntimeError, match=r"worker process died.*SEM_SEG_CRF"):
            go_on()


_KILLED = """
import os, signal
from boxsup_d2.crf.workers import start_workers

pool = start_workers(2)
list(pool.map(abs, range(8)))
print(*pool._processes, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_process_that_is_killed():
    # They hold the other end of the pipe too, so that what is read from it ends when the last of them has ended.
    run = subprocess.run([sys.executable, "-c", _KILLED], stdout=subprocess.PIPE, text=True, timeout=120)
    assert run.returncode == -signal.SIGKILL
    assert run.stdout.split(), "there were workers"


def test_crf_without_its_package_fails_before_the_work(tmp_path, monkeypatch):
    register(tmp_path)
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    with pytest.raises(ImportError, match="pydensecrf2"):
        SemanticEvaluator("sem_seg_toy", crf=CRF_RESNET101)


def test_ranks_of_a_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert default_workers() == 8
    monkeypatch.setattr("detectron2.utils.comm.get_local_size", lambda: 4)
    assert default_workers() == 2
    monkeypatch.setattr("detectron2.utils.comm.get_local_size", lambda: 16)
    assert default_workers() == 1
