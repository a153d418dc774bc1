"""BoxMask: geometry of its windows, its losses, its samples, the averaged network, and the box-to-mask contract."""

import dataclasses
import hashlib
import importlib.util
import sys
from itertools import islice

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.events import EventStorage
from pycocotools import mask as mask_util
from safetensors import safe_open
from safetensors.torch import load_file
from timm.layers import Conv2dSame

import boxsup_d2  # noqa: F401
from boxsup_d2.checkpoint import BoxSupCheckpointer
from boxsup_d2.checkpoint.small import write_small
from boxsup_d2.config import add_boxsup_config, load_config
from boxsup_d2.data.dataset_mappers.marks import surface_with_mark
from boxsup_d2.data.dataset_mappers.mask_crop import MaskCropDatasetMapper, cut_mask, tight_box
from boxsup_d2.data.dataset_mappers.mask_crop_loader import MaskCropOrder, mask_samples
from boxsup_d2.masks.paste import MaskPatch, mean_patch
from boxsup_d2.masks.shared_pixels import settle_shared_pixels
from boxsup_d2.masks.windows import box_coverage, box_window, clip_box, cut_window
from boxsup_d2.methods import load_model, method_config
from boxsup_d2.modeling.average import WeightAverage
from boxsup_d2.modeling.backbone import TimmBackbone
from boxsup_d2.modeling.boxmask import losses
from boxsup_d2.modeling.boxmask.box_learning import BoxLearning
from boxsup_d2.modeling.boxmask.edges import snap_to_edges
from boxsup_d2.modeling.boxmask.inference import WindowInference, mask_boxes, without_specks
from boxsup_d2.modeling.boxmask.network import QualityHead
from boxsup_d2.modeling.fold import pad_evenly


def small_cfg(**keys):
    """A BoxMask on the CPU that is small enough for unit tests."""
    cfg = get_cfg()
    add_boxsup_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "BoxMask"
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    cfg.MODEL.TIMM.OUT_FEATURES = ["res1", "res2", "res3", "res4", "res5"]
    cfg.MODEL.BOXMASK.DECODER_CHANNELS = 8
    cfg.MODEL.BOXMASK.FINE_CHANNELS = 8
    cfg.MODEL.BOXMASK.TEACHER_START = 1
    cfg.MODEL.BOXMASK.TEST_SIZES = [64]
    cfg.merge_from_list([item for key, value in keys.items() for item in (key.replace("__", "."), value)])
    return cfg


