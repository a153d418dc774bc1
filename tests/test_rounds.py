"""The round runner with a fake step: order, state, what is redone and what is not, and runs killed for real."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog

from boxsup_d2.config import load_config
from boxsup_d2.data.datasets import register_pseudo_masks_from_cfg
from boxsup_d2.engine.defaults import default_argument_parser
from boxsup_d2.rounds import runner as rounds_module
from boxsup_d2.rounds.inputs import check_inputs, input_files
from boxsup_d2.rounds.runner import run_rounds
from boxsup_d2.rounds.state import RoundsState
from boxsup_d2.same_work import split_settings
from boxsup_d2.utils import processes

LABELLED = "voc_2012_train_box"  # registered on import, its list of images is all that is there, and never opened


class FakeStep:
    """Stands in for run_step: remembers its calls and leaves the files that a real step leaves."""

    def __init__(self):
        self.calls = []
        self.inference = {}
        self.fail_in = ""
        self.results = {"box_to_mask": {"mIoU*": 0.5}}

    def __call__(self, cfg, *, resume, eval_only):
        folder = Path(cfg.OUTPUT_DIR)
        self.calls.append((folder.name, resume, eval_only))
        self.labelled = list(cfg.PSEUDO_MASKS.DATASETS)
        self.weights = cfg.MODEL.WEIGHTS
        self.inference[folder.name] = (self.labelled, self.weights)
        assert folder.is_dir(), "the runner makes the folder"
        if folder.name == self.fail_in:
            raise RuntimeError("out of memory")
        if cfg.MODEL.WEIGHTS.endswith("model_final.pth"):
            assert os.path.exists(cfg.MODEL.WEIGHTS), "needed weights are there before the step runs"
        for path in cfg.DATASETS.PSEUDO_MASKS:
            assert os.path.exists(path)
            assert Path(path).stem in DatasetCatalog.list()
        leave_outputs(cfg, eval_only)
        return self.results

    def names(self):
        """Steps run since the last call."""
        names = [name for name, _, _ in self.calls]
        self.calls.clear()
        return names


def leave_outputs(cfg, eval_only):
    folder = Path(cfg.OUTPUT_DIR)
    if not eval_only:
        (folder / "model_final.pth").write_text(str(time.time()))
    (folder / "pseudo_masks").mkdir(exist_ok=True)
    for name in cfg.PSEUDO_MASKS.DATASETS:
        path = folder / "pseudo_masks" / f"{name}_pseudo.json"
        content = json.dumps([cfg.MODEL.BOXCASEG.TEST_THRESHOLD, cfg.PSEUDO_MASKS.CRF])
        # as the real labelling: a file of the same provenance is left alone, another one replaced as a whole
        if not path.exists() or path.read_text() != content:
            path.with_suffix(".tmp").write_text(content)
            path.with_suffix(".tmp").replace(path)


class Project:
    """A folder with a rounds config of four steps: joint -> retrain -> tune, and fill, which needs nothing."""

    def __init__(self, root: Path):
        self.root = root
        self.out = root / "out"
        self.lists = root / "data" / "VOC2012" / "ImageSets" / "Segmentation"
        self.run_step = FakeStep()
        self.write("joint.yaml", {"SOLVER": {"MAX_ITER": 10}, "PSEUDO_MASKS": {"DATASETS": [LABELLED]}})
        self.write("retrain.yaml", {"SOLVER": {"MAX_ITER": 20}, "DATASETS": {"TRAIN": [f"{LABELLED}_pseudo"]}})
        self.write("fill.yaml", {"PSEUDO_MASKS": {"DATASETS": [LABELLED]}})
        self.steps = [
            {"NAME": "joint", "CONFIG": "joint.yaml"},
            {"NAME": "fill", "CONFIG": "fill.yaml", "EVAL_ONLY": True},
            {"NAME": "retrain", "CONFIG": "retrain.yaml", "PSEUDO_MASKS": ["joint"]},
            {
                "NAME": "tune",
                "CONFIG": "retrain.yaml",
                "OPTS": ["SEED", 3],
                "WEIGHTS": "retrain",
                "PSEUDO_MASKS": "fill",
            },
        ]
        self.steps[3]["PSEUDO_MASKS"] = "fill"

    def write(self, name: str, content) -> Path:
        path = self.root / name
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    def rounds_file(self) -> Path:
        rounds = [{"NAME": "1", "STEPS": self.steps[:3]}, {"NAME": 2, "STEPS": self.steps[3:]}]
        return self.write("rounds.yaml", {"OUTPUT_DIR": str(self.out), "ROUNDS": rounds})

    def run(self, *words: str):
        args = default_argument_parser().parse_args(["--config-file", str(self.rounds_file()), *words])
        return run_rounds(load_config(args.config_file, args.opts), args)

    def state(self):
        return json.loads((self.out / "rounds.json").read_text())["steps"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    # After every step the runner looks for garbage, which takes 0.1 s in a process with all of torch in it.
    monkeypatch.setattr(rounds_module.gc, "collect", lambda: 0)
    made = Project(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    made.lists.mkdir(parents=True)
    (tmp_path / "data" / "VOC2012" / "JPEGImages").mkdir()
    for split in ("train", "val"):
        (made.lists / f"{split}.txt").write_text("2007_000032\n")
    monkeypatch.setattr(
        rounds_module, "run_step", lambda cfg, *, trainer_class, **options: made.run_step(cfg, **options)
    )
    yield made
    name = f"{LABELLED}_pseudo"
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)


def test_runs_in_order_and_hands_on_outputs(project):
    results = project.run()
    assert project.run_step.calls == [
        ("joint", False, False),
        ("fill", False, True),
        ("retrain", False, False),
        ("tune", False, False),
    ]
    assert list(results) == ["joint", "fill", "retrain", "tune"]
    assert results["joint"] == {"box_to_mask": {"mIoU*": 0.5}}
    state = project.state()
    assert all(entry["status"] == "finished" and entry["attempts"] == 1 for entry in state.values())
    assert state["joint"]["outputs"] == {
        "pseudo_masks": [f"joint/pseudo_masks/{LABELLED}_pseudo.json"],
        "weights": "joint/model_final.pth",
    }
    assert "weights" not in state["fill"]["outputs"]
    # by step name, never by path: the folder may be moved
    assert str(project.root) not in json.dumps(state)
    tune = load_config(str(project.out / "tune" / "config.yaml"))
    assert str(project.out / "retrain" / "model_final.pth") == tune.MODEL.WEIGHTS
    assert list(tune.DATASETS.PSEUDO_MASKS) == [str(project.out / f"fill/pseudo_masks/{LABELLED}_pseudo.json")]
    assert (tune.SEED, tune.PSEUDO_MASKS.STEP) == (3, "tune")


@pytest.mark.parametrize("words", [[], ["--resume"]])
def test_same_command_redoes_nothing(project, words):
    first = project.run()
    project.run_step.names()
    before = project.state()
    assert project.run(*words) == first
    assert project.run_step.names() == []
    assert project.state() == before


def test_moved_folder_is_still_done(project, tmp_path):
    project.run()
    project.run_step.names()
    project.out.rename(tmp_path / "elsewhere")
    project.run("OUTPUT_DIR", str(tmp_path / "elsewhere"))
    assert project.run_step.names() == []


def test_changed_config_redoes_it_and_what_needs_it(project):
    project.run()
    project.run_step.names()
    old = project.state()["joint"]
    weights = (project.out / "joint" / "model_final.pth").read_text()
    project.write("joint.yaml", {"SOLVER": {"MAX_ITER": 11}, "PSEUDO_MASKS": {"DATASETS": [LABELLED]}})
    project.run()
    assert project.run_step.calls == [("joint", False, False), ("retrain", False, False), ("tune", False, False)]
    # nothing is overwritten
    aside = project.out / f"joint.{old['hash'][:8]}"
    assert (aside / "model_final.pth").read_text() == weights
    assert len(list(project.out.glob("retrain.*"))) == len(list(project.out.glob("tune.*"))) == 1
    assert not list(project.out.glob("fill.*"))


def test_changed_leaf_redoes_only_itself(project):
    project.run()
    project.run_step.names()
    project.steps[3]["OPTS"] = ["SEED", 4]
    project.run()
    assert project.run_step.names() == ["tune"]


def test_overrides_go_to_every_step_but_not_output_dir(project):
    project.run("SOLVER.BASE_LR", "0.5", "OUTPUT_DIR", str(project.root / "other"))
    for name in ("joint", "tune"):
        cfg = load_config(str(project.root / "other" / name / "config.yaml"))
        assert cfg.SOLVER.BASE_LR == 0.5
        assert str(project.root / "other" / name) == cfg.OUTPUT_DIR


@pytest.mark.parametrize(
    "words",
    [
        ["MODEL.DEVICE", "cpu"],
        ["DATALOADER.NUM_WORKERS", "0", "SOLVER.CHECKPOINT_PERIOD", "7"],
        ["MODEL.BOXCASEG.TEST_CROPS_PER_FORWARD", "4"],
        ["SOLVER.MOMENTUM", "0.9"],  # the default, said aloud
    ],
)
def test_settings_that_change_no_output_redo_nothing(project, words):
    project.run()
    project.run_step.names()
    project.run(*words)
    assert project.run_step.names() == []


def test_new_evaluation_settings_only_evaluate(project):
    project.run()
    project.run_step.names()
    project.steps[2]["OPTS"] = ["TEST.DETECTIONS_PER_IMAGE", 7]
    run = project.state()["retrain"]["run"]
    project.run_step.results = {"segm": {"AP": 42.0}}
    assert project.run()["retrain"] == {"segm": {"AP": 42.0}}
    assert project.run_step.calls == [("retrain", True, True)]
    assert project.state()["retrain"]["run"] == run
    project.run()
    assert len(project.run_step.calls) == 1


def test_evaluating_again_labels_nothing_again(project):
    """Labelling a whole data set takes hours; its files and figures stay, and the step's own weights are evaluated."""
    project.run_step.results = {LABELLED: {"pseudo_masks": {"images": 3}}, "segm": {"AP": 1.0}}
    project.run()
    project.run_step.names()
    project.steps[0]["OPTS"] = ["TEST.DETECTIONS_PER_IMAGE", 7]
    project.run_step.results = {"box_to_mask": {"mIoU*": 0.6}}
    results = project.run()
    assert project.run_step.calls == [("joint", True, True)]
    assert project.run_step.labelled == []
    assert project.run_step.weights == str(project.out / "joint" / "model_final.pth")
    assert results["joint"] == {LABELLED: {"pseudo_masks": {"images": 3}}, "box_to_mask": {"mIoU*": 0.6}}


