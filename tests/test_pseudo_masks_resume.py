"""Labelling with several processes, killed and resumed: always one and the same file."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from detectron2.modeling import build_model
from detectron2.utils import comm
from test_labelling import NAME, labelled, make_cfg, make_source

from boxsup_d2.data.datasets import register_coco_boxes
from boxsup_d2.data.formats.pseudo_masks import read_pseudo_masks
from boxsup_d2.labelling.driver import label_datasets, pseudo_mask_path


def worker(jobs: list[tuple[str, str, float]]) -> None:
    """Runs in every process: label the source in each folder into another one, at so many seconds per image.

    Folders whose name ends in "sem_seg" get label maps.
    """
    for folder, output, delay in jobs:
        register_coco_boxes(NAME, f"{folder}/boxes.json", f"{folder}/images")
        os.makedirs(output, exist_ok=True)
        cfg = make_cfg(Path(output))
        cfg.PSEUDO_MASKS.FORMAT = "sem_seg" if output.endswith("sem_seg") else "instances"
        model = build_model(cfg)
        model.log, model.delay = f"{output}/log.{comm.get_rank()}", delay
        results = label_datasets(cfg, model)
        Path(f"{output}/results.{comm.get_rank()}").write_text(json.dumps(results))


def without_date(path: str) -> str:
    """The file's text; the date is all that may differ between two runs."""
    data = read_pseudo_masks(path)
    date = data["info"]["boxsup_d2"]["date"]
    return Path(path).read_text().replace(date, "DATE")


def label_until_killed(folder: Path, output: Path, images: int) -> Path:
    """Label in a process of its own, and kill it when so many images are done; returns its shard."""
    code = f"import test_pseudo_masks_resume as t; t.worker([({str(folder)!r}, {str(output)!r}, 0.4)])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent, env=environment)
    try:
        deadline = time.monotonic() + 120
        done = 0
        while done < images:
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline, "it labels nothing"
            time.sleep(0.02)
            shards = list(output.glob("step/pseudo_masks/*.partial/*/*.jsonl"))
            done = shards[0].read_text().count("\n") if shards else 0
    finally:
        process.kill()
        process.wait()
    return shards[0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, in_two_processes) -> dict[str, Any]:
    """All that needs several processes, in one launch: starting them is what takes long."""
    root = tmp_path_factory.mktemp("runs")
    make_source(root / "one_image", images=2)
    make_source(root / "source")
    labelled(make_cfg(root / "one"))
    shard = label_until_killed(root / "source", root / "killed", images=3)
    done = [json.loads(line)["image_id"] for line in shard.read_text().splitlines()]
    with open(shard, "a") as file:  # as a kill in the middle of a write leaves it
        file.write('{"image_id": 93, "masks": [[')
    (root / "killed" / "log.0").unlink()
    folders = (("source", "two"), ("source", "killed"), ("one_image", "idle"), ("source", "two_sem_seg"))
    worker([(str(root / "source"), str(root / "one_sem_seg"), 0.0)])
    in_two_processes(worker, [(str(root / source), str(root / output), 0.0) for source, output in folders])

    def read_log(path: Path) -> list[int]:
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    return {"root": root, "done": done} | {
        name: [read_log(root / name / f"log.{rank}") for rank in range(2)] for _, name in folders
    }


def file_of(runs: dict[str, Any], name: str) -> str:
    return pseudo_mask_path(str(runs["root"] / name / "step"), NAME)


def test_two_processes_write_the_file_of_one(runs):
    assert without_date(file_of(runs, "two")) == without_date(file_of(runs, "one"))
    assert [len(share) for share in runs["two"]] == [3, 3]
    assert not set(runs["two"][0]) & set(runs["two"][1])
    results = [json.loads((runs["root"] / "two" / f"results.{rank}").read_text()) for rank in range(2)]
    metrics = [result[NAME]["pseudo_masks"] for result in results]
    assert all(metric.pop("seconds") > 0 for metric in metrics)
    assert metrics[0] == metrics[1]


def test_killed_and_resumed_with_other_ranks_gives_the_same_file(runs):
    assert 3 <= len(runs["done"]) < 6
    redone = runs["killed"][0] + runs["killed"][1]
    assert sorted(redone + runs["done"]) == [93, 94, 95, 97, 98, 99], "every image once"
    assert without_date(file_of(runs, "killed")) == without_date(file_of(runs, "one"))
    assert os.listdir(os.path.dirname(file_of(runs, "killed"))) == [f"{NAME}_pseudo.json"]


def test_rank_without_images_takes_part(runs):
    assert runs["idle"] == [[99], []]
    assert len(read_pseudo_masks(file_of(runs, "idle"))["annotations"]) == 1


def test_two_processes_write_the_label_maps_of_one(runs):
    folders = [runs["root"] / name / "step" / "pseudo_masks" for name in ("one_sem_seg", "two_sem_seg")]
    one, two = ({path.name: path.read_bytes() for path in folder.glob("*/*")} for folder in folders)
    assert len(one) == 8
    assert one == two
    manifests = [json.loads((folder / f"{NAME}_pseudo_sem_seg.json").read_text()) for folder in folders]
    for manifest in manifests:
        del manifest["info"]["boxsup_d2"]["date"]
        del manifest["info"]["boxsup_d2"]["config_name"]
    assert manifests[0] == manifests[1]
    assert [len(share) for share in runs["two_sem_seg"]] == [3, 3]