def training_batch(has_mask, size=64):
    """Noise with a box in the middle, one per entry: the confidence of its mask, or 0 for none."""
    box = torch.zeros(size, size, dtype=torch.uint8)
    box[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 255
    return [
        {
            "image": torch.randint(0, 256, (3, size, size), dtype=torch.uint8),
            "box": box,
            "mask": box if known else torch.zeros_like(box),
            "void": torch.zeros_like(box),
            "seen": torch.full_like(box, 255),
            "has_mask": known > 0,
            "confidence": known or 1.0,
        }
        for known in has_mask
    ]


def prompt(boxes, height=50, width=70):
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return {"image": image, "height": height, "width": width, "instances": instances}


class TestWindows:
    @pytest.mark.parametrize("box", [(10, 20, 30, 90), (0.5, 0.25, 3.75, 2.5), (-5, 8, 100, 9)])
    def test_it_holds_the_box_and_the_margin_and_is_not_too_long(self, box):
        left, top, right, bottom = box_window(box, 0.25, 2.0)
        width, height = box[2] - box[0], box[3] - box[1]
        assert left <= box[0] - 0.25 * width + 1e-6
        assert right >= box[2] + 0.25 * width - 1e-6
        assert top <= box[1] - 0.25 * height + 1e-6
        assert bottom >= box[3] + 0.25 * height - 1e-6
        assert max(right - left, bottom - top) <= 2 * min(right - left, bottom - top) + 3

    def test_coverage_is_the_share_of_each_pixel(self):
        window = (10, 20, 50, 100)
        cover = box_coverage((20.5, 30.0, 40.0, 81.25), window, 40)
        assert cover.sum() == pytest.approx(19.5 * 51.25 / 2, rel=1e-5)
        assert cover[5, 10] == pytest.approx(0.5)
        assert cover.max() == 1
        assert cover.min() == 0

    def test_a_window_inside_is_cut_and_one_beyond_is_grey_there(self):
        image = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
        assert np.array_equal(cut_window(image, (5, 6, 25, 26), 20), image[6:26, 5:25])
        beyond = cut_window(image, (-10, -10, 10, 10), 20)
        assert np.array_equal(beyond[10:, 10:], image[:10, :10])
        assert (beyond[:10] == 127).all()
        assert (cut_window(image, (100, 100, 110, 110), 8) == 127).all()

    def test_clipped_boxes_keep_a_pixel(self):
        assert clip_box((-5, -5, 1e9, 1e9), 10, 20) == (0, 0, 20, 10)
        assert clip_box((500, 500, 600, 600), 10, 20) == (19, 9, 20, 10)


class TestLosses:
    def test_true_masks_cost_nothing_and_wrong_ones_do(self):
        masks = (torch.rand(3, 1, 16, 16) > 0.5).float()
        weights = losses.boundary_weights(masks, 3.0)
        good = losses.pixel_and_overlap_losses(40 * (masks - 0.5), masks, weights, torch.ones(3))
        bad = losses.pixel_and_overlap_losses(40 * (0.5 - masks), masks, weights, torch.ones(3))
        assert max(good) < 1e-3
        assert min(bad) > 0.9

    def test_boundaries_weigh_more(self):
        masks = torch.zeros(1, 1, 40, 40)
        masks[..., :20] = 1
        weights = losses.boundary_weights(masks, 3.0)
        assert weights[0, 0, 20, 5] == 1
        assert weights[0, 0, 20, 19] > 2

    def test_projection_wants_every_row_and_column_of_the_box(self):
        boxes = torch.zeros(1, 1, 16, 16)
        boxes[..., 4:12, 4:12] = 1
        cross = torch.full((1, 1, 16, 16), -20.0)
        cross[..., range(4, 12), range(4, 12)] = 20  # a diagonal touches all of them
        for name in ("cross_entropy", "dice"):
            projection = BoxLearning(projection_loss=name).projection
            assert projection(cross, boxes) < 1e-3
            assert projection(cross.roll(4, -1), boxes) > 0.3

    def test_the_teacher_counts_where_it_is_certain_and_outside_the_box_is_background(self):
        boxes = torch.zeros(1, 1, 2, 2)
        boxes[..., :1] = 1
        teacher = torch.tensor([[[[0.9, 0.9], [0.6, 0.1]]]])
        logits = torch.zeros(1, 1, 2, 2, requires_grad=True)
        losses.teacher_loss(logits, teacher, boxes).backward()
        signs = logits.grad.sign()[0, 0].tolist()
        assert signs == [[-1, 1], [0, 1]]

    def test_empty_batches_give_connected_zeros(self):
        logits = torch.zeros(0, 1, 8, 8, requires_grad=True)
        found = [
            *losses.pixel_and_overlap_losses(logits, logits.detach(), logits.detach(), torch.zeros(0)),
            losses.teacher_loss(logits, logits.detach(), logits.detach()),
        ]
        sum(found).backward()
        assert sum(found) == 0

    def test_hard_iou_is_that_of_the_decided_masks(self):
        rng = np.random.default_rng(1)
        logits, masks, counted = rng.normal(size=(4, 1, 9, 9)), rng.random((4, 1, 9, 9)), rng.random((4, 1, 9, 9))
        pred, true = (logits > 0) & (counted > 0.5), (masks > 0.5) & (counted > 0.5)
        expected = (pred & true).sum((1, 2, 3)) / (pred | true).sum((1, 2, 3))
        found = losses.hard_iou(torch.tensor(logits), torch.tensor(masks), torch.tensor(counted))
        assert np.allclose(found.numpy(), expected)

    def test_pixels_that_do_not_count_change_nothing(self):
        logits, masks = torch.randn(2, 1, 8, 8), torch.rand(2, 1, 8, 8)
        counted = (torch.rand(2, 1, 8, 8) > 0.5).float()
        sure = torch.ones(2)
        found = losses.pixel_and_overlap_losses(logits, masks, counted, sure)
        other = torch.where(counted > 0, logits, -5 * logits)
        assert losses.pixel_and_overlap_losses(other, masks, counted, sure) == found
        assert losses.pixel_and_overlap_losses(-logits, masks, counted, sure) != found

    def test_masks_count_by_their_confidence(self):
        logits, masks, weights = torch.randn(2, 1, 8, 8), torch.rand(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
        first = torch.stack(losses.pixel_and_overlap_losses(logits[:1], masks[:1], weights[:1], torch.ones(1)))
        for confidence in ([0.5, 0.0], [1.0, 0.0]):
            found = losses.pixel_and_overlap_losses(logits, masks, weights, torch.tensor(confidence))
            assert torch.allclose(torch.stack(found), confidence[0] * first)


class TestEdges:
    def test_masks_snap_to_the_edges_of_the_image(self):
        image = torch.zeros(1, 3, 32, 32)
        image[..., 16:] = 200
        logits = torch.full((1, 1, 32, 32), -1.0)
        logits[..., 13:] = 1  # three columns too early
        refined = snap_to_edges(logits, image, steps=10, weight=6, distances=(1, 2, 4, 8))
        assert (refined[..., :16] < 0).all()
        assert (refined[..., 16:] > 0).all()
        assert torch.equal(snap_to_edges(logits, image, steps=0), logits)

    def test_it_is_the_sum_over_neighbours(self):
        rng = np.random.default_rng(0)
        logits, image = rng.normal(size=(6, 7)), rng.integers(0, 60, (3, 6, 7)).astype(float)
        expected = logits.copy()
        offsets = [(d * y, d * x) for d in (1, 2) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
        for y in range(6):
            for x in range(7):
                for dy, dx in offsets:
                    if 0 <= y + dy < 6 and 0 <= x + dx < 7:
                        squared = ((image[:, y, x] - image[:, y + dy, x + dx]) ** 2).mean()
                        pull = np.exp(-squared / (2 * 12**2)) * np.tanh(logits[y + dy, x + dx] / 2)
                        expected[y, x] += 4 / len(offsets) * pull
        tensors = torch.tensor(logits)[None, None], torch.tensor(image)[None]
        found = snap_to_edges(*tensors, steps=1, weight=4, color=12, distances=(1, 2))
        assert np.allclose(found[0, 0].numpy(), expected, atol=1e-5)


class TestModel:
    @pytest.mark.parametrize(
        ("has_mask", "labels"),
        [((1, 1, 0), "certain"), ((1, 1), "certain"), ((0, 0), "mean_field"), ((0, 0.5, 1), "mean_field")],
    )
    def test_the_losses_are_always_the_same_and_reach_every_parameter(self, has_mask, labels):
        """Of true masks, boxes alone, and masks of another method; with a teacher and without."""
        model = build_model(
            small_cfg(
                MODEL__BOXMASK__TEACHER_LABELS=labels,
                MODEL__BOXMASK__PAIRWISE_WEIGHT=1.0,
                MODEL__BOXMASK__COLOR_THRESHOLD=1e-9,
                MODEL__BOXMASK__CONTRAST_WEIGHT=float(labels == "mean_field"),
            )
        ).train()
        average = WeightAverage(model, decay=0.9)
        for iteration in (0, 1):  # the teacher starts with the second one
            with EventStorage(iteration):
                found = model(training_batch(has_mask))
            boxes_teach = min(has_mask) < 1
            assert bool(found["loss_teacher"] > 0) == (boxes_teach and iteration > 0)
            assert bool(found["loss_pairwise"] > 0) == (boxes_teach and iteration > 0)
            assert bool(found["loss_projection"] > 0) == boxes_teach
            assert bool(found["loss_pixel"] > 0) == (max(has_mask) > 0 or labels == "mean_field")
        names = ("overlap", "pairwise", "pixel", "projection", "quality", "teacher")
        assert sorted(found) == [f"loss_{name}" for name in names]
        sum(found.values()).backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
        assert all(p.grad is None for p in average.network.parameters())
        assert model.state_dict().keys() == build_model(small_cfg()).state_dict().keys()

    def test_predicted_masks_give_way_to_what_the_average_teaches(self):
        keys = {"MODEL__BOXMASK__TEACHER_WARMUP": 1.0, "SOLVER__MAX_ITER": 10}
        values = {}
        for end in (1.0, 0.25):
            torch.manual_seed(0)
            model = build_model(small_cfg(MODEL__BOXMASK__PREDICTED_MASKS_END=end, **keys)).train()
            average = WeightAverage(model, decay=0.9)
            batch = training_batch((0.5, 0))
            for iteration in (0, 10):
                average.start()
                with EventStorage(iteration), torch.no_grad():
                    values[end, iteration] = model(batch)["loss_pixel"].item()
        assert values[0.25, 0] == values[1.0, 0]
        assert values[0.25, 10] == pytest.approx(values[1.0, 10] / 4)

    def test_colours_that_only_the_box_has_are_its_mask(self):
        images, boxes = torch.full((1, 3, 32, 32), 90.0), torch.zeros(1, 1, 32, 32)
        boxes[..., 8:24, 8:24] = 1
        y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
        disc = (y - 15.5) ** 2 + (x - 15.5) ** 2 < 64
        images[0, :, disc] = torch.tensor([200.0, 40, 40])[:, None]
        seen = torch.ones_like(boxes)
        labels = BoxLearning().contrast_labels(images, seen, boxes) > 0.5
        assert (labels[0, 0] & disc).sum() > 0.9 * (labels[0, 0] | disc).sum()

    def test_names_that_there_are_not(self):
        with pytest.raises(ValueError, match=r"MODEL.BOXMASK.TEACHER_LABELS is 'hard': it must be certain or"):
            build_model(small_cfg(MODEL__BOXMASK__TEACHER_LABELS="hard"))

    def test_the_quality_has_no_say_in_the_mask(self):
        head = QualityHead(4, 6)
        features, context = torch.rand(2, 4, 8, 8, requires_grad=True), torch.rand(2, 6, requires_grad=True)
        logits = torch.randn(2, 1, 8, 8, requires_grad=True)
        head(features, context, logits, torch.ones(2, 1, 8, 8)).sum().backward()
        assert features.grad is None
        assert context.grad is None
        assert logits.grad is None

    def test_of_checkpoints_of_before_the_average_is_used(self, tmp_path):
        model = build_model(small_cfg())
        state = model.state_dict()
        theirs = {name: torch.zeros_like(value) for name, value in state.items()}
        theirs |= {"average." + name.removeprefix("net."): value for name, value in state.items()}
        other = build_model(small_cfg())
        other.load_state_dict({**theirs, "updates": torch.tensor(3)}, strict=True)
        assert all(torch.equal(other.state_dict()[name], value) for name, value in state.items())
        (tmp_path / "config.yaml").write_text("MODEL: {BOXMASK: {EMA_DECAY: 0.9}}")
        assert "EMA_DECAY" not in load_config(str(tmp_path / "config.yaml")).MODEL.BOXMASK

    def test_samples_shrink_from_the_updates_on_that_say_so(self):
        model = build_model(small_cfg(MODEL__BOXMASK__TRAIN_SIZES=[32, 64], MODEL__BOXMASK__TRAIN_SIZE_STEPS=[0, 2]))
        sides = []
        model.net.register_forward_pre_hook(lambda _, args: sides.append(args[0].shape[-1]))
        for iteration in range(3):
            with EventStorage(iteration):
                model.train()(training_batch((1, 0)))
        assert sides == [32, 32, 64]

    def test_the_prediction_is_in_order_and_stays_near_its_boxes(self):
        model = build_model(small_cfg()).eval()
        inputs = prompt([[5, 5, 30, 40], [60, 2, 69, 20], [-10, -10, 500, 500], [90, 90, 95, 95]])
        prediction = model([inputs, prompt([])])
        instances = prediction[0]["instances"]
        assert instances.pred_masks.shape == (4, 50, 70)
        assert torch.equal(instances.pred_boxes.tensor, inputs["instances"].gt_boxes.tensor)
        assert ((instances.quality >= 0) & (instances.quality <= 1)).all()
        assert ((instances.scores >= 0) & (instances.scores <= 1)).all()
        outside = torch.ones(50, 70, dtype=torch.bool)
        outside[1:44, 2:33] = False
        assert not (instances.pred_masks[0] & outside).any()
        assert len(prediction[1]["instances"]) == 0
        alone = model([{**inputs, "instances": inputs["instances"][1:2]}])[0]["instances"]
        assert torch.equal(alone.pred_masks[0], instances.pred_masks[1])

    def test_flipped_images_get_flipped_masks(self):
        """Of a network with a bias, where the mask fits its box: the second look is the first one in a mirror."""

        def look(images, covers):
            bright = F.avg_pool2d(images[:, :1].float() / 255, 2)
            to_the_right = torch.linspace(0, 2, bright.shape[-1])
            return bright * 20 - 11 + to_the_right, (bright * to_the_right).mean((1, 2, 3))

        image = torch.zeros(3, 60, 80, dtype=torch.uint8)
        image[:, 10:40, 20:36] = 255
        image[:, 25:40, 20:60] = 255
        boxes = torch.tensor([[20.0, 10, 60, 40]])  # as far from either side
        settings = WindowInference(sizes=(64, 96), flip_below=1.0)
        (first,), quality = settings.predict(look, image, boxes, (60, 80))
        (second,), of_mirrored = settings.predict(look, image.flip(-1), boxes, (60, 80))
        assert first.prob.std() > 0.2
        torch.testing.assert_close(first.prob, second.prob.flip(-1), rtol=0, atol=1e-4)
        torch.testing.assert_close(quality, of_mirrored)
        (once,), _ = dataclasses.replace(settings, flip_below=0.0).predict(look, image.flip(-1), boxes, (60, 80))
        assert not torch.allclose(first.prob, once.prob.flip(-1), atol=1e-4), "one look has the bias"

    def test_only_doubtful_windows_are_mirrored(self):
        keys = {"MODEL__BOXMASK__TEST_NESTED_FROM": 0.0, "MODEL__BOXMASK__TEST_AGAIN_BELOW": 0.0}
        model = build_model(small_cfg(**keys)).eval()
        inputs = prompt([[10, 10, 40, 40], [2, 2, 30, 44], [30, 5, 68, 30]])
        looks = {}
        for below in (0.0, 1.0):
            model.windows = dataclasses.replace(model.windows, flip_below=below)
            looks[below] = model([inputs])[0]["instances"].quality
        doubtful = looks[0.0].argmin()
        model.windows = dataclasses.replace(model.windows, flip_below=float(looks[0.0][doubtful]))
        expected = looks[0.0].clone()
        expected[doubtful] = looks[1.0][doubtful]
        assert torch.allclose(model([inputs])[0]["instances"].quality, expected, atol=1e-5)
        assert (looks[0.0] - looks[1.0]).abs().max() > 1e-4

    def test_exported_weights_are_in_half_precision(self, tmp_path):
        model = build_model(small_cfg()).eval()
        with torch.no_grad():
            model.net.mask.bias.fill_(0.25)
        path = tmp_path / "weights.safetensors"
        digest = write_small(model.state_dict(), path, {"recipe": "none"})
        assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"recipe": "none"}
        state = load_file(path)
        assert state["net.mask.bias"] == 0.25
        assert state["net.mask.weight"].dtype == torch.float16
        other = build_model(small_cfg()).eval()
        other.load_state_dict(state, strict=False)
        seen = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), torch.rand(2, 1, 64, 64)
        with torch.no_grad():
            for ours, theirs in zip(model.look(*seen), other.look(*seen), strict=True):
                torch.testing.assert_close(ours.sigmoid(), theirs.sigmoid(), rtol=0, atol=0.01)


@pytest.fixture
def scene(tmp_path):
    """A red disc on blue, with its dict of a data set; the image is a PNG, so that colours are exact."""
    image = np.zeros((80, 100, 3), np.uint8)
    image[:, :] = (0, 0, 200)
    mask = cv2.circle(np.zeros((80, 100), np.uint8), (40, 35), 18, 1, -1)
    image[mask > 0] = (200, 0, 0)
    path = tmp_path / "scene.png"
    cv2.imwrite(str(path), image[:, :, ::-1])
    x, y, w, h = cv2.boundingRect(mask)
    annotation = {
        "bbox": [x, y, w, h],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "segmentation": mask_util.encode(np.asfortranarray(mask)),
    }
    return {"file_name": str(path), "height": 80, "width": 100, "image_id": 1, "annotations": [annotation]}


class TestFolding:
    def test_the_folded_network_is_the_network(self):
        cfg = small_cfg()
        torch.manual_seed(0)
        model = build_model(cfg)
        for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            torch.nn.init.uniform_(norm.running_mean, -1, 1)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2)
            torch.nn.init.uniform_(norm.weight, 0.5, 2)
            torch.nn.init.uniform_(norm.bias, -1, 1)
        model.eval()
        inputs = torch.randn(2, 3, 64, 64), torch.rand(2, 1, 64, 64)
        with torch.no_grad():
            expected = model.net(*inputs)
            model.only_predict()
            for found, value in zip(model.net(*inputs), expected, strict=True):
                torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-3 * float(value.abs().max()))
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())

    @pytest.mark.parametrize("kernel", [3, 5])
    def test_evenly_padded_convolutions_are_the_same(self, kernel):
        conv = Conv2dSame(6, 6, kernel, stride=2, groups=3)
        network = pad_evenly(torch.nn.Sequential(conv))
        assert network[0] is not conv
        for size in ((12, 16), (1, 1), (2, 2), (13, 16), (9, 11)):
            x = torch.randn(2, 6, *size)
            torch.testing.assert_close(network(x), conv(x))
        for other in (Conv2dSame(3, 3, kernel, stride=3), Conv2dSame(3, 3, 2, stride=2), torch.nn.Conv2d(3, 3, kernel)):
            assert pad_evenly(torch.nn.Sequential(other))[0] is other