def test_precise_bn_is_training(project):
    project.run()
    project.run_step.names()
    project.steps[2]["OPTS"] = ["TEST.PRECISE_BN.ENABLED", True]
    project.run()
    assert project.run_step.names() == ["retrain", "tune"]


def test_lost_outputs_are_made_again(project):
    project.run()
    project.run_step.names()
    (project.out / "fill" / "pseudo_masks" / f"{LABELLED}_pseudo.json").unlink()
    project.run()
    assert project.run_step.calls == [("fill", True, True)]
    assert project.run_step.labelled == [LABELLED]
    project.run_step.names()
    (project.out / "retrain" / "model_final.pth").unlink()
    project.run()
    assert project.run_step.names() == ["retrain", "tune"]


# ------------------------------------------------------------------------------------------------ labelling alone
@pytest.mark.parametrize(
    ("key", "decides"),
    [
        ("MODEL.BOXCASEG.TEST_HEAD", "labelling"),
        ("MODEL.GRABCUT.ITERATIONS", "labelling"),
        ("INPUT.BOX_CROP.TEST_SIZE", "labelling"),
        ("INPUT.MIN_SIZE_TEST", "labelling"),
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "labelling"),
        ("PSEUDO_MASKS.OVERWRITE", "labelling"),
        ("INPUT.BOX_CROP.TRAIN_SIZE", "training"),
        ("MODEL.BOXCASEG.ALPHA", "training"),
        ("TEST.PRECISE_BN.ENABLED", "training"),
        ("DATASETS.TRAIN", "training"),
        ("DATASETS.TEST", "evaluation"),
        ("DATASETS.PROPOSAL_FILES_TEST", "evaluation"),
        ("TEST.AUG.ENABLED", "evaluation"),
        ("SOLVER.CHECKPOINT_PERIOD", None),
    ],
)
def test_settings_are_sorted_by_what_they_decide(key, decides):
    split = split_settings({key: 1})
    assert {name for name in ("training", "labelling", "evaluation") if getattr(split, name)} == {decides} - {None}


