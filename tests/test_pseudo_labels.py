"""Semantic pseudo labels: label maps of box-to-mask outputs, their writer, and the data set that it makes."""

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools import mask as mask_util
from test_labelling import NAME, FakeBoxToMask, make_cfg, make_source, with_some_masks
from torch import nn

from boxsup_d2.crf.refine import CRFRefinedModel
from boxsup_d2.data.datasets import register_dataset, register_pseudo_masks
from boxsup_d2.data.formats.pseudo_masks import read_provenance
from boxsup_d2.data.images import read_label_map
from boxsup_d2.labelling.driver import build_provenance, label_datasets, pseudo_mask_path
from boxsup_d2.labelling.sem_seg_writer import SemSegLabelWriter, png_names
from boxsup_d2.masks.label_map import (
    covering_boxes,
    label_map,
    paint_known,
    prompted_label_map,
    rasterize_boxes,
)
from boxsup_d2.modeling.box_to_mask import fill_boxes
from boxsup_d2.rounds.plan import pseudo_mask_files
from boxsup_d2.rounds.state import _drop_equal_labels, _keep_labels

PROMPTED = {99, 98, 97, 95, 94, 93}  # images of make_source() with a box
ALL = {100, 96, *PROMPTED}


# ------------------------------------------------------------------------------------------------ label maps


def test_pixels_that_boxes_touch():
    boxes = torch.tensor([[3.0, 2, 40, 50], [3.9, 2.1, 40.1, 49.5], [-5, -5, 4.2, 3], [7, 7, 7, 7], [-9, 0, -2, 5]])
    expected = [[3, 2, 40, 50], [3, 2, 41, 50], [0, 0, 5, 3], [7, 7, 8, 8]]
    corners = covering_boxes(boxes, (55, 60))
    assert corners[:4].tolist() == expected
    union = rasterize_boxes(boxes, (55, 60))
    assert torch.equal(union, fill_boxes(torch.tensor(expected), (55, 60)).any(dim=0)), "outside is nowhere"
    for end in (20.0 + 1e-5, 20.0 - 1e-5):
        assert covering_boxes(torch.tensor([[0, 0, end, 9]]), (55, 60)).tolist() == [[0, 0, 20, 9]], "rounding noise"
    assert not rasterize_boxes(boxes[:0], (5, 5)).any()


def output_of(masks: torch.Tensor, **fields: Any) -> dict[str, Any]:
    return {"instances": Instances(tuple(masks.shape[1:]), pred_masks=masks), **fields}


@pytest.mark.parametrize("seed", range(6))
def test_painted_labels_match_slow_reference(seed):
    torch.manual_seed(seed)
    count, height, width = int(torch.randint(0, 6, ())), 7, 9
    masks = torch.rand(count, height, width) < 0.4
    boxes = torch.randint(0, 5, (count, 4)).float()
    boxes[:, 2:] += boxes[:, :2]  # many ties
    classes = torch.randint(0, 4, (count,))
    areas = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).tolist()
    for rows in (None, list(range(0, count, 2))):
        labels = label_map(output_of(masks), boxes, classes, rows)
        assert (labels.dtype, labels.shape) == (np.uint8, (height, width))
        for y in range(height):
            for x in range(width):
                claimants = [i for i in (range(count) if rows is None else rows) if masks[i, y, x]]
                winner = min(claimants, key=lambda i: (areas[i], i), default=None)
                assert labels[y, x] == (0 if winner is None else classes[winner] + 1)


def test_the_methods_own_label_map_comes_before_masks():
    masks = torch.ones(1, 4, 5, dtype=torch.bool)
    for dtype in (torch.int32, torch.uint8):
        own = torch.randint(0, 255, (4, 5), dtype=dtype)
        labels = label_map(output_of(masks, label_map=own), torch.tensor([[0.0, 0, 5, 4]]), torch.tensor([3]))
        assert np.array_equal(labels, own.numpy())
        assert labels.dtype == np.uint8
        labels[:] = 255
        assert not (own == 255).any(), "the output is not changed"