class TestLookingAgain:
    def test_boxes_of_maps_and_how_they_fit(self):
        prob = torch.zeros(3, 8, 10)
        prob[0, 2:5, 3:9] = 0.6
        prob[1, 7, 0] = 0.51
        windows = [(10, 20, 30, 28), (-4, 0, 6, 16), (0, 0, 10, 8)]
        boxes = torch.tensor([[15.0, 22.5, 30, 25], [0, 0, 1, 1], [1, 2, 3, 4]], dtype=torch.float64)
        found, fit = mask_boxes(prob, windows, boxes)
        # Edges half a cell away are the box's; an empty mask has its box.
        assert found.tolist() == [[15, 22.5, 28, 25], [-4, 14, -3, 16], [1, 2, 3, 4]]
        assert fit.tolist() == pytest.approx([13 / 15, 0, 0])
        assert [len(x) for x in mask_boxes(prob[:0], [], boxes[:0])] == [0, 0]

    @pytest.mark.parametrize("side", [4, 16, 30])
    def test_masks_that_are_slim_boxes_fit_them(self, side):
        rng = np.random.default_rng(0)
        corners = [(x, y, x + 12 * side, y + side) for x, y in rng.uniform(0, 9, (20, 2)).tolist()]
        windows = [box_window(box, 0.25, 2.0) for box in corners]
        covers = torch.stack([torch.from_numpy(box_coverage(b, w, 64)) for b, w in zip(corners, windows, strict=True)])
        _, fit = mask_boxes(covers, windows, torch.tensor(corners, dtype=torch.float64))
        assert fit.min() > 0.95

    @pytest.mark.parametrize("flip_below", [0.0, 1.0])
    def test_loose_boxes_are_looked_at_again_and_tight_ones_are_not(self, flip_below):
        """By a network that takes what is bright for the object."""
        image = torch.zeros(3, 60, 80, dtype=torch.uint8)
        image[:, 10:40, 20:30] = 255
        image[:, 30:40, 20:60] = 255
        boxes = torch.tensor([[20.0, 10, 60, 40], [20, 10, 74, 44]])
        seen = []

        def look(images, covers):
            seen.append((images, covers))
            bright = F.avg_pool2d(images[:, :1].float() / 255, 2)
            if len(seen) > 1:
                bright[:, :, 1, 1] = 1  # a speck
            return bright * 20 - 10, torch.full((len(images),), float(len(seen)))

        settings = WindowInference(sizes=(64,), overrun=0.5, specks=0.1, flip_below=flip_below, again_below=0.9)
        patches, quality = settings.predict(look, image, boxes, (60, 80))
        assert [len(images) for images, _ in seen] == [2, 2 if flip_below else 1]
        trust = torch.tensor(1.0).sigmoid()  # on the way from the box to what is bright
        on_the_way = (20, 10, float(74 - 14 * trust), float(44 - 4 * trust))
        window = box_window(on_the_way, 0.25, 2.0)
        images, covers = seen[1]
        mirrored = torch.from_numpy(cut_window(image.permute(1, 2, 0).numpy(), window, 64)).permute(2, 0, 1).flip(-1)
        assert (images[-1].float() - mirrored.float()).abs().mean() < 4
        assert (images[-1].float() - mirrored.flip(-1).float()).abs().mean() > 20
        assert (covers[-1, 0] - torch.from_numpy(box_coverage(on_the_way, window, 64)).flip(-1)).abs().mean() < 0.02
        once, twice = torch.tensor([1.0, 2]).sigmoid()
        mean = (once + twice) / 2
        assert torch.allclose(quality, torch.stack([mean if flip_below else once, mean]))
        for patch in patches:
            mask = torch.zeros(60, 80, dtype=torch.bool)
            rows, columns = (patch.prob > 0.5).nonzero().T
            mask[rows + patch.top, columns + patch.left] = True
            truth = image[0] > 0
            assert (mask & truth).sum() / (mask | truth).sum() > 0.8
            assert cv2.connectedComponents(mask.numpy().astype(np.uint8))[0] == 2, "the object and no speck"