def test_labelling_settings_keep_the_weights(project):
    project.run()
    project.run_step.names()
    weights = (project.out / "joint" / "model_final.pth").read_text()
    before = project.state()["joint"]
    project.steps[0]["OPTS"] = ["MODEL.BOXCASEG.TEST_THRESHOLD", 0.7]
    project.run()
    assert project.run_step.calls == [("joint", True, True), ("retrain", False, False), ("tune", False, False)]
    assert project.run_step.inference["joint"] == ([LABELLED], str(project.out / "joint" / "model_final.pth"))
    assert (project.out / "joint" / "model_final.pth").read_text() == weights
    # the labels that the former retrain learnt from are still there, as is that retrain itself
    name = f"{LABELLED}_pseudo.json"
    assert (project.out / "joint" / "pseudo_masks" / name).read_text() == "[0.7, false]"
    assert (project.out / "joint" / f"pseudo_masks.{before['run'][:8]}" / name).read_text() == "[0.5, false]"
    assert len(list(project.out.glob("retrain.*"))) == 1
    assert not list(project.out.glob("joint.*"))
    after = project.state()["joint"]
    assert (after["run"], after["hash"], after["attempts"]) == (before["run"], before["hash"], 2)
    project.run_step.names()
    project.run()
    assert project.run_step.names() == []


def test_labelling_settings_of_a_step_that_only_labels(project):
    project.run()
    project.run_step.names()
    project.steps[1]["OPTS"] = ["PSEUDO_MASKS.CRF", True]
    project.run()
    assert project.run_step.calls == [("fill", True, True), ("tune", False, False)]
    assert project.run_step.inference["fill"] == ([LABELLED], "")


def test_who_uses_the_weights_alone_is_not_redone(project):
    project.steps[2] = {"NAME": "more", "CONFIG": "fill.yaml", "WEIGHTS": "joint"}
    project.steps[3] = {"NAME": "most", "CONFIG": "fill.yaml", "WEIGHTS": "more"}
    project.run()
    project.run_step.names()
    project.steps[0]["OPTS"] = ["MODEL.BOXCASEG.TEST_THRESHOLD", 0.7]
    project.run()
    assert project.run_step.names() == ["joint"]


def test_one_more_data_set_to_label_redoes_nothing_else(project):
    project.run()
    project.run_step.names()
    datasets = [LABELLED, "voc_2012_val_box"]
    project.write("joint.yaml", {"SOLVER": {"MAX_ITER": 10}, "PSEUDO_MASKS": {"DATASETS": datasets}})
    project.run()
    assert project.run_step.calls == [("joint", True, True)]
    assert project.run_step.labelled == datasets
    assert [path.name for path in (project.out / "joint").glob("pseudo_masks*")] == ["pseudo_masks"]


