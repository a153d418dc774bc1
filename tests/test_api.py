"""The Python API: load, predict, label, register; and the document that shows it."""

import ast
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

import boxsup_d2.api
from boxsup_d2.api import BoxToMask, Prediction, label, load, register
from boxsup_d2.masks.box_masks import BoxMasks, tight_box
from boxsup_d2.masks.confidence import exact_confidence, published_confidence
from boxsup_d2.methods import load_model, method_config

ROOT = Path(__file__).resolve().parents[1]
# No worker processes: nothing here is about them, and each takes seconds to start.
ALONE = ["DATALOADER.NUM_WORKERS", 0]


@pytest.fixture
def registered():
    """Names to take out of the catalogs afterwards."""
    names = []
    yield names
    for name in names:
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog:
                catalog.remove(name)


def photograph(height=60, width=80):
    """Noise with a red square from (20, 10) to (50, 40)."""
    image = np.random.default_rng(0).integers(60, 90, (height, width, 3), dtype=np.uint8)
    image[10:40, 20:50] = (200, 30, 30)
    return image


BOXES = [[15, 5, 55, 45], [20.4, 10.2, 50.7, 40.9], [-10, -10, 30, 200]]


# ------------------------------------------------------------------------------------------------ load
def test_package_offers_the_api_without_importing_it():
    tree = ast.parse((ROOT / "boxsup_d2/__init__.py").read_text())
    at_once = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert at_once
    assert "boxsup_d2.api" not in at_once
    for name in ("load", "label", "predict", "register"):
        assert getattr(boxsup_d2, name) is getattr(boxsup_d2.api, name)
        assert name in dir(boxsup_d2), "for completion"


def test_package_has_no_other_lazy_names():
    with pytest.raises(AttributeError, match=r"boxsup_d2.*no_such_name"):
        boxsup_d2.no_such_name  # noqa: B018


def test_load_takes_names_files_and_configs(tmp_path):
    by_name = load("grabcut", device="cpu", opts=["MODEL.GRABCUT.ITERATIONS", 2])
    assert repr(by_name) == "BoxToMask(GrabCut on cpu)"
    assert by_name.model.iterations == 2
    file = tmp_path / "mine.yaml"
    file.write_text("MODEL:\n  META_ARCHITECTURE: GrabCut\n  GRABCUT:\n    ITERATIONS: 3\n")
    for loaded in (load(file, device="cpu"), load("grabcut", device="cpu", config_file=file)):
        assert loaded.model.iterations == 3
    cfg = method_config("box", device="cpu")
    assert load(cfg).cfg is cfg
    with pytest.raises(ValueError, match="complete config"):
        load(cfg, device="cpu")
    with pytest.raises(ValueError, match="Two configs"):
        load(file, config_file=file)
    with pytest.raises(ValueError, match=r"no method 'grab'"):
        load("grab")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        load(tmp_path / "nowhere.yaml")
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT is 'L'"):
        load("box", device="cpu", opts=["INPUT.FORMAT", "L"])


# ------------------------------------------------------------------------------------------------ predict
def test_prediction_of_an_array_and_of_a_file(tmp_path):
    image = photograph()
    Image.fromarray(image).save(tmp_path / "image.png")
    # The first box is loose, so that its cut would count as failed.
    model = load("grabcut", device="cpu", opts=["MODEL.GRABCUT.MIN_BOX_IOU", 0.0])
    prediction = model.predict(image, BOXES)
    assert len(prediction) == 3
    assert prediction.masks.shape == (3, 60, 80)
    assert prediction.masks.dtype == bool
    square = np.zeros((60, 80), bool)
    square[10:40, 20:50] = True
    assert (prediction.masks[0] & square).sum() / (prediction.masks[0] | square).sum() > 0.95
    assert prediction.scores.tolist() == [1, 1, 1]
    assert prediction.boxes.tolist() == BOXES
    for mask, box, confidence in zip(prediction.masks, BOXES, prediction.confidence, strict=True):
        tight = tight_box(mask)
        xywh = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        assert confidence == exact_confidence(tight, xywh)
    assert prediction.quality.shape == (3,)
    assert ((prediction.quality > 0) & (prediction.quality <= 1)).all()
    from_file = model.predict(tmp_path / "image.png", np.array(BOXES))
    assert np.array_equal(from_file.masks, prediction.masks)
    from_tensor = model.predict(str(tmp_path / "image.png"), torch.tensor(BOXES))
    assert np.array_equal(from_tensor.masks, prediction.masks)