def test_outputs_that_make_no_label_map_are_refused():
    masks, boxes = torch.ones(2, 4, 5, dtype=torch.bool), torch.zeros(2, 4)
    with pytest.raises(ValueError, match="2 masks for 1 boxes"):
        label_map(output_of(masks), boxes[:1], torch.zeros(1))
    with pytest.raises(ValueError, match="room for 254"):
        label_map(output_of(masks), boxes, torch.tensor([0, 254]))
    for wrong in (-1, 255):
        with pytest.raises(ValueError, match=r"Labels from .* must be 0 to 254"):
            label_map(output_of(masks, label_map=torch.tensor([[0, wrong]])), boxes, torch.tensor([0, 0]))
    prompts = Instances((4, 6), gt_boxes=Boxes(boxes), gt_classes=torch.zeros(2, dtype=torch.int64))
    item = {"file_name": "x.png", "instances": prompts, "num_classes": 3}
    with pytest.raises(ValueError, match=r"x\.png.*\(4, 5\), the image \(4, 6\)"):
        prompted_label_map(item, output_of(masks))
    with pytest.raises(ValueError, match=r"x\.png.*has class 3, the data set has 3 classes"):
        prompted_label_map(item, output_of(masks, label_map=torch.full((4, 6), 4)))


def test_known_masks_are_painted_over_and_crowds_ignored():
    def rle(rows: slice) -> dict[str, Any]:
        mask = np.zeros((6, 4), np.uint8, order="F")
        mask[rows] = 1
        return mask_util.encode(mask)

    labels = np.zeros((6, 4), np.uint8)
    labels[:2] = 9
    kept = [
        {"segmentation": rle(np.s_[1:3]), "category_id": 1, "bbox": [0, 0, 2, 2]},
        {"segmentation": rle(np.s_[2:4]), "category_id": 5, "bbox": [0, 0, 3, 2]},
    ]
    paint_known(labels, kept, [{"segmentation": rle(np.s_[0:5])}, {}])
    assert labels[:, 0].tolist() == [9, 2, 2, 6, 255, 0]
    with pytest.raises(ValueError, match="has size"):
        paint_known(labels[:5], kept, [])