def test_the_mean_of_two_patches_covers_both():
    first, second = MaskPatch(3, 5, torch.full((2, 4), 0.5)), MaskPatch(5, 4, torch.ones(3, 3))
    mean = mean_patch(first, second)
    assert (mean.left, mean.top) == (3, 4)
    assert mean.prob.tolist() == [[0, 0, 0.5, 0.5, 0.5], [0.25, 0.25, 0.75, 0.75, 0.5], [0.25, 0.25, 0.75, 0.75, 0.5]]
    assert torch.equal(mean_patch(second, first).prob, mean.prob)
    nothing = MaskPatch(0, 0, torch.zeros(0, 0))
    for half in (mean_patch(nothing, second), mean_patch(second, nothing)):
        assert (half.left, half.top, half.prob.tolist()) == (5, 4, [[0.5] * 3] * 3)


def test_a_broken_network_gives_empty_masks():
    def look(images, covers):
        return torch.full((len(images), 1, 32, 32), torch.nan), torch.full((len(images),), torch.nan)

    image, boxes = torch.zeros(3, 60, 80, dtype=torch.uint8), torch.tensor([[20.0, 10, 60, 40], [5, 5, 9, 9]])
    settings = WindowInference(sizes=(64,), specks=0.1, flip_below=0.75, again_below=0.95)
    patches, quality = settings.predict(look, image, boxes, (60, 80))
    assert quality.isnan().all()
    assert not any((patch.prob > 0.5).any() for patch in patches)


