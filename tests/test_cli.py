"""The command ``boxsup``: what people type, what they are told, and that nothing of their data is lost."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_util
from rich.console import Console
from torch.multiprocessing import ProcessRaisedException

from boxsup_cli import console as command_console
from boxsup_cli import main
from boxsup_cli.errors import BadInput, exit_code_of
from boxsup_cli.label_job import LabelJob, check_classes, job_config, request_of
from boxsup_cli.main import build_parser
from boxsup_d2.checkpoint.formats import known_formats
from boxsup_d2.data.datasets.provenance import find_image_root
from boxsup_d2.data.formats import folders
from boxsup_d2.methods import DEFAULT_METHOD, methods
from boxsup_d2.modeling.baselines.meta_arch import BoxFill
from boxsup_d2.utils import files, progress
from boxsup_d2.utils.errors import message_of

COMMANDS = ("label", "train", "predict", "eval", "report", "tighten", "serve", "export", "convert")

# A method that is slow enough to be killed, and notes the images that it was asked about.
SLOW = """
import os, sys, time
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances

@META_ARCH_REGISTRY.register()
class SlowBoxToMask(torch.nn.Module):
    def __init__(self, cfg):
        super().__init__()

    def forward(self, batched_inputs):
        predictions = []
        for item in batched_inputs:
            time.sleep(float(os.environ.get("DELAY", 0)))
            with open(os.environ["LOG"], "a") as file:
                file.write(f"{item['image_id']}\\n")
            boxes = item["instances"].gt_boxes.tensor
            masks = torch.zeros((len(boxes), *item["image"].shape[1:]), dtype=torch.bool)
            for mask, (x0, y0, x1, y1) in zip(masks, boxes.long().tolist()):
                mask[y0:y1, x0:x1] = item["image"][0, y0:y1, x0:x1] > 100
            predictions.append({"instances": Instances(tuple(item["image"].shape[1:]), pred_masks=masks)})
        return predictions