def test_label_maps_of_filled_boxes_on_real_images(shared, monkeypatch):
    """mIoU against the class masks of every fourth image: as it was measured when the data were made."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shared / "data"))
    confusion = np.zeros((21, 21), np.int64)
    for record in sorted(DatasetCatalog.get("voc_2012_train_aug_sem_seg"), key=lambda r: r["file_name"])[::4]:
        truth = read_label_map(record["sem_seg_file_name"])
        boxes = torch.tensor([obj["bbox"] for obj in record["annotations"]]).reshape(-1, 4)
        classes = torch.tensor([obj["category_id"] for obj in record["annotations"]], dtype=torch.int64)
        labels = label_map(output_of(fill_boxes(boxes, truth.shape)), boxes, classes)
        known = truth != 255
        confusion += np.bincount(truth[known].astype(int) * 21 + labels[known], minlength=441).reshape(21, 21)
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    assert (confusion.diagonal() / union).mean() == pytest.approx(0.585, abs=0.001)


# ------------------------------------------------------------------------------------------------ writing


def sem_seg_cfg(output: Path, name: str = NAME) -> Any:
    cfg = make_cfg(output, name)
    cfg.PSEUDO_MASKS.FORMAT = "sem_seg"
    return cfg


def manifest_path(cfg: Any) -> Path:
    (path,) = pseudo_mask_files(cfg)
    assert path == pseudo_mask_path(cfg.OUTPUT_DIR, cfg.PSEUDO_MASKS.DATASETS[0], "sem_seg")
    return Path(path)


def label(cfg: Any, **attributes: Any) -> dict[str, Any]:
    model = build_model(cfg)
    for key, value in attributes.items():
        setattr(model, key, value)
    return label_datasets(cfg, model)


def read_all(path: Path) -> dict[str, bytes]:
    """Everything that a labelling left, the date taken out."""
    date = read_provenance(str(path))["date"].encode()
    files = {entry.name: entry.read_bytes() for entry in path.with_suffix("").iterdir()}
    return {**files, path.name: path.read_bytes().replace(date, b"DATE")}


def test_manifest_label_maps_and_data_set(tmp_path):
    source = make_source(tmp_path)
    cfg = sem_seg_cfg(tmp_path)
    results = label(cfg)
    path = manifest_path(cfg)
    assert sorted(os.listdir(path.parent)) == [f"{NAME}_pseudo_sem_seg", f"{NAME}_pseudo_sem_seg.json"]
    assert sorted(os.listdir(path.with_suffix(""))) == sorted(f"{key}.png" for key in ALL), "nothing else is left"
    manifest = json.loads(path.read_text())
    assert manifest.keys() == {"info", "stuff_classes", "images"}
    assert manifest["stuff_classes"] == ["background", "b", "a"]
    assert [image["id"] for image in manifest["images"]] == [image["id"] for image in source["images"]]
    first = {"id": 100, "file_name": "100.png", "height": 40, "width": 60, "png": f"{NAME}_pseudo_sem_seg/100.png"}
    assert manifest["images"][0] == first
    provenance = read_provenance(str(path))
    assert provenance == manifest["info"]["boxsup_d2"]
    assert provenance["source_dataset"] == NAME

    assert register_pseudo_masks(str(path)) == f"{NAME}_pseudo_sem_seg"
    metadata = MetadataCatalog.get(f"{NAME}_pseudo_sem_seg")
    assert metadata.stuff_classes == ["background", "b", "a"]
    assert (metadata.ignore_label, metadata.evaluator_type) == (255, "sem_seg")
    records = DatasetCatalog.get(f"{NAME}_pseudo_sem_seg")
    boxes = {record["image_id"]: record for record in DatasetCatalog.get(NAME)}
    foreground, empty = [], 0
    for record in records:
        assert record.keys() == {"file_name", "height", "width", "image_id", "sem_seg_file_name"}
        assert record["file_name"] == boxes[record["image_id"]]["file_name"]
        labels = read_label_map(record["sem_seg_file_name"])
        with Image.open(record["sem_seg_file_name"]) as image:
            assert image.mode == "P"
            assert image.getpalette()[3:6] == [128, 0, 0]
        bright = np.asarray(Image.open(record["file_name"]))[:, :, 2] > 100  # INPUT.FORMAT is BGR
        expected = np.zeros((40, 60), np.uint8)
        for obj in boxes[record["image_id"]]["annotations"]:
            x, y, w, h = obj["bbox"]
            inside = np.s_[int(y) : int(y + h), int(x) : int(x + w)]
            expected[inside][bright[inside]] = obj["category_id"] + 1
            empty += not bright[inside].any()
        assert np.array_equal(labels, expected)
        if record["image_id"] in PROMPTED:
            foreground.append((labels > 0).mean())
    metrics = results[NAME]["pseudo_masks"]
    assert metrics.pop("seconds") > 0
    assert metrics == provenance["summary"]
    assert metrics.pop("mean_foreground") == pytest.approx(np.mean(foreground))
    assert metrics == {"images": 6, "boxes": 12, "kept": 0, "share_empty": empty / 12}


def test_the_label_map_of_a_semantic_method_is_written(tmp_path, monkeypatch):
    make_source(tmp_path)
    plain = FakeBoxToMask._predict

    def semantic(self: Any, item: dict[str, Any]) -> dict[str, Any]:
        assert (item["num_classes"], item["class_names"]) == (2, ["b", "a"])
        labels = torch.zeros(40, 60, dtype=torch.int32)
        labels[:10], labels[10:20] = 2, 1
        return {**plain(self, item), "label_map": labels}

    monkeypatch.setattr(FakeBoxToMask, "_predict", semantic)
    cfg = sem_seg_cfg(tmp_path)
    label(cfg)
    folder = manifest_path(cfg).with_suffix("")
    for key in ALL:
        expected = np.repeat([2, 1, 0, 0] if key in PROMPTED else [0], 10 if key in PROMPTED else 40)
        assert np.array_equal(read_label_map(str(folder / f"{key}.png"))[:, 0], expected)


def test_finished_labels_are_left_alone_and_others_replace_them(tmp_path):
    make_source(tmp_path)
    cfg = sem_seg_cfg(tmp_path)
    log = tmp_path / "log"
    label(cfg, log=str(log))
    asked, before = log.read_text(), read_all(manifest_path(cfg))
    results = label(cfg, log=str(log))
    assert log.read_text() == asked
    assert results[NAME]["pseudo_masks"]["boxes"] == 12
    assert read_all(manifest_path(cfg)) == before
    model = build_model(cfg)
    model.log = str(log)
    nn.init.ones_(model.weight)
    label_datasets(cfg, model)
    assert log.read_text() == asked * 2, "other weights are another labelling"
    after = read_all(manifest_path(cfg))
    name = manifest_path(cfg).name
    assert {key: value for key, value in after.items() if key != name} == {k: v for k, v in before.items() if k != name}
    assert after[name] != before[name]


def test_instances_and_label_maps_lie_side_by_side(tmp_path):
    make_source(tmp_path)
    label(sem_seg_cfg(tmp_path))
    label(make_cfg(tmp_path))
    names = {f"{NAME}_pseudo.json", f"{NAME}_pseudo_sem_seg.json", f"{NAME}_pseudo_sem_seg"}
    assert set(os.listdir(tmp_path / "step" / "pseudo_masks")) == names
    cfg = make_cfg(tmp_path)
    cfg.PSEUDO_MASKS.FORMAT = "png"
    with pytest.raises(ValueError, match=r"PSEUDO_MASKS\.FORMAT is 'png': use 'instances' or 'sem_seg'"):
        pseudo_mask_files(cfg)


def test_interrupted_labelling_goes_on(tmp_path, monkeypatch):
    """After a damaged image, after a lost label map, and between the move of the label maps and the manifest."""
    source = make_source(tmp_path)
    cfg = sem_seg_cfg(tmp_path)
    path, log = manifest_path(cfg), tmp_path / "log"
    label(cfg)
    expected = read_all(path)

    cfg = sem_seg_cfg(tmp_path / "again")
    path = manifest_path(cfg)
    damaged = tmp_path / "images" / source["images"][-1]["file_name"]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:100])
    with pytest.raises(ValueError, match=damaged.name):
        label(cfg, log=str(log))
    damaged.write_bytes(whole)
    assert not path.exists()
    (png,) = path.parent.glob("*.partial/*/png")
    (png / "99.png").write_bytes(b"")  # as a power failure may leave it
    (png / "98.png").unlink()
    (png / "97.png.tmp").write_bytes(b"of a killed process")

    def full(*args: Any, **kwargs: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("boxsup_d2.data.formats.pseudo_masks._write_list", full)
        with pytest.raises(OSError, match=r"sem_seg\.json.*disk is full.*6 labelled images are kept"):
            label(cfg, log=str(log))
    asked = [int(line) for line in log.read_text().split()]
    assert sorted(asked) == sorted([*PROMPTED, 99, 98])
    assert not path.exists(), "what is not whole has no manifest"
    log.unlink()
    label(cfg, log=str(log))
    assert not log.exists(), "nothing is redone"
    assert read_all(path) == expected


def test_masks_that_are_there_are_kept(tmp_path):
    name, (first, *others) = with_some_masks(tmp_path)
    records = DatasetCatalog.get(name)
    crowd = {"iscrowd": 1, "segmentation": [[0, 30, 60, 30, 60, 40, 0, 40]], "category_id": 1}
    labelled = next(record for record in records if first in record["annotations"])
    labelled["annotations"].append({**first, **crowd, "id": 77})
    without_boxes = next(record for record in records if not record["annotations"])
    without_boxes["annotations"].append({**first, "id": 78})
    cfg = sem_seg_cfg(tmp_path, name)
    metrics = label(cfg)[name]["pseudo_masks"]
    assert metrics["kept"] == 2
    assert metrics["boxes"] == 11
    folder = manifest_path(cfg).with_suffix("")
    labels = read_label_map(str(folder / Path(labelled["file_name"]).name))
    assert (labels[:20] == first["category_id"] + 1).all()
    assert ((labels[30:] == 255) | (labels[30:] == others[0]["category_id"] + 1)).all()
    assert (labels[30:] == 255).any()
    assert (read_label_map(str(folder / Path(without_boxes["file_name"]).name))[:20] == 2).all(), "without the network"

    cfg = sem_seg_cfg(tmp_path / "again", name)
    cfg.PSEUDO_MASKS.OVERWRITE = True
    assert label(cfg)[name]["pseudo_masks"]["boxes"] == 13
    labels = read_label_map(str(manifest_path(cfg).with_suffix("") / Path(labelled["file_name"]).name))
    assert (labels[:20] == 0).any()


def test_images_of_several_folders_that_share_a_name():
    records = [{"file_name": f"{folder}/1.jpg", "image_id": folder} for folder in "ab"]
    assert png_names(records) == {"a": "00000001.png", "b": "00000002.png"}
    assert png_names(records[:1]) == {"a": "1.png"}


def test_what_cannot_be_labelled_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"'x' has 255 classes.*FORMAT instances"):
        SemSegLabelWriter("x", [], str(tmp_path), {}, ["c"] * 255)
    make_source(tmp_path)
    register_dataset("no_classes", lambda: DatasetCatalog.get(NAME), evaluator_type="box")
    with pytest.raises(ValueError, match="'no_classes' has no classes"):
        label(sem_seg_cfg(tmp_path, "no_classes"))


def test_damaged_manifests_are_named(tmp_path):
    make_source(tmp_path)
    cfg = sem_seg_cfg(tmp_path)
    label(cfg)
    path = manifest_path(cfg)
    name = register_pseudo_masks(str(path))
    (path.with_suffix("") / "99.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of its 8 label maps.*99\.png.*label again"):
        DatasetCatalog.get(name)
    manifest = json.loads(path.read_text())
    broken = {**manifest, "images": [{"id": 1, "file_name": "a"}, {**manifest["images"][0], "height": 0}]}
    for content, message in (
        (json.dumps(broken), "1 images without an id, file_name or png.*1 images without a height"),
        (json.dumps({"images": [], "annotations": []}), "no manifest of semantic labels.*rename it"),
        (path.read_text()[:-30], "no valid json"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message) as error:
            DatasetCatalog.get(name)
        assert str(path) in str(error.value)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="Run the labelling step"):
        DatasetCatalog.get(name)


def test_provenance_names_the_other_network(tmp_path):
    make_source(tmp_path)
    cfg = make_cfg(tmp_path)
    model, records = build_model(cfg), DatasetCatalog.get(NAME)
    assert "segmenter_sha256" not in build_provenance(cfg, model, NAME, records, "")

    def hashes(folder: str, weights: str, depth: int, samples: int = 8) -> tuple[str, str]:
        (tmp_path / folder).mkdir(exist_ok=True)
        path = tmp_path / folder / "segmenter"
        torch.save({"model": weights}, path.with_suffix(".pth"))
        path.with_suffix(".yaml").write_text(f"MODEL: {{WEIGHTS: {folder}, RESNETS: {{DEPTH: {depth}}}}}\n")
        other = cfg.clone()
        other.MODEL.META_ARCHITECTURE = "LPG"
        lpg = other.MODEL.LPG
        lpg.SEGMENTER_CONFIG, lpg.SEGMENTER_WEIGHTS = str(path.with_suffix(".yaml")), str(path.with_suffix(".pth"))
        lpg.TEST_SAMPLES_PER_FORWARD = samples
        provenance = build_provenance(other, model, NAME, records, "")
        return provenance["segmenter_sha256"], provenance["config_sha256"]

    first = hashes("a", "one", 50)
    assert hashes("moved", "one", 50, samples=2) == first, "where the files lie does not count, nor what fits in memory"
    assert hashes("a", "two", 50)[0] != first[0]
    assert hashes("a", "two", 50)[1] == first[1]
    assert hashes("a", "one", 101)[1] != first[1], "another network of the same name"


@pytest.mark.parametrize("batch", [1, 4])
def test_images_are_labelled_in_batches(tmp_path, monkeypatch, batch):
    make_source(tmp_path)
    batches, forward = [], FakeBoxToMask.forward
    monkeypatch.setattr(FakeBoxToMask, "forward", lambda self, x: batches.append(len(x)) or forward(self, x))
    cfg = sem_seg_cfg(tmp_path)
    cfg.PSEUDO_MASKS.IMS_PER_BATCH = batch
    assert label(cfg)[NAME]["pseudo_masks"]["images"] == 6
    assert batches == {1: [1] * 6, 4: [4, 2]}[batch]
    cfg = sem_seg_cfg(tmp_path / "again")
    cfg.PSEUDO_MASKS.IMS_PER_BATCH = 0
    with pytest.raises(ValueError, match=r"PSEUDO_MASKS.IMS_PER_BATCH is 0"):
        label(cfg)


def test_refined_masks_come_before_label_maps():
    pytest.importorskip("pydensecrf", reason="pydensecrf2 is optional")

    class Method(nn.Module):
        def forward(self, inputs: Any) -> Any:
            return [output_of(torch.ones(1, 8, 8, dtype=torch.bool), label_map=torch.zeros(8, 8))]

    prompts = Instances((8, 8), gt_boxes=Boxes(torch.tensor([[1.0, 1, 7, 7]])), gt_classes=torch.tensor([0]))
    item = {"image": torch.zeros(3, 8, 8, dtype=torch.uint8), "instances": prompts}
    (output,) = CRFRefinedModel(Method()).eval()([item])
    assert output.keys() == {"instances"}


def test_a_round_keeps_label_maps_that_it_makes_anew(tmp_path):
    make_source(tmp_path)
    cfg = sem_seg_cfg(tmp_path)
    label(cfg)
    path = manifest_path(cfg)
    former = read_all(path)
    planned = SimpleNamespace(cfg=cfg)
    entry = {"former_labels": "0123456789", "outputs": {"pseudo_masks": [f"step/pseudo_masks/{path.name}"]}}
    kept = path.parent.with_name("pseudo_masks.01234567") / path.name
    _keep_labels(planned, entry)
    assert _drop_equal_labels(planned, entry)
    assert not kept.parent.exists(), "of labels that stayed the same there is no second copy"
    _keep_labels(planned, entry)
    model = build_model(cfg)
    nn.init.ones_(model.weight)
    for image in (tmp_path / "images").iterdir():
        Image.fromarray(np.full((40, 60, 3), 255, np.uint8)).save(image)
    label_datasets(cfg, model)
    assert not _drop_equal_labels(planned, entry)
    assert read_all(kept) == former
    assert read_all(path)["99.png"] != former["99.png"]