class TestSharedPixels:
    """Two masks of 1 x 8 pixels that meet, and what is said of more."""

    def patches(self, *probs, left=(0, 4)):
        return [MaskPatch(x, 0, torch.tensor([p])) for x, p in zip(left, probs, strict=True)]

    def test_they_go_to_the_surer_mask(self):
        first = [0.9, 0.9, 0.9, 0.9, 0.9, 0.7, 0.6, 0.2]
        second = [0.3, 0.8, 0.55, 0.9, 0.9, 0.9, 0.9, 0.9]
        given = self.patches(first, second)
        boxes = torch.tensor([[0.0, 0, 8, 1], [4, 0, 12, 1]])
        kept = [p.prob.clone() for p in given]
        settled, shares = settle_shared_pixels(given, boxes, 0.9)
        assert shares.tolist() == pytest.approx([6 / 7, 6 / 7])
        assert [(p.left, p.top) for p in settled] == [(0, 0), (4, 0)]
        torch.testing.assert_close(settled[0].prob[0], torch.tensor([0.9, 0.9, 0.9, 0.9, 0.9, 0.2, 0.6, 0.2]))
        torch.testing.assert_close(settled[1].prob[0], torch.tensor([0.3, 0.8, 0.4, 0.9, 0.9, 0.9, 0.9, 0.9]))
        assert all(torch.equal(p.prob, k) for p, k in zip(given, kept, strict=True)), "what is given stays"
        backwards, _ = settle_shared_pixels(given[::-1], boxes.flip(0), 0.9)
        assert all(torch.equal(p.prob, q.prob) for p, q in zip(settled, backwards[::-1], strict=True))

    def test_masks_that_leave_boxes_that_touch_settle_too_and_specks_stay_where_nothing_is_lost(self):
        given = self.patches([0.9] * 6 + [0.7] * 2, [0.8] * 8, left=(0, 6))
        touching = torch.tensor([[0.0, 0, 7, 1], [7, 0, 14, 1]])
        settled, _ = settle_shared_pixels(given, touching, 0.9, specks=0.9)
        assert [(p.prob > 0.5).sum().item() for p in settled] == [6, 8]
        flat = torch.tensor([[0.0, 0, 8, 0], [7, 0, 14, 0]])
        assert (settle_shared_pixels(given, flat, 0.9)[0][0].prob > 0.5).sum() == 6
        apart = self.patches([0.9] * 4 + [0.1, 0.9, 0.1, 0.1], [0.1] * 2 + [0.9] * 6)
        settled, shares = settle_shared_pixels(apart, torch.tensor([[0.0, 0, 8, 1], [4, 0, 12, 1]]), 0.9, specks=0.9)
        assert all(p is q for p, q in zip(settled, apart, strict=True))
        assert shares.tolist() == [1, 1]

    @pytest.mark.parametrize(("specks", "left"), [(0.5, []), (0.1, [3])])
    def test_what_is_left_in_specks_goes(self, specks, left):
        """Of the middle row one mask keeps a pixel, which hangs at nothing."""
        first, second = torch.full((5, 10), 0.1), torch.full((5, 10), 0.1)
        first[0], first[2], second[2] = 0.9, 0.6, 0.7
        second[2, 3] = 0.55
        given = [MaskPatch(0, 0, first), MaskPatch(0, 0, second)]
        boxes = torch.tensor([[0.0, 0, 10, 3], [0, 2, 10, 5]])
        settled, shares = settle_shared_pixels(given, boxes, 0.9, specks)
        assert (settled[0].prob[2] > 0.5).nonzero().flatten().tolist() == left
        assert (settled[1].prob[2] > 0.5).sum() == 9
        assert shares.tolist() == pytest.approx([(10 + len(left)) / 20, 0.9])
        assert first[2].tolist() == pytest.approx([0.6] * 10), "what is given stays"

    def test_equals_go_to_the_first_and_nested_boxes_share(self):
        boxes = torch.tensor([[0.0, 0, 8, 1], [4, 0, 12, 1]])
        settled, shares = settle_shared_pixels(self.patches([0.75] * 8, [0.75] * 8), boxes, 0.9)
        assert shares.tolist() == [1, 0.5]
        assert settled[0].prob.tolist() == [[0.75] * 8]
        assert settled[1].prob.tolist() == [[0.25] * 4 + [0.75] * 4]
        for nested_from in (0.5, 0.0):  # half of each box lies in the other
            given = self.patches([0.75] * 8, [0.75] * 8)
            assert all(p is q for p, q in zip(settle_shared_pixels(given, boxes, nested_from)[0], given, strict=True))

    def test_they_are_what_pairs_of_whole_maps_say(self):
        rng = np.random.default_rng(0)
        corners = rng.integers(0, 30, (12, 2))
        boxes = np.concatenate([corners, corners + rng.integers(1, 20, (12, 2))], axis=1)
        patches = [
            MaskPatch(x - 2, y - 1, torch.from_numpy(rng.random((y1 - y + 3, x1 - x + 2)).astype(np.float32)))
            for x, y, x1, y1 in boxes.tolist()
        ]
        patches += [MaskPatch(0, 0, torch.zeros(0, 0)), MaskPatch(0, 0, torch.zeros(30, 30))]
        boxes = torch.from_numpy(np.concatenate([boxes, [[0, 0, 50, 50], [0, 0, 30, 30]]])).float()
        maps = torch.full((14, 60, 60), -1.0)  # an offset for patches that begin before the image
        for patch, whole in zip(patches, maps, strict=True):
            whole[tuple(slice(s.start + 5, s.stop + 5) for s in patch.window)] = patch.prob
        expected = maps > 0.5
        changed = 0
        for i in range(14):
            for j in range(14):
                low, high = torch.maximum(boxes[i, :2], boxes[j, :2]), torch.minimum(boxes[i, 2:], boxes[j, 2:])
                shared = (high - low).clamp(min=0).prod()
                least = min((boxes[k, 2:] - boxes[k, :2]).prod() for k in (i, j))
                if i != j and shared < 0.7 * least:
                    loses = (maps[i] > 0.5) & (maps[j] > maps[i])
                    changed += int(loses.sum())
                    expected[i] &= ~loses
        assert changed > 50
        settled, shares = settle_shared_pixels(patches, boxes, 0.7)
        for patch, whole in zip(settled, expected, strict=True):
            window = tuple(slice(s.start + 5, s.stop + 5) for s in patch.window)
            assert torch.equal(patch.prob > 0.5, whole[window])
        torch.testing.assert_close(shares[:-2], expected[:-2].sum((1, 2)) / (maps[:-2] > 0.5).sum((1, 2)))
        assert shares[-2:].tolist() == [1, 1], "an empty mask loses nothing"
        assert [len(x) for x in settle_shared_pixels([], boxes[:0], 0.7)] == [0, 0]

    def test_masks_of_boxes_that_overlap_share_none_and_rotated_ones_lose_nothing_outside(self):
        model = build_model(small_cfg(MODEL__BOXMASK__TEST_OVERRUN=0.0, MODEL__BOXMASK__TEST_SPECKS=0.0)).eval()
        torch.nn.init.zeros_(model.net.mask.weight)
        torch.nn.init.constant_(model.net.mask.bias, 3.0)  # fills every window
        inputs = prompt([[5, 5, 35, 35], [20, 20, 50, 45]])
        first, second = model([inputs])[0]["instances"].pred_masks.full()
        assert not (first & second).any()
        assert (first | second).sum() == 30 * 30 + 30 * 25 - 15 * 15
        alone = model([{**inputs, "instances": inputs["instances"][:1]}])[0]["instances"].quality
        kept = first.sum() / (30 * 30)
        torch.testing.assert_close(model([inputs])[0]["instances"].quality[:1], alone * kept.sqrt())
        # A diamond, of whose upright box the second one shares a corner.
        inputs["instances"].gt_rotated_boxes = torch.tensor([[20.0, 20, 21, 21, 45], [35, 32.5, 30, 25, 0]])
        first, second = model([inputs])[0]["instances"].pred_masks.full()
        assert not (first & second).any()
        assert (first | second)[20:45, 20:50].sum() > 30 * 25 - 30, "the corner beyond the diamond is the second's"


