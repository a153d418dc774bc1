"""The image reader and the mappers of retraining and of box prompts."""

import copy
import pickle
from itertools import islice

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from PIL import Image
from pycocotools import mask as mask_util

from boxsup_d2.config import add_boxsup_config
from boxsup_d2.data.build import build_train_loader
from boxsup_d2.data.dataset_mappers import (
    DATASET_MAPPER_REGISTRY,
    BoxPromptDatasetMapper,
    PseudoMaskDatasetMapper,
    SampleMapper,
    build_dataset_mapper,
)
from boxsup_d2.data.dataset_mappers.box_prompt import tight_box
from boxsup_d2.data.datasets import register_dataset
from boxsup_d2.data.images import read_image
from boxsup_d2.modeling.roi_heads.mask_head import confidence_weights

SIZE = (60, 80)


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_boxsup_config(cfg)
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.INPUT.MIN_SIZE_TRAIN = (60,)
    return cfg


@pytest.fixture
def photo(tmp_path):
    """A smooth photograph-like JPEG of SIZE."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 10, 3)).astype(np.uint8)
    path = tmp_path / "photo.jpg"
    Image.fromarray(cv2.resize(noise, SIZE[::-1], interpolation=cv2.INTER_CUBIC)).save(path, quality=95)
    return path


def rle(mask):
    return mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))


def disc(box):
    x0, y0, x1, y1 = box
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    return ((x - (x0 + x1) / 2) / (x1 - x0)) ** 2 + ((y - (y0 + y1) / 2) / (y1 - y0)) ** 2 < 0.25


def annotation(box, **fields):
    return {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1, "iscrowd": 0, **fields}


def record(path, annotations):
    return {
        "file_name": str(path),
        "height": SIZE[0],
        "width": SIZE[1],
        "image_id": 7,
        "annotations": annotations,
    }


def mapped(mapper, dataset_dict, seed=0):
    """A sample; the dataset dict must come out as it went in."""
    before = pickle.dumps(dataset_dict)
    np.random.seed(seed)
    sample = mapper(dataset_dict)
    assert pickle.dumps(dataset_dict) == before
    return sample


# ------------------------------------------------------------------------------------------------ images


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["RGB", "BGR", "L"])
def test_reads_what_detectron2_reads(tmp_path, photo, orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    Image.open(photo).save(path, exif=exif, quality=95)
    ours, stock = read_image(str(path), format), detection_utils.read_image(str(path), format)
    assert ours.shape == stock.shape
    assert ours.dtype == np.uint8
    assert ours.flags.c_contiguous
    # Grey: libjpeg's luminance against Pillow's of the decoded colours; colours: two builds of libjpeg-turbo.
    assert np.abs(ours.astype(int) - stock).max() <= (6 if format == "L" else 2)


MODES = {
    "png": ["RGB", "RGBA", "L", "P", "1", "LA"],
    "jpg": ["RGB", "L", "CMYK"],
    "gif": ["RGB", "L", "P", "1"],
    "tif": ["RGB", "RGBA", "L", "CMYK"],
}


@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix, modes in MODES.items() for mode in modes])
def test_reads_every_mode(tmp_path, photo, suffix, mode):
    path = tmp_path / f"image.{suffix}"
    Image.open(photo).convert(mode).save(path)
    ours, stock = read_image(str(path), "RGB"), detection_utils.read_image(str(path), "RGB")
    assert ours.shape == (*SIZE, 3)
    assert np.abs(ours.astype(int) - stock).mean() <= (6 if mode == "CMYK" else 1)


def test_reads_salient_masks_of_any_depth(tmp_path):
    mask = disc((10, 10, 50, 50))
    for name, image in {
        "grey.png": Image.fromarray(mask.astype(np.uint8) * 255),
        "binary.png": Image.fromarray(mask),
        "colour.png": Image.fromarray(mask.astype(np.uint8) * 255).convert("RGB"),
    }.items():
        image.save(tmp_path / name)
        assert np.array_equal(read_image(str(tmp_path / name), "L")[:, :, 0] > 127, mask)


def test_unreadable_images_are_named(tmp_path, photo):
    missing = tmp_path / "missing.jpg"
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg.*DETECTRON2_DATASETS"):
        read_image(str(missing))
    whole = photo.read_bytes()
    for name, data in {
        "empty.jpg": b"",
        "text.jpg": b"<html>not found</html>",
        "half.jpg": whole[: len(whole) // 2],
        "head.jpg": whole[:30],
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name}.*damaged"):
            read_image(str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match="Cannot read"):
        read_image(str(tmp_path))


def test_truncation_is_seen_behind_a_thumbnail(tmp_path, photo):
    """An EXIF thumbnail is a whole JPEG of its own, end marker included."""
    whole = photo.read_bytes()
    thumbnail = b"Exif\x00\x00" + whole[:2] + b"\xff\xda\x00\x02\xff\xd9"
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    (tmp_path / "ok.jpg").write_bytes(whole[:2] + segment + whole[2:] + b"\x00trailing bytes")
    assert read_image(str(tmp_path / "ok.jpg")).shape == (*SIZE, 3)
    (tmp_path / "cut.jpg").write_bytes(whole[:2] + segment + whole[2:-200])
    with pytest.raises(ValueError, match=r"cut\.jpg"):
        read_image(str(tmp_path / "cut.jpg"))


# ------------------------------------------------------------------------------------------------ box prompts


def test_box_prompts(cfg, photo):
    annotations = [
        annotation((10.5, 5, 50, 40.25), id=31),
        annotation((0, 0, 80, 60), id=32, iscrowd=1),
        {"bbox": [20, 10, 5, 6], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 4, "id": 30},
    ]
    sample = mapped(build_dataset_mapper(cfg, "BoxPromptDatasetMapper", False), record(photo, annotations))
    assert sample["annotation_ids"] == [31, 30]
    assert sample["image_id"] == 7
    assert "annotations" not in sample
    assert sample["instances"].gt_boxes.tensor.tolist() == [[10.5, 5, 50, 40.25], [20, 10, 25, 16]]
    assert sample["instances"].gt_classes.tolist() == [1, 4]
    assert sample["instances"].gt_classes.dtype == torch.int64
    assert sample["instances"].image_size == SIZE
    assert sample["image"].dtype == torch.uint8
    assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), read_image(str(photo), cfg.INPUT.FORMAT))


def test_box_prompts_of_images_without_boxes(photo):
    mapper = BoxPromptDatasetMapper(image_format="RGB")
    for dataset_dict in (record(photo, []), {"file_name": str(photo), "image_id": 1}):
        sample = mapped(mapper, dataset_dict)
        assert sample["instances"].gt_boxes.tensor.shape == (0, 4)
        assert sample["instances"].gt_classes.dtype == torch.int64
        assert sample["annotation_ids"] == []
        assert (sample["height"], sample["width"]) == SIZE


def test_box_prompts_without_ids_have_none(photo):
    sample = mapped(BoxPromptDatasetMapper(image_format="RGB"), record(photo, [annotation((1, 2, 3, 4))]))
    assert "annotation_ids" not in sample


def test_wrong_size_is_named(cfg, photo):
    wrong = {**record(photo, []), "width": 81}
    for name in ("BoxPromptDatasetMapper", "PseudoMaskDatasetMapper"):
        with pytest.raises(ValueError, match=r"photo\.jpg.*80.*81"):
            build_dataset_mapper(cfg, name, True)(wrong)


def test_tight_box_prompts(cfg, photo):
    cfg.TEST.BOX_PROMPT = "tight"
    mapper = build_dataset_mapper(cfg, "BoxPromptDatasetMapper", False)
    mask = np.zeros(SIZE, bool)
    mask[12:31, 7:45] = True
    encoded = rle(mask)
    uncompressed = {"size": list(SIZE), "counts": [7 * 60 + 12] + [19, 41] * 37 + [19, 60 * 35 + 29]}
    polygon = [[7, 12, 45, 12, 45, 31, 7, 31]]
    empty = rle(np.zeros(SIZE, bool))
    segmentations = [encoded, uncompressed, polygon, empty]
    sample = mapped(mapper, record(photo, [annotation((5, 10, 50, 40), segmentation=s) for s in segmentations]))
    assert sample["instances"].gt_boxes.tensor.tolist() == [[7, 12, 45, 31]] * 3 + [[5, 10, 50, 40]]
    with pytest.raises(ValueError, match=r"photo\.jpg.*no mask"):
        mapper(record(photo, [annotation((5, 10, 50, 40))]))
    with pytest.raises(ValueError, match="BOX_PROMPT"):
        BoxPromptDatasetMapper(image_format="RGB", box_prompt="loose")


def test_tight_box_against_pixels():
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random(SIZE) > 0.999
        ys, xs = np.nonzero(mask)
        expected = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else None
        assert tight_box(rle(mask), *SIZE) == expected


# ------------------------------------------------------------------------------------------------ pseudo masks


BOXES = [(10, 5, 50, 45), (30, 20, 78, 58), (2, 40, 22, 59)]


def fields(sample):
    return sample["instances"].get_fields()


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
def test_true_masks_are_treated_as_by_detectron2(cfg, photo, crop, mask_format):
    cfg.INPUT.CROP.ENABLED = crop
    cfg.INPUT.CROP.SIZE = [0.5, 0.5]
    cfg.INPUT.MASK_FORMAT = mask_format
    corners = [[[x0, y0, x1, y0, x1, y1, x0, (y0 + y1) / 2]] for x0, y0, x1, y1 in BOXES]
    masks = corners if mask_format == "polygon" else [rle(disc(box)) for box in BOXES]
    dataset_dict = record(photo, [annotation(b, segmentation=m) for b, m in zip(BOXES, masks, strict=True)])
    dataset_dict["annotations"].append(annotation((0, 0, 80, 60), iscrowd=1, segmentation=rle(np.ones(SIZE))))
    dropped = 0
    for seed in range(8):
        ours = mapped(build_dataset_mapper(cfg, "PseudoMaskDatasetMapper", True), dataset_dict, seed)
        stock = mapped(DatasetMapper(cfg, True), dataset_dict, seed)
        assert torch.equal(ours["image"], stock["image"])
        got, expected = fields(ours), fields(stock)
        dropped += len(got["gt_classes"]) < 3
        assert torch.equal(got["gt_boxes"].tensor, expected["gt_boxes"].tensor)
        assert torch.equal(got["gt_classes"], expected["gt_classes"])
        assert (got["gt_mask_confidence"] == 1).all()
        assert set(got) - set(expected) == {"gt_mask_confidence"}
        if mask_format == "bitmask":
            assert torch.equal(got["gt_masks"].tensor, expected["gt_masks"].tensor)
        else:
            assert isinstance(got["gt_masks"], PolygonMasks)
            assert len(got["gt_masks"]) == len(expected["gt_masks"])
    assert bool(dropped) == crop


def test_confidence_follows_its_instance(cfg, photo):
    masks = [rle(disc(box)) for box in BOXES]
    annotations = [
        annotation(BOXES[0], segmentation=masks[0], confidence=0.25, confidence_exact=0.75),
        annotation((5, 5, 5, 20), segmentation=masks[0], confidence=0.5),  # no box: nothing to learn
        annotation((0, 0, 80, 60), segmentation=masks[1], iscrowd=1, confidence=0.9),
        annotation(BOXES[1], segmentation=masks[1], category_id=3),
        annotation(BOXES[2], segmentation=masks[2], confidence=0.5),
    ]
    dataset_dict = record(photo, annotations)
    sample = mapped(PseudoMaskDatasetMapper(cfg, True), dataset_dict)
    assert fields(sample)["gt_mask_confidence"].tolist() == [0.25, 1.0, 0.5]
    assert fields(sample)["gt_mask_confidence"].dtype == torch.float32
    assert fields(sample)["gt_classes"].tolist() == [1, 3, 1]
    cfg.MODEL.ROI_MASK_HEAD.CONFIDENCE_KEY = "confidence_exact"
    sample = mapped(PseudoMaskDatasetMapper(cfg, True), dataset_dict)
    assert fields(sample)["gt_mask_confidence"].tolist() == [0.75, 1.0, 0.5], "confidence, where its key is missing"
    cfg.MODEL.ROI_MASK_HEAD.CONFIDENCE_KEY = "quality"
    annotations[0]["quality"] = 0.125
    sample = mapped(PseudoMaskDatasetMapper(cfg, True), dataset_dict)
    quality = fields(sample)["gt_mask_confidence"]
    assert quality.tolist() == [0.125, 1.0, 0.5]
    assert confidence_weights(quality, 0.3, weighting=False).tolist() == [0, 1, 1], "the hard drop of the mask head"
    assert confidence_weights(quality, 0.0, weighting=True).tolist() == [0.125, 1, 0.5], "its soft weight"


def test_void_is_augmented_with_the_masks(cfg, photo):
    cfg.INPUT.CROP.ENABLED = True
    mask = disc(BOXES[0])
    dataset_dict = record(photo, [annotation(BOXES[0], segmentation=rle(mask)) for _ in range(2)])
    dataset_dict["void_mask"] = rle(mask)
    for seed in range(4):
        got = fields(mapped(PseudoMaskDatasetMapper(cfg, True), dataset_dict, seed))
        assert torch.equal(got["gt_void"].tensor, got["gt_masks"].tensor)
    cfg.INPUT.IGNORE_VOID = False
    assert "gt_void" not in fields(mapped(PseudoMaskDatasetMapper(cfg, True), dataset_dict))


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
def test_instances_without_mask_keep_their_boxes(cfg, photo, mask_format):
    cfg.INPUT.MASK_FORMAT = mask_format
    polygon = [[10.0, 5, 50, 5, 50, 45, 10, 45]]
    annotations = [
        annotation(BOXES[0], segmentation=polygon),
        annotation(BOXES[1], segmentation=rle(np.zeros(SIZE)), confidence=0.0),
        annotation(BOXES[1], segmentation=rle(np.zeros(SIZE)), confidence=0.7),  # the number does not make a mask
        annotation(BOXES[2]),
        annotation(BOXES[2], segmentation=[]),
        annotation(BOXES[2], segmentation=None),
    ]
    sample = mapped(PseudoMaskDatasetMapper(cfg, True), record(photo, annotations), seed=1)
    got = fields(sample)
    assert got["gt_mask_confidence"].tolist() == [1, 0, 0, 0, 0, 0]
    assert got["gt_masks"].nonempty().tolist() == [True, False, False, False, False, False]
    boxes = got["gt_boxes"].tensor
    assert (boxes[:, 2:] - boxes[:, :2] > 1).all()
    # Detectron2 on the annotations that it can take at all: the same geometry.
    stock = mapped(DatasetMapper(cfg, True), record(photo, annotations[:1]), seed=1)
    assert torch.equal(boxes[:1], fields(stock)["gt_boxes"].tensor)


def test_box_only_and_empty_images(cfg, photo):
    mapper = PseudoMaskDatasetMapper(cfg, True)
    got = fields(mapped(mapper, record(photo, [annotation(box) for box in BOXES])))
    assert isinstance(got["gt_masks"], BitMasks)
    assert got["gt_masks"].tensor.shape == (3, *SIZE)
    assert not got["gt_masks"].tensor.any()
    assert not got["gt_mask_confidence"].any()
    for dataset_dict in (record(photo, []), record(photo, [annotation(BOXES[0], iscrowd=1)])):
        got = fields(mapped(mapper, dataset_dict))
        assert got["gt_boxes"].tensor.shape == (0, 4)
        assert len(got["gt_mask_confidence"]) == 0


def test_no_mask_head_no_masks(cfg, photo):
    cfg.MODEL.MASK_ON = False
    dataset_dict = record(photo, [annotation(BOXES[0], segmentation=rle(disc(BOXES[0])), confidence=0.5)])
    got = fields(mapped(PseudoMaskDatasetMapper(cfg, True), dataset_dict))
    assert set(got) == {"gt_boxes", "gt_classes"}


def test_inference_is_stock(cfg, photo):
    dataset_dict = record(photo, [annotation(BOXES[0])])
    ours, stock = (mapped(cls(cfg, False), dataset_dict) for cls in (PseudoMaskDatasetMapper, DatasetMapper))
    assert ours.keys() == stock.keys()
    assert torch.equal(ours["image"], stock["image"])


@pytest.mark.parametrize("seed", range(4))
def test_masks_are_augmented_with_the_image(cfg, tmp_path, seed):
    """Each mask is drawn into the image, in a colour of its own: they must still coincide after augmentation."""
    masks = [disc(box) for box in [(5, 5, 35, 50), (45, 10, 75, 55)]]
    image = np.zeros((*SIZE, 3), np.uint8)
    image[masks[0], 0], image[masks[1], 1] = 255, 255
    Image.fromarray(image).save(tmp_path / "drawn.png")
    boxes = [(5, 5, 35, 50), (45, 10, 75, 55)]
    annotations = [annotation(b, segmentation=rle(m), confidence=0.5) for b, m in zip(boxes, masks, strict=True)]
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN = (90,)
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.SIZE = [0.8, 0.8]
    sample = mapped(PseudoMaskDatasetMapper(cfg, True), record(tmp_path / "drawn.png", annotations), seed)
    got = fields(sample)
    assert sample["image"].shape[1] == 90
    for channel in range(2):
        drawn = sample["image"][channel] > 127
        assert (got["gt_masks"].tensor[channel] & drawn).sum() / (got["gt_masks"].tensor[channel] | drawn).sum() > 0.94
        ys, xs = torch.nonzero(drawn, as_tuple=True)
        # The annotated box, clipped: it may be looser than what is left of the mask, but never cuts it.
        x0, y0, x1, y1 = got["gt_boxes"].tensor[channel].tolist()
        assert x0 - 2 <= xs.min() <= xs.max() < x1 + 2
        assert y0 - 2 <= ys.min() <= ys.max() < y1 + 2


def test_pseudo_masks_do_not_move_boxes(cfg, photo):
    """A pseudo mask smaller than its box: after a random crop the box is the clipped box, not the mask's."""
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.SIZE = [0.7, 0.7]
    small = rle(disc((25, 25, 30, 30)))
    dataset_dict = record(photo, [annotation((4, 4, 76, 56), segmentation=small, confidence=0.1)])
    for seed in range(8):
        got = fields(mapped(PseudoMaskDatasetMapper(cfg, True), dataset_dict, seed))
        x0, y0, x1, y1 = got["gt_boxes"].tensor[0].tolist()
        assert min(x1 - x0, y1 - y0) > 35
        visible = bool(got["gt_masks"].tensor.any())
        assert got["gt_mask_confidence"].tolist() == pytest.approx([0.1 if visible else 0.0])