class Recorder(torch.nn.Module):
    """Notes its input and predictions with the red pixels."""

    def forward(self, batched_inputs):
        (self.item,) = batched_inputs
        prompts = self.item["instances"]
        masks = torch.zeros((len(prompts), *self.item["image"].shape[1:]), dtype=torch.bool)
        prediction = type(prompts)(prompts.image_size, pred_masks=masks, scores=torch.zeros(len(prompts)))
        return [{"instances": prediction}]


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_methods_get_what_the_contract_says(order):
    model = Recorder()
    loaded = BoxToMask(method_config("box", opts=["INPUT.FORMAT", order], device="cpu"), model)
    image = photograph()
    before = image.copy()
    empty = loaded.predict(image, BOXES, classes=["dog", "cat", "dog"])
    assert empty.confidence.tolist() == [0, 0, 0]
    item = model.item
    shown = item["image"].permute(1, 2, 0).numpy()
    assert np.array_equal(shown if order == "RGB" else shown[:, :, ::-1], image)
    assert (item["height"], item["width"]) == item["instances"].image_size == (60, 80)
    assert torch.allclose(item["instances"].gt_boxes.tensor, torch.tensor(BOXES))
    assert item["instances"].gt_classes.tolist() == [0, 1, 0]
    assert item["class_names"] == ["dog", "cat"]
    assert item["num_classes"] == 2
    loaded.predict(image, BOXES, classes=[4, 0, 4])
    assert model.item["instances"].gt_classes.tolist() == [4, 0, 4]
    assert "class_names" not in model.item
    for nothing in ([], np.zeros((0, 4))):
        assert len(loaded.predict(image, nothing)) == 0
        assert model.item["instances"].gt_boxes.tensor.shape == (0, 4)
    assert np.array_equal(image, before)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((9, 9), np.uint8), r"\(9, 9\).*np\.stack"),
        (np.zeros((9, 9, 4), np.uint8), r"\(9, 9, 4\).*alpha"),
        (np.zeros((3, 9, 9), np.uint8), r"\(3, 9, 9\).*transpose\(1, 2, 0\)"),
        (np.zeros((0, 9, 3), np.uint8), r"\(0, 9, 3\)"),
        (np.zeros((9, 9, 3)), r"float64, not uint8.*255 \* image"),
        (np.zeros((9, 9, 3), np.int64), r"int64, not uint8"),
    ],
)
def test_images_that_are_none(image, message):
    with pytest.raises(ValueError, match=message):
        load("box", device="cpu").predict(image, [[0, 0, 5, 5]])


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([1, 2, 3, 4], r"shape \(4,\).*list of one"),
        ([[1, 2, 3]], r"shape \(1, 3\), not N×4"),
        ([["a", 0, 1, 1]], r"not N×4 numbers"),
        ([[1, 2, 3, 4], [5]], r"not N×4 numbers"),
        ([[0, 0, 5, 5], [0, 0, np.nan, 5]], r"1 of 2 boxes are not finite \(first 1: "),
        ([[5, 5, 2, 9], [9, 9, 3, 3], [0, 0, 1, 1]], r"2 of 3 boxes are inverted or empty.*not x, y, width"),
        ([[3, 3, 3, 9]], r"inverted or empty"),
        ([[80, 0, 90, 10]], r"lie outside the image of 80×60 pixels \(first 0: \[80\.0"),
        ([[-9, 0, 0, 10]], r"lie outside"),
    ],
)
def test_boxes_that_are_none(boxes, message):
    with pytest.raises(ValueError, match=message):
        load("box", device="cpu").predict(photograph(), boxes)


def test_other_wrong_input(tmp_path):
    model = load("box", device="cpu")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        model.predict(tmp_path / "nowhere.png", BOXES)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png"):
        model.predict(tmp_path / "text.png", BOXES)
    with pytest.raises(TypeError, match=r"a list.*PIL image"):
        model.predict([1, 2], BOXES)
    with pytest.raises(ValueError, match="2 classes for 3 boxes"):
        model.predict(photograph(), BOXES, classes=[0, 1])
    for wrong in ([0, -1, 0], [0.5, 0, 0], ["a", 0, 0]):
        with pytest.raises(ValueError, match="numbers from 0, or names"):
            model.predict(photograph(), BOXES, classes=wrong)