def test_specks_go_and_pinholes_are_filled():
    prob = torch.full((2, 20, 20), 0.1)
    prob[0, 2:12, 2:12] = 0.9
    prob[0, 5, 5] = 0.2  # a pinhole
    prob[0, 15, 15] = 0.8  # a speck
    prob[0, 16:19, 2:5] = 0.8  # a piece
    prob[0, 2:12, 19] = 0.9  # and one at the border
    expected = prob.clone()
    expected[0, 5, 5], expected[0, 15, 15] = 1, 0
    assert torch.equal(without_specks(prob, 0.02), expected)
    assert torch.equal(without_specks(prob, 0.0), prob)
    assert without_specks(prob[:0], 0.02).shape == (0, 20, 20)


def test_boxes_are_predicted_in_lots():
    boxes = [[5, 5, 30, 40], [20, 2, 69, 45], [0, 0, 69, 8], [40, 30, 44, 45], [3, 3, 9, 9]]
    inputs = prompt(boxes)
    config = method_config("boxmask", device="cpu")
    assert WindowInference.from_config(config).windows_per_forward == 8
    found = []
    for at_once in (1, 2, 8):
        config.MODEL.BOXMASK.TEST_WINDOWS_PER_FORWARD = at_once
        found.append(load_model(config)([inputs])[0])
    for other in found[:-1]:
        torch.testing.assert_close(other["instances"].quality, found[-1]["instances"].quality)
        for ours, theirs in zip(other["patches"], found[-1]["patches"], strict=True):
            assert (ours.left, ours.top) == (theirs.left, theirs.top)
            torch.testing.assert_close(ours.prob, theirs.prob, rtol=0, atol=1e-4)
    long = found[-1]["patches"][2].prob
    assert long.untyped_storage().nbytes() == long.numel() * long.element_size(), "nothing of the window is kept"


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "hrnet_w18_small", "resnet18"])
def test_weights_of_any_encoder_start_and_resume_a_training(tmp_path, name):
    cfg = small_cfg()
    cfg.MODEL.TIMM.NAME = name
    model, donor = build_model(cfg), TimmBackbone(name=name, out_features=list(cfg.MODEL.TIMM.OUT_FEATURES))
    file = tmp_path / "weights.pth"
    torch.save(donor.net.state_dict(), file)  # as timm has them
    BoxSupCheckpointer(model).load(str(file))
    ours = model.net.backbone.net.state_dict()
    for key, value in donor.net.state_dict().items():
        assert torch.equal(ours[key][:, -value.shape[1] :] if value.dim() == 4 else ours[key], value), key
    torch.save({"model": model.state_dict()}, file)
    again = build_model(cfg)
    BoxSupCheckpointer(again).load(str(file))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_masks_of_a_cpu():
    inputs = prompt([[5, 5, 30, 40], [20, 2, 69, 45]])
    found, expected = (
        load_model(method_config("boxmask", device=device))([inputs])[0]["instances"].to("cpu")
        for device in ("cuda", "cpu")
    )
    assert (found.pred_masks.full() == expected.pred_masks.full()).float().mean() > 0.98
    torch.testing.assert_close(found.quality, expected.quality, rtol=0, atol=0.02)


