"""``boxsup predict``: any trained network on images without boxes, its files, and that no finished work is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

import boxsup_d2
from boxsup_cli import main
from boxsup_d2.config import load_config
from boxsup_d2.methods import method_config
from boxsup_d2.model_zoo import get_config_file
from boxsup_d2.modeling.deeplab import DeepLabSegmenter
from boxsup_d2.modeling.rcnn.meta_arch import PromptableRCNN
from boxsup_d2.prediction import image_list, trained_network
from boxsup_d2.prediction.network import find_config

# Of an untrained network with two classes every object has about a third.
LOW = ["--min-score", "0.3", "--num-gpus", "0", "--opts", "DATALOADER.NUM_WORKERS", "0"]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training of a Mask R-CNN of two classes leaves."""
    folder = tmp_path_factory.mktemp("mask-rcnn")
    opts = ["MODEL.ROI_HEADS.NUM_CLASSES", 2, "MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", 48, "MODEL.WEIGHTS", ""]
    opts += ["TEST.DETECTIONS_PER_IMAGE", 5, "MODEL.RPN.POST_NMS_TOPK_TEST", 20]
    cfg = load_config(get_config_file("quick/Base-Mask-RCNN.yaml"), opts)
    torch.manual_seed(1)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    (folder / "class_names.txt").write_text("cat\ndog\n")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images, one of them in a folder of its own."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(["b.png", "a.png", "inner/c.png"]):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (6, 8 + number, 3), dtype=np.uint8)
        cv2.imwrite(str(path), cv2.resize(pixels, (64 + 8 * number, 48), interpolation=cv2.INTER_CUBIC))
    return tmp_path / "photos"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_what_is_found_is_what_detectron2_finds_and_what_coco_tools_read(
    network: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    command = ["predict", str(network), str(photos), "--out", str(out)]
    assert main([*command, *LOW]) == 0
    assert "boxsup report" in capsys.readouterr().out
    dataset = read(tmp_path / "found.coco.json")
    assert [image["file_name"] for image in dataset["images"]] == ["a.png", "b.png", "inner/c.png"]
    assert [category["name"] for category in dataset["categories"]] == ["cat", "dog"]
    loaded = COCO(str(tmp_path / "found.coco.json")).loadRes(str(out))
    assert len(loaded.anns) == len(dataset["annotations"]) > 0

    # In Detectron2's own words; the config of a training needs nothing else.
    cfg = load_config(str(network / "config.yaml"), ["MODEL.WEIGHTS", str(network / "model_final.pth")])
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.3
    expected = DefaultPredictor(cfg)(cv2.imread(str(photos / "a.png")))
    expected = expected["instances"]
    found = [annotation for annotation in read(out) if annotation["image_id"] == 1]
    np.testing.assert_allclose([a["score"] for a in found], expected.scores.numpy(), atol=1e-4)
    assert [a["category_id"] - 1 for a in found] == expected.pred_classes.tolist()
    for annotation, mask in zip(found, expected.pred_masks.numpy(), strict=True):
        assert (mask_util.decode(annotation["segmentation"]) == mask).all()

    before = out.stat().st_mtime_ns
    pictures = ["--overlays", str(tmp_path / "drawn"), "--yolo-seg", str(tmp_path / "yolo")]
    assert main([*command, *pictures, *LOW]) == 0
    assert "is done" in capsys.readouterr().out
    assert out.stat().st_mtime_ns == before
    for image in dataset["images"]:
        stem = Path(image["file_name"]).with_suffix("")
        drawn = Image.open(tmp_path / "drawn" / f"{stem}.jpg")
        assert drawn.size == (image["width"], image["height"])
        assert (tmp_path / "yolo/labels" / f"{stem}.txt").is_file()
    assert np.abs(np.asarray(drawn, float) - cv2.imread(str(photos / "inner/c.png"))[:, :, ::-1]).mean() > 5

    assert main([*command, *LOW, "--min-score", "0.9"]) == 2, "another result is not replaced unasked"
    assert "--force" in capsys.readouterr().err
    assert main([*command, *LOW, "--min-score", "0.9", "--force"]) == 0
    assert read(out) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("drawn", "found.coco.json", "found.json", "photos", "yolo"),
    ]


