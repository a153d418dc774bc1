"""The demo's own parts; what it runs is tested elsewhere, and `make demo` itself takes minutes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import _demo_pictures
import demo


def results(joint: float, fill: float, retrain: float, retrain_filled: float, gain_ap: float) -> dict:
    """Results of all steps with the figures that the check looks at, percent."""
    masks = {"joint": joint, "fill": fill, "grabcut": 60.0, "retrain": retrain, "retrain-filled": retrain_filled}
    masks["shipped"] = 70.0
    found: dict[str, dict[str, dict[str, float]]] = {}
    for step, value in masks.items():
        found[step] = {"box_to_mask": {"mIoU*": value, **{f"IoU@{k}": value for k in (25, 50, 70, 75)}}}
    found["retrain"]["segm"] = {"AP50": 5.0 + gain_ap}
    found["retrain-filled"]["segm"] = {"AP50": 5.0}
    return found


@pytest.mark.parametrize(
    ("figures", "passes"),
    [
        ((72, 53, 66, 54, 10), True),
        ((67, 53, 66, 54, 10), False),
        ((72, 53, 55, 54, 10), False),
        ((72, 53, 66, 54, 1), False),
    ],
)
def test_check_says_whether_learning_paid(figures: tuple, passes: bool, capsys: pytest.CaptureFixture) -> None:
    assert demo.check(results(*figures)) is passes
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("PASS") for line in lines) == (3 if passes else 2)
    assert any("make test" in line for line in lines) is not passes


def test_table_has_every_method(capsys: pytest.CaptureFixture) -> None:
    demo.print_table(results(72, 53, 66, 54, 10))
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(demo.STEPS)
    assert table[2].split("|")[1].strip() == "filled box"
    assert table[2].split("|")[-2].strip() == "-", "a method that detects nothing has no AP"
    assert "15.0" in table[-2]


def test_steps_are_those_of_the_rounds_config() -> None:
    import yaml

    rounds = yaml.safe_load(demo.ROUNDS_CONFIG.read_text())["ROUNDS"]
    assert {step["NAME"] for group in rounds for step in group["STEPS"]} == set(demo.STEPS)
    assert demo._max_iter("joint") > 0
    assert demo._max_iter("fill") == 0


def test_progress_reads_what_a_run_writes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    progress = demo.Progress(tmp_path, line_every=0)
    progress.update()
    state = {"version": 1, "steps": {"joint": {"status": "finished"}, "retrain": {"status": "running"}}}
    (tmp_path / "rounds.json").write_text(json.dumps(state))
    (tmp_path / "retrain").mkdir()
    lines = [{"iteration": 19, "total_loss": 1.25}, {"iteration": 20, "bbox/AP": 3.0}]
    (tmp_path / "retrain" / "metrics.json").write_text("\n".join(map(json.dumps, lines)) + '\n{"iteration": 2')
    progress.update()
    progress.close()
    out, err = capsys.readouterr()
    assert "starting: 0 of " in err
    assert "done: BoxCaseg" in out
    assert f"retrain: loss 1.25: {demo._max_iter('joint') + 20} of " in err


def test_a_failed_run_says_where_it_wrote_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"no config key NO\.SUCH[\s\S]*console\.txt"):
        demo.run_rounds(tmp_path, ["NO.SUCH", "1"])


def test_results_of_an_unfinished_run_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="joint"):
        demo.read_results(tmp_path)


def test_overlay_colours_masks_and_nothing_else() -> None:
    image = np.full((40, 60, 3), 100, np.uint8)
    mask = np.zeros((1, 40, 60), bool)
    mask[0, 10:20, 10:30] = True
    drawn = _demo_pictures.overlay(image, masks=mask)
    assert drawn.shape[:2] == (50, 75)
    assert (drawn[13:24, 13:37] != 100).any(-1).all()
    assert (drawn[30:] == 100).all()
    assert (_demo_pictures.overlay(image) == 100).all()
    assert (_demo_pictures.overlay(image, boxes=np.array([[5, 5, 25, 25]])) != 100).any()