def test_inference_settings_of_a_step_without_labels_only_evaluate(project):
    project.run()
    project.run_step.names()
    project.steps[2]["OPTS"] = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.3]
    for _ in range(2):
        project.run()
        assert project.run_step.calls == [("retrain", True, True)]


def test_interrupted_relabelling_goes_on(project):
    project.run()
    project.steps[0]["OPTS"] = ["MODEL.BOXCASEG.TEST_THRESHOLD", 0.7]
    project.run_step.fail_in = "joint"
    with pytest.raises(RuntimeError, match="out of memory"):
        project.run()
    assert project.state()["joint"]["status"] == "relabelling"
    project.run_step.fail_in = ""
    project.run_step.names()
    with pytest.raises(RuntimeError, match=r"Step retrain is needed.*former run of joint"):
        project.run("--round", "2")
    # Back to the former settings: some files may be new already, so the labelling has to look at all of them. Here
    # none was, so what had been made from them stays.
    del project.steps[0]["OPTS"]
    project.run()
    assert project.run_step.calls == [("joint", True, True)]
    project.run()
    assert len(project.run_step.calls) == 1


# ------------------------------------------------------------------------------------------------ files of a step
@pytest.fixture
def files(project):
    """A VOC list (joint trains on it and fill labels it) and a weights file (of joint)."""
    weights = project.write("backbone.pth", "imagenet")
    project.write("joint.yaml", {"DATASETS": {"TRAIN": [LABELLED]}, "PSEUDO_MASKS": {"DATASETS": [LABELLED]}})
    project.steps[0]["OPTS"] = ["MODEL.WEIGHTS", str(weights)]
    project.run()
    assert set(project.state()["joint"]["inputs"]) == {f"{LABELLED}/train.txt", "MODEL.WEIGHTS/backbone.pth"}
    assert project.state()["retrain"]["inputs"] == {}  # what it reads comes from joint
    project.run_step.names()
    return {"list": project.lists / "train.txt", "weights": weights}


def test_other_data_is_another_training(project, files, caplog):
    files["list"].write_text("2007_000032\n2007_000039\n")
    with caplog.at_level("INFO", logger="boxsup_d2"):
        project.run()
    assert project.run_step.calls == [
        ("joint", False, False),
        ("fill", True, True),
        ("retrain", False, False),
        ("tune", False, False),
    ]
    assert f"Step joint: start ({files['list']} has another content than when the step ran)" in caplog.text
    assert len(list(project.out.glob("joint.*"))) == 1
    project.run_step.names()
    project.run()
    assert project.run_step.names() == []


def test_other_weights_to_start_from(project, files):
    files["weights"].write_text("ImageNet")  # as long as the former ones
    project.run()
    assert project.run_step.names() == ["joint", "retrain", "tune"]


def test_unfinished_step_does_not_go_on_with_other_data(project, files):
    project.steps[0]["OPTS"] += ["SEED", 1]
    project.run_step.fail_in = "joint"
    with pytest.raises(RuntimeError):
        project.run()
    files["list"].write_text("2007_000039\n")
    project.run_step.fail_in = ""
    project.run_step.names()
    project.run()
    assert project.run_step.calls[0] == ("joint", False, False)


def test_same_data_elsewhere_or_newer(project, files, monkeypatch):
    os.utime(files["list"], (1, 1))
    (project.root / "data").rename(project.root / "moved")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(project.root / "moved"))
    project.run()
    assert project.run_step.names() == []
    assert project.state()["joint"]["inputs"][f"{LABELLED}/train.txt"]["mtime_ns"] == 10**9


def test_absent_data_is_not_missed_but_told(project, files, caplog):
    before = project.state()
    files["list"].unlink()
    files["weights"].unlink()
    project.run()
    assert project.run_step.names() == []
    assert project.state() == before
    warned = [record.getMessage() for record in caplog.records if record.name == "boxsup_d2.rounds.state"]
    assert [str(files["list"]) in text for text in warned] == [True, False]  # once, though two steps know it
    assert str(files["weights"]) in warned[1]


def test_state_that_lacks_something_is_refused(project):
    project.run()
    steps = project.state()
    del steps["joint"]["hash"]
    (project.out / "rounds.json").write_text(json.dumps({"version": 1, "steps": steps}))
    with pytest.raises(ValueError, match=r"rounds\.json is damaged.*joint lacks hash.*good copy"):
        project.run()