def test_images_of_all_kinds_are_one_image(tmp_path):
    model, pixels = load("box", device="cpu"), photograph()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tensor = torch.from_numpy(pixels)
    images = [tmp_path / "a.png", pixels, tensor, tensor.permute(2, 0, 1), Image.fromarray(pixels)]
    images.append(Image.fromarray(np.dstack([pixels, np.full((60, 80), 9, np.uint8)])))  # alpha counts for nothing
    for image in images:
        assert (model.predict(image, BOXES).image == pixels).all()
    assert model.predict(Image.fromarray(pixels[:, :, 0]), BOXES).image.shape == (60, 80, 3)
    with pytest.raises(ValueError, match="mode I;16, not 8 bits"):
        model.predict(Image.fromarray(np.zeros((60, 80), np.uint16)), BOXES)
    with pytest.raises(ValueError, match=r"within 0\.\.1.*x times 80 and y times 60"):
        model.predict(pixels, [[0.1, 0.2, 0.5, 0.9], [0, 0, 1, 1]])


def test_predictions_show_themselves(tmp_path):
    prediction = load("box", device="cpu").predict(photograph(), BOXES)
    assert repr(prediction) == "Prediction(3 masks on 80×60 pixels, mean quality 0.55)"
    prediction.save(tmp_path / "drawn.png")
    drawn = np.asarray(Image.open(tmp_path / "drawn.png"))
    changed = (drawn != photograph()).any(axis=2)
    assert changed[prediction.masks[1]].all()
    assert not changed[55:, 60:].any(), "no mask, box or text is there"
    assert prediction._repr_png_().startswith(b"\x89PNG")
    alone = replace(prediction, image=None)
    assert alone._repr_png_() is None
    with pytest.raises(ValueError, match="nothing to draw on"):
        alone.plot()
    assert repr(load("box", device="cpu").predict(photograph(), [])) == "Prediction(0 masks on 80×60 pixels)"


def test_coco_annotations_of_a_prediction():
    boxes = np.array([[2.0, 1, 7, 5], [0, 0, 3, 3]])
    masks = np.zeros((2, 6, 9), bool)
    masks[0, 1:4, 2:7] = True
    found = BoxMasks.of(torch.from_numpy(masks))
    prediction = Prediction(found, np.array([0.7, 0.0]), np.array([0.75, 0.0]), np.array([0.6, 0.0]), boxes)
    first, second = json.loads(json.dumps(prediction.to_coco(image_id=5, category_ids=[8, 9], first_id=100)))
    assert np.array_equal(mask_util.decode(first.pop("segmentation")).astype(bool), masks[0])
    assert not mask_util.decode(second.pop("segmentation")).any()
    common = {"image_id": 5, "iscrowd": 0}
    published = published_confidence((2, 1, 7, 4), [2, 1, 5, 4])
    assert first == common | {"id": 100, "category_id": 8, "bbox": [2, 1, 5, 4], "area": 15, "score": 0.7} | {
        "confidence": published,
        "confidence_exact": 0.75,
        "quality": 0.6,
    }
    assert second["confidence_exact"] == second["area"] == 0
    assert [entry["category_id"] for entry in prediction.to_coco()] == [1, 1]
    with pytest.raises(ValueError, match="1 category_ids for 2 masks"):
        prediction.to_coco(category_ids=[1])


# ------------------------------------------------------------------------------------------------ register and label
def make_json(folder):
    """Two images; a drawn mask, an RLE, an empty mask, a box without one, a crowd region, and fields of somebody's."""
    (folder / "images").mkdir()
    for name in ("a", "b"):
        Image.fromarray(photograph()).save(folder / f"images/{name}.png")
    rle = mask_util.encode(np.asfortranarray(np.eye(60, 80, dtype=np.uint8)))
    annotations = [
        {"id": 30, "image_id": 1, "segmentation": [[20, 10, 50, 10, 50, 40]], "note": "drawn", "area": 450},
        {"id": 10, "image_id": 1, "segmentation": {"size": [60, 80], "counts": rle["counts"].decode()}, "area": 60},
        {"id": 20, "image_id": 1, "segmentation": [], "area": 0},
        {"id": 40, "image_id": 2, "attributes": {"occluded": True}},
        {"id": 50, "image_id": 2, "iscrowd": 1, "segmentation": {"size": [60, 80], "counts": [100, 50, 4650]}},
    ]
    for annotation in annotations:
        annotation |= {"bbox": [15, 5, 40, 40], "category_id": 3}
    data = {
        "info": {"year": 2020},
        "mine": [1, 2],
        "images": [{"id": i, "file_name": f"{n}.png", "height": 60, "width": 80} for i, n in ((1, "a"), (2, "b"))],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "thing"}],
    }
    (folder / "api_test_boxes.json").write_text(json.dumps(data))
    return data