def test_images_and_ids_of_a_json_and_some_classes(network: Path, photos: Path, tmp_path: Path) -> None:
    categories = [{"id": 8, "name": "dog"}, {"id": 5, "name": "horse"}]
    images = [{"id": 77, "file_name": "b.png", "height": 48, "width": 64}]
    (tmp_path / "test.json").write_text(json.dumps({"images": images, "categories": categories}))
    path = boxsup_d2.predict(
        network,
        tmp_path / "test.json",
        tmp_path / "dogs.json",
        image_root=str(photos),
        classes=["dog"],
        min_score=0.3,
        device="cpu",
        opts=["DATALOADER.NUM_WORKERS", 0],
    )
    found = read(tmp_path / "dogs.json")
    assert found
    assert {(annotation["image_id"], annotation["category_id"]) for annotation in found} == {(77, 8)}
    assert read(Path(path))["categories"] == categories
    with pytest.raises(ValueError, match=r"no class 'horse', but cat, dog"):
        boxsup_d2.predict(network, photos, tmp_path / "x.json", classes=["horse"])
    with pytest.raises(ValueError, match=r"no class 'dogs', .*Did you mean 'dog'"):
        boxsup_d2.predict(network, photos, tmp_path / "x.json", classes=["dogs"])


def test_interrupted_and_damaged_work_goes_on(
    network: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    png = bytearray((photos / "b.png").read_bytes())
    png[len(png) // 2] ^= 255  # past the header: only decoding finds it
    (photos / "b.png").write_bytes(png)
    asked: list[str] = []
    plain = PromptableRCNN.forward

    def forward(self: Any, batched_inputs: list[dict[str, Any]]) -> Any:
        asked.extend(Path(item["file_name"]).name for item in batched_inputs)
        return plain(self, batched_inputs)

    monkeypatch.setattr(PromptableRCNN, "forward", forward)
    command = ["predict", str(network), str(photos), "--out", str(tmp_path / "found.json"), *LOW]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "b.png' is damaged" in error
    assert not (tmp_path / "found.json").exists()
    assert main([*command, "--keep-going"]) == 0
    assert asked == ["a.png", "c.png"], "what was predicted is not predicted again"
    assert "b.png" in capsys.readouterr().out
    assert [image["file_name"] for image in read(tmp_path / "found.coco.json")["images"]] == ["a.png", "inner/c.png"]


def test_a_network_is_found_that_the_last_command_did_not_ask_for(network: Path, tmp_path: Path) -> None:
    shutil.copytree(network, tmp_path / "my/mask-rcnn")
    (tmp_path / "my/config.yaml").write_text("ROUNDS: [{NAME: a, STEPS: [{NAME: boxmask, CONFIG: x.yaml}]}]\n")
    config, weights = find_config(str(tmp_path / "my"))
    assert (config, weights) == tuple(
        str(tmp_path / "my/mask-rcnn" / name) for name in ("config.yaml", "model_final.pth")
    )
    # While it starts again, what it had is put aside, and is nobody's network.
    (tmp_path / "my/mask-rcnn").rename(tmp_path / "my/mask-rcnn.12345678")
    with pytest.raises(FileNotFoundError, match="no network in"):
        find_config(str(tmp_path / "my"))


def test_boxinst_is_asked_for_its_own_classes(photos: Path, tmp_path: Path) -> None:
    opts = ["MODEL.FCOS.NUM_CLASSES", 2, "MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", 64, "MODEL.WEIGHTS", ""]
    cfg = load_config(get_config_file("quick/voc-boxinst.yaml"), [*opts, "TEST.DETECTIONS_PER_IMAGE", 5])
    torch.manual_seed(1)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model_final.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    (tmp_path / "class_names.txt").write_text("cat\ndog\n")
    out = tmp_path / "found.json"
    command = ["predict", str(tmp_path), str(photos / "a.png"), "--out", str(out), "--min-score", "0.001"]
    assert main([*command, "--num-gpus", "0"]) == 0
    assert [category["name"] for category in read(tmp_path / "found.coco.json")["categories"]] == ["cat", "dog"]
    assert read(out)
    assert trained_network(tmp_path).cfg.MODEL.FCOS.SCORE_THRESH_TEST == 0.05


def test_semantic_networks_give_a_region_per_class(photos: Path, tmp_path: Path) -> None:
    class Halves(DeepLabSegmenter):
        """Sees a dog in the left half of an image, and no class in the right one."""

        def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
            outputs = []
            for item in batched_inputs:
                sem_seg = torch.zeros((3, item["height"], item["width"]))
                sem_seg[0], sem_seg[2, :, : item["width"] // 2] = 0.5, 1.0
                outputs.append({"sem_seg": sem_seg})
            return outputs

    META_ARCH_REGISTRY._do_register("Halves", Halves)
    opts = ["MODEL.META_ARCHITECTURE", "Halves", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3, "MODEL.DEVICE", "cpu"]
    cfg = load_config(get_config_file("quick/Base-LPG-segmenter.yaml"), opts)
    try:
        (tmp_path / "config.yaml").write_text(cfg.dump())
        torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model_final.pth")
        (tmp_path / "names.txt").write_text("background\ncat\ndog\n")
        command = ["predict", str(tmp_path), str(photos / "a.png"), "--names", str(tmp_path / "names.txt")]
        command += ["--voc-png", str(tmp_path / "maps"), "--out", str(tmp_path / "found.json"), "--num-gpus", "0"]
        assert main(command) == 0
    finally:
        META_ARCH_REGISTRY._obj_map.pop("Halves")
    (region,) = read(tmp_path / "found.json")
    assert region["bbox"] == [0, 0, 36, 48]
    labels = np.asarray(Image.open(tmp_path / "maps/SegmentationClass/a.png"))
    assert (labels == np.where(np.arange(72) < 36, 2, 0)).all()


def test_images_are_found_by_folder_file_and_pattern(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def names(*inputs: str) -> list[str]:
        return [image["file_name"] for image in image_list(inputs)[2]["images"]]

    monkeypatch.chdir(photos)
    assert names("b.png", ".") == ["b.png", "a.png", "inner/c.png"], "once each"
    assert names("*.png") == ["a.png", "b.png"]
    assert names("**/*.png") == ["a.png", "b.png", "inner/c.png"]
    assert names("inner") == ["c.png"]
    (photos / "notes.txt").write_text("")
    for wrong, message in [
        (["absent"], "no 'absent'"),
        (["*.jpg"], r"pattern '\*.jpg'"),
        (["notes.txt"], "no ending of an image"),
        (["x.json", "a.png"], "name it alone"),
        (["x.json"], "x.json"),
        ([], "No images"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            image_list(wrong)


def test_what_cannot_predict_is_said_to_be_that(network: Path, tmp_path: Path) -> None:
    def copied(change: Callable[[str], str]) -> Path:
        (tmp_path / "config.yaml").write_text(change((network / "config.yaml").read_text()))
        return tmp_path

    with pytest.raises(FileNotFoundError, match="no weights"):
        trained_network(copied(str))
    (tmp_path / "model_final.pth").write_bytes(b"")
    assert trained_network(tmp_path).class_names == ("class 0", "class 1"), "nobody knows their names here"
    assert trained_network(network / "model_final.pth", device="cpu").class_names == ("cat", "dog")
    (tmp_path / "names.txt").write_text("one\n")
    with pytest.raises(ValueError, match="1 classes, but the network has 2"):
        trained_network(tmp_path, names=tmp_path / "names.txt")
    with pytest.raises(ValueError, match="nothing here defines"):
        trained_network(copied(lambda text: text.replace("PromptableRCNN", "Unheard")))
    (tmp_path / "config.yaml").write_text(method_config("boxmask", device="cpu").dump())
    with pytest.raises(ValueError, match="gives masks to boxes: use it with 'boxsup label"):
        trained_network(tmp_path)