def test_files_of_every_kind_of_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    external = tmp_path / "given_pseudo.json"
    words = ["DATASETS.TRAIN", ("coco_2017_train_box", "dut_tr_single", "given_pseudo", "made_pseudo")]
    words += ["DATASETS.PSEUDO_MASKS", (str(external), "joint/made_pseudo.json"), "MODEL.WEIGHTS", "detectron2://x.pkl"]
    words += ["PSEUDO_MASKS.DATASETS", ("voc_2007_train",)]
    cfg = load_config("", words)
    files = input_files(cfg, trains=True, from_steps=(), made={"made_pseudo"})
    assert {key: file.for_training for key, file in files.items()} == {
        "coco_2017_train_box/instances_train2017.json": True,
        "dut_tr_single/DUTS-TR-Mask-single": True,
        "dut_tr_single/DUTS-TR-Image-single": True,
        "given_pseudo/given_pseudo.json": True,
        "voc_2007_train/train.txt": False,
        "MODEL.WEIGHTS/x.pkl": True,
    }
    assert files["voc_2007_train/train.txt"].path.endswith(os.path.join("ImageSets", "Main", "train.txt"))
    assert check_inputs(files, {}).fingerprints == {}  # nothing is there, and nothing is downloaded
    images = tmp_path / "DUTS" / "DUTS-TR-Image-single"
    images.mkdir(parents=True)
    (images / "a.jpg").touch()
    external.write_text("{}")
    known = check_inputs(files, {}).fingerprints
    assert set(known) == {"dut_tr_single/DUTS-TR-Image-single", "given_pseudo/given_pseudo.json"}
    (images / "b.jpg").touch()
    assert [file.path for file in check_inputs(files, known).changed] == [str(images)]
    with_segmenter = cfg.clone()
    with_segmenter.MODEL.META_ARCHITECTURE = "LPG"
    with_segmenter.MODEL.LPG.SEGMENTER_CONFIG, with_segmenter.MODEL.LPG.SEGMENTER_WEIGHTS = "s.yaml", "s.pth"
    found = [
        set(input_files(with_segmenter, trains=True, from_steps=from_steps, made={"made_pseudo"}))
        for from_steps in ((), ("MODEL.LPG.SEGMENTER_CONFIG", "MODEL.LPG.SEGMENTER_WEIGHTS"))
    ]
    assert found[0] - found[1] == {"MODEL.LPG.SEGMENTER_CONFIG/s.yaml", "MODEL.LPG.SEGMENTER_WEIGHTS/s.pth"}
    only_labels = input_files(cfg, trains=False, from_steps=("MODEL.WEIGHTS",), made=())
    assert {key: file.for_training for key, file in only_labels.items()} == {"voc_2007_train/train.txt": False}


def test_failed_step_is_resumed(project):
    project.run_step.fail_in = "retrain"
    with pytest.raises(RuntimeError, match="out of memory"):
        project.run()
    entry = project.state()["retrain"]
    assert (entry["status"], entry["error"]) == ("failed", "RuntimeError: out of memory")
    project.run_step.fail_in = ""
    project.run_step.names()
    project.run()
    assert project.run_step.calls == [("retrain", True, False), ("tune", False, False)]
    entry = project.state()["retrain"]
    assert (entry["status"], entry["attempts"]) == ("finished", 2)
    assert "error" not in entry


def test_unfinished_step_with_another_config_is_not_resumed(project):
    project.run_step.fail_in = "retrain"
    with pytest.raises(RuntimeError):
        project.run()
    project.run_step.fail_in = ""
    project.run_step.names()
    project.write("retrain.yaml", {"SOLVER": {"MAX_ITER": 21}, "DATASETS": {"TRAIN": [f"{LABELLED}_pseudo"]}})
    project.run()
    assert project.run_step.calls == [("retrain", False, False), ("tune", False, False)]


def test_outputs_of_a_former_run_are_not_mixed_with_new_ones(project):
    """joint is redone with another config and then with its first one again: retrain's hash is the old one, but it was
    made from pseudo masks that are no longer joint's."""
    project.run()
    project.write("joint.yaml", {"SOLVER": {"MAX_ITER": 11}, "PSEUDO_MASKS": {"DATASETS": [LABELLED]}})
    project.run_step.fail_in = "retrain"
    with pytest.raises(RuntimeError):
        project.run()
    project.run_step.fail_in = ""
    project.write("joint.yaml", {"SOLVER": {"MAX_ITER": 10}, "PSEUDO_MASKS": {"DATASETS": [LABELLED]}})
    project.run_step.names()
    project.run()
    assert project.run_step.names() == ["joint", "retrain", "tune"]


def test_step_that_leaves_nothing_is_not_finished(project, monkeypatch):
    monkeypatch.setattr(project, "run_step", lambda cfg, *, resume, eval_only: {})
    with pytest.raises(RuntimeError, match=r"joint ended, but did not write .*model_final\.pth"):
        project.run()
    assert project.state()["joint"]["status"] == "running"


def test_round_runs_alone(project):
    with pytest.raises(RuntimeError, match=r"Step retrain is needed, but has to run first.*--round 1"):
        project.run("--round", "2")
    with pytest.raises(ValueError, match="no round 3; there are 1, 2"):
        project.run("--round", "3")
    assert project.run_step.names() == []
    project.run("--round", "1")
    assert project.run_step.names() == ["joint", "fill", "retrain"]
    assert list(project.run("--round", "2")) == ["tune"]
    assert project.run_step.names() == ["tune"]
    project.write("fill.yaml", {"PSEUDO_MASKS": {"DATASETS": [LABELLED]}, "SEED": 5})
    with pytest.raises(RuntimeError, match=r"Step fill is needed.*config changed: SEED default -> 5"):
        project.run("--round", "2")