def test_registering_keeps_masks_and_opens_nothing(tmp_path, registered):
    json_file = tmp_path / "api_test_boxes.json"
    json_file.write_text("not read yet")
    (tmp_path / "lazy").mkdir()
    name = register(json_file, tmp_path / "lazy")
    registered.append(name)
    assert name == "api_test_boxes"
    with pytest.raises(ValueError, match=r"api_test_boxes\.json' is no valid json"):
        DatasetCatalog.get(name)

    make_json(tmp_path)
    assert register(json_file, tmp_path / "images") == name, "the same file may be registered again"
    assert MetadataCatalog.get(name).thing_classes == ["thing"]
    dicts = DatasetCatalog.get(name)
    masked = {obj["id"]: "segmentation" in obj for record in dicts for obj in record["annotations"]}
    assert masked == {30: True, 10: True, 20: False, 40: False, 50: True}
    crowds = [obj["id"] for record in dicts for obj in record["annotations"] if obj["iscrowd"]]
    assert crowds == [50]


def test_registering_what_is_not_there(tmp_path, registered):
    make_json(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no json .*nowhere\.json"):
        register(tmp_path / "nowhere.json", tmp_path / "images")
    with pytest.raises(FileNotFoundError, match=r"no folder of images .*nowhere"):
        register(tmp_path / "api_test_boxes.json", tmp_path / "nowhere")
    taken = tmp_path / "voc_2012_val_instance.json"
    taken.write_text((tmp_path / "api_test_boxes.json").read_text())
    with pytest.raises(ValueError, match=r"data set 'voc_2012_val_instance' already"):
        register(taken, tmp_path / "images")
    registered.append(register(taken, tmp_path / "images", name="api_test_other"))
    assert registered == ["api_test_other"]


def test_label_keeps_what_was_drawn_and_loses_nothing(tmp_path, registered):
    source = make_json(tmp_path)
    name = register(tmp_path / "api_test_boxes.json", tmp_path / "images")
    registered.append(name)
    model = load("grabcut", device="cpu", opts=ALONE)
    path = label(model, name, tmp_path / "out")
    assert path == str(tmp_path / "out/pseudo_masks/api_test_boxes_pseudo.json")
    written = json.loads(Path(path).read_text())
    assert {key: written[key] for key in ("mine", "images", "categories")} == {
        key: source[key] for key in ("mine", "images", "categories")
    }
    assert written["info"]["year"] == 2020
    assert written["info"]["boxsup_d2"]["method"] == "GrabCut"
    assert [entry["id"] for entry in written["annotations"]] == [30, 10, 20, 40, 50]
    for before, after in zip(source["annotations"], written["annotations"], strict=True):
        kept = {key: value for key, value in before.items() if key not in ("segmentation", "area")}
        assert {key: after[key] for key in kept} == kept
    by_id = {entry["id"]: entry for entry in written["annotations"]}
    for kept in (30, 10):
        assert by_id[kept]["segmentation"] == next(a for a in source["annotations"] if a["id"] == kept)["segmentation"]
        assert by_id[kept]["confidence"] == 1
    assert by_id[50] == source["annotations"][4], "crowd regions are copied"
    drawn = [COCO(path).annToMask(by_id[key]).astype(bool) for key in (30, 10)]
    new = COCO(path).annToMask(by_id[20]).astype(bool)
    assert new.any()
    assert not (new & (drawn[0] | drawn[1])).any(), "predicted masks yield to drawn ones"

    # Again: the file is left alone. With overwrite: another labelling.
    before = Path(path).stat().st_mtime_ns
    assert label(model, name, tmp_path / "out") == path
    assert Path(path).stat().st_mtime_ns == before
    assert model.cfg.PSEUDO_MASKS.DATASETS == (), "the model's own config is not changed"
    label(model, name, tmp_path / "out", overwrite=True)
    anew = {entry["id"]: entry for entry in json.loads(Path(path).read_text())["annotations"]}
    assert isinstance(anew[30]["segmentation"], dict)
    assert anew[30]["confidence"] < 1
    assert anew[50] == by_id[50]


def test_label_takes_configs_and_refuses_unknown_data_sets(tmp_path, registered):
    make_json(tmp_path)
    registered.append(register(tmp_path / "api_test_boxes.json", tmp_path / "images"))
    path = label(method_config("box", opts=ALONE, device="cpu"), registered[0], tmp_path / "out")
    assert json.loads(Path(path).read_text())["info"]["boxsup_d2"]["method"] == "BoxFill"
    with pytest.raises(ValueError, match=r"no data set 'api_test_nothing'.*register"):
        label(load("box", device="cpu"), "api_test_nothing", tmp_path)


def test_an_interrupted_labelling_goes_on(tmp_path, registered, monkeypatch):
    make_json(tmp_path)
    registered.append(register(tmp_path / "api_test_boxes.json", tmp_path / "images"))
    cfg = method_config("box", opts=[*ALONE, "PSEUDO_MASKS.IMS_PER_BATCH", 1], device="cpu")
    model = load_model(cfg)
    asked = []
    forward = model.forward

    def stop_at_second(inputs):
        asked.extend(item["image_id"] for item in inputs)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return forward(inputs)

    monkeypatch.setattr(model, "forward", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        label(BoxToMask(cfg, model), registered[0], tmp_path / "out")
    path = label(BoxToMask(cfg, model), registered[0], tmp_path / "out")
    assert Path(path).is_file()
    assert asked == [1, 2, 2], "the first image is not asked for again"


# ------------------------------------------------------------------------------------------------ the document
def test_examples_of_the_document_run(tmp_path, monkeypatch, registered, capsys):
    """All Python blocks of docs/python_api.md, one after the other as a reader would run them, in an empty folder.

    A block without a language behind one says what it prints.
    """
    pytest.importorskip("skimage", reason="the photographs are scikit-image's")
    text = (ROOT / "docs/python_api.md").read_text()
    pattern = r"^```python\n(.*?)^```$(?:\n\n^```\n(.*?)^```$)?"
    blocks = re.findall(pattern, text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    assert sum(bool(output) for _, output in blocks) >= 3
    monkeypatch.chdir(tmp_path)
    known = set(DatasetCatalog)
    namespace: dict = {"__name__": "document"}
    try:
        for block, output in blocks:
            capsys.readouterr()
            exec(compile(block, "docs/python_api.md", "exec"), namespace)
            assert not output or capsys.readouterr().out == output
    finally:
        registered.extend(set(DatasetCatalog) - known)


def test_notebook_runs(tmp_path, monkeypatch, capsys):
    """All cells in one process, in an empty folder; what is printed is what the notebook shows, but for fractions."""
    pytest.importorskip("skimage", reason="the photographs are scikit-image's")
    cells = json.loads((ROOT / "docs/boxes_to_masks.ipynb").read_text())["cells"]
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "notebook"}
    for cell in cells:
        if cell["cell_type"] == "code":
            capsys.readouterr()
            exec(compile("".join(cell["source"]), cell["id"], "exec"), namespace)
            shown = "".join("".join(output["text"]) for output in cell["outputs"] if "text" in output)
            printed = capsys.readouterr().out
            assert re.sub(r"\.\d+", "", printed) == re.sub(r"\.\d+", "", shown)
            kept = [output["data"]["image/png"] for output in cell["outputs"] if "image/png" in output.get("data", {})]
            assert bool(kept) == ("".join(cell["source"]).endswith("\nprediction")), "it shows what was predicted"
    assert json.loads((tmp_path / "masks.json").read_text())["annotations"][1]["quality"] > 0.7
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_document_names_every_public_function():
    import boxsup_d2.api

    text = (ROOT / "docs/python_api.md").read_text()
    for name in boxsup_d2.api.__all__:
        assert re.search(rf"`[^`\n]*\b{name}\b[^`\n]*`", text), f"docs/python_api.md does not explain {name}"