def test_bad_input_is_named(cfg, tmp_path, photo):
    mapper = PseudoMaskDatasetMapper(cfg, True)
    for value in (1.5, -0.1, float("nan")):
        bad = annotation(BOXES[0], segmentation=rle(disc(BOXES[0])), confidence=value)
        with pytest.raises(ValueError, match=r"photo\.jpg.*confidence"):
            mapper(record(photo, [bad]))
    (tmp_path / "cut.jpg").write_bytes(photo.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"cut\.jpg.*damaged"):
        mapper(record(tmp_path / "cut.jpg", []))
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg"):
        mapper(record(tmp_path / "missing.jpg", []))


def test_damaged_png_is_no_image_and_a_whole_one_is_what_opencv_reads(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    path = tmp_path / "whole.png"
    cv2.imwrite(str(path), image)
    np.testing.assert_array_equal(read_image(str(path)), image)
    data = bytearray(path.read_bytes())
    at = data.index(b"IDAT") + 4 + 2000
    data[at : at + 500] = bytes(500)  # OpenCV prints to stderr and returns an image
    path = tmp_path / "zeroed.png"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"zeroed\.png.*damaged"):
        read_image(str(path))


def test_registry(cfg):
    for name in ("BoxCropDatasetMapper", "BoxPromptDatasetMapper", "PseudoMaskDatasetMapper"):
        assert type(build_dataset_mapper(cfg, name, True)).__name__ == name
    with pytest.raises(KeyError, match="NoSuchMapper"):
        build_dataset_mapper(cfg, "NoSuchMapper", True)
    copy.deepcopy(build_dataset_mapper(cfg, "PseudoMaskDatasetMapper", True))
    pickle.dumps(build_dataset_mapper(cfg, "BoxPromptDatasetMapper", False))  # goes to worker processes