class TestSamples:
    def test_box_mask_and_pixels_agree(self, scene):
        mapper = MaskCropDatasetMapper(image_format="RGB", size=64, color_jitter=0)
        samples, _ = mask_samples([scene], 8)
        for seed in range(20):
            np.random.seed(seed)
            sample = mapper(samples[0])
            red = sample["image"][0].numpy() > sample["image"][2].numpy()
            mask = sample["mask"].numpy() > 127
            assert (red != mask).mean() < 0.02
            assert sample["has_mask"]
            x0, y0, x1, y1 = tight_box(sample["mask"].numpy())
            bx0, by0, bx1, by1 = tight_box(sample["box"].numpy())
            assert max(abs(x0 - bx0), abs(y0 - by0), abs(x1 - bx1), abs(y1 - by1)) <= 0.15 * 64

    def test_what_is_pasted_over_an_object_is_none_of_it(self, scene, tmp_path):
        green = np.zeros((40, 40, 3), np.uint8)
        green[:, :] = (0, 200, 0)
        cv2.imwrite(str(tmp_path / "green.png"), green[:, :, ::-1])
        everything = mask_util.encode(np.asfortranarray(np.ones((40, 40), np.uint8)))
        donor = {"file_name": str(tmp_path / "green.png"), "segmentations": [everything]}
        mapper = MaskCropDatasetMapper(image_format="RGB", size=64, color_jitter=0, jitter_prob=0, paste_prob=1)
        samples, _ = mask_samples([scene], 8)
        pasted = 0
        for seed in range(30):
            np.random.seed(seed)
            sample = mapper(samples[0], donor)
            pixels, mask = sample["image"].numpy(), sample["mask"].numpy() > 127
            red = (pixels[0] > pixels[2]) & (pixels[0] > pixels[1])
            assert (red != mask).mean() < 0.03
            pasted += bool((pixels[1] > 190).any())
            x0, y0, x1, y1 = tight_box(sample["mask"].numpy())
            bx0, by0, bx1, by1 = tight_box(sample["box"].numpy())
            assert max(abs(x0 - bx0), abs(y0 - by0), abs(x1 - bx1), abs(y1 - by1)) <= 2
        assert pasted > 10

    def test_pixels_of_unknown_label_are_known_to_be_unknown(self, scene):
        ring = np.zeros((80, 100), np.uint8)
        cv2.rectangle(ring, (20, 10), (79, 69), 1, thickness=3)
        scene["void_mask"] = mask_util.encode(np.asfortranarray(ring))
        samples, _ = mask_samples([scene], 8)
        kwargs = {"image_format": "RGB", "size": 64, "jitter_prob": 0.0}
        window = box_window(tight_box(mask_util.decode(scene["annotations"][0]["segmentation"]) * 255), 0.25, 2.0)
        expected = cut_mask(ring * 255, window, 64)
        void = MaskCropDatasetMapper(**kwargs)(samples[0])["void"].numpy()
        assert expected.any()
        assert np.array_equal(void, expected) or np.array_equal(void, expected[:, ::-1])
        assert not MaskCropDatasetMapper(**kwargs, ignore_void=False)(samples[0])["void"].any()

    def test_predicted_masks_keep_the_box_and_their_confidence(self, scene):
        annotation = scene["annotations"][0]
        annotation |= {"bbox": [10, 5, 70, 60], "confidence": 0.9, "quality": 0.5}
        mapper = MaskCropDatasetMapper(
            image_format="RGB", size=64, jitter_prob=0, paste_prob=1, plain_view=True, margin_jitter=0.9
        )
        (sample,), _ = mask_samples([scene], 8, union_prob=1.0)
        sides = set()
        for seed in range(8):
            np.random.seed(seed)
            found = mapper(sample, sample)
            assert (found["has_mask"], found["confidence"]) == (True, 0.5)
            blue = found["plain"].numpy()[2] > 190
            inside = found["seen"].numpy() > 250
            assert (blue | (found["mask"].numpy() > 10))[inside].all(), "nothing was pasted, colours are as they were"
            x0, y0, x1, y1 = tight_box(found["box"].numpy())
            assert (x1 - x0) * (y1 - y0) > 2 * (found["mask"] > 127).sum(), "the box is the annotated one"
            sides.add((x0, y0))
        assert len(sides) > 6, "margins differ"
        annotation["quality"] = 0.0
        (sample,), _ = mask_samples([scene], 8)
        assert not mapper(sample)["has_mask"], "an empty mask is none"
        for quality, least, teaches in ((0.55, 0.6, False), (0.6, 0.6, True), (None, 1.0, True)):
            annotation |= {"quality": quality, "confidence": quality}
            (sample,), _ = mask_samples([scene], 8, min_quality=least)
            assert mapper(sample)["has_mask"] == teaches, "a true mask, without a quality, always does"
            assert mapper(sample)["box"].any()

    def test_turned_samples_stay_whole(self, scene):
        mapper = MaskCropDatasetMapper(image_format="RGB", size=64, color_jitter=0, turn_prob=1, coarse_prob=1)
        samples, _ = mask_samples([scene], 8)
        for seed in range(8):
            np.random.seed(seed)
            sample = mapper(samples[0])
            red = sample["image"][0].numpy() > sample["image"][2].numpy()
            assert (red != (sample["mask"].numpy() > 127)).mean() < 0.1

    def test_marks_differ_from_their_surface_where_their_mask_is(self):
        surface, texture = np.full((60, 90, 3), 128, np.uint8), np.full((50, 40, 3), (250, 30, 30), np.uint8)
        outline = np.zeros((30, 30), np.uint8)
        outline[5:20, 8:12] = 255
        alone = 0
        for seed in range(60):
            np.random.seed(seed)
            image, mask = surface_with_mark(surface, texture, outline if seed % 2 else None, side=96)
            change = np.abs(image.astype(int) - 128).mean(2)
            inside = mask > 127
            assert set(np.unique(mask)) <= {0, 255}
            assert change[inside].mean() > 5, "of soft edges half"
            beside = cv2.dilate(mask, np.ones((15, 15))) - cv2.dilate(mask, np.ones((13, 13))) > 0
            alone += bool((change[beside] == 0).all())
            surface_with_mark(surface[:1], texture[:1, :1], np.zeros((1, 1), np.uint8), side=8)
        assert 20 < alone < 60, "some lie beside others of their kind"

    def test_a_sample_may_be_a_mark_on_its_image(self, scene):
        del scene["annotations"][0]["segmentation"]
        (sample,), _ = mask_samples([scene], 8)
        mapper = MaskCropDatasetMapper(image_format="RGB", size=64, jitter_prob=0, mark_prob=1)
        assert not mapper(sample)["has_mask"], "which takes another sample to show"
        for seed in range(10):
            np.random.seed(seed)
            found = mapper(sample, sample)
            assert (found["has_mask"], found["confidence"], found["void"].any()) == (True, 1.0, False)
            assert tight_box(found["mask"].numpy()) == pytest.approx(tight_box(found["box"].numpy()), abs=4)

    def test_another_camera_changes_the_pixels_alone(self, scene):
        (sample,), _ = mask_samples([scene], 8)
        plain = {"image_format": "RGB", "size": 64, "color_jitter": 0, "jitter_prob": 0, "paste_prob": 0}
        tones, lights = set(), set()
        for seed in range(40):
            found = []
            for camera_prob in (0, 1):
                np.random.seed(seed)
                found.append(MaskCropDatasetMapper(**plain, camera_prob=camera_prob)(sample))
            before, after = found
            assert all(torch.equal(before[key], after[key]) for key in ("box", "mask", "void"))
            inside = before["mask"] > 250
            red, green, blue = (channel[inside].float().median() for channel in after["image"])
            tones.add("grey" if red == green == blue else "red" if red > blue else "blue")
            around = after["image"].float()[:, before["mask"] == 0]
            outside = around.median(1).values
            lights.add("noisy" if around.std(1).max() > 2 else "even")
            neutral = outside[
                (outside - torch.stack([red, green, blue])).abs().argmin()
            ]  # black before, of both colours
            if red != green or red != blue:
                lights.add("negative" if neutral > 200 else "positive")
            assert (outside - torch.stack([red, green, blue])).abs().max() > 1, "what can be told apart still can be"
        assert tones == {"grey", "red", "blue"}
        assert lights == {"noisy", "even", "negative", "positive"}

    def test_a_box_without_a_mask_says_so(self, scene):
        del scene["annotations"][0]["segmentation"]
        samples, _ = mask_samples([scene], 8)
        sample = MaskCropDatasetMapper(image_format="RGB", size=32)(samples[0], samples[0])
        assert not sample["has_mask"]
        assert not sample["mask"].any()
        assert sample["box"].any()

    def test_salient_images_are_samples(self, scene, tmp_path):
        mask = mask_util.decode(scene["annotations"][0]["segmentation"]) * 255
        cv2.imwrite(str(tmp_path / "mask.png"), mask)
        samples, _ = mask_samples([{"file_name": scene["file_name"], "mask_file_name": str(tmp_path / "mask.png")}], 8)
        sample = MaskCropDatasetMapper(image_format="RGB", size=64, color_jitter=0)(samples[0])
        red = sample["image"][0].numpy() > sample["image"][2].numpy()
        assert (red != (sample["mask"].numpy() > 127)).mean() < 0.02

    def test_small_objects_and_crowds_are_left_out_and_parts_make_a_whole(self, scene):
        full = scene["annotations"][0]
        small = {**full, "bbox": [1, 1, 4, 30]}
        crowd = {**full, "iscrowd": 1}
        scene["annotations"] = [full, small, crowd, {**full}]
        samples, shares = mask_samples([scene], 8, union_prob=0.5)
        assert [len(s["segmentations"]) for s in samples] == [1, 1, 2]
        assert shares.tolist() == pytest.approx([0.25, 0.25, 0.5])
        assert "box" not in samples[2]
        assert MaskCropDatasetMapper(image_format="RGB", size=32)(samples[2])["has_mask"]

    def test_sources_are_drawn_as_often_as_their_weights_say(self):
        order = MaskCropOrder([np.ones(1), np.array([0.25, 0.75])], [1.0, 3.0], batch_size=4)
        drawn = np.array(list(islice(order.batches(3), 1000))).reshape(-1, 2)
        for positions in drawn.T:  # of samples and of donors
            assert np.bincount(positions, minlength=3) / 4000 == pytest.approx([0.25, 0.1875, 0.5625], abs=0.03)
        assert (drawn[:, 0] != drawn[:, 1]).any()


def test_the_evaluation_script_ranks_as_it_should(project_root, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(project_root / "tools"), *sys.path])
    spec = importlib.util.spec_from_file_location("evaluate", project_root / "tools" / "evaluate_box_to_mask.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["evaluate"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    assert module.spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert module.spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert module.spearman([1, 1, 2], [1, 1, 2]) == pytest.approx(1)
    assert module.spearman([1, 1, 1], [1, 2, 3]) == 0
    assert module.filled((1.2, 2.0, 4.9, 5.0), (10, 10)).sum() == 12