if __name__ == "__main__":
    from boxsup_cli import main
    sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    """``boxes.json`` with everything that has to survive, and ``images/`` of eight images."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    source: dict[str, Any] = {
        "info": {"year": 2024},
        "own": {"x": [1]},
        "images": [],
        "annotations": [],
        "categories": [{"id": 7, "name": "cat", "colour": "red"}],
    }
    for number in range(8):
        image_id = 90 - number
        pixels = rng.integers(0, 200, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{image_id}.png")
        source["images"].append(
            {"id": image_id, "height": 40, "width": 60, "file_name": f"{image_id}.png", "taken_by": "me"}
        )
        source["annotations"].append(
            {"id": 500 - number, "image_id": image_id, "category_id": 7, "bbox": [5.5, 4, 30, 20 + number]}
            | {"iscrowd": 0, "track": number}
        )
    source["annotations"][3]["segmentation"] = [[6, 5, 20, 5, 20, 20]]
    crowd = {"id": 1, "image_id": 88, "category_id": 7, "iscrowd": 1, "bbox": [0, 0, 9, 9], "area": 5}
    source["annotations"].insert(1, crowd | {"segmentation": {"size": [40, 60], "counts": [2300, 50, 50]}})
    (tmp_path / "boxes.json").write_text(json.dumps(source))
    return source


def label(folder: Path, *options: str, method: str = "box", out: str = "masks.json") -> int:
    """``boxsup label`` on the data of the fixture, in this process."""
    chosen = ["--method", method] if method else []
    arguments = ["--json", str(folder / "boxes.json"), "--images", str(folder / "images"), "--num-gpus", "0"]
    return main(["label", *arguments, *chosen, "--out", str(folder / out), *options])


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


# ------------------------------------------------------------------------------------------------- the parser
@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert f"usage: boxsup {command}" in text
    assert f"$ boxsup {command}" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["label", "--json", "x", "--images", "x", "--methd", "box"],
            "label: error: .*--methd box. Did you mean --method",
        ),
        (["predict", "my", "photos", "--polygons"], "predict: error: unrecognized arguments: --polygons$"),
        (["--bogus"], "boxsup: error: unrecognized arguments: --bogus$"),
    ],
)
def test_unknown_options_are_told_by_their_command(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert re.search(message, capsys.readouterr().err.strip())


def test_module_and_function_are_one_program() -> None:
    run = subprocess.run([sys.executable, "-m", "boxsup_d2", "--version"], capture_output=True, text=True, timeout=60)
    assert run.stdout.startswith("boxsup_d2 ")


def test_methods_and_forms_describe_themselves(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_console, "output", Console(width=200))
    assert main(["models"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [line.split()[1] for line in lines] == list(methods())
    for line, method in zip(lines, methods().values(), strict=True):
        assert method.info.summary in line
        assert ("--weights" in line) == (bool(method.info.weights_key) and not method.info.weights)
        assert method.info.extra in line
    with pytest.raises(SystemExit, match="0"):
        main(["label", "--help"])
    assert f"(default: {DEFAULT_METHOD}," in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit, match="0"):
        main(["convert", "--forms"])
    assert capsys.readouterr().out.splitlines() == [form.name for form in known_formats()]


def test_every_option_says_what_it_does() -> None:
    (subparsers,) = (action for action in build_parser()._actions if action.choices)
    for name, parser in subparsers.choices.items():
        for action in parser._actions:
            assert action.help, f"{name} {action.option_strings}"


@pytest.mark.parametrize(
    "arguments",
    [
        ["label"],
        ["label", "--json", "a"],
        ["label", "--json", "a", "--yolo", "b", "--images", "c"],
        ["train", "--json", "a", "--images", "b", "--iterations", "0"],
        ["label", "--json", "a", "--images", "b", "--workers", "-1"],
        ["label", "--json", "a", "--images", "b", "--min-quality", "1.1"],
        ["nothing"],
    ],
)
def test_bad_usage_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_no_command_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "boxsup label" in capsys.readouterr().err


def test_error_of_another_process_is_told_as_it_was_raised() -> None:
    ProcessRaisedException = type("ProcessRaisedException", (Exception,), {})
    text = (
        "\n\n-- Process 1 terminated with the following error:\nTraceback (most recent call last):\n"
        '  File "x.py", line 1, in f\n    raise KeyError\nKeyError: 3\n\nDuring handling of the above exception, '
        "another exception occurred:\n\nTraceback (most recent call last):\n"
        '  File "y.py", line 2, in g\n    raise ValueError(s)\n'
        "ValueError: 'a.png' is damaged: replace it.\n"
    )
    assert message_of(ProcessRaisedException(text)) == "'a.png' is damaged: replace it."
    assert message_of(ValueError("plain")) == "plain"


class _Damaged(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        raise ValueError("'a.png' is damaged: replace it.")


def _fail_in_a_worker() -> None:
    list(torch.utils.data.DataLoader(_Damaged(), num_workers=1))


def _fail_in_a_worker_of_a_rank() -> None:
    try:
        _fail_in_a_worker()
    except ValueError:  # as the launcher wraps it
        text = f"\n\n-- Process 1 terminated with the following error:\n{traceback.format_exc()}"
        raise ProcessRaisedException(text, 1, 7) from None


def test_error_of_a_worker_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for run in (_fail_in_a_worker, _fail_in_a_worker_of_a_rank):
        assert exit_code_of("program", run, debug=False) == 1
        assert capsys.readouterr().err == "program: error: 'a.png' is damaged: replace it.\n"


def test_errors_end_in_a_line_and_a_code(capsys: pytest.CaptureFixture[str]) -> None:
    killed = type("ProcessExitedException", (Exception,), {})("process 1 terminated with signal SIGKILL")
    for error, code, line in (
        (killed, 1, "program: error: A process of this run died (process 1 terminated with signal SIGKILL)."),
        (BadInput("two\nlines"), 2, "program: error: two lines\n"),
        (FloatingPointError("Loss became infinite"), 1, "program: error: Loss became infinite"),
        (KeyError("x"), 1, "program: unexpected KeyError: 'x' (a mistake in boxsup_d2"),
        (KeyboardInterrupt(), 130, "Interrupted."),
    ):

        def work(error: BaseException = error) -> None:
            raise error

        assert exit_code_of("program", work, debug=False) == code
        assert (told := capsys.readouterr().err).startswith(line)
        assert told.count("\n") == 1
    with pytest.raises(KeyError):
        exit_code_of("program", {}.popitem, debug=True)


def test_interrupt_while_the_package_is_imported_is_quiet(tmp_path: Path, project_root: Path) -> None:
    """As both commands begin."""
    (tmp_path / "slow.py").write_text(
        "import boxsup_cli.entry, sys, time\nprint('importing', flush=True)\ntime.sleep(60)\n"
        "sys.exit(boxsup_cli.entry.main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(project_root)}
    command = [sys.executable, str(tmp_path / "slow.py")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"importing\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == (b"", b"")
        assert process.returncode == 130


# ------------------------------------------------------------------------------------------------- label
def test_nothing_of_the_json_is_lost(tmp_path: Path, data: dict[str, Any]) -> None:
    assert label(tmp_path) == 0
    result = read(tmp_path / "masks.json")
    for key in ("own", "images", "categories"):
        assert result[key] == data[key]
    assert result["info"]["year"] == 2024
    assert [a["id"] for a in result["annotations"]] == [a["id"] for a in data["annotations"]]
    for annotation, former in zip(result["annotations"], data["annotations"], strict=True):
        if former["iscrowd"]:
            assert annotation == former
            continue
        assert {key: annotation[key] for key in former} == former, "fields that were there are as they were"
        assert annotation["segmentation"]
        assert 0 <= annotation["confidence"] <= 1
    assert result["annotations"][4]["confidence"] == 1, "a mask that was there is kept"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["boxes.json", "images", "masks.json"]


def test_masks_that_are_there_can_be_overwritten(tmp_path: Path, data: dict[str, Any]) -> None:
    assert label(tmp_path, "--overwrite-masks") == 0
    assert read(tmp_path / "masks.json")["annotations"][4]["segmentation"] != data["annotations"][4]["segmentation"]


def test_default_is_the_network_that_ships_and_fast_is_another_labelling(
    tmp_path: Path, data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Not compared by speed: times belong to benchmarks."""
    plain = ["label", "--json", str(tmp_path / "boxes.json"), "--images", str(tmp_path / "images"), "--device", "cpu"]
    requests = []
    for name, options in (("default.json", []), ("fast.json", ["--fast"]), ("best.json", ["--best"])):
        assert main([*plain, "--out", str(tmp_path / name), *options]) == 0
        provenance = read(tmp_path / name)["info"]["boxsup_d2"]
        assert provenance["method"] == methods()[DEFAULT_METHOD].__name__
        assert provenance["checkpoint"].startswith("package://boxsup_d2/"), "no path of this machine"
        requests.append(provenance["request"])
    assert len({request["config_sha256"] for request in requests}) == 3
    assert label(tmp_path, "--fast") == 2
    assert f"'box' has no such setting; there is one of: {DEFAULT_METHOD}" in capsys.readouterr().err