def test_default_train_mapper_is_registered(cfg):
    assert isinstance(build_dataset_mapper(cfg, cfg.INPUT.TRAIN_MAPPER, True), PseudoMaskDatasetMapper)
    assert isinstance(build_dataset_mapper(cfg, cfg.INPUT.TRAIN_MAPPER, True).augmentations, T.AugmentationList)


@DATASET_MAPPER_REGISTRY.register()
class PlainTestMapper:
    """As Detectron2 asks for it, and no more."""

    def __init__(self, cfg, is_train):
        assert is_train

    def __call__(self, dataset_dict):
        return {**dataset_dict, "width": dataset_dict["width"]}


@DATASET_MAPPER_REGISTRY.register()
class SampleTestMapper(PlainTestMapper, SampleMapper):
    one_size = True

    def training_samples(self, cfg):
        return [{**record, "part": part} for record in super().training_samples(cfg) for part in "ab"]


def test_mappers_from_outside_are_loaded(cfg, photo):
    box = annotation((1, 2, 20, 30))
    # Wide and tall images: Detectron2 puts only one kind into a batch.
    sizes = [(10, 30), (30, 10)] * 4
    records = [
        {**record(photo, [box] * (key != 7)), "image_id": key, "height": height, "width": width}
        for key, (height, width) in enumerate(sizes)
    ]
    register_dataset("outside_mappers", lambda: records, thing_classes=["a", "b", "c"])
    cfg.merge_from_list(["DATASETS.TRAIN", ("outside_mappers",), "SOLVER.IMS_PER_BATCH", 4, "SEED", 1])
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", 0, "INPUT.TRAIN_MAPPER", "PlainTestMapper"])
    batches = list(islice(build_train_loader(cfg), 20))
    assert all(len({sample["width"] for sample in batch}) == 1 for batch in batches)
    assert {sample["image_id"] for batch in batches for sample in batch} == set(range(7)), "images without boxes go"

    cfg.INPUT.TRAIN_MAPPER = "SampleTestMapper"
    batches = list(islice(build_train_loader(cfg), 7))
    seen = [(sample["image_id"], sample["part"]) for batch in batches for sample in batch]
    assert sorted(seen) == sorted([(key, part) for key in range(7) for part in "ab"] * 2), "two epochs"
    assert any(len({sample["width"] for sample in batch}) == 2 for batch in batches)
