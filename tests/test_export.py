"""``boxsup export``: files that give what the network gives, without Detectron2."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

import boxsup_d2
from boxsup_cli import main
from boxsup_d2.config import load_config
from boxsup_d2.export import export_network, write
from boxsup_d2.model_zoo import get_config_file


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("photo") / "photo.png")
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    cv2.imwrite(path, cv2.resize(pixels, (80, 60), interpolation=cv2.INTER_CUBIC))
    return path


def trained(folder: Path, recipe: str, *opts: Any) -> CfgNode:
    """What a training leaves, in ``folder``; its weights are random."""
    cfg = load_config(get_config_file(recipe), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *opts])
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return cfg


@pytest.mark.parametrize("kind", ["onnx", "pt"])
def test_window_networks_run_alone_for_any_number_of_windows(tmp_path: Path, photo: str, kind: str) -> None:
    pytest.importorskip("onnxruntime")
    trained(tmp_path, "quick/Base-BoxCaseg.yaml", "INPUT.BOX_CROP.TEST_SIZE", 64)
    out = tmp_path / f"network.{kind}"
    assert main(["export", str(tmp_path), str(out), "--image", photo]) == 0
    images = np.random.default_rng(0).uniform(0, 255, (5, 3, 64, 64)).astype(np.float32)
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(out))
        (logits,) = session.run(None, {"images": images})
        facts = session.get_modelmeta().custom_metadata_map
    else:
        extra = {"boxsup_d2.json": ""}
        logits = torch.jit.load(str(out), _extra_files=extra)(torch.from_numpy(images))
        facts = json.loads(extra["boxsup_d2.json"])
    assert logits.shape == (5, 1, 16, 16)
    assert facts == {"side": "64", "margin": "0.0", "max_aspect": "inf", "channels": "RGB"}
    assert main(["export", str(tmp_path), str(out), "--image", photo]) == 2, "not replaced unasked"


def test_mask_rcnn_runs_alone_on_images_of_any_shape(tmp_path: Path, photo: str) -> None:
    """The check of the export runs a second shape, with another number of proposals and objects."""
    pytest.importorskip("detectron2.export", exc_type=ImportError)
    small = ["MODEL.ROI_HEADS.NUM_CLASSES", 2, "INPUT.MIN_SIZE_TEST", 64, "MODEL.RPN.POST_NMS_TOPK_TEST", 30]
    trained(tmp_path, "quick/Base-Mask-RCNN.yaml", *small, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.3)
    assert "difference" in export_network(tmp_path, tmp_path / "network.pt", photo)
    boxes, classes, scores, masks = torch.jit.load(str(tmp_path / "network.pt"))(torch.rand(3, 64, 96) * 255)
    assert len(boxes) == len(classes) == len(scores) == len(masks) > 0
    assert masks.shape[1:] == (1, 28, 28)
    with pytest.raises(ValueError, match=r"ends in \.pt"):
        export_network(tmp_path, tmp_path / "network.onnx", photo)


def test_what_differs_or_cannot_be_is_not_written(tmp_path: Path, photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"\.onnx or \.pt"):
        export_network("boxmask", tmp_path / "network.txt", photo)
    with pytest.raises(ValueError, match="GrabCut cannot be exported"):
        export_network("grabcut", tmp_path / "network.pt", photo)
    trained(tmp_path, "quick/Base-BoxCaseg.yaml", "INPUT.BOX_CROP.TEST_SIZE", 32)
    (tmp_path / "model_final.pth").rename(tmp_path / "elsewhere.pth")
    with pytest.raises(FileNotFoundError, match=r"no weights .*model_final\.pth.*nothing to learn from"):
        export_network(tmp_path, tmp_path / "network.pt", photo)
    (tmp_path / "elsewhere.pth").rename(tmp_path / "model_final.pth")
    monkeypatch.setattr(write, "_window_difference", lambda *_: 0.1)
    with pytest.raises(RuntimeError, match=r"differ from the network's by 0\.1"):
        export_network(tmp_path, tmp_path / "network.pt", photo)
    assert not list(tmp_path.glob("*network*"))


@pytest.mark.slow
def test_document_runs_the_network_that_ships_without_detectron2(
    tmp_path: Path, project_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its window and box are drawn with a few lines less than the package's, so the masks are nearly the same."""
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    pixels = np.full((150, 226, 3), 60, np.uint8)
    cv2.circle(pixels, (118, 78), 50, (40, 40, 220), -1)
    cv2.imwrite("photos/cat.png", pixels)
    export_network("boxmask", "boxmask.onnx", "photos/cat.png")
    blocks = re.findall(
        r"^```py\n(.*?)^```$", (project_root / "docs/python_api.md").read_text(), re.MULTILINE | re.DOTALL
    )
    (block,) = [block for block in blocks if "onnxruntime" in block]
    names: dict[str, Any] = {}
    exec(block, names)
    mask = np.zeros((150 + 2 * names["my"], 226 + 2 * names["mx"]), bool)
    # The window begins a margin beyond the box, and this frame a margin beyond the image.
    mask[15 : 15 + names["mask"].shape[0], 60 : 60 + names["mask"].shape[1]] = names["mask"]
    mask = mask[names["my"] :, names["mx"] :][:150, :226]
    (truth,) = boxsup_d2.load(device="cpu").predict("photos/cat.png", [[60, 15, 175, 140]]).masks
    assert (mask & truth).sum() / (mask | truth).sum() > 0.9