def test_masks_of_low_quality_deserve_a_look_and_can_stay_boxes(
    tmp_path: Path, data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Filled boxes have a quality of 0.55."""
    assert label(tmp_path) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "7 masks deserve a look (quality below 0.7): boxsup report" in told
    assert f"--images {tmp_path / 'images'}" in told
    masks = read(tmp_path / "masks.json")

    assert label(tmp_path, "--min-quality", "0.6") == 2, "another output"
    assert "other --min-quality" in " ".join(capsys.readouterr().err.split())
    assert label(tmp_path, "--min-quality", "0.6", "--png", str(tmp_path / "png"), out="boxes_left.json") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "0 masks on 7 images, 7 boxes left without one" in told
    assert "deserve" not in told, "the masks that stayed are good ones"
    result = read(tmp_path / "boxes_left.json")
    assert result["info"]["boxsup_d2"]["summary"]["left_as_boxes"] == 7
    for annotation, former, mask in zip(result["annotations"], data["annotations"], masks["annotations"], strict=True):
        if "segmentation" in former:  # a crowd region, a mask that was there
            assert annotation == mask
        else:
            area = former["bbox"][2] * former["bbox"][3]
            assert annotation == {**former, "area": area, "quality": 0.55}
    assert len(list((tmp_path / "png").rglob("*.png"))) == 1

    # What has a mask stays as it is, unless it is labelled anew; a lower limit takes nothing away.
    assert label(tmp_path, "--min-quality", "0.6", "--overwrite-masks", out="none.json") == 0
    assert not any("segmentation" in a for a in read(tmp_path / "none.json")["annotations"] if not a["iscrowd"])
    assert label(tmp_path, "--min-quality", "0.5", out="all.json") == 0
    assert read(tmp_path / "all.json")["annotations"] == masks["annotations"]
    assert label(tmp_path, "--min-quality", "0.5", out="all.json") == 0
    assert "is done" in capsys.readouterr().out


def test_finished_output_is_left_alone_and_others_are_refused(
    tmp_path: Path, data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert label(tmp_path) == 0
    before = (tmp_path / "masks.json").read_bytes()
    capsys.readouterr()
    assert label(tmp_path) == 0
    assert "is done" in capsys.readouterr().out
    assert (tmp_path / "masks.json").read_bytes() == before

    assert label(tmp_path, method="grabcut") == 2
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "masks.json").read_bytes() == before
    assert label(tmp_path, "--force", method="grabcut") == 0
    assert read(tmp_path / "masks.json")["info"]["boxsup_d2"]["method"] == "GrabCut"

    assert label(tmp_path, "--force", out="boxes.json") == 2, "the input is never an output"
    assert read(tmp_path / "boxes.json") == data
    (tmp_path / "masks.json").write_text("mine")
    assert label(tmp_path) == 2
    assert (tmp_path / "masks.json").read_text() == "mine"


def test_mistakes_stop_the_work_or_are_left_out(
    tmp_path: Path, data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    good = [a["id"] for a in data["annotations"] if not a["iscrowd"]]
    wrong = [
        {"id": 500, "image_id": 90, "category_id": 7, "bbox": [1, 1, 2], "why": "no box"},
        {"id": 600, "image_id": 90, "category_id": 99, "bbox": [1, 1, 5, 5]},
        {"id": 601, "image_id": 4711, "category_id": 7, "bbox": [1, 1, 5, 5]},
        {"id": 602, "image_id": 91, "category_id": 7, "bbox": [1, 1, 5, 5]},
    ]
    data["annotations"] = [wrong[0], *data["annotations"], *wrong[1:]]
    data["images"].append({"id": 91, "height": 40, "width": 60, "file_name": "gone.png"})
    (tmp_path / "boxes.json").write_text(json.dumps(data))
    assert label(tmp_path) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "gone.png" in told
    assert "unknown categories" in told
    assert "--keep-going" in told
    assert not (tmp_path / "masks.json").exists()
    assert not list(tmp_path.glob("*.work")), "nothing was begun"

    assert label(tmp_path, "--keep-going") == 0
    result = read(tmp_path / "masks.json")
    assert [a["id"] for a in result["annotations"]] == [a["id"] for a in data["annotations"]]
    for annotation, former in zip(result["annotations"], data["annotations"], strict=True):
        labelled = former["id"] in good and former not in wrong
        assert ("confidence" in annotation) == labelled
        assert labelled or annotation == former
    assert result["images"] == data["images"]
    capsys.readouterr()
    assert label(tmp_path, "--keep-going") == 0
    assert "is done" in capsys.readouterr().out
    (tmp_path / "images" / "gone.png").write_bytes((tmp_path / "images" / "90.png").read_bytes())
    assert label(tmp_path, "--keep-going", "--force") == 0, "the image is back: there is more to do"
    assert read(tmp_path / "masks.json")["annotations"][-1]["segmentation"]


def test_sizes_and_ids_are_filled_in(tmp_path: Path, data: dict[str, Any]) -> None:
    del data["images"][0]["height"], data["annotations"][0]["id"]
    (tmp_path / "boxes.json").write_text(json.dumps(data))
    assert label(tmp_path) == 0
    result = read(tmp_path / "masks.json")
    assert result["images"][0] == {**data["images"][0], "height": 40}
    assert isinstance(result["annotations"][0]["id"], int)
    assert result["annotations"][0]["segmentation"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--json", "absent.json"], "absent.json"),
        (["--images", "absent"], "absent"),
        (["--opts", "MODEL.NOTHING", "1"], "MODEL.NOTHING"),
        (["--weights", "absent.pth"], "absent.pth"),
        (["--method", "boxcaseq"], "boxcaseq"),
    ],
)
def test_what_is_missing_is_named_in_one_line(
    tmp_path: Path, data: dict[str, Any], options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label(tmp_path, *options) == 2  # of an option that is given twice, the last one counts
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert "Traceback" not in error


def test_damaged_behind_its_header_is_skipped_and_no_nan_is_written(
    tmp_path: Path, data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "images" / "90.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    data["annotations"][-1] |= {"score": float("nan"), "id": data["annotations"][0]["id"]}  # its entry gets an id
    (tmp_path / "boxes.json").write_text(json.dumps(data))
    assert label(tmp_path, "--keep-going") == 0
    result = json.loads((tmp_path / "masks.json").read_text(), parse_constant=pytest.fail)
    assert "segmentation" not in result["annotations"][0], "of the damaged image"
    assert result["annotations"][-1]["score"] is None
    assert result["annotations"][-1]["segmentation"]
    out = ["--images", str(tmp_path / "images"), "--out", str(tmp_path / "page.html")]
    (tmp_path / "images" / "89.png").unlink()
    assert main(["report", str(tmp_path / "masks.json"), *out]) == 2
    assert main(["report", str(tmp_path / "masks.json"), *out, "--keep-going"]) == 0
    assert main(["report", str(tmp_path / "masks.json"), "--images", str(tmp_path / "nowhere")]) == 2
    assert "there is no '" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["pipe", "device", "absolute", "above", "link"])
def test_only_files_in_the_folder_are_images(
    tmp_path: Path, data: dict[str, Any], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images" / "90.png").rename(tmp_path / "away.png")
    if kind == "pipe":
        os.mkfifo(tmp_path / "images" / "90.png")
    elif kind == "device":
        (tmp_path / "images" / "90.png").symlink_to("/dev/zero")
    elif kind == "link":
        (tmp_path / "images" / "90.png").symlink_to(tmp_path / "away.png")
    else:
        data["images"][0]["file_name"] = str(tmp_path / "away.png") if kind == "absolute" else "../away.png"
        (tmp_path / "boxes.json").write_text(json.dumps(data))
    assert label(tmp_path) == 2
    assert ("--outside-images" in capsys.readouterr().err) == (kind != "pipe")
    assert label(tmp_path, "--outside-images") == (2 if kind in ("pipe", "device") else 0)
    if kind in ("pipe", "device"):
        return
    page = ["report", str(tmp_path / "masks.json"), "--images", str(tmp_path / "images")]
    capsys.readouterr()
    assert main([*page, "--out", str(tmp_path / "a.html")]) == 2
    assert "outside of" in capsys.readouterr().err
    assert main([*page, "--out", str(tmp_path / "a.html"), "--keep-going"]) == 0
    assert main([*page, "--out", str(tmp_path / "b.html"), "--outside-images"]) == 0
    grey, shown = ((tmp_path / name).read_text() for name in ("a.html", "b.html"))
    assert "images outside of their folder" in grey
    assert len(grey) < len(shown)
    assert str(tmp_path) not in grey + shown, "a page that is sent on tells nothing of this machine"


def test_full_disk_names_the_export(
    tmp_path: Path, data: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if "w" in mode and str(path).endswith(full.suffix):
            raise OSError(errno.ENOSPC, "No space left on device")
        return open(path, mode, *args, **options)

    for module in (folders, files):
        monkeypatch.setattr(module, "open", full, raising=False)
    full.suffix = "90.txt"
    assert label(tmp_path, "--yolo-seg", str(tmp_path / "yolo")) == 1
    assert re.search(r"Cannot write '.*yolo/labels/90\.txt': the disk is full", capsys.readouterr().err)
    full.suffix = "none"
    assert label(tmp_path, "--yolo-seg", str(tmp_path / "yolo")) == 0
    for option in ("--csv", "--json-out"):
        full.suffix = "rows.tmp"
        masks = str(tmp_path / "masks.json")
        assert main(["eval", masks, masks, option, str(tmp_path / "rows")]) == 1
        assert "rows': the disk is full" in capsys.readouterr().err


def test_folder_that_may_not_be_written_to_is_named_by_the_file(tmp_path: Path) -> None:
    # Root may write anywhere, so that the refusal is made up.
    page = str(tmp_path / "x" / ".." / "new" / "page.html")
    for refused in ("new/.page.html.tmp", "new/page_files/1.jpg", "new/page.html.work", "new", "."):
        told = rf"Cannot write '.*new/page\.html': permission denied \('.*{refused}'\)\. Write to another"
        with pytest.raises(PermissionError, match=told), files.explain_unwritable(page), files.explain_unwritable(page):
            raise PermissionError(errno.EACCES, "Permission denied", f"{tmp_path}/{refused}")
    for read in ("new/photos/photo.jpg", "photo.jpg"):
        with pytest.raises(PermissionError, match=r"denied: '.*photo\.jpg'"), files.explain_unwritable(page):
            raise PermissionError(errno.EACCES, "Permission denied", f"{tmp_path}/{read}")


@pytest.mark.parametrize("content", ["", "[1]", '{"png": '])
def test_damaged_record_of_exports_is_named(
    tmp_path: Path, data: dict[str, Any], content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "masks.json.work").mkdir()
    (tmp_path / "masks.json.work" / "exports.json").write_text(content)
    assert label(tmp_path, "--png", str(tmp_path / "png")) == 1
    assert "exports.json' " in capsys.readouterr().err


def test_the_wrong_folder_of_images_is_said_to_be_that(
    tmp_path: Path, data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "others").mkdir()
    for options in ([], ["--keep-going"]):
        assert label(tmp_path, *options, "--images", str(tmp_path / "others")) == 2
        error = capsys.readouterr().err
        assert f"None of the {len(data['images'])} images" in error
        assert data["images"][0]["file_name"] in error
        assert error.count("\n") == 1


def test_debug_shows_the_traceback(tmp_path: Path, data: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=r"absent\.json"):
        label(tmp_path, "--debug", "--json", "absent.json")


def test_weights_may_be_a_folder_of_which_the_method_judges(
    tmp_path: Path, data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "network").mkdir()
    assert label(tmp_path, "--weights", str(tmp_path / "network"), method="sam") != 0
    assert "MODEL.SAM.NETWORK" in capsys.readouterr().err


def test_failure_in_the_work_ends_with_1_and_the_rest_is_kept(
    tmp_path: Path, data: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    one_by_one = ("--opts", "PSEUDO_MASKS.IMS_PER_BATCH", "1")

    def forward(self: Any, batched_inputs: list[dict[str, Any]]) -> Any:
        asked.append(batched_inputs[0]["image_id"])
        if batched_inputs[0]["image_id"] == 85 and asked.count(85) == 1:
            raise ValueError(f"'{batched_inputs[0]['file_name']}' is damaged: replace it.")
        return prediction(self, batched_inputs)

    prediction = BoxFill.forward
    monkeypatch.setattr(BoxFill, "forward", forward)
    with monkeypatch.context() as patch:
        patch.setattr(progress, "console", Console(file=(terminal := io.StringIO()), force_terminal=True))
        assert label(tmp_path, *one_by_one) == 1
    assert terminal.getvalue().rstrip().endswith("\x1b[?25h"), "the bar is closed"
    error = capsys.readouterr().err
    assert "boxsup: error: '" in error
    assert "85.png' is damaged: replace it." in error
    assert label(tmp_path, *one_by_one) == 0
    assert sorted(asked) == [83, 84, 85, 85, 86, 88, 89, 90], "only the one that failed is asked again"
    assert len(read(tmp_path / "masks.json")["annotations"]) == len(data["annotations"])


def test_keep_going_goes_on_from_the_run_that_failed(
    tmp_path: Path, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def forward(self: Any, batched_inputs: list[dict[str, Any]]) -> Any:
        asked.extend(item["image_id"] for item in batched_inputs)
        return prediction(self, batched_inputs)

    prediction = BoxFill.forward
    monkeypatch.setattr(BoxFill, "forward", forward)
    path = tmp_path / "images" / "84.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    one_by_one = ("--opts", "PSEUDO_MASKS.IMS_PER_BATCH", "1")
    assert label(tmp_path, *one_by_one) == 1
    failed, asked[:] = list(asked), []
    assert {90, 89} < set(failed)
    Image.new("RGB", (60, 40)).save(tmp_path / "images" / "90.png")  # another picture of that name
    assert label(tmp_path, "--keep-going", *one_by_one) == 0
    assert sorted(asked) == sorted({90, *({83, 85, 86, 88, 89} - set(failed))})
    assert [a["id"] for a in read(tmp_path / "masks.json")["annotations"] if "confidence" not in a] == [1, 494]


def test_voc_and_yolo_come_in_and_go_out(tmp_path: Path, data: dict[str, Any]) -> None:
    (tmp_path / "yolo").mkdir()
    (tmp_path / "names.txt").write_text("cat\n")
    (tmp_path / "yolo" / "90.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    common = ["--images", str(tmp_path / "images"), "--method", "box", "--num-gpus", "0"]
    out = ["--png", str(tmp_path / "png"), "--yolo-seg", str(tmp_path / "seg"), "--voc-png", str(tmp_path / "voc")]
    yolo = ["--yolo", str(tmp_path / "yolo"), "--names", str(tmp_path / "names.txt"), "--polygons"]
    assert main(["label", *yolo, *common, *out, "--out", str(tmp_path / "y.json")]) == 0
    assert isinstance(read(tmp_path / "y.json")["annotations"][0]["segmentation"], list)
    assert list((tmp_path / "png").rglob("*.png"))
    assert list((tmp_path / "seg").rglob("90.txt"))
    seg = ["--yolo", str(tmp_path / "seg"), "--images", str(tmp_path / "seg"), "--out", str(tmp_path / "again.json")]
    assert main(["label", *seg, *common[2:]]) == 0, "what was written is read again"
    assert (tmp_path / "voc" / "SegmentationObject" / "90.png").is_file()

    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "90.xml").write_text(
        "<annotation><filename>90.png</filename><size><width>60</width><height>40</height><depth>3</depth></size>"
        "<object><name>cat</name><bndbox><xmin>16</xmin><ymin>11</ymin><xmax>45</xmax><ymax>30</ymax></bndbox></object>"
        "</annotation>"
    )
    assert main(["label", "--voc-xml", str(tmp_path / "xml"), *common, "--out", str(tmp_path / "x.json")]) == 0
    (annotation,) = read(tmp_path / "x.json")["annotations"]
    assert annotation["bbox"] == [15, 10, 30, 20]
    assert annotation["area"] == 600


def test_what_a_format_cannot_hold_is_said_before_the_work(
    tmp_path: Path, data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = {**data, "annotations": [{**data["annotations"][0], "id": key} for key in range(255)]}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    assert label(tmp_path, "--voc-png", str(tmp_path / "voc")) == 2
    assert re.search(r"room for 254 objects, and '.*' has 255\..*--png", capsys.readouterr().err)
    image = data["images"][0]
    Image.new("RGB", (60, 40)).save(tmp_path / "images" / f"{Path(image['file_name']).stem}.bmp")
    twin = {**image, "id": 4712, "file_name": f"{Path(image['file_name']).stem}.bmp"}
    (tmp_path / "boxes.json").write_text(json.dumps({**data, "images": [*data["images"], twin]}))
    assert label(tmp_path, "--png", str(tmp_path / "png")) == 2
    assert "files of the same name" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.work"))


def test_exports_are_added_to_a_finished_output(tmp_path: Path, data: dict[str, Any]) -> None:
    assert label(tmp_path) == 0
    masks = [a.get("segmentation") for a in read(tmp_path / "masks.json")["annotations"]]
    assert label(tmp_path, "--png", str(tmp_path / "png")) == 0
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "png").rglob("*.png")}
    assert files
    assert [a.get("segmentation") for a in read(tmp_path / "masks.json")["annotations"]] == masks
    assert label(tmp_path, "--png", str(tmp_path / "png")) == 0
    assert {path: path.stat().st_mtime_ns for path in files} == files, "and not written again"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["label", "--json", "gone.json", "--images", "."], "--json: there is no 'gone.json'"),
        (["train", "--yolo", ".", "--images", "gone"], "--images: there is no 'gone'"),
        (["report", "pyproject.toml", "gone.json", "--images", "."], "MASKS.json: there is no 'gone.json'"),
        (["eval", "gone.json", "gone.json"], "PRED.json: there is no 'gone.json'"),
        (["serve", "--config", "gone.yaml"], "--config: there is no 'gone.yaml'"),
        (
            ["label", "--json", "pyproject.toml", "--images", ".", "--method", "grabcat"],
            f"There is no method 'grabcat'; there are {', '.join(methods())}. Did you mean 'grabcut'?",
        ),
    ],
)
def test_missing_files_are_named_before_anything_is_imported(words: list[str], message: str) -> None:
    program = (
        "import sys; from boxsup_cli import main; code = main(sys.argv[1:]); "
        "print(code, sorted({'torch', 'detectron2', 'numpy', 'boxsup_d2'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program, *words], cwd=root, capture_output=True, text=True)
    assert done.stderr.strip().removesuffix(".") == f"boxsup: error: {message}"
    assert done.stdout.strip() == "2 []"


def test_a_file_says_nothing_of_its_makers_machine_and_moves_with_its_images(
    tmp_path: Path, data: dict[str, Any]
) -> None:
    (tmp_path / "out").mkdir()
    assert label(tmp_path, "--png", str(tmp_path / "out/png"), out="out/masks.json") == 0
    text = (tmp_path / "out/masks.json").read_text()
    assert str(tmp_path) not in text
    (tmp_path / "moved").mkdir()
    for name in ("out", "images"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    path = tmp_path / "moved/out/masks.json"
    assert find_image_root(read(path), str(path)) == str(tmp_path / "moved/out/../images")
    assert label(tmp_path / "moved", out="out/masks.json") == 2, "there are no boxes"
    (tmp_path / "boxes.json").rename(tmp_path / "moved/boxes.json")
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "moved").rglob("*.*")}
    assert label(tmp_path / "moved", "--png", str(tmp_path / "moved/out/png"), out="out/masks.json") == 0
    assert {file: file.stat().st_mtime_ns for file in files} == files, "it is done here, too"
    (tmp_path / "link").symlink_to(tmp_path / "moved/out")
    assert label(tmp_path / "moved", "--png", str(tmp_path / "link/png"), out="../link/masks.json") == 0
    assert {file: file.stat().st_mtime_ns for file in files} == files, "and so it is by another way"


def test_polygons_may_have_fewer_points(
    tmp_path: Path, data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def points() -> tuple[int, ...]:
        polygons = [a["segmentation"] for a in read(tmp_path / "masks.json")["annotations"] if not a.get("iscrowd")]
        shapes = [s for f in (tmp_path / "lm").rglob("*.json") for s in read(f)["shapes"]]
        return (
            sum(len(ring) for rings in polygons if isinstance(rings, list) for ring in rings),
            sum(len(s["points"]) for s in shapes if s["shape_type"] == "polygon"),
            sum(len(f.read_text().split()) for f in (tmp_path / "yolo-masks.json" / "labels").rglob("*.txt")),
        )

    def again(*words: str, polygons: bool = True, out: str = "masks.json") -> int:
        formats = [
            "--labelme",
            str(tmp_path / "lm"),
            "--yolo-seg",
            str(tmp_path / f"yolo-{out}"),
            *(["--polygons"] if polygons else []),
        ]
        return label(tmp_path, *formats, *words, out=out)

    round_mask = np.hypot(np.arange(40)[:, None] - 20, np.arange(60) - 30) < 15
    round_rle = mask_util.encode(np.asfortranarray(round_mask.astype(np.uint8)))
    drawn = next(a for a in data["annotations"] if a.get("segmentation") and not a.get("iscrowd"))
    drawn["segmentation"] = {**round_rle, "counts": round_rle["counts"].decode()}
    (tmp_path / "boxes.json").write_text(json.dumps(data))
    assert label(tmp_path, "--simplify", "1") == 2
    assert "--simplify is for polygons: give --polygons or --yolo-seg or --labelme" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        label(tmp_path, "--simplify", "-1", "--polygons")
    assert again() == 0
    exact = points()
    assert again("--simplify", "1.5") == 2, "another output"
    assert "other --simplify" in capsys.readouterr().err
    assert again("--simplify", "1.5", "--force") == 0
    assert all(now < before for now, before in zip(points(), exact, strict=True))
    assert again("--simplify", "1.5") == 0
    assert "is done" in capsys.readouterr().out
    # A format that is added later is the same as one that was there at once, and changes no other's record.
    both = ["--png", str(tmp_path / "png"), "--labelme", str(tmp_path / "lm2")]
    assert again(*both, "--simplify", "1.5", out="second.json") == 0
    assert again("--png", str(tmp_path / "png2"), "--simplify", "1.5") == 0
    files = {path.relative_to(tmp_path / "png"): path.read_bytes() for path in (tmp_path / "png").rglob("*.png")}
    assert files == {p.relative_to(tmp_path / "png2"): p.read_bytes() for p in (tmp_path / "png2").rglob("*.png")}
    assert again("--simplify", "1.5") == 0
    assert "is done" in capsys.readouterr().out
    assert again("--force", polygons=False, out="runs.json") == 0
    assert again("--simplify", "1.5", polygons=False, out="runs.json") == 2
    assert "is there already" in capsys.readouterr().err
    source = ["label", "--annotations", str(tmp_path), "--images", str(tmp_path / "images"), "--out", "x.json"]
    assert main([*source, "--labelme", str(tmp_path / "inside")]) == 2


def test_no_option_makes_pictures_replace_the_images(
    tmp_path: Path, data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    # They are named in the json, or are what those in the json were made of.
    for path in (tmp_path / "images").glob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"))
    named = [{**image, "file_name": f"{Path(image['file_name']).stem}.jpg"} for image in data["images"]]
    (tmp_path / "boxes.json").write_text(json.dumps({**data, "images": named[:1] + data["images"][1:]}))
    files = {path: path.read_bytes() for path in (tmp_path / "images").iterdir()}
    for options in ([], ["--force"]):
        assert label(tmp_path, "--overlays", str(tmp_path / "images"), *options) == 2
        assert "would write pictures among the images" in capsys.readouterr().err
    # Nor through another name of theirs.
    (tmp_path / "drawn").mkdir()
    for path in files:
        os.link(path, tmp_path / "drawn" / path.name)
    assert label(tmp_path, "--overlays", str(tmp_path / "drawn"), "--force") == 0
    assert {path: path.read_bytes() for path in files} == files


def test_corners_are_not_taken_for_sides(
    tmp_path: Path, data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = [a for a in data["annotations"] if not a.get("iscrowd") and "segmentation" not in a][:5]
    for number, annotation in enumerate(boxes):
        annotation["bbox"] = [20 + number, 15, 50, 35 + number]  # in 60 x 40
    (tmp_path / "boxes.json").write_text(json.dumps({**data, "annotations": boxes}))
    assert label(tmp_path) == 2
    assert re.search(r"boxes that look.*5 mistake", capsys.readouterr().err, re.DOTALL)
    boxes[0]["bbox"] = [20, 10, 15, 10]  # which no corners are
    (tmp_path / "boxes.json").write_text(json.dumps({**data, "annotations": boxes}))
    assert label(tmp_path) == 0


# ------------------------------------------------------------------------------------------------- the others
def test_what_has_no_room_in_other_formats_is_left_out_of_them(tmp_path: Path, data: dict[str, Any]) -> None:
    """With --keep-going the json keeps entries without images, sizes and classes."""
    mask = {"size": [9, 9], "counts": [5, 5, 71]}
    data["images"] += [{"id": 91, "file_name": "gone.png"}]
    data["annotations"] += [
        {"id": 600, "image_id": 4711, "category_id": 7, "bbox": [1, 1, 5, 5], "segmentation": mask},
        {"id": 601, "image_id": 91, "category_id": 7, "bbox": [1, 1, 5, 5], "segmentation": mask},
    ]
    (tmp_path / "boxes.json").write_text(json.dumps(data))
    assert label(tmp_path, "--keep-going", "--polygons") == 0
    result = read(tmp_path / "masks.json")
    assert result["images"] == data["images"]
    assert result["annotations"][-2:] == data["annotations"][-2:]
    assert isinstance(result["annotations"][0]["segmentation"], list)
    assert label(tmp_path, "--keep-going", "--polygons", "--yolo-seg", str(tmp_path / "seg")) == 0
    assert read(tmp_path / "masks.json")["annotations"] == result["annotations"]
    assert sorted(path.stem for path in (tmp_path / "seg/labels").iterdir()) == [str(n) for n in range(83, 91)]


def test_files_of_other_formats_are_never_replaced_unasked(
    tmp_path: Path, data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "90.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "names.txt").write_text("cat\n")
    yolo = ["label", "--yolo", str(tmp_path / "labels"), "--names", str(tmp_path / "names.txt"), "--method", "box"]
    yolo += ["--images", str(tmp_path / "images"), "--num-gpus", "0", "--out", str(tmp_path / "y.json")]
    for force in ([], ["--force"]):
        assert main([*yolo, *force, "--yolo-seg", str(tmp_path)]) == 2
        assert "would write over" in capsys.readouterr().err
    assert (tmp_path / "labels" / "90.txt").read_text() == "0 0.5 0.5 0.5 0.5\n"
    assert not list(tmp_path.glob("*.work"))

    drawn = tmp_path / "voc" / "SegmentationObject" / "90.png"
    drawn.parent.mkdir(parents=True)
    drawn.write_bytes(b"drawn by hand")
    export = ("--voc-png", str(tmp_path / "voc"))
    assert label(tmp_path, *export) == 2
    assert "is there already" in capsys.readouterr().err
    assert label(tmp_path) == 0
    assert label(tmp_path, *export) == 2, "neither beside a finished output"
    assert drawn.read_bytes() == b"drawn by hand"
    assert label(tmp_path, *export, "--force") == 0
    assert drawn.read_bytes() != b"drawn by hand"
    assert label(tmp_path, *export) == 0, "what this command wrote is its own"


def test_reports_and_figures_are_not_written_over_jsons(tmp_path: Path, data: dict[str, Any]) -> None:
    assert label(tmp_path) == 0
    masks = str(tmp_path / "masks.json")
    before = (tmp_path / "masks.json").read_bytes()
    assert main(["report", masks, "--images", str(tmp_path / "images"), "--out", masks]) == 2
    for option in ("--csv", "--json-out"):
        assert main(["eval", masks, masks, option, masks]) == 2
    assert (tmp_path / "masks.json").read_bytes() == before


def test_what_tools_write_for_boxes_alone_is_no_mask(
    tmp_path: Path, data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    data["info"] = "made by hand"
    data["annotations"][0]["segmentation"] = [[]]
    box = data["annotations"][2]
    x, y, w, h = box["bbox"]
    box["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    box["confidence"] = "high"  # a drawn mask counts 1, whatever a field of this name says
    (tmp_path / "boxes.json").write_text(json.dumps(data))
    assert label(tmp_path) == 0
    result = read(tmp_path / "masks.json")
    assert isinstance(result["annotations"][0]["segmentation"], dict)
    assert result["annotations"][2]["segmentation"] == box["segmentation"]
    assert result["annotations"][2]["confidence"] == 1
    assert "masks that are their box" in " ".join(capsys.readouterr().err.split())
    assert result["info"]["info"] == "made by hand"


def test_network_with_a_mask_per_class_needs_its_classes(tmp_path: Path) -> None:
    names = ["cat", "dog"]
    categories = [{"id": 10 - index, "name": name} for index, name in enumerate(reversed(names))]
    (tmp_path / "train.json").write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    (tmp_path / "config.yaml").write_text(
        'MODEL: {META_ARCHITECTURE: "PromptableRCNN", ROI_HEADS: {NUM_CLASSES: 2}}\nVERSION: 2\n'
        f'DATASETS: {{REGISTER: [{{NAME: "a", JSON: "{tmp_path}/train.json", IMAGES: "x"}}]}}\n'
    )
    job = LabelJob("a.json", "images", str(tmp_path), config=str(tmp_path / "config.yaml"), weights="w.pth")
    check_classes(job, categories)
    for others in (categories[:1], [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]):
        with pytest.raises(ValueError, match="categories of the training"):
            check_classes(job, others)


def test_other_images_are_another_labelling(
    tmp_path: Path, data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert label(tmp_path) == 0
    Image.new("RGB", (60, 40)).save(tmp_path / "images" / "90.png")
    capsys.readouterr()
    assert label(tmp_path) == 2
    assert "--force" in capsys.readouterr().err


def test_networks_in_files_of_their_own_tell_labellings_apart(tmp_path: Path) -> None:
    """Networks in ONNX's format and SAMs are no MODEL.WEIGHTS."""
    (tmp_path / "sam").mkdir()
    files = {"salient-onnx": tmp_path / "net.onnx", "sam": tmp_path / "sam/model.safetensors"}
    for method, file in files.items():
        job = LabelJob(
            "a.json",
            "images",
            str(tmp_path),
            method,
            weights=str(tmp_path / ("sam" if method == "sam" else "net.onnx")),
        )
        requests = []
        for content in (b"one", b"two"):
            file.write_bytes(content)
            requests.append(request_of(job, job_config(job), "0", polygons=False))
        assert requests[0] != requests[1]


def test_eval_compares_prints_and_writes(
    tmp_path: Path, data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert label(tmp_path) == 0
    capsys.readouterr()
    masks = str(tmp_path / "masks.json")
    files = ["--csv", str(tmp_path / "rows.csv"), "--json-out", str(tmp_path / "figures.json")]
    assert main(["eval", masks, masks, *files]) == 0
    out = capsys.readouterr().out
    assert re.search(r"cat\W+8\W+100\.0", out)
    assert "ranked by quality" in out
    rows = (tmp_path / "rows.csv").read_text().splitlines()
    assert len(rows) == 1 + 8
    assert all(row.endswith("1.000000,id") for row in rows[1:])
    assert read(tmp_path / "figures.json")["results"]["mIoU*"] == 100
    assert main(["eval", masks, str(tmp_path / "absent.json")]) == 2
    assert "absent.json" in capsys.readouterr().err
    for annotation in data["annotations"]:
        annotation.pop("segmentation", None)
    (tmp_path / "boxes.json").write_text(json.dumps(data))
    assert main(["eval", str(tmp_path / "boxes.json"), masks]) == 2
    assert "boxes.json' holds 8 boxes and no mask" in capsys.readouterr().err
    assert main(["eval", masks, masks, "--csv", str(tmp_path / "x"), "--json-out", str(tmp_path / "x")]) == 2
    assert "--csv and --json-out are one file" in capsys.readouterr().err


def test_report_is_written_by_two_commands(tmp_path: Path, data: dict[str, Any]) -> None:
    assert label(tmp_path, "--report", str(tmp_path / "a.html")) == 0
    (tmp_path / "other.json").write_bytes((tmp_path / "masks.json").read_bytes())
    masks = [str(tmp_path / name) for name in ("masks.json", "other.json")]
    assert main(["report", *masks, "--images", str(tmp_path / "images"), "--out", str(tmp_path / "b.html")]) == 0
    for name in ("a.html", "b.html"):
        assert "<html" in (tmp_path / name).read_text()[:500]


def test_no_file_of_the_user_becomes_another(
    tmp_path: Path, data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """What is labelled, or any file that is no page, for a page; annotations of a folder for the masks of them."""
    images, boxes = str(tmp_path / "images"), tmp_path / "boxes.json"
    before = boxes.read_bytes()
    assert label(tmp_path, "--report", str(boxes)) == 2
    assert "boxes.json' is there, and no page" in capsys.readouterr().err
    assert not (tmp_path / "masks.json").exists(), "nothing was done"
    assert main(["report", str(boxes), "--images", images, "--out", str(boxes)]) == 2
    (tmp_path / "named.html").write_bytes(before)  # a json, whatever its name
    capsys.readouterr()
    named = str(tmp_path / "named.html")
    assert main(["report", named, "--images", images, "--out", named]) == 2
    assert "--out is one of the jsons" in capsys.readouterr().err
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "boxes.json").write_bytes(before)
    command = ["label", "--annotations", str(folder), "--images", images, "--method", "box", "--keep-going"]
    assert main([*command, "--force", "--out", str(folder / "boxes.json")]) == 2
    assert "is a file of the annotations that are labelled" in capsys.readouterr().err
    assert boxes.read_bytes() == (folder / "boxes.json").read_bytes() == before
    assert main([*command, "--out", str(folder / "masks.json")]) == 0
    assert main([*command, "--force", "--out", str(folder / "masks.json")]) == 0


def test_outputs_are_below_the_home_folder(
    tmp_path: Path, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell leaves the ~ of --png=~/png as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert label(tmp_path, "--png=~/png", "--report=~/page.html") == 0
    assert list((tmp_path / "png").iterdir())
    assert (tmp_path / "page.html").is_file()


def test_formats_tell_what_they_leave_out(
    tmp_path: Path, data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    crowds = sum(bool(annotation.get("iscrowd")) for annotation in data["annotations"])
    assert label(tmp_path, "--labelme", str(tmp_path / "lm"), "--overlays", str(tmp_path / "drawn")) == 0
    told = capsys.readouterr()
    assert f"--labelme leaves out {crowds} crowd region" in told.out + told.err
    assert "--overlays leaves" not in told.out + told.err


def test_convert_says_what_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tmp_path / "absent.pth"), "--out", str(tmp_path / "x.pth")]) == 2
    (tmp_path / "text.pth").write_text("no checkpoint")
    assert main(["convert", str(tmp_path / "text.pth"), "--out", str(tmp_path / "x.pth")]) == 2
    told = capsys.readouterr().err
    assert "absent.pth" in told
    assert "text.pth" in told
    assert "Traceback" not in told
    assert not (tmp_path / "x.pth").exists()


# ------------------------------------------------------------------------------------------------- killed for real
def start(folder: Path, out: str, delay: float, *options: str) -> subprocess.Popen[bytes]:
    """``boxsup label`` by the slow method, in a process group of its own, as a shell starts it."""
    arguments = ["--json", str(folder / "boxes.json"), "--images", str(folder / "images"), "--num-gpus", "0"]
    command = [sys.executable, "-W", "ignore", str(folder / "slow.py"), "label", *arguments, *options]
    environment = {**os.environ, "DELAY": str(delay), "LOG": str(folder / f"{out}.log")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command += ["--config", str(folder / "slow.yaml"), "--weights", str(folder / "slow.yaml")]  # it has none
    return subprocess.Popen(
        [*command, "--out", str(folder / out)],
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def stop_after(process: subprocess.Popen[bytes], folder: Path, out: str, images: int, number: int) -> tuple[int, str]:
    """Send a signal to the group when so many images are labelled; the exit code and what was told."""
    deadline = time.monotonic() + 200
    while sum(shard.read_text().count("\n") for shard in (folder / f"{out}.work").rglob("*.jsonl")) < images:
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, number)
    told = process.communicate(timeout=60)[1].decode()
    return process.returncode, told


def without_dates(path: Path) -> str:
    text = path.read_text()
    return text.replace(read(path)["info"]["boxsup_d2"]["date"], "DATE")


def test_killed_and_interrupted_runs_go_on(tmp_path: Path, data: dict[str, Any]) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "slow.yaml").write_text(
        'MODEL: {META_ARCHITECTURE: "SlowBoxToMask"}\nDATALOADER: {NUM_WORKERS: 0}\n'
        "PSEUDO_MASKS: {IMS_PER_BATCH: 1}\nVERSION: 2\n"
    )
    unkilled = start(tmp_path, "whole.json", 0.0)
    code, told = stop_after(start(tmp_path, "masks.json", 0.5), tmp_path, "masks.json", 2, signal.SIGINT)
    assert code == 130, told
    assert re.search(r"Run the same command again to go on", told)
    assert "Traceback" not in told
    code, _ = stop_after(start(tmp_path, "masks.json", 0.5), tmp_path, "masks.json", 4, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not (tmp_path / "masks.json").exists()
    done = [
        json.loads(line)["image_id"]
        for shard in (tmp_path / "masks.json.work").rglob("*.jsonl")
        for line in shard.read_text().splitlines()
    ]
    assert 4 <= len(done) < 7
    (tmp_path / "masks.json.log").unlink()
    last = start(tmp_path, "masks.json", 0.0, "--workers", "2")
    assert last.wait(timeout=120) == 0, last.stderr.read().decode()
    redone = [int(line) for line in (tmp_path / "masks.json.log").read_text().split()]
    # Image 87's only box has a mask already: nobody is asked about it.
    assert sorted(done + redone) == [83, 84, 85, 86, 88, 89, 90]
    assert unkilled.wait(timeout=120) == 0, unkilled.stderr.read().decode()
    assert without_dates(tmp_path / "masks.json") == without_dates(tmp_path / "whole.json")
    assert not list(tmp_path.glob("*.work"))