def test_folder_of_unknown_origin_is_moved_aside(project):
    (project.out / "joint").mkdir(parents=True)
    (project.out / "joint" / "model_final.pth").write_text("a night's work")
    (project.out / "joint.unknown").mkdir()
    project.run()
    assert (project.out / "joint.unknown.2" / "model_final.pth").read_text() == "a night's work"


def test_results_survive_json(project):
    project.run_step.results = {"segm": {"AP": np.float32(0.5), "APs": float("nan"), "n": np.int64(3)}, "x": [1, None]}
    assert project.run()["joint"] == {"segm": {"AP": 0.5, "APs": None, "n": 3.0}, "x": [1, None]}
    assert "NaN" not in (project.out / "rounds.json").read_text()


def test_table_names_every_step(project, caplog):
    with caplog.at_level("INFO", logger="boxsup_d2"):
        project.run()
        project.run()
    table = caplog.messages[-1]
    assert all(name in table for name in ("joint", "fill", "retrain", "tune", "done before", "box_to_mask/mIoU* 0.5"))


def test_steps_have_their_own_log(project):
    project.run()
    assert (project.out / "joint" / "log.txt").exists()


def test_seed_does_not_depend_on_steps_before(project):
    drawn = {}

    def draw(cfg, *, resume, eval_only):
        drawn.setdefault(Path(cfg.OUTPUT_DIR).name, []).append(np.random.rand())
        leave_outputs(cfg, eval_only)

    project.run_step = draw
    project.run()
    (project.out / "rounds.json").unlink()
    for entry in project.steps:
        entry.setdefault("OPTS", ["SEED", 3])
    project.run()
    first, second = drawn["tune"]
    assert first == second == drawn["joint"][1]


@pytest.mark.parametrize(
    "content", ["", '{"version": 1, "steps": {"joi', '{"version": 99, "steps": {}}', "[]", '{"version": 1}']
)
def test_damaged_state_is_refused(project, content):
    project.out.mkdir()
    (project.out / "rounds.json").write_text(content)
    with pytest.raises(ValueError, match=r"rounds\.json is damaged.*delete it to start anew"):
        project.run()
    assert (project.out / "rounds.json").read_text() == content
    assert project.run_step.names() == []


def test_any_entry_of_another_type_is_refused(project):
    project.run()
    good = json.loads((project.out / "rounds.json").read_text())
    for key in good["steps"]["tune"].keys() - {"round", "started", "attempts"}:
        for value in (None, [1]):
            damaged = copy.deepcopy(good)
            damaged["steps"]["tune"][key] = value
            (project.out / "rounds.json").write_text(json.dumps(damaged))
            with pytest.raises(ValueError, match=rf"rounds\.json is damaged.*{key} of step tune is a"):
                rounds_module.RoundsState(str(project.out))


def test_state_is_whole_when_writing_it_fails(project, monkeypatch):
    project.run("--round", "1")
    before = project.state()

    def no_space(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(RuntimeError, match=r"cannot be written.*disk is full.*OUTPUT_DIR <folder>"):
        project.run()
    assert project.state() == before


def test_unwritable_folder(project):
    project.write("out", "a file where the folder should be")
    with pytest.raises(RuntimeError, match=r"out cannot be written.*OUTPUT_DIR <folder>"):
        project.run()


def test_second_run_in_the_same_folder_is_refused(project):
    project.out.mkdir()
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); "
    code += "print(1, flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(project.out / "rounds.lock")], stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with pytest.raises(RuntimeError, match="Another run is at work"):
            project.run()
        other.kill()
    project.run()


def _with(change):
    def apply(project):
        change(project.steps)

    return apply


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            _with(lambda s: s[0].update(CONFIGS="x")),
            ValueError,
            "step 1: unknown field CONFIGS; there are NAME",
        ),
        (_with(lambda s: s[0].pop("NAME")), ValueError, "NAME is missing"),
        (_with(lambda s: s[0].pop("CONFIG")), ValueError, "CONFIG is missing"),
        (_with(lambda s: s[0].update(EVAL_ONLY="no")), ValueError, "EVAL_ONLY must be bool, not 'no'"),
        (_with(lambda s: s[0].update(NAME=True)), ValueError, "NAME must be str or int, not True"),
        (_with(lambda s: s[0].update(NAME="a/b")), ValueError, "names a folder"),
        (_with(lambda s: s[0].update(OPTS=["SEED"])), ValueError, "OPTS come in pairs"),
        (_with(lambda s: s[0].update(OPTS=["SEEED", 1])), ValueError, "no config key SEEED. Did you mean SEED"),
        (_with(lambda s: s[0].update(CONFIG="no.yaml")), FileNotFoundError, r"joint.*no config file .*no\.yaml"),
        (_with(lambda s: s[1].update(NAME="joint")), ValueError, "two steps called joint"),
        (_with(lambda s: s[0].update(WEIGHTS="retrain")), ValueError, "needs step retrain, which does not come before"),
        (_with(lambda s: s[2].update(PSEUDO_MASKS=["joined"])), ValueError, "needs step joined, which does not come"),
        (_with(lambda s: s[2].update(WEIGHTS="fill")), ValueError, "WEIGHTS fill is EVAL_ONLY and leaves no weights"),
        (
            _with(lambda s: s[3].update(PSEUDO_MASKS="retrain")),
            ValueError,
            "pseudo masks of retrain, which labels",
        ),
        (_with(lambda s: s[2].pop("PSEUDO_MASKS")), ValueError, "retrain: there is no data set voc_2012_train_box_ps"),
        (
            _with(lambda s: s[2].update(OPTS=["DATASETS.TEST", ("voc_2012_val_box",), "TEST.TASKS", ("sem_seg",)])),
            ValueError,
            "step retrain: Task 'sem_seg' cannot be evaluated on 'voc_2012_val_box'",
        ),
        (_with(lambda s: s[3].update(PSEUDO_MASKS=["joint", "fill"])), ValueError, "would come from several steps"),
        (_with(lambda s: s.insert(2, "retrain")), ValueError, r"step 3: expected fields \(NAME"),
        (
            lambda p: p.write("joint.yaml", {"SOLVR": {"MAX_ITER": 1}}),
            ValueError,
            "SOLVR.MAX_ITER. Did you mean SOLVER",
        ),
        (lambda p: p.write("joint.yaml", {"ROUNDS": [{}]}), ValueError, "has ROUNDS of its own"),
    ],
)
def test_mistakes_are_found_before_anything_runs(project, change, error, message):
    change(project)
    with pytest.raises(error, match=message):
        project.run()
    assert project.run_step.names() == []


