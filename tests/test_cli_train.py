"""``boxsup train``: the configs that it writes for what there is to learn from, and a training whole."""

from __future__ import annotations

import json
import re
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from safetensors.torch import load_file

from boxsup_cli import main
from boxsup_cli.errors import BadInput
from boxsup_cli.main import build_parser
from boxsup_cli.sources import Source
from boxsup_cli.train_compare import teacher_settings
from boxsup_cli.train_config import AS_IT_IS, COST_OF_BOXES_ALONE, MASK_RCNN, Plan, plan_training
from boxsup_cli.train_files import write_configs
from boxsup_cli.train_job import check_init
from boxsup_d2.config import load_config
from boxsup_d2.model_zoo import config_names, get_config_file
from boxsup_d2.modeling.boxcaseg.checkpoint import PIXEL_MEAN, PIXEL_STD

# Nothing of a network's size, and no weights to be found anywhere.
TINY = ["MODEL.WEIGHTS", "", "DATALOADER.NUM_WORKERS", "0", "INPUT.BOX_CROP.TRAIN_SIZE", "32", "SOLVER.IMS_PER_BATCH"]
TINY += ["2", "INPUT.BOX_CROP.SALIENT_SIZE", "36", "INPUT.BOX_CROP.TEST_SIZE", "32", "PSEUDO_MASKS.REPORT_IMAGES", "0"]


def source_of(masks: int, boxes: int = 10, classes: int = 3, **info: Any) -> Source:
    """A source of as many boxes, the first of them with masks."""
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "iscrowd": 0}
        | ({"segmentation": [[1, 1, 9, 1, 9, 9]]} if i < masks else {})
        for i in range(boxes)
    ]
    data = {
        "info": info,
        "images": [{"id": 1, "file_name": "a: b.png", "height": 20, "width": 20}],
        "annotations": annotations,
        "categories": [{"id": i, "name": str(i)} for i in range(1, classes + 1)],
    }
    return Source("here/boxes.json", 'there/my "images"', data, data, "0", True)


def planned(folder: Path, source: Source, *options: str, salient: Any = None, processes: int = 1) -> dict[str, CfgNode]:
    """The configs that a command writes, read back."""
    args = build_parser().parse_args(
        ["train", "--json", "x", "--images", "y", "--out", str(folder), "--size", "small", *options]
    )
    plan = plan_training(args, source, salient, str(folder), processes)
    assert json.loads(json.dumps(plan.request)) == plan.request
    write_configs(str(folder), plan, force=False)
    configs = {name.removesuffix(".yaml").removeprefix("my-"): load_config(str(folder / name)) for name in plan.files}
    from_nothing = plan.step == "boxcaseg" and configs[plan.step].MODEL.BOXCASEG.TEST_HEAD == "box"
    assert (COST_OF_BOXES_ALONE in plan.warnings) == from_nothing
    return configs


@pytest.fixture
def salient(tmp_path: Path) -> tuple[str, str]:
    """Folders of two salient images and their masks."""
    rng = np.random.default_rng(0)
    for folder in ("salient/images", "salient/masks"):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(2):
            pixels = rng.integers(0, 2, (30, 40, 3), dtype=np.uint8) * 255
            cv2.imwrite(str(tmp_path / folder / f"{number}.png"), pixels)
    return str(tmp_path / "salient/images"), str(tmp_path / "salient/masks")


def test_without_masks_predictions_come_from_the_box_head(tmp_path: Path) -> None:
    configs = planned(tmp_path, source_of(masks=0))
    assert configs["boxcaseg"].MODEL.BOXCASEG.TEST_HEAD == "box"
    assert set(configs) == {"rounds", "boxcaseg", "boxes-alone", "Base-BoxCaseg"}


@pytest.mark.parametrize(("masks", "ratio"), [(1, 0.6875), (5, -1.0), (10, -1.0)])
def test_masks_in_the_json_teach(tmp_path: Path, masks: int, ratio: float) -> None:
    """With few of them the batch is mixed; without boxes beside them, or with many, it is not."""
    configs = planned(tmp_path, source_of(masks))
    assert configs["boxcaseg"].MODEL.BOXCASEG.TEST_HEAD == "salient"
    assert ratio == configs["boxcaseg"].DATALOADER.BOX_RATIO
    (entry,) = configs["rounds"].DATASETS.REGISTER
    assert entry == {
        "NAME": "my_boxes", "JSON": "here/boxes.json", "IMAGES": 'there/my "images"', "MASKS": "kept",
    }  # fmt: skip


