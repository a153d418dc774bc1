"""Shipped configs by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

import boxsup_d2
from boxsup_d2.methods import DEFAULT_METHOD, methods
from boxsup_d2.model_zoo import config_names, get, get_config, get_config_file


def test_every_config_of_the_repository_has_a_name(project_root: Path) -> None:
    folder = project_root / "configs"
    assert list(config_names()) == sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))
    for name in config_names():
        assert Path(get_config_file(name)).read_bytes() == (folder / name).read_bytes()


def test_config_is_whole() -> None:
    cfg = get_config("quick/voc-joint.yaml")
    assert cfg.MODEL.META_ARCHITECTURE == "BoxCaseg", "of its _BASE_"
    assert cfg.OUTPUT_DIR == "output/quick/voc-joint"
    assert not cfg.is_frozen()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quick/voc-joynt.yaml", r"'quick/voc-joynt.yaml'.*Did you mean .*quick/voc-joint.yaml"),
        ("quick/coco-rounds.yaml", r"Did you mean BoxCaseg/coco-rounds.yaml\?"),
        ("voc-label", r"Did you mean LPG/voc-label.yaml\?"),
        ("../pyproject.toml", r"config_names"),
        ("", r"config_names"),
    ],
)
def test_unknown_name_lists_what_is_near(name: str, message: str) -> None:
    with pytest.raises(FileNotFoundError, match=message):
        get_config_file(name)
    with pytest.raises(FileNotFoundError, match=message):
        get_config(name)


def test_network_of_a_config_is_built_and_weights_are_not_made_up() -> None:
    model = get("toy/grabcut.yaml", device="cpu")
    assert type(model).__name__ == "GrabCut"
    assert not model.training
    with pytest.raises(ValueError, match=r"No weights ship for 'toy/grabcut.yaml'"):
        get("toy/grabcut.yaml", trained=True)


def test_networks_that_ship_see_things() -> None:
    image = np.full((120, 160, 3), (60, 120, 60), np.uint8)
    cv2.circle(image, (80, 60), 30, (200, 60, 40), -1)
    truth = np.hypot(*np.indices((120, 160))[::-1] - np.array([80, 60])[:, None, None]) <= 30
    shipped = {name: kind for name, kind in methods().items() if kind.info.weights}
    assert shipped.keys() == {DEFAULT_METHOD, "boxcaseg", "lpg"}
    for name, kind in shipped.items():
        model = boxsup_d2.load(name, device="cpu")
        assert kind.__name__ == model.cfg.MODEL.META_ARCHITECTURE
        prediction = model.predict(image, [[50, 30, 111, 91]])
        assert (prediction.masks[0] & truth).sum() / (prediction.masks[0] | truth).sum() > 0.85
        assert 0.5 < prediction.quality[0] <= 1
        assert type(get(kind.info.recipe, trained=True, device="cpu")) is type(model.model)
    assert shipped[DEFAULT_METHOD].__name__ == boxsup_d2.load(device="cpu").cfg.MODEL.META_ARCHITECTURE


def test_damaged_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = methods()[DEFAULT_METHOD]
    monkeypatch.setattr(kind, "info", dataclasses.replace(kind.info, weights_sha256="0" * 64))
    with pytest.raises(RuntimeError, match=rf"'{DEFAULT_METHOD}' that came with boxsup_d2 are damaged.*install"):
        boxsup_d2.load(device="cpu")


def test_figures_of_the_default_are_the_same_wherever_they_are_shown(project_root: Path) -> None:
    def cells(path: str, start: str) -> list[str]:
        (line,) = (line for line in (project_root / path).read_text().splitlines() if line.startswith(start))
        return [cell.strip() for cell in line.split("|")[1:-1]]

    *_, mean, miou, _, at_75, _ = cells("boxsup_d2/model_zoo/weights/boxmask.md", "| VOC 2012 val, a part")
    assert cells("README.md", "| **`boxmask`**, default")[-1] == miou
    zoo = cells("MODEL_ZOO.md", "| `boxmask`, the default")
    assert {mean, miou, at_75} <= set(zoo)
