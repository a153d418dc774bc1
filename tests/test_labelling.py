"""Labelling data sets in one process, with a fake method in Detectron2's registry."""

import copy
import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.engine import TrainerBase
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.structures import BoxMode, Instances
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from torch import nn

from boxsup_d2.config import add_boxsup_config
from boxsup_d2.data.datasets import register_coco_boxes, register_dataset, register_pseudo_masks
from boxsup_d2.data.formats.pseudo_masks import read_pseudo_masks
from boxsup_d2.engine.hooks import PseudoMaskHook
from boxsup_d2.labelling import instance_writer as writer_module
from boxsup_d2.labelling.driver import label_datasets, pseudo_mask_path
from boxsup_d2.masks.merge import merge_image
from boxsup_d2.masks.rle import empty_rle

NAME = "labelling_test_box"


@META_ARCH_REGISTRY.register()
class FakeBoxToMask(nn.Module):
    """Predicts each box with what is bright inside it, and notes every image it was asked about."""

    log = ""
    delay = 0.0

    def __init__(self, cfg: CfgNode):
        super().__init__()
        del cfg
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        assert not self.training
        return [self._predict(item) for item in batched_inputs]

    def _predict(self, item: dict[str, Any]) -> dict[str, Instances]:
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{item['image_id']}\n")
        time.sleep(self.delay)
        image, boxes = item["image"], item["instances"].gt_boxes.tensor
        masks = torch.zeros((len(boxes), *image.shape[1:]), dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.long().tolist(), strict=True):
            mask[y0:y1, x0:x1] = image[0, y0:y1, x0:x1] > 100
        return {"instances": Instances(tuple(image.shape[1:]), pred_masks=masks)}