def test_few_samples_need_fewer_updates(tmp_path: Path) -> None:
    """Each is seen some 40 times, in batches of 24 boxes and of 4 images; the recipes have 1,200 and 1,800 updates."""
    for number, boxes, updates in ((1, 10, 300), (2, 300, 500), (3, 5000, 1200)):
        configs = planned(tmp_path / str(number), source_of(5, boxes), "--mask-rcnn")
        assert updates == configs["boxcaseg"].SOLVER.MAX_ITER
        assert configs["mask-rcnn"].SOLVER.MAX_ITER == 300, "of one image"
        assert updates // 10 >= configs["boxcaseg"].SOLVER.WARMUP_ITERS
    assert planned(tmp_path / "n", source_of(5), "--iterations", "7")["boxcaseg"].SOLVER.MAX_ITER == 7


def test_few_boxes_are_said_to_be_few(tmp_path: Path) -> None:
    args = build_parser().parse_args(["train", "--json", "x", "--images", "y", "--size", "small"])
    for boxes, few in ((199, True), (200, False)):
        warnings = plan_training(args, source_of(5, boxes), None, str(tmp_path), 1).warnings
        assert any(f"Few boxes: {boxes} of 3 classes" in warning for warning in warnings) == few


def test_predicted_masks_do_not_teach(tmp_path: Path) -> None:
    configs = planned(tmp_path, source_of(10, boxsup_d2={"method": "GrabCut"}))
    assert configs["boxcaseg"].MODEL.BOXCASEG.TEST_HEAD == "box"
    assert configs["rounds"].DATASETS.REGISTER[0]["MASKS"] == "none"


def test_salient_images_are_listed(tmp_path: Path, salient: tuple[str, str]) -> None:
    configs = planned(tmp_path, source_of(0), salient=salient)
    assert list(configs["boxcaseg"].DATASETS.TRAIN) == ["my_boxes", "my_salient"]
    assert configs["rounds"].DATASETS.REGISTER[1]["SALIENT_MASKS"] == salient[1]


def test_weights_to_start_from_are_trained_gently(tmp_path: Path) -> None:
    new, old = (planned(tmp_path / n, source_of(0), *o) for n, o in (("a", []), ("b", ["--init", "/x/w.pth"])))
    assert old["boxcaseg"].MODEL.WEIGHTS == "/x/w.pth"
    assert old["boxcaseg"].MODEL.BOXCASEG.TEST_HEAD == "salient"
    rates = [configs["boxcaseg"].SOLVER.BASE_LR for configs in (old, new)]
    assert 10 * rates[0] == pytest.approx(rates[1])


def test_published_weights_are_shown_images_in_their_own_way(tmp_path: Path) -> None:
    weights = tmp_path / "published.pth"
    torch.save({"model.last_layer.weight": torch.zeros(1), "model.transfer_bn.weight": torch.zeros(1)}, weights)
    cfg = planned(tmp_path / "c", source_of(0), "--size", "full", "--init", str(weights))["boxcaseg"]
    assert PIXEL_MEAN == cfg.MODEL.PIXEL_MEAN
    assert PIXEL_STD == cfg.MODEL.PIXEL_STD


def test_weights_to_start_from_hold_the_whole_network(tmp_path: Path, scene: Path) -> None:
    config, weights = tmp_path / "boxcaseg.yaml", tmp_path / "w.pth"
    shutil.copy(get_config_file("quick/Base-BoxCaseg.yaml"), config)
    cfg = load_config(str(config))
    cfg.MODEL.DEVICE = "cpu"
    state = build_model(cfg).state_dict()
    torch.save({"model": state}, weights)
    check_init(str(config), str(weights), [])
    torch.save({"model": {key: value for key, value in state.items() if key.startswith("backbone.")}}, weights)
    with pytest.raises(RuntimeError, match=r"--init .*w\.pth' lacks .*--size"):
        check_init(str(config), str(weights), [])
    boxes = ["--json", str(scene / "boxes.json"), "--images", str(scene / "images"), "--out", str(scene / "my")]
    assert main(["train", *boxes, "--size", "small", "--init", str(weights)]) == 2, "before anything is trained"


