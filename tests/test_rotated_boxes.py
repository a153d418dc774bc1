"""Rotated boxes: whatever tool wrote them, methods see the box around each and masks are cut to it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

import boxsup_d2
from boxsup_d2.crf.refine import CRFRefinedModel
from boxsup_d2.data.formats.annotations import read_annotations
from boxsup_d2.data.formats.coco_dialects import tidy_coco
from boxsup_d2.data.formats.coco_dicts import load_coco_boxes
from boxsup_d2.data.formats.label_studio import write_label_studio
from boxsup_d2.data.formats.polygons import decode_mask
from boxsup_d2.data.formats.problems import Problems
from boxsup_d2.data.formats.rotated_boxes import rotated_fields
from boxsup_d2.masks.confidence import rotated_confidence
from boxsup_d2.masks.paste import MaskPatch
from boxsup_d2.masks.rotated_boxes import cut_patch, enclosing_box, inside_rotated_box
from boxsup_d2.modeling.box_to_mask import UntrainedBoxToMask
from boxsup_d2.report.drawing import COLORS, Canvas
from boxsup_d2.report.mask_sets import Scene, SceneObject
from boxsup_d2.report.overlays import DrawnObject, draw_objects
from boxsup_d2.report.render import Renderer

H, W = 60, 80
# Its centre and sides, and degrees clockwise; a corner reaches out of the image.
CX, CY, WIDTH, HEIGHT, CLOCKWISE = 30.0, 26.0, 50.0, 16.0, 30.0
ROTATED = [CX, CY, WIDTH, HEIGHT, -CLOCKWISE]


def corners() -> list[list[float]]:
    """The four of the box, upper left first before the rotation."""
    cos, sin = math.cos(math.radians(CLOCKWISE)), math.sin(math.radians(CLOCKWISE))
    halves = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    around = [(sx * WIDTH / 2, sy * HEIGHT / 2) for sx, sy in halves]
    return [[CX + x * cos - y * sin, CY + x * sin + y * cos] for x, y in around]


def expected_mask() -> np.ndarray:
    """H×W bool: pixels whose centres the four corners go around."""
    ring = np.array(corners(), np.float32)
    return np.array(
        [[cv2.pointPolygonTest(ring, (x + 0.5, y + 0.5), measureDist=False) >= 0 for x in range(W)] for y in range(H)]
    )


def coco(**fields: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": "a.png", "height": H, "width": W}],
        "annotations": [{"id": 5, "image_id": 1, "category_id": 1, "iscrowd": 0, **fields}],
        "categories": [{"id": 1, "name": "ship"}],
    }


def exports() -> dict[str, tuple[str, str]]:
    """The same box as tools write it: file name and content."""
    left, top = CX - WIDTH / 2, CY - HEIGHT / 2
    upright = [left, top, WIDTH, HEIGHT]
    x, y = corners()[0]
    shares = " ".join(f"{x / W:.6f} {y / H:.6f}" for x, y in corners())
    percent = {"x": 100 * x / W, "y": 100 * y / H, "width": 100 * WIDTH / W, "height": 100 * HEIGHT / H}
    region = {
        "original_width": W, "original_height": H, "id": "r", "type": "rectanglelabels",
        "value": {**percent, "rotation": CLOCKWISE, "rectanglelabels": ["ship"]},
    }  # fmt: skip
    task = {"id": 1, "data": {"image": "/data/upload/1/a.png"}, "annotations": [{"result": [region]}]}
    shapes = {
        "shapes": [{"label": "ship", "shape_type": "rotation", "points": corners(), "direction": 0.5}],
        "imagePath": "a.png", "imageHeight": H, "imageWidth": W,
    }  # fmt: skip
    xml = (
        f'<annotations><image name="a.png" width="{W}" height="{H}"><box label="ship" xtl="{left}" ytl="{top}" '
        f'xbr="{left + WIDTH}" ybr="{top + HEIGHT}" rotation="{CLOCKWISE}"/></image></annotations>'
    )
    return {
        "YOLO-OBB": ("labels/a.txt", f"0 {shares}\n"),
        "CVAT's XML": ("annotations.xml", xml),
        "CVAT's COCO": ("boxes.json", json.dumps(coco(bbox=upright, attributes={"rotation": CLOCKWISE}))),
        "a rotation": ("boxes.json", json.dumps(coco(bbox=upright, rotation=CLOCKWISE))),
        "five numbers": ("boxes.json", json.dumps(coco(bbox=ROTATED))),
        "X-AnyLabeling": ("a.json", json.dumps(shapes)),
        "Label Studio": ("boxes.json", json.dumps([task])),
    }


def write_image(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "a.png"), np.random.default_rng(0).integers(0, 255, (H, W, 3), dtype=np.uint8))


def read(path: Path, images: Path) -> tuple[dict[str, Any], Problems]:
    problems, notes = Problems(), Problems()
    data = read_annotations(str(path), str(images), None, problems, notes).data
    assert not problems, str(problems)
    return data, notes


@pytest.mark.parametrize("tool", exports())
def test_every_tools_rotated_box_is_one(tmp_path: Path, tool: str) -> None:
    name, content = exports()[tool]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    (tmp_path / "classes.txt").write_text("ship\n")
    write_image(tmp_path / "images")
    data, notes = read(path if path.suffix != ".txt" else path.parent, tmp_path / "images")
    (annotation,) = data["annotations"]
    xs, ys = np.array(corners()).T
    around = [xs.min(), ys.min(), np.ptp(xs), np.ptp(ys)]
    assert annotation["bbox"] == pytest.approx(around, abs=1e-3)
    assert "segmentation" not in annotation
    mask = inside_rotated_box(annotation["rotated_box"], 0, 0, H, W)
    np.testing.assert_array_equal(mask, expected_mask())
    assert "rotated boxes" in str(notes)
    # As Detectron2 takes it.
    box = BoxMode.convert(annotation["rotated_box"], BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS)
    assert box == pytest.approx([xs.min(), ys.min(), xs.max(), ys.max()], abs=1e-3)
    write_label_studio(data, str(tmp_path))
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    (again,) = read(tmp_path / "tasks.json", tmp_path / "images")[0]["annotations"]
    np.testing.assert_array_equal(inside_rotated_box(again["rotated_box"], 0, 0, H, W), mask)
    (region,) = tasks[0]["predictions"][0]["result"]
    region["value"]["rotation"] = 0  # turned back there
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    (again,) = read(tmp_path / "tasks.json", tmp_path / "images")[0]["annotations"]
    assert "rotated_box" not in again


def test_a_rotated_box_that_does_not_fit_its_bbox_counts_for_nothing(tmp_path: Path) -> None:
    write_image(tmp_path)
    (fields,) = tidy_coco(coco(bbox=ROTATED))["annotations"]
    x, y, w, h = fields["bbox"]
    stale = [x + 9, y, w, h]
    tight = [x + 9, y + 4, 12, 9]
    for box, rotated, kept in ((stale, ROTATED, 0), (tight, ROTATED, 1), ([x, y, w, h], [1, 2], 0)):
        data, notes = coco(bbox=box, rotated_box=rotated), Problems()
        assert tidy_coco(data, notes) == data, "a field of the user's stays"
        assert ("do not fit" in str(notes)) != kept
        (tmp_path / "x.json").write_text(json.dumps(data))
        (record,) = load_coco_boxes(str(tmp_path / "x.json"), str(tmp_path), "x")
        assert ("rotated_box" in record["annotations"][0]) == kept


def test_thin_boxes_are_lines_and_upright_ones_are_not_cut() -> None:
    thin = inside_rotated_box([10, 10, 16, 0.1, 45], 0, 0, 20, 20)
    assert thin[np.arange(5, 15), 19 - np.arange(5, 15)].all(), "counter-clockwise: up to the right"
    assert thin.sum() < 40
    ones = torch.ones(20, 20, dtype=torch.bool)
    for degrees in (0, 90, -180, 89.999):
        assert cut_patch(ones, [10, 10, 3.3, 4.4, degrees], 0, 0).all()
    part = cut_patch(torch.ones(6, 7), [10, 10, 16, 4, 30], 8, 3)
    np.testing.assert_array_equal(part.bool().numpy(), inside_rotated_box([10, 10, 16, 4, 30], 8, 3, 6, 7))
    assert not cut_patch(ones, [-50, 10, 16, 4, 30], 0, 0).any()


def test_masks_are_cut_in_files_and_in_python(tmp_path: Path) -> None:
    data = coco(bbox=ROTATED)
    data["annotations"].append({"id": 6, "image_id": 1, "category_id": 1, "bbox": [50.5, 40, 20, 15], "iscrowd": 0})
    write_image(tmp_path)
    (tmp_path / "boxes.json").write_text(json.dumps(data))
    model = boxsup_d2.load("box", device="cpu", opts=["DATALOADER.NUM_WORKERS", 0])
    name = boxsup_d2.register(tmp_path / "boxes.json", tmp_path, name="rotated")
    try:
        path = boxsup_d2.label(model, name, tmp_path / "out")
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    turned, upright = json.loads(Path(path).read_text())["annotations"]
    # Methods leave out the last pixel of a box that it covers in part.
    lost = expected_mask() & ~decode_mask(turned, H, W)
    assert lost.sum() <= 3
    assert not (decode_mask(turned, H, W) & ~expected_mask()).any()
    assert turned["rotated_box"] == ROTATED
    assert upright["area"] == 20 * 15
    # A mask that fills its box is said to: of the rotated one all but the corner outside of the image is there.
    assert turned["confidence"] == turned["confidence_exact"] > 0.9
    image = cv2.imread(str(tmp_path / "a.png"))
    prediction = model.predict(image, [ROTATED, [60.5, 47.5, 20, 15, 0]])
    np.testing.assert_array_equal(prediction.masks, [decode_mask(a, H, W) for a in (turned, upright)])
    assert prediction.to_coco()[0]["rotated_box"] == ROTATED
    assert prediction.confidence[0] == prediction.to_coco()[0]["confidence"] == turned["confidence"]
    assert prediction.boxes[0] == pytest.approx(enclosing_box(ROTATED))
    for box, message in (([1, 2, 3, 0, 9], "no width or height"), ([900, 2, 3, 4, 9], "outside the image")):
        with pytest.raises(ValueError, match=message):
            model.predict(image, [box])
    with pytest.raises(ValueError, match="shares of the sides"):
        model.predict(image, [[0.5, 0.5, 0.2, 0.1, 30]])


@pytest.mark.parametrize("seed", range(5))
def test_confidence_is_that_of_the_box_as_it_lies(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((20, 30)) < 0.1
    rotated = [*rng.uniform(10, 20, 2), *rng.uniform(5, 30, 2), rng.uniform(-180, 180)]
    left, top = 7, 3
    # By every pixel's centre, turned by OpenCV.
    rows, columns = np.nonzero(mask)
    turn = cv2.getRotationMatrix2D((rotated[0], rotated[1]), -rotated[4], 1.0)
    points = np.stack([columns + left + 0.5, rows + top + 0.5, np.ones(len(rows))])
    x, y = turn @ points
    assert len(x) > 10
    found = [x.min() - 0.5, y.min() - 0.5, x.max() - x.min() + 1, y.max() - y.min() + 1]
    box = [rotated[0] - rotated[2] / 2, rotated[1] - rotated[3] / 2, *rotated[2:4]]
    w, h = (max(min(found[i] + found[i + 2], box[i] + box[i + 2]) - max(found[i], box[i]), 0) for i in (0, 1))
    expected = w * h / (found[2] * found[3] + box[2] * box[3] - w * h)
    assert rotated_confidence(mask, left, top, rotated) == pytest.approx(expected, abs=1e-6)
    assert rotated_confidence(np.zeros_like(mask), left, top, rotated) == 0
    upright = [columns.min() + left, rows.min() + top, np.ptp(columns) + 1, np.ptp(rows) + 1]
    as_rotated = [upright[0] + upright[2] / 2, upright[1] + upright[3] / 2, *upright[2:], 0]
    assert rotated_confidence(mask, left, top, as_rotated) == pytest.approx(1)


class Everything(UntrainedBoxToMask):
    """Gives whole boxes, and patches and a label map of them."""

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        outputs = super().forward(batched_inputs)
        for item, output in zip(batched_inputs, outputs, strict=True):
            output["patches"] = [MaskPatch(0, 0, mask * 0.9) for mask in output["instances"].pred_masks]
            output["label_map"] = torch.full(item["image"].shape[1:], 1, dtype=torch.int32)
        return outputs

    def predict_masks(self, image: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(boxes), *image.shape[1:], dtype=torch.bool)


def test_all_that_a_method_returns_is_cut_and_so_is_the_crf() -> None:
    pytest.importorskip("pydensecrf")
    prompts = Instances((H, W))
    prompts.gt_boxes = Boxes(torch.tensor([enclosing_box(ROTATED), [60, 40, 70, 50]]))
    prompts.gt_classes = torch.tensor([0, 0])
    prompts.gt_rotated_boxes = torch.tensor([ROTATED, [65, 45, 10, 10, 0]])
    item = {"image": torch.zeros(3, H, W, dtype=torch.uint8), "instances": prompts, "height": H, "width": W}
    model = Everything().eval()
    (output,) = model([item])
    inside = torch.from_numpy(expected_mask())
    assert torch.equal(output["instances"].pred_masks[0], inside)
    assert torch.equal(output["patches"][0].prob > 0, inside)
    assert output["instances"].pred_masks[1].all()
    labels = inside.clone()
    labels[40:50, 60:70] = True
    assert torch.equal(output["label_map"].bool(), labels)
    (refined,) = CRFRefinedModel(model)([item])
    assert refined["instances"].pred_masks[0].any()
    assert not (refined["instances"].pred_masks[0] & ~inside).any()


# ------------------------------------------------------------------------------------------------- drawn
def test_rotated_boxes_are_drawn_as_they_lie() -> None:
    image = np.zeros((100, 120, 3), np.uint8)
    mask = np.zeros((100, 120), bool)
    drawn = draw_objects(image, [DrawnObject(mask, [60, 50, 60, 20, 45.0], 0, "")])
    color = np.array(COLORS[0])
    turn = np.array([np.cos(np.pi / 4), -np.sin(np.pi / 4)])  # along the longer side: upwards to the right
    across = turn[::-1] * (-1, 1)
    for side in (turn * 30, -turn * 30, across * 10, -across * 10):
        x, y = np.rint(np.array([60, 50]) + side - 0.5).astype(int)
        assert (drawn[y - 1 : y + 2, x - 1 : x + 2] == color).all(-1).any(), "the middle of each side"
    x0, y0 = (round(v) for v in enclosing_box([60, 50, 60, 20, 45.0])[:2])
    assert not drawn[y0 : y0 + 10, x0 : x0 + 10].any(), "nothing in a corner of the upright box"

    wide = np.zeros((40, 14_000, 3), np.uint8)
    drawn = draw_objects(wide, [DrawnObject(None, [12_000, 20, 30, 10, 45.0], 0, "")])
    assert set(drawn.any(axis=(0, 2)).nonzero()[0]) <= set(range(11_980, 12_020)), "there, on wide images"

    crop = Canvas(image, (20, 10, 80, 90), 240)
    crop.box([1e9, 50, 60, 20, 30.0])
    assert not crop.pixels.any(), "far outside"


def test_reports_and_predictions_draw_them(tmp_path: Path) -> None:
    image = np.full((80, 80, 3), 90, np.uint8)
    rotated = [40.0, 40.0, 50.0, 12.0, 30.0]
    model = boxsup_d2.load("box", device="cpu")
    prediction = model.predict(image, [rotated])
    mask = np.asarray(prediction.masks[0])
    expected = draw_objects(image, [DrawnObject(mask, rotated, 0, f"{prediction.quality[0]:.2f}")])
    np.testing.assert_array_equal(np.asarray(prediction.plot())[:, :, ::-1], expected)

    cv2.imwrite(str(tmp_path / "a.png"), image)
    fields = rotated_fields(rotated)
    views = []
    for annotation in (fields, {"bbox": fields["bbox"]}):
        scene = Scene("a.png", (80, 80), [SceneObject(1, 0, tuple(fields["bbox"]), (annotation,))])
        views.append(Renderer(str(tmp_path), 1, False, 80)(scene).views[1])
    assert views[0] != views[1]