def test_a_package_that_a_late_step_needs_is_missed_before_anything_runs(project, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)  # as if it were not installed
    project.steps[3]["OPTS"] = ["PSEUDO_MASKS.CRF", True]
    with pytest.raises(ImportError, match="step tune: DenseCRF needs pydensecrf"):
        project.run()
    assert project.run_step.names() == []
    with monkeypatch.context() as installed:
        installed.setitem(sys.modules, "pydensecrf", SimpleNamespace(densecrf=None))
        project.run()
    assert project.run_step.names() != []
    project.run()
    assert project.run_step.names() == [], "where all is done nothing is needed"


def test_data_that_a_late_step_needs_are_missed_before_anything_runs(project):
    project.steps[3]["OPTS"] = ["DATASETS.TEST", ["voc_2012_val_instance"]]
    (project.lists / "val.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"step tune: Data set 'voc_2012_val_instance' expects '.*val\.txt'"):
        project.run()
    assert project.run_step.names() == []
    project.run("--round", "1")
    assert project.run_step.names() == ["joint", "fill", "retrain"], "which do not need it"
    (project.lists / "val.txt").write_text("2007_000032\n")
    project.run()
    assert project.run_step.names() == ["tune"]
    for split in ("train", "val"):
        (project.lists / f"{split}.txt").unlink()
    project.run()
    assert project.run_step.names() == [], "where all is done nothing is needed"
    project.steps[0]["OPTS"] = ["DATASETS.TEST", ["voc_2012_train_aug_box"]]
    with pytest.raises(FileNotFoundError, match=r"step joint: .*train_aug\.txt"):
        project.run()
    (project.lists / "train_aug.txt").write_text("2007_000032\n")
    project.run()
    assert project.run_step.names() == ["joint"], "what it learnt from is not needed to measure it"
    project.steps[0]["OPTS"] += ["SEED", 5]
    with pytest.raises(FileNotFoundError, match=r"step joint: .*'voc_2012_train_box' expects '.*train\.txt"):
        project.run()
    assert project.run_step.names() == []


def test_pseudo_masks_of_the_users_own_are_missed_before_anything_runs(project):
    project.steps[3]["OPTS"] = [
        "DATASETS.PSEUDO_MASKS",
        ["/nowhere/mine_pseudo.json"],
        "DATASETS.TRAIN",
        ["mine_pseudo"],
    ]
    with pytest.raises(FileNotFoundError, match=r"step tune: .*'/nowhere/mine_pseudo\.json'.*Run the labelling step"):
        project.run()
    assert project.run_step.names() == []


def test_other_keys_in_the_rounds_file_are_refused(project):
    path = project.rounds_file()
    content = yaml.safe_load(path.read_text()) | {"SEED": 1}
    project.rounds_file = lambda: project.write("rounds.yaml", content)
    with pytest.raises(ValueError, match="SEED beside ROUNDS would be ignored"):
        project.run()


def test_eval_only_is_refused(project):
    with pytest.raises(ValueError, match="EVAL_ONLY: True"):
        project.run("--eval-only")


def test_registered_pseudo_masks_follow_the_step(project):
    """Two steps label the same data set: the name always means the file of the step that is named."""
    seen = {}

    def look(cfg, *, resume, eval_only):
        leave_outputs(cfg, eval_only)
        seen[Path(cfg.OUTPUT_DIR).name] = tuple(cfg.DATASETS.PSEUDO_MASKS)
        assert register_pseudo_masks_from_cfg(cfg) == [Path(p).stem for p in cfg.DATASETS.PSEUDO_MASKS]

    project.run_step = look
    project.run()
    assert "joint" in seen["retrain"][0]
    assert "fill" in seen["tune"][0]


# ------------------------------------------------------------------------------------------------ killed for real
SLOW_RUN = """
import json, os, sys, time
import train_net
from boxsup_d2.engine.defaults import default_argument_parser
from boxsup_d2.engine.launch import launch
from detectron2.utils import comm

def slow_step(cfg, *, resume, eval_only, trainer_class):
    '''Appends MAX_ITER lines to a file, slowly; resumes by going on behind the last one.'''
    rank, folder = comm.get_rank(), cfg.OUTPUT_DIR
    path = os.path.join(folder, f"lines.{rank}")
    start = len(open(path).readlines()) if resume and os.path.exists(path) else 0
    with open(os.path.join(os.path.dirname(folder), f"calls.{rank}"), "a") as file:
        file.write(json.dumps([os.path.basename(folder), resume, start]) + "\\n")
    with open(path, "a" if resume else "w") as file:
        for line in range(start, cfg.SOLVER.MAX_ITER):
            file.write(f"{line}\\n")
            file.flush()
            time.sleep(0.02)
            if line == 40 and not resume:
                time.sleep(120)  # for the test to kill, however late it gets to it
            comm.synchronize()
    if rank == 0:
        open(os.path.join(folder, "model_final.pth"), "w").close()
    return {"box_to_mask": {"mIoU*": 0.5}} if rank == 0 else {}

import boxsup_d2.rounds.runner
boxsup_d2.rounds.runner.run_step = slow_step
if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    launch(train_net.main, args.num_gpus, dist_url="auto", args=(args,))
"""


def _children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(word) for word in found.split()]