def make_source(folder: Path, images: int = 8) -> dict[str, Any]:
    """A COCO json with everything that has to survive, and its images."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    source: dict[str, Any] = {
        "info": {"year": 2012},
        "licenses": [{"id": 4}],
        "images": [],
        "annotations": [],
        "categories": [{"id": 7, "name": "a"}, {"id": 3, "name": "b"}],
        "own": {"x": 1},
    }
    for number in range(images):
        image_id = 100 - number
        Image.fromarray(rng.integers(0, 200, (40, 60, 3), dtype=np.uint8)).save(folder / f"images/{image_id}.png")
        source["images"].append(
            {"id": image_id, "height": 40, "width": 60, "file_name": f"{image_id}.png", "coco_url": "u"}
        )
        for _ in range(number % 4):  # every fourth image has no box
            x, y, w, h = rng.uniform([0, 0, 3, 3], [20, 15, 30, 20]).round(2).tolist()
            source["annotations"].append(
                {"id": 1000 - len(source["annotations"]), "image_id": image_id, "category_id": 7, "iscrowd": 0}
                | {"bbox": [x, y, w, h], "area": 1.5, "segmentation": [[0, 0, 5, 0, 5, 5]], "track": 5}
            )
    rng.shuffle(source["annotations"])  # as COCO's, they are not in the order of the images
    if images > 2:
        source["annotations"].insert(
            1,
            {"id": 1, "image_id": 99, "category_id": 3, "iscrowd": 1, "bbox": [0, 0, 9, 9], "area": 5}
            | {"segmentation": {"size": [40, 60], "counts": [2300, 50, 50]}},
        )
        source["annotations"].append(
            {"id": 2, "image_id": 98, "category_id": 3, "iscrowd": 0, "bbox": [5, 5, 0, 4], "area": 0}
        )
    (folder / "boxes.json").write_text(json.dumps(source))
    register_coco_boxes(NAME, str(folder / "boxes.json"), str(folder / "images"))
    return source


def make_cfg(output: Path, name: str = NAME) -> CfgNode:
    cfg = get_cfg()
    add_boxsup_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "FakeBoxToMask"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.PSEUDO_MASKS.DATASETS = (name,)
    cfg.PSEUDO_MASKS.REPORT_IMAGES = 0  # pages have tests of their own
    cfg.OUTPUT_DIR = str(output / "step")
    return cfg


def labelled(cfg: CfgNode, **attributes: Any) -> dict[str, Any]:
    model = build_model(cfg)
    for key, value in attributes.items():
        setattr(model, key, value)
    label_datasets(cfg, model)
    return read_pseudo_masks(pseudo_mask_path(cfg.OUTPUT_DIR, cfg.PSEUDO_MASKS.DATASETS[0]))


# ------------------------------------------------------------------------------------------------ one process


def test_file_holds_the_source_and_merged_masks(tmp_path):
    source = make_source(tmp_path)
    cfg = make_cfg(tmp_path)
    model = build_model(cfg)
    results = label_datasets(cfg, model)
    assert model.training, "the mode before is restored"

    path = pseudo_mask_path(cfg.OUTPUT_DIR, NAME)
    data = read_pseudo_masks(path)
    assert os.listdir(os.path.dirname(path)) == [f"{NAME}_pseudo.json"], "nothing temporary is left"
    for key in ("licenses", "images", "categories", "own"):
        assert data[key] == source[key]
    assert data["info"]["year"] == 2012
    provenance = data["info"]["boxsup_d2"]
    assert provenance["source_dataset"] == NAME
    assert provenance["method"] == "FakeBoxToMask"
    assert provenance["image_root"] == str(tmp_path / "images")
    assert len(provenance["checkpoint_sha256"]) == 64

    assert [a["id"] for a in data["annotations"]] == [a["id"] for a in source["annotations"]]
    ours = ("segmentation", "area", "confidence", "confidence_exact", "quality")
    for annotation, former in zip(data["annotations"], source["annotations"], strict=True):
        if former["iscrowd"]:
            assert annotation == former, "crowd regions are copied untouched"
            continue
        assert {k: v for k, v in annotation.items() if k not in ours} == {
            k: v for k, v in former.items() if k not in ours
        }
        assert annotation["area"] == mask_util.area(annotation["segmentation"]) or annotation["id"] == 2
        assert 0 <= annotation["confidence"] <= 1
        assert 0 <= annotation["confidence_exact"] <= 1
        assert 0 <= annotation["quality"] <= 1
    empty = next(a for a in data["annotations"] if a["id"] == 2)
    assert mask_util.area(empty["segmentation"]) == empty["confidence"] == 0, "a box without area has an empty mask"

    metrics = results[NAME]["pseudo_masks"]
    boxes = [a for a in source["annotations"] if not a["iscrowd"] and a["id"] != 2]
    assert metrics["instances"] == len(boxes)
    assert metrics["images"] == 6
    assert metrics["share_empty"] == metrics["kept"] == 0
    assert COCO(path).getAnnIds(catIds=[7])  # pycocotools reads it

    register_pseudo_masks(path)
    records = DatasetCatalog.get(f"{NAME}_pseudo")
    assert [record["image_id"] for record in records] == [image["id"] for image in source["images"]]


def test_masks_equal_a_direct_merge(tmp_path):
    make_source(tmp_path)
    cfg = make_cfg(tmp_path)
    data = labelled(cfg)
    by_id = {annotation["id"]: annotation for annotation in data["annotations"]}
    for record in DatasetCatalog.get(NAME):
        bright = np.asarray(Image.open(record["file_name"]))[:, :, 2] > 100  # INPUT.FORMAT is BGR
        masks = torch.zeros(len(record["annotations"]), 40, 60, dtype=torch.bool)
        for mask, obj in zip(masks, record["annotations"], strict=True):
            x, y, w, h = obj["bbox"]
            x0, y0, x1, y1 = torch.tensor([x, y, x + w, y + h]).long().tolist()
            mask[y0:y1, x0:x1] = torch.from_numpy(bright[y0:y1, x0:x1])
        merged = merge_image(masks, [obj["bbox"] for obj in record["annotations"]])
        for obj, instance in zip(record["annotations"], merged, strict=True):
            assert by_id[obj["id"]]["segmentation"] == instance.segmentation
            assert by_id[obj["id"]]["confidence"] == instance.confidence
            assert by_id[obj["id"]]["confidence_exact"] == instance.confidence_exact


def test_finished_file_is_left_alone_and_others_are_not_mixed_in(tmp_path):
    make_source(tmp_path)
    cfg = make_cfg(tmp_path)
    log = tmp_path / "log"
    labelled(cfg, log=str(log))
    path = pseudo_mask_path(cfg.OUTPUT_DIR, NAME)
    asked, text, changed = log.read_text(), Path(path).read_text(), os.stat(path).st_mtime_ns

    model = build_model(cfg)
    model.log = str(log)
    results = label_datasets(cfg, model)
    assert log.read_text() == asked, "nothing is redone"
    assert (Path(path).read_text(), os.stat(path).st_mtime_ns) == (text, changed)
    assert results[NAME]["pseudo_masks"]["instances"] == 12

    # Partial results of another checkpoint are neither used nor destroyed.
    partial = Path(path).with_name(f"{NAME}_pseudo.partial")
    (partial / "0123456789abcdef").mkdir(parents=True)
    foreign = partial / "0123456789abcdef" / "0001-rank0000.jsonl"
    foreign.write_text('{"image_id":99,"masks":[]}\n')
    nn.init.ones_(model.weight)
    label_datasets(cfg, model)
    assert log.read_text() == asked * 2
    assert foreign.exists()
    assert os.listdir(partial) == ["0123456789abcdef"]
    first, second = json.loads(text), read_pseudo_masks(path)
    assert first["annotations"] == second["annotations"]
    assert first["info"]["boxsup_d2"]["checkpoint_sha256"] != second["info"]["boxsup_d2"]["checkpoint_sha256"]


def test_what_decides_the_masks_is_in_the_provenance(tmp_path):
    make_source(tmp_path)
    log = tmp_path / "log"

    def asks_again(cfg: CfgNode) -> bool:
        log.write_text("")
        labelled(cfg, log=str(log))
        return log.read_text() != ""

    cfg = make_cfg(tmp_path)
    assert asks_again(cfg)
    assert not asks_again(cfg)
    for key, value, expected in (
        ("DATALOADER.NUM_WORKERS", 1, False),
        ("SEED", 3, False),
        ("TEST.BOX_PROMPT", "tight", False),  # box-only data has no tight boxes; labels never use them
        ("MODEL.BOXCASEG.TEST_FLIP", True, True),
        ("PSEUDO_MASKS.STEP", "other", False),  # a name
    ):
        cfg.merge_from_list([key, value])
        assert asks_again(cfg) == expected, key
    source = json.loads((tmp_path / "boxes.json").read_text())
    source["annotations"][0]["bbox"][2] += 1
    (tmp_path / "boxes.json").write_text(json.dumps(source))
    assert asks_again(cfg), "the source changed"

    torch.save({}, tmp_path / "a.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "a.pth")
    assert asks_again(cfg)
    cfg.MODEL.WEIGHTS = str(tmp_path / "absent.pth")
    with pytest.raises(FileNotFoundError, match=r"absent\.pth.*MODEL\.WEIGHTS"):
        asks_again(cfg)


def with_some_masks(tmp_path: Path) -> tuple[str, list[dict[str, Any]]]:
    """A data set two of whose boxes have a mask: one a polygon, one an (empty, so not a mask) RLE."""
    make_source(tmp_path)
    records = copy.deepcopy(DatasetCatalog.get(NAME))
    record = next(record for record in records if len(record["annotations"]) == 3)
    first, second, third = record["annotations"]
    first["segmentation"] = [[0, 0, 60, 0, 60, 20, 0, 20]]
    second["segmentation"] = empty_rle(40, 60)
    for other in records:
        for obj in other["annotations"]:
            obj["bbox"], obj["bbox_mode"] = [round(v) for v in obj["bbox"]], BoxMode.XYWH_ABS
    # A part of the second's box, and all of the third's, lie under the first one's mask.
    second["bbox"], third["bbox"] = [5, 14, 20, 20], [32, 2, 20, 16]
    register_dataset("some_masks", lambda: records, thing_classes=["a", "b"], image_root=str(tmp_path / "images"))
    return "some_masks", record["annotations"]


def test_masks_that_are_there_are_kept_and_win(tmp_path):
    name, (first, second, third) = with_some_masks(tmp_path)
    data = labelled(make_cfg(tmp_path, name))
    by_id = {annotation["id"]: annotation for annotation in data["annotations"]}
    assert by_id[first["id"]]["segmentation"] == first["segmentation"]
    assert by_id[first["id"]]["confidence"] == by_id[first["id"]]["confidence_exact"] == 1
    assert by_id[first["id"]]["quality"] == 1
    behind, before = (mask_util.decode(by_id[obj["id"]]["segmentation"]) for obj in (second, third))
    assert behind.any()
    assert not behind[:20].any(), "a predicted mask yields to a kept one"
    assert before[:20].any(), "but not where that covers most of it: it is before what was drawn"

    cfg = make_cfg(tmp_path / "again", name)
    cfg.PSEUDO_MASKS.OVERWRITE = True
    overwritten = {annotation["id"]: annotation for annotation in labelled(cfg)["annotations"]}
    assert isinstance(overwritten[first["id"]]["segmentation"], dict)


def test_crf_switch_refines_masks(tmp_path):
    pytest.importorskip("pydensecrf", reason="pydensecrf2 is optional")
    make_source(tmp_path)
    for path in (tmp_path / "images").iterdir():  # hardly darker specks, which are holes in the method's masks
        specks = np.random.default_rng(0).random((40, 60, 1)) < 0.02
        Image.fromarray(np.where(specks, 100, 101).repeat(3, axis=2).astype(np.uint8)).save(path)
    plain = labelled(make_cfg(tmp_path))
    cfg = make_cfg(tmp_path / "crf")
    cfg.PSEUDO_MASKS.CRF = True
    refined = labelled(cfg)
    pairs = zip(plain["annotations"], refined["annotations"], strict=True)
    assert sum(a.get("segmentation") != b.get("segmentation") for a, b in pairs) > 4


def test_nothing_to_label_still_writes_a_file(tmp_path):
    make_source(tmp_path, images=1)  # its only image has no box
    assert len(labelled(make_cfg(tmp_path))["images"]) == 1
    cfg = make_cfg(tmp_path)
    cfg.PSEUDO_MASKS.DATASETS = ()
    assert label_datasets(cfg, build_model(cfg)) == {}


def test_damaged_image_is_named_and_work_is_kept(tmp_path):
    source = make_source(tmp_path)
    cfg = make_cfg(tmp_path)
    damaged = tmp_path / "images" / source["images"][-1]["file_name"]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:100])
    log = tmp_path / "log"
    model = build_model(cfg)
    model.log = str(log)
    with pytest.raises(ValueError, match=damaged.name):
        label_datasets(cfg, model)
    assert model.training
    assert not os.path.exists(pseudo_mask_path(cfg.OUTPUT_DIR, NAME))
    damaged.write_bytes(whole)
    label_datasets(cfg, model)
    asked = log.read_text().split()
    assert len(asked) == len(set(asked)) == 6, "every image once"


def test_full_disk_at_the_end_keeps_the_results(tmp_path, monkeypatch):
    make_source(tmp_path)
    cfg = make_cfg(tmp_path)
    log = str(tmp_path / "log")

    def full(*args: Any, **kwargs: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("boxsup_d2.data.formats.pseudo_masks._write_list", full)
        with pytest.raises(OSError, match=r"_pseudo\.json.*disk is full.*6 labelled images are kept"):
            labelled(cfg, log=log)
    folder = Path(pseudo_mask_path(cfg.OUTPUT_DIR, NAME)).parent
    assert os.listdir(folder) == [f"{NAME}_pseudo.partial"]
    asked = Path(log).read_text()
    labelled(cfg, log=log)
    assert Path(log).read_text() == asked, "nothing is redone"


def test_predicts_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    make_source(tmp_path)
    cfg = make_cfg(tmp_path)
    plain = FakeBoxToMask._predict
    monkeypatch.setattr(FakeBoxToMask, "_predict", lambda self, item: {"instances": plain(self, item)["instances"][:0]})
    with pytest.raises(ValueError, match=r"0 masks for 1 annotation ids of '.*99\.png'"):
        labelled(cfg)
    records = [{"file_name": "x.png", "image_id": 1, "annotations": [{"bbox": [0, 0, 1, 1]}]}]
    with pytest.raises(ValueError, match=r'x\.png.*has no "id"'):
        writer_module.PseudoMaskWriter("x", records, str(tmp_path), {}, dict)


def test_missing_results_are_reported(tmp_path):
    make_source(tmp_path)
    writer = writer_module.PseudoMaskWriter(NAME, DatasetCatalog.get(NAME), str(tmp_path), {"step": "a"}, dict)
    writer.reset()
    with pytest.raises(RuntimeError, match=r"6 of 6 images.*OUTPUT_DIR must be a folder that all of them share"):
        writer.evaluate()


# ------------------------------------------------------------------------------------------------ the hook


class FakeTrainer(TrainerBase):
    def __init__(self, model: nn.Module, fail_at: int = -1):
        super().__init__()
        self.model = self.kept_model = model
        self.fail_at = fail_at

    def run_step(self) -> None:
        if self.iter == self.fail_at:
            raise FloatingPointError("diverged")


def test_hook_labels_only_when_training_has_ended(tmp_path):
    make_source(tmp_path)
    cfg = make_cfg(tmp_path)
    path = pseudo_mask_path(cfg.OUTPUT_DIR, NAME)
    model = build_model(cfg)
    for fail_at in (0, 2):  # 2 is the last iteration
        trainer = FakeTrainer(model, fail_at)
        trainer.register_hooks([PseudoMaskHook(cfg)])
        with pytest.raises(FloatingPointError):
            trainer.train(0, 3)
        assert not os.path.exists(path), "a network that was not trained to the end labels nothing"
    os.makedirs(cfg.OUTPUT_DIR)
    torch.save({"model": model.state_dict()}, os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))
    trainer = FakeTrainer(model)
    trainer.register_hooks([PseudoMaskHook(cfg)])
    trainer.train(0, 3)
    assert trainer.label_results[NAME]["pseudo_masks"]["instances"] == 12
    assert read_pseudo_masks(path)["info"]["boxsup_d2"]["checkpoint"].endswith("model_final.pth")
    assert model.training