@pytest.mark.parametrize("size", ["small", "full"])
def test_classes_iterations_and_processes(tmp_path: Path, size: str) -> None:
    options = ["--mask-rcnn", "--iterations", "40", "--size", size]
    configs = planned(tmp_path, source_of(4, classes=7), *options, processes=5)
    mask_rcnn, boxcaseg = configs["mask-rcnn"], configs["boxcaseg"]
    assert mask_rcnn.MODEL.ROI_HEADS.NUM_CLASSES == 7
    assert (boxcaseg.SOLVER.MAX_ITER, mask_rcnn.SOLVER.MAX_ITER) == (40, 60)
    for cfg in (mask_rcnn, boxcaseg):
        assert cfg.SOLVER.WARMUP_ITERS * 10 <= cfg.SOLVER.MAX_ITER
        assert cfg.SOLVER.IMS_PER_BATCH % 5 == 0
        assert not cfg.SOLVER.MAX_EPOCHS
        assert tuple(cfg.DATASETS.TEST) == (), "no validation masks are needed"
    assert list(mask_rcnn.DATASETS.TRAIN) == ["my_boxes_pseudo"]
    head = mask_rcnn.MODEL.ROI_MASK_HEAD
    by_quality = ("quality", 0.0, True) if size == "small" else ("confidence_exact", 0.5, False)
    assert by_quality == (head.CONFIDENCE_KEY, head.CONFIDENCE_THRESHOLD, head.CONFIDENCE_WEIGHTING)
    steps = configs["rounds"].ROUNDS[0]["STEPS"]
    assert [step["NAME"] for step in steps] == ["boxcaseg", "mask-rcnn"]


@pytest.mark.parametrize("size", ["shipped", "small", "full"])
@pytest.mark.parametrize("masks", [0, 10])
def test_written_folder_is_complete(tmp_path: Path, size: str, masks: int) -> None:
    """It can be moved, and what another version of the package ships changes nothing in it."""
    planned(tmp_path / "a", source_of(masks), "--mask-rcnn", "--size", size)
    shutil.move(tmp_path / "a", tmp_path / "b")
    shipped = {Path(name).name: name for name in config_names()}
    for path in (tmp_path / "b").glob("*.yaml"):
        base = yaml.safe_load(path.read_text()).get("_BASE_")
        assert base is None or (tmp_path / "b" / base).is_file()
        if path.stem not in ("rounds", "my-boxcaseg", "my-boxmask", f"my-{MASK_RCNN}"):
            assert path.read_text() == Path(get_config_file(shipped[path.name])).read_text()


def test_edited_configs_are_used_and_never_lost(tmp_path: Path) -> None:
    def write(request: int, rounds: str, other: str = "b: 1\n", *, force: bool = False) -> str:
        files = {"rounds.yaml": rounds, "b.yaml": other}
        return write_configs(str(tmp_path), Plan("boxmask", True, "", {"number": request}, files, "", ()), force=force)

    def texts() -> list[str]:
        return [(tmp_path / name).read_text() for name in ("rounds.yaml", "b.yaml")]

    assert write(1, "a: 1\n") == str(tmp_path / "rounds.yaml")
    (tmp_path / "rounds.yaml").unlink()
    (tmp_path / "b.yaml").write_text("b: 2\n")
    write(1, "a: 1\n")
    assert texts() == ["a: 1\n", "b: 2\n"], "the same command again: edits stay, what is lost comes back"
    with pytest.raises(BadInput, match=r"b\.yaml .*--force"):
        write(2, "a: 2\n")
    assert texts() == ["a: 1\n", "b: 2\n"], "all or nothing"
    write(2, "a: 2\n", force=True)
    assert texts() == ["a: 2\n", "b: 1\n"]
    write(3, "a: 3\n")
    assert texts() == ["a: 3\n", "b: 1\n"], "another command may replace what nobody edited"
    write(3, "a: 4\n", "b: 4\n")
    assert texts() == ["a: 3\n", "b: 1\n"], "the same command, of a version of the package with other recipes"
    write(3, "a: 4\n", "b: 4\n", force=True)
    assert texts() == ["a: 4\n", "b: 4\n"]