def _wait_for(condition, seconds=200.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] == "Z"  # dead, but not yet reaped by whoever adopted it


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_run_goes_on(tmp_path, project_root, processes):
    """SIGKILL in the middle of the second of three steps; the same command does the rest, and only the rest."""
    script = tmp_path / "slow_run.py"
    script.write_text(SLOW_RUN)
    for name, iterations in (("first", 5), ("second", 60), ("third", 5)):
        (tmp_path / f"{name}.yaml").write_text(f"SOLVER: {{MAX_ITER: {iterations}}}\n")
    steps = [{"NAME": name, "CONFIG": f"{name}.yaml"} for name in ("first", "second", "third")]
    steps[1]["WEIGHTS"] = "first"
    rounds = tmp_path / "rounds.yaml"
    rounds.write_text(yaml.safe_dump({"ROUNDS": [{"NAME": "all", "STEPS": steps}]}))
    out = tmp_path / "out"
    command = [sys.executable, str(script), "--config-file", str(rounds), "--num-gpus", str(processes)]
    command += ["OUTPUT_DIR", str(out)]
    environment = os.environ | {"PYTHONPATH": str(project_root), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

    lines = [out / "second" / f"lines.{rank}" for rank in range(processes)]
    log = tmp_path / "log"
    with (
        log.open("w") as file,
        subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=file, stderr=file) as run,
    ):
        _wait_for(lambda: run.poll() is not None or all(p.exists() and len(p.read_text()) > 40 for p in lines))
        assert run.poll() is None, f"ended before it could be killed: {log.read_text()[-2000:]}"
        workers = _children(run.pid)
        run.send_signal(signal.SIGKILL)
    _wait_for(lambda: all(_gone(pid) for pid in workers), 30)  # no orphans that go on writing
    state = json.loads((out / "rounds.json").read_text())["steps"]
    assert {name: entry["status"] for name, entry in state.items()} == {"first": "finished", "second": "running"}
    written = [len(path.read_text().split()) for path in lines]
    assert all(10 < count < 60 for count in written)

    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    state = json.loads((out / "rounds.json").read_text())["steps"]
    assert [entry["status"] for entry in state.values()] == ["finished"] * 3
    assert [entry["attempts"] for entry in state.values()] == [1, 2, 1]
    for rank, path in enumerate(lines):
        calls = [json.loads(line) for line in (out / f"calls.{rank}").read_text().splitlines()]
        assert calls == [
            ["first", False, 0],
            ["second", False, 0],
            ["second", True, written[rank]],
            ["third", False, 0],
        ]
        assert path.read_text().split() == [str(line) for line in range(60)]
    assert done.stdout.count("No GPU is available") == 1
    assert "third" in done.stdout.rsplit("Rounds in", 1)[1]


def test_ranks_follow_rank_0(monkeypatch):
    """What rank 0 raises is raised everywhere; what it finds is found everywhere (here: by a rank that is not 0)."""
    monkeypatch.setattr(processes.comm, "is_main_process", lambda: False)
    monkeypatch.setattr(processes.comm, "all_gather", lambda mine: [("found", None), mine])
    assert processes.run_on_main(lambda: pytest.fail("ran on rank 1")) == "found"
    monkeypatch.setattr(processes.comm, "all_gather", lambda mine: [(None, RuntimeError("disk full")), mine])
    with pytest.raises(RuntimeError, match="disk full"):
        processes.run_on_main(lambda: None)


def test_state_without_a_file(tmp_path):
    state = RoundsState(str(tmp_path / "new"))
    assert state.steps == {}
    state.write()
    assert RoundsState(str(tmp_path / "new")).steps == {}
