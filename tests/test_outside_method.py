"""A method is one folder and a config: one from outside trains, is chained, labels and is found by name."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

# Runs in a process of its own, since a method that is registered once stays. Prints what each run did as json.
SCRIPT = """
import json, os, sys
import numpy as np
import boxsup_d2
from boxsup_cli import main as boxsup
from boxsup_d2.engine.defaults import default_argument_parser
from detectron2.modeling import META_ARCH_REGISTRY
import train_net

outside = META_ARCH_REGISTRY.get("Outside")
folder = sys.argv[1]
told = {}

def run(name, *words):
    before = outside.labelled
    arguments = ["--config-file", f"{folder}/rounds.yaml", "OUTPUT_DIR", f"{folder}/out", *words]
    train_net.main(default_argument_parser().parse_args(arguments))
    told[name] = {
        "labelled": outside.labelled - before,
        "weights": [os.stat(f"{folder}/out/{step}/model_final.pth").st_mtime_ns for step in ("first", "second")],
    }

run("first")
run("again")
run("batch size", "MODEL.OUTSIDE.AT_ONCE", "7")
run("threshold", "MODEL.OUTSIDE.CUT", "0.9")
run("channels", "MODEL.OUTSIDE.CHANNELS", "5")
weights = f"{folder}/out/second/model_final.pth"
told["exit"] = boxsup(
    ["label", "--json", f"{folder}/boxes.json", "--images", f"{folder}/images", "--method", "outside",
     "--weights", weights, "--out", f"{folder}/masks.json", "--device", "cpu"]
)
model = boxsup_d2.load("outside", weights, device="cpu")
prediction = model.predict(np.full((40, 60, 3), 200, np.uint8), [[5, 5, 30, 30]])
told["shape"] = list(prediction.masks.shape)
print(json.dumps(told))
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH that holds the module and the metadata of an installed distribution."""
    site = tmp_path / "site"
    info = site / "outside_method-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("outside_method.py"), site)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-method\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[boxsup_d2.methods]\noutside = outside_method\n")
    return site


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Boxes, images, and a rounds config of two steps that train the method, the second from the first's weights."""
    (tmp_path / "images").mkdir()
    random = np.random.default_rng(0)
    data: dict = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    for key in (1, 2, 3):
        cv2.imwrite(str(tmp_path / f"images/{key}.png"), random.integers(0, 255, (40, 60, 3), np.uint8))
        data["images"].append({"id": key, "file_name": f"{key}.png", "height": 40, "width": 60})
        data["annotations"].append({"id": key, "image_id": key, "category_id": 1, "bbox": [5, 6, 30, 20]})
    (tmp_path / "boxes.json").write_text(json.dumps(data))
    config = {
        "MODEL": {"META_ARCHITECTURE": "Outside", "DEVICE": "cpu"},
        "INPUT": {"TRAIN_MAPPER": "BoxCropDatasetMapper", "BOX_CROP": {"TRAIN_SIZE": 32, "SALIENT_SIZE": 32}},
        "DATASETS": {"TRAIN": ["outside_test_boxes"], "TEST": []},
        "DATALOADER": {"NUM_WORKERS": 0},
        "PSEUDO_MASKS": {"DATASETS": ["outside_test_boxes"], "REPORT_IMAGES": 0},
        "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 2},
        "TEST": {"TASKS": ["box_to_mask"]},
        "SEED": 1,
    }
    (tmp_path / "outside.yaml").write_text(yaml.safe_dump(config))
    steps = [
        {"NAME": "first", "CONFIG": "outside.yaml"},
        {"NAME": "second", "CONFIG": "outside.yaml", "WEIGHTS": "first"},
    ]
    registered = {
        "NAME": "outside_test_boxes",
        "JSON": str(tmp_path / "boxes.json"),
        "IMAGES": str(tmp_path / "images"),
    }
    rounds = {"DATASETS": {"REGISTER": [registered]}, "ROUNDS": [{"NAME": "1", "STEPS": steps}]}
    (tmp_path / "rounds.yaml").write_text(yaml.safe_dump(rounds))
    return tmp_path


def test_method_from_outside_is_a_method_like_ours(installed: Path, project: Path, project_root: Path) -> None:
    path = os.pathsep.join([str(installed), str(project_root)])
    environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(project)],
        env=environment,
        cwd=project,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    first = told["first"]
    assert first["labelled"] == 6, "three images in each of two steps"
    assert told["again"] == {**first, "labelled": 0}
    assert told["batch size"] == {**first, "labelled": 0}, "a neutral key does nothing"
    assert told["threshold"] == first, "an inference key labels anew and trains nothing"
    assert told["channels"]["labelled"] == 6
    assert all(new != old for new, old in zip(told["channels"]["weights"], first["weights"], strict=True))
    assert told["exit"] == 0
    labelled = json.loads((project / "masks.json").read_text())
    assert all(annotation["segmentation"]["counts"] for annotation in labelled["annotations"])
    assert labelled["info"]["boxsup_d2"]["method"] == "Outside"
    assert told["shape"] == [1, 40, 60]


def test_plugin_that_fails_is_told_and_left_out(installed: Path, project_root: Path) -> None:
    (installed / "outside_method.py").write_text("import no_such_package\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), str(project_root)])}
    code = "import boxsup_d2; from boxsup_d2.methods import methods; print(*methods())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "outside_method' cannot be used (ModuleNotFoundError: No module named 'no_such_package')" in done.stderr
    assert done.stdout.split()[:2] == ["box", "grabcut"]


def test_no_file_of_the_package_names_it(project_root: Path) -> None:
    for path in (project_root / "boxsup_d2").rglob("*.py"):
        assert "outside_method" not in path.read_text().lower(), path
        assert "model.outside" not in path.read_text().lower(), path