# ------------------------------------------------------------------------------------------------- whole
@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """Four images with a box each, one with a mask, of two classes."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    data: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 3, "name": "a"}, {"id": 9, "name": "b"}],
    }
    for number in range(1, 5):
        cv2.imwrite(str(tmp_path / f"images/{number}.png"), rng.integers(0, 255, (48, 64, 3), dtype=np.uint8))
        data["images"].append({"id": number, "file_name": f"{number}.png", "height": 48, "width": 64})
        data["annotations"].append(
            {"id": number, "image_id": number, "category_id": 3, "bbox": [8, 8, 30, 30], "iscrowd": 0}
        )
    data["annotations"][0]["segmentation"] = [[8, 8, 38, 8, 38, 38]]
    (tmp_path / "boxes.json").write_text(json.dumps(data))
    return tmp_path


def test_from_boxes_to_masks_by_a_network_of_ones_own(
    scene: Path, salient: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = ["--json", str(scene / "boxes.json"), "--images", str(scene / "images"), "--num-gpus", "0"]
    train = ["train", *boxes, "--salient", str(scene / "salient"), "--iterations", "2", "--out", str(scene / "my")]
    train += ["--size", "small"]
    train += ["--mask-rcnn", "--mask-rcnn-iterations", "1", "--opts", *TINY]
    assert main(train) == 0
    told = capsys.readouterr().out
    assert "4 boxes, 1 of them with a mask, 2 salient images; 2 classes" in told
    assert "Few boxes: 4 of 2 classes" in told
    masks = json.loads((scene / "my/boxcaseg/pseudo_masks/my_boxes_pseudo.json").read_text())
    assert masks["annotations"][0]["confidence"] == 1, "the mask that was there is kept"
    assert all(annotation["segmentation"] for annotation in masks["annotations"])
    state = json.loads((scene / "my/rounds.json").read_text())
    weights = scene / "my/mask-rcnn/model_final.pth"
    written = weights.stat().st_mtime_ns

    assert main(train) == 0
    assert json.loads((scene / "my/rounds.json").read_text())["steps"].keys() == state["steps"].keys()
    assert weights.stat().st_mtime_ns == written, "what is done is skipped"

    capsys.readouterr()
    (command,) = (line.split() for line in told.splitlines() if line.startswith("  boxsup label"))
    assert str(weights) in command
    (command,) = (line.split()[1:] for line in told.splitlines() if line.startswith("  boxsup predict"))
    command[command.index("DIR")] = str(scene / "images")
    command[-1], command[command.index("drawn")] = str(scene / "found.json"), str(scene / "drawn")
    assert main([*command, "--min-score", "0", "--num-gpus", "0"]) == 0
    found = json.loads((scene / "found.coco.json").read_text())
    assert found["categories"] == [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}], "the names of the training"
    assert len(list((scene / "drawn").iterdir())) == 4
    for step in ("boxcaseg", "mask-rcnn"):
        config = ["--config", str(scene / f"my/{step}/config.yaml")]
        assert main(["label", *boxes, *config, "--out", str(scene / f"{step}.json")]) == 0
        provenance = json.loads((scene / f"{step}.json").read_text())["info"]["boxsup_d2"]
        assert provenance["checkpoint"] == f"my/{step}/model_final.pth", "the weights beside the config"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--salient", "absent"], "there is no 'absent'"),
        (["--teacher", "grabcat"], "Did you mean 'grabcut'"),
        (["--teacher", "grabcut", "--size", "full"], "--size shipped or small"),
        (["--teacher-weights", __file__], "--teacher"),
        (["--truth", __file__], "valid json"),
        (["--size", "small", "--truth", __file__], "--truth compares with a --teacher"),
        (["--salient", "."], "has no folders of images and of masks"),
        (["--salient-images", "."], "--salient-masks"),
        (["--salient", ".", "--salient-masks", "."], "both folders"),
        (["--init", "absent.pth"], "absent.pth"),
        (["--mask-rcnn-iterations", "3"], "--mask-rcnn"),
        (["--json", "absent.json"], "absent.json"),
        (["--opts", "FOO"], "in pairs KEY VALUE"),
        (["--opts", "MODEL.NOPE", "3"], "no config key MODEL.NOPE"),
    ],
)
def test_what_cannot_be_used_is_told_before_the_work(
    scene: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = ["--json", str(scene / "boxes.json"), "--images", str(scene / "images"), "--out", str(scene / "my")]
    assert main(["train", *boxes, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (scene / "my").exists()


def test_rounds_config_of_a_user_reads_well(tmp_path: Path) -> None:
    planned(tmp_path, source_of(3), "--mask-rcnn")
    text = (tmp_path / "rounds.yaml").read_text()
    assert yaml.safe_load(text)["ROUNDS"]
    assert text.startswith("# Written by `boxsup train`")
    for path in tmp_path.glob("*.yaml"):
        assert max(map(len, path.read_text().splitlines())) <= 120


@pytest.mark.parametrize(
    ("masks", "options"), [(0, ()), (0, ("--iterations", "5")), (0, ("--init", "/x/w.pth")), (4, ())]
)
def test_the_network_that_ships_learns_from_masks(tmp_path: Path, masks: int, options: tuple[str, ...]) -> None:
    """On boxes alone it is used as it is, which is said, unless it is told to learn."""
    words = ["train", "--json", "x", "--images", "y", "--out", str(tmp_path), *options]
    plan = plan_training(build_parser().parse_args(words), source_of(masks), None, str(tmp_path), 1)
    write_configs(str(tmp_path), plan, force=False)
    (step,) = load_config(str(tmp_path / "rounds.yaml")).ROUNDS[0]["STEPS"]
    as_it_is = not masks and not options
    assert step.get("EVAL_ONLY", False) == as_it_is
    assert (AS_IT_IS in plan.warnings) == as_it_is


@pytest.mark.parametrize(("size", "weights"), [("shipped", "boxmask"), ("small", "efficientnet")])
def test_a_teacher_labels_first_and_its_student_starts_from_the_masks(tmp_path: Path, size: str, weights: str) -> None:
    configs = planned(tmp_path, source_of(2), "--teacher", "grabcut", "--size", size, "--mask-rcnn")
    steps = configs["rounds"].ROUNDS[0]["STEPS"]
    assert [step["NAME"] for step in steps] == ["teacher", "boxmask", "mask-rcnn"]
    assert [step.get("PSEUDO_MASKS") for step in steps] == [None, ["teacher"], ["boxmask"]]
    assert [step.get("EVAL_ONLY", False) for step in steps] == [True, False, False]
    assert configs["teacher"].MODEL.META_ARCHITECTURE == "GrabCut"
    student = load_config(str(tmp_path / "my-boxmask.yaml"))
    assert (list(student.DATASETS.TRAIN), list(student.PSEUDO_MASKS.DATASETS)) == (["my_boxes_pseudo"], ["my_boxes"])
    assert weights in student.MODEL.WEIGHTS
    assert student.MODEL.EMA.ENABLED
    assert student.MODEL.BOXMASK.TEACHER_START_SHARE == 0.3


def test_a_teacher_may_be_a_network(tmp_path: Path) -> None:
    config, weights = tmp_path / "config.yaml", tmp_path / "model_final.pth"
    config.write_text("MODEL: {META_ARCHITECTURE: BoxMask, EMA: {ENABLED: True}}\nSOLVER: {MAX_ITER: 7}")
    weights.touch()
    for given in (config, weights):
        settings = teacher_settings(str(given), None)
        assert settings["MODEL"]["WEIGHTS"] == str(weights)
        assert settings["MODEL"]["META_ARCHITECTURE"] == "BoxMask"
        assert "SOLVER" not in settings
    with pytest.raises(BadInput, match=r"is a checkpoint already"):
        teacher_settings(str(weights), str(weights))


def test_a_student_is_compared_with_its_teacher(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = json.loads((scene / "boxes.json").read_text())
    for annotation in truth["annotations"]:
        annotation["segmentation"] = [[8, 8, 38, 8, 38, 38]]
    (scene / "truth.json").write_text(json.dumps(truth))
    boxes = ["--json", str(scene / "boxes.json"), "--images", str(scene / "images"), "--num-gpus", "0"]
    train = ["train", *boxes, "--size", "small", "--teacher", "box", "--out", str(scene / "my"), "--iterations", "2"]
    assert main([*train, "--truth", str(scene / "truth.json"), "--opts", *TINY, "INPUT.MASK_CROP.SIZE", "32"]) == 0
    told = capsys.readouterr().out
    assert "student against teacher: IoU with the truth" in told
    (line,) = (line for line in told.splitlines() if " all " in line)
    assert " 3 " in line, "the mask that was there is kept by both, and compares nothing"
    assert re.search(r" (4[6-9]|5[0-4])\.\d ", line), "of half a box"
    assert (scene / "my/boxmask/pseudo_masks/my_boxes_pseudo.json").is_file()


def test_a_truth_that_compares_nothing_is_told_before_the_work(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boxes = json.loads((scene / "boxes.json").read_text())
    train = ["train", "--json", str(scene / "boxes.json"), "--images", str(scene / "images")]
    train += ["--out", str(scene / "my")]
    for image in boxes["images"]:
        image |= {"file_name": f"other-{image['file_name']}", "id": image["id"] + 100}
    for annotation in boxes["annotations"]:
        annotation |= {"image_id": annotation["image_id"] + 100, "segmentation": [[8, 8, 38, 8, 38, 38]]}
    (scene / "truth.json").write_text(json.dumps(boxes))
    assert main([*train, "--truth", str(scene / "truth.json")]) == 2
    assert "has no mask of any box" in capsys.readouterr().err
    boxes = json.loads((scene / "boxes.json").read_text())
    for annotation in boxes["annotations"]:
        annotation.pop("segmentation", None)
    (scene / "boxes.json").write_text(json.dumps(boxes))
    assert main([*train, "--truth", str(scene / "truth.json")]) == 2
    assert "leave --truth out" in capsys.readouterr().err
    assert not (scene / "my" / "boxmask").exists()


def test_a_fine_tuned_network_is_compared_with_itself_before(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = json.loads((scene / "boxes.json").read_text())
    for annotation in truth["annotations"]:
        annotation["segmentation"] = [[8, 8, 38, 8, 38, 38]]
    (scene / "truth.json").write_text(json.dumps(truth))
    boxes = ["--json", str(scene / "boxes.json"), "--images", str(scene / "images"), "--num-gpus", "0"]
    train = ["train", *boxes, "--iterations", "1", "--out", str(scene / "my"), "--truth", str(scene / "truth.json")]
    assert main([*train, "--opts", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"]) == 0
    told = capsys.readouterr().out
    assert "after against before: IoU with the truth" in told
    (line,) = (line for line in told.splitlines() if " all " in line)
    assert " 3 " in line, "the mask that was there is kept by both, and compares nothing"
    before, after = (
        json.loads((scene / f"my/{step}/pseudo_masks/my_boxes_pseudo.json").read_text())
        for step in ("compared/before", "boxmask")
    )
    assert before["info"]["boxsup_d2"]["checkpoint_sha256"] != after["info"]["boxsup_d2"]["checkpoint_sha256"]


def test_the_network_that_ships_is_fine_tuned(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without salient images, and without a word on what boxes alone cost."""
    train = ["train", "--json", str(scene / "boxes.json"), "--images", str(scene / "images"), "--num-gpus", "0"]
    train += ["--iterations", "1", "--out", str(scene / "my"), "--opts", "SOLVER.IMS_PER_BATCH", "2"]
    assert main([*train, "DATALOADER.NUM_WORKERS", "0"]) == 0
    assert "No masks to learn from" not in capsys.readouterr().out
    masks = json.loads((scene / "my/boxmask/pseudo_masks/my_boxes_pseudo.json").read_text())
    assert all(0 <= annotation["quality"] <= 1 for annotation in masks["annotations"][1:])
    trained = torch.load(scene / "my/boxmask/model_final.pth", weights_only=True)["model"]
    shipped = load_file(resources.files("boxsup_d2") / "model_zoo/weights/boxmask.safetensors")
    name = "net.mask.weight"
    assert torch.allclose(trained[name], shipped[name].float(), atol=0.01), "it starts where the other ends"
    assert not torch.equal(trained[name], shipped[name].float())
