"""BoxInst on a tiny pyramid: its parts against slow references, both kinds of supervision, and what comes out."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, Backbone, build_model
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks, pairwise_iou
from detectron2.utils.events import EventStorage
from torch import nn

from boxsup_d2.checkpoint.formats import find_format
from boxsup_d2.config import add_boxsup_config
from boxsup_d2.data.dataset_mappers import PseudoMaskDatasetMapper
from boxsup_d2.modeling.average import WeightAverage
from boxsup_d2.modeling.boxinst import PUBLISHED
from boxsup_d2.modeling.boxinst.box_teacher import mask_scores, match_detections
from boxsup_d2.modeling.boxinst.heads import DynamicMaskHead, aligned_bilinear
from boxsup_d2.modeling.boxinst.meta_arch import resize_masks
from boxsup_d2.modeling.boxinst.targets import mean_colors, rasterize_boxes, sample_locations, valid_cells


class TinyPyramid(Backbone):
    """Maps ``p2`` to ``p4`` of 16 channels."""

    size_divisibility = 16

    def __init__(self):
        super().__init__()
        strides, channels = (4, 2, 2), (3, 16, 16)
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, 16, 5, stride=s, padding=2), nn.GroupNorm(4, 16), nn.ReLU())
            for s, c in zip(strides, channels, strict=True)
        )

    def output_shape(self):
        return {f"p{k}": ShapeSpec(channels=16, stride=2**k) for k in (2, 3, 4)}

    def forward(self, x):
        maps = {}
        for k, level in enumerate(self.levels):
            maps[f"p{k + 2}"] = x = level(x)
        return maps


@BACKBONE_REGISTRY.register()
def build_tiny_pyramid(cfg, input_shape):
    return TinyPyramid()


def config(**keys):
    cfg = get_cfg()
    add_boxsup_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "BoxInst"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_tiny_pyramid"
    cfg.MODEL.PIXEL_STD = [60.0, 60.0, 60.0]
    cfg.MODEL.FCOS.NUM_CLASSES = 2
    cfg.MODEL.FCOS.IN_FEATURES = ["p3", "p4"]
    cfg.MODEL.FCOS.NUM_CONVS = 1
    cfg.MODEL.BOXINST.IN_FEATURES = ["p2", "p3"]
    cfg.MODEL.BOXINST.BRANCH_CONVS = 1
    cfg.MODEL.BOXINST.BRANCH_CHANNELS = 16
    cfg.MODEL.BOXINST.BRANCH_NORM = "GN"
    cfg.MODEL.BOXINST.MASK_CHANNELS = 4
    cfg.MODEL.BOXINST.MASK_STRIDE = 2
    cfg.SOLVER.MAX_ITER = 180
    for key, value in keys.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def model_of(**keys):
    torch.manual_seed(0)
    return build_model(config(**keys))


def diamond(size, cy, cx, radius):
    """H x W bool, whose filled box it covers by half."""
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return (y - cy).abs() + (x - cx).abs() <= radius


def sample(size, objects, *, masks=False):
    """A grey picture with diamonds: (cy, cx, radius, class) each; all in BGR."""
    image = torch.full((3, *size), 70, dtype=torch.uint8)
    found = [diamond(size, *thing[:3]) for thing in objects]
    for mask, (*_, kind) in zip(found, objects, strict=True):
        image[:, mask] = torch.tensor([[40, 60, 230], [220, 200, 60]][kind], dtype=torch.uint8)[:, None]
    stacked = torch.stack(found) if found else torch.zeros(0, *size, dtype=torch.bool)
    instances = Instances(size, gt_boxes=BitMasks(stacked).get_bounding_boxes())
    instances.gt_classes = torch.tensor([thing[3] for thing in objects], dtype=torch.int64)
    if masks and found:  # Detectron2's mapper leaves the field out of images without objects
        instances.gt_masks = BitMasks(stacked)
    return {"image": image, "height": size[0], "width": size[1], "instances": instances, "file_name": "toy.png"}


SIZE = (64, 80)
OBJECTS = [(24, 24, 16, 0), (40, 60, 12, 1)]


# ---------------------------------------------------------------------------------------------------- the parts
def test_aligned_bilinear_samples_where_cells_lie():
    x = torch.tensor([0.0, 1, 3]).expand(1, 1, 2, 3)
    assert aligned_bilinear(x, 2)[0, 0, 3].tolist() == [0, 0, 0.5, 1, 2, 3]
    assert aligned_bilinear(x, 4)[0, 0, 0].tolist() == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3]
    assert torch.equal(aligned_bilinear(x.mT, 2), aligned_bilinear(x, 2).mT)
    empty = torch.zeros(0, 2, 3, 4, requires_grad=True)
    assert aligned_bilinear(empty, 4).shape == (0, 2, 12, 16)
    # A step at a cell's centre stays at its pixel, whatever the image is resized to.
    cells = (torch.arange(10) >= 5).float().expand(1, 6, 10)
    (columns,) = resize_masks(cells, 4, (24, 38), (48, 76))[0, 0].nonzero(as_tuple=True)
    assert abs(columns.min().item() - 2 * (4 * 4.5 + 2)) <= 2
    assert columns.max() == 75


def test_mask_head_is_a_small_network_per_instance():
    assert DynamicMaskHead(16, channels=8, num_layers=3).num_parameters == 233
    assert DynamicMaskHead(8, channels=8, num_layers=3).num_parameters == 169
    head = DynamicMaskHead(4, channels=3, num_layers=3)
    features, parameters = torch.randn(2, 4, 5, 6), torch.randn(3, head.num_parameters)
    points, ranges, image_of = torch.rand(3, 2) * 40, torch.tensor([64.0, 128, 64]), torch.tensor([1, 0, 1])
    logits = head(features, 8, parameters, points, ranges, image_of)
    y, x = torch.meshgrid(torch.arange(5) * 8 + 4, torch.arange(6) * 8 + 4, indexing="ij")
    for k in range(3):
        relative = torch.stack([points[k, 0] - x, points[k, 1] - y]) / ranges[k]
        w1, w2, w3, b1, b2, b3 = parameters[k].split([6 * 3, 3 * 3, 3, 3, 3, 1])
        value = torch.cat([relative, features[image_of[k]]])[None]
        value = F.conv2d(value, w1.view(3, 6, 1, 1), b1).relu()
        value = F.conv2d(value, w2.view(3, 3, 1, 1), b2).relu()
        torch.testing.assert_close(logits[k], F.conv2d(value, w3.view(1, 3, 1, 1), b3)[0])


def test_every_object_gets_its_share_of_the_best_locations():
    # Image 0: object 0 at 20 locations, 1 at 3, 2 at none. Image 1: nothing. Image 2: object 3 at 12.
    objects = torch.full((3, 40), -1)
    objects[0, :20], objects[0, 30:33], objects[2, 5:17] = 0, 1, 3
    quality = torch.rand(3, 40)
    image, location, owner = sample_locations(objects, quality, torch.tensor([0, 0, 0, 2]), 8)
    found = {thing: location[owner == thing] for thing in range(4)}
    assert [len(found[thing]) for thing in range(4)] == [4, 3, 0, 8]
    assert image.tolist() == [0] * 7 + [2] * 8
    for thing, where in ((0, 0), (3, 2)):
        candidates = (objects[where] == thing).nonzero()[:, 0]
        best = candidates[quality[where, candidates].argsort(descending=True)][: len(found[thing])]
        assert torch.equal(found[thing], best)
    assert len(sample_locations(objects, quality, torch.tensor([0, 0, 0, 2]), 1)[0]) == 3, "at least one each"
    nothing = sample_locations(torch.full((1, 5), -1), torch.rand(1, 5), torch.zeros(0, dtype=torch.long), 8)
    assert [len(x) for x in nothing] == [0, 0, 0]


def test_boxes_on_the_grid_equal_filled_pixels_and_never_vanish():
    boxes = torch.tensor([[3.7, 5, 30.2, 22], [0, 0, 40, 24], [11, 4.5, 13.9, 20], [38, 20, 60, 60]])
    cells = rasterize_boxes(boxes, (6, 10), 4)
    for i in (0, 1):
        filled = torch.zeros(24, 40)
        x0, y0, x1, y1 = boxes[i].floor().int().tolist()
        filled[y0 : y1 + 1, x0 : x1 + 1] = 1
        assert torch.equal(cells[i, 0], filled[2::4, 2::4])
    # Between the samples at 10 and 14: the column of the centre, 12.45.
    assert cells[2, 0].any(0).nonzero()[:, 0].tolist() == [3]
    assert cells[3].sum() == 1
    assert rasterize_boxes(torch.zeros(0, 4), (6, 10), 4).shape == (0, 1, 6, 10)


def test_cells_that_count_and_their_colors():
    valid = valid_cells([(23, 40), (24, 17)], [0, 5], torch.zeros(2, 1, 6, 10), 4)
    full = torch.zeros(2, 24, 40)
    full[0, :23, :40], full[1, :19, :17] = 1, 1
    assert torch.equal(valid[:, 0], full[:, 2::4, 2::4])
    image = torch.randint(0, 256, (3, 24, 40), dtype=torch.uint8)
    expected = image.float().reshape(3, 6, 4, 10, 4).mean((2, 4)).floor()
    assert torch.equal(mean_colors([image], (32, 40), 4)[0, :, :6], expected)


def test_objects_of_locations_are_those_of_detectron2s_matching():
    model = model_of()
    things = [(10 + 12 * i, 14 + 20 * j, 6 + i, (i + j) % 2) for i in range(4) for j in range(4)]
    targets = [sample(SIZE, x)["instances"] for x in (things, [], OBJECTS)]
    anchors = model.anchor_generator([torch.zeros(1, 1, 8, 10), torch.zeros(1, 1, 4, 5)])
    labels, _, objects = model.match(anchors, targets)
    expected, boxes = model.label_anchors(anchors, [targets[0], targets[2]])
    assert torch.equal(torch.stack(labels)[[0, 2]], torch.stack(expected))
    assert (labels[1] == 2).all()
    assert (objects[1] == -1).all()
    assert objects.max() == 17, "more objects than classes"
    of_batch = torch.cat([x.gt_boxes.tensor for x in targets])
    for row, matched in zip(objects[[0, 2]], boxes, strict=True):
        matched = getattr(matched, "tensor", matched)
        assert torch.equal(of_batch[row[row >= 0]], matched[row >= 0])


# ---------------------------------------------------------------------------------------------------- training
@pytest.mark.parametrize("from_masks", [False, True], ids=["boxes", "masks"])
def test_losses_have_the_same_keys_and_reach_every_parameter(from_masks):
    model = model_of(MODEL__MASK_ON=from_masks).train()
    masks = {"loss_mask"} if from_masks else {"loss_projection", "loss_pairwise"}
    full, empty = sample(SIZE, OBJECTS, masks=True), sample(SIZE, [])
    for batch in ([full, empty], [empty, empty], [sample((48, 50), [(20, 20, 2, 0)], masks=True)]):
        model.zero_grad()
        with EventStorage(100):
            losses = model(batch)
        assert set(losses) == {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr", *masks}
        sum(losses.values()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
        for part in (model.head.controller, model.mask_branch.tower[-1]):
            # Of a batch without objects the masks learn nothing.
            assert bool(part.weight.grad.any()) == bool(len(batch[0]["instances"]))
    with EventStorage(100), torch.autocast("cpu", torch.bfloat16):
        assert all(torch.isfinite(x) for x in model([full]).values())


def test_pairwise_weight_rises_over_a_share_of_the_schedule():
    batch = [sample(SIZE, OBJECTS)]
    value = {}
    for max_iter in (180, 90):
        model = model_of(SOLVER__MAX_ITER=max_iter).train()
        for iteration in (0, 5, 10, 20, 80):
            with EventStorage(iteration), torch.no_grad():
                value[max_iter, iteration] = model(batch)["loss_pairwise"].item()
    assert value[180, 0] == 0
    assert value[180, 20] == value[180, 80] == value[90, 10] == value[90, 80]
    assert value[180, 10] == pytest.approx(value[180, 20] / 2)
    assert value[90, 5] == pytest.approx(value[180, 10])


def test_masks_count_by_their_confidence_and_void_for_neither_side():
    model = model_of(MODEL__MASK_ON=True, MODEL__ROI_MASK_HEAD__CONFIDENCE_WEIGHTING=True).train()

    def loss(confidence, void=None):
        item = sample(SIZE, OBJECTS, masks=True)
        item["instances"].gt_mask_confidence = torch.tensor(confidence)
        if void is not None:
            item["instances"].gt_void = BitMasks(void.expand(2, -1, -1))
        with EventStorage(0), torch.no_grad():
            return model([item])["loss_mask"].item()

    alone = [loss([1.0, 0.0]), loss([0.0, 1.0])]
    assert loss([0.0, 0.0]) == 0
    assert loss([0.5, 0.0]) == pytest.approx(alone[0] / 2)
    assert min(alone) <= loss([1.0, 1.0]) <= max(alone)
    assert loss([1.0, 1.0], torch.zeros(SIZE, dtype=torch.bool)) == loss([1.0, 1.0])
    assert loss([1.0, 1.0], torch.ones(SIZE, dtype=torch.bool)) == 0, "no pixel is known"


def test_boxes_alone_are_read_without_masks(tmp_path):
    from PIL import Image

    Image.new("RGB", (80, 64), (90, 60, 30)).save(tmp_path / "image.png")
    polygon = [[10, 10, 40, 10, 40, 40, 10, 40]]
    annotation = {
        "bbox": [10, 10, 30, 30],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 1,
        "iscrowd": 0,
        "segmentation": polygon,
    }
    record = {"file_name": str(tmp_path / "image.png"), "height": 64, "width": 80, "image_id": 1}
    fields = {}
    for mask_on in (False, True):
        cfg = config(MODEL__MASK_ON=mask_on, INPUT__MASK_FORMAT="bitmask", INPUT__MIN_SIZE_TRAIN=(64,))
        item = PseudoMaskDatasetMapper(cfg, True)({**record, "annotations": [annotation]})
        fields[mask_on] = set(item["instances"].get_fields())
        with EventStorage(0):
            assert model_of(MODEL__MASK_ON=mask_on).train()([item])
    assert fields[False] == {"gt_boxes", "gt_classes"}
    assert fields[True] == {"gt_boxes", "gt_classes", "gt_masks", "gt_mask_confidence"}


def test_picture_of_training_shows_boxes_and_masks():
    model = model_of(VIS_PERIOD=2).train()
    with EventStorage(2) as storage:
        model([sample(SIZE, OBJECTS)])
        ((name, picture, _),) = storage._vis_data
    assert name.startswith("Left to right")
    assert picture.shape == (3, 64, 240)


def test_clear_errors(monkeypatch):
    item = sample(SIZE, [(20, 20, 9, 1)])
    item["instances"].gt_classes += 1
    with pytest.raises(ValueError, match=r"'toy.png' has a box of class 2, but .* 2 classes: MODEL.FCOS.NUM_CLASSES"):
        model_of().train()([item])
    with pytest.raises(ValueError, match=r"'toy.png' has no masks to learn from: set MODEL.MASK_ON False"):
        model_of(MODEL__MASK_ON=True).train()([sample(SIZE, OBJECTS)])
    item = sample(SIZE, OBJECTS)
    item["instances"].gt_masks = PolygonMasks([[[1.0, 1, 9, 1, 9, 9]], [[1.0, 1, 9, 1, 9, 9]]])
    with pytest.raises(ValueError, match=r"INPUT.MASK_FORMAT bitmask"), EventStorage(0):
        model_of(MODEL__MASK_ON=True).train()([item])
    monkeypatch.setattr(TinyPyramid, "size_divisibility", 4)
    with pytest.raises(ValueError, match=r"multiples of 8, .* 'build_tiny_pyramid' pads to multiples of 4"):
        model_of()
    with pytest.raises(ValueError, match=r"MODEL.BOXINST.MASK_STRIDE is 3: it must divide 4"):
        build_model(config(MODEL__BOXINST__MASK_STRIDE=3))
    with pytest.raises(ValueError, match=r"MODEL.FCOS.IN_FEATURES has \['p7'\], but the backbone makes"):
        build_model(config(MODEL__FCOS__IN_FEATURES=["p3", "p7"]))


# ---------------------------------------------------------------------------------------------------- BoxTeacher
def greedy(detections, objects, least, classes=None):
    """Slow reference of the matching."""
    match = [-1] * len(objects)
    for i, box in enumerate(detections):
        found = [(pairwise_iou(Boxes(box[None]), Boxes(o[None])).item(), j) for j, o in enumerate(objects)]
        free = [
            (iou, -j)
            for iou, j in found
            if match[j] < 0 and iou >= least and (classes is None or classes[0][i] == classes[1][j])
        ]
        if free:
            match[-max(free)[1]] = i
    return match


def test_detections_are_matched_one_to_one_the_first_ones_too():
    corners = torch.rand(14, 2) * 30
    boxes = torch.cat([corners, corners + 20 + 4 * torch.rand(14, 2)], dim=1)
    detections, objects = boxes[:9], boxes[9:]
    classes = torch.randint(0, 2, (9,)), torch.randint(0, 2, (5,))
    for least, kinds in ((0.1, None), (0.1, classes), (0.3, None)):
        found = match_detections(Boxes(detections), Boxes(objects), least, kinds)
        assert found.tolist() == greedy(detections, objects, least, kinds)
        assert (found == 0).any() or kinds is not None, "the best one takes its object"
    assert match_detections(Boxes(detections[:0]), Boxes(objects), 0.5).tolist() == [-1] * 5
    assert match_detections(Boxes(detections), Boxes(objects[:0]), 0.5).shape == (0,)
    assert mask_scores(torch.tensor([0.7]), torch.tensor([0.9])).item() == pytest.approx(0.867752, abs=1e-5)


def test_the_average_teaches_the_masks_of_its_boxes():
    """A short training: the teacher finds the objects, its masks are learnt, and it is no part of the network."""
    things = [(20, 18, 10, 0), (28, 29, 11, 1)]
    batch = [sample((48, 48), [thing]) for thing in things] + [sample((48, 48), [])]
    keys = {"MODEL__META_ARCHITECTURE": "BoxTeacher", "MODEL__EMA__ENABLED": True, "MODEL__BOXTEACHER__WARMUP": 0.0}
    keys |= {"MODEL__BOXINST__PAIRWISE_WARMUP": 0.4, "MODEL__BOXINST__SAMPLES_PER_IMAGE": 8, "SOLVER__MAX_ITER": 150}
    keys |= {"INPUT__MIN_SIZE_TEST": 64}
    model = model_of(**keys).train()
    average = WeightAverage(model, decay=0.7)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history = []
    for iteration in range(40):
        with EventStorage(iteration):
            losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        average.update(iteration)
        history.append({name: value.item() for name, value in losses.items()})
    assert {"loss_mask", "loss_mask_affinity", "loss_projection", "loss_pairwise"} <= history[0].keys()
    taught = [losses["loss_mask"] for losses in history if losses["loss_mask"] > 0]
    assert taught, "the teacher has found an object"
    assert history[-1]["loss_projection"] < 0.7 * history[0]["loss_projection"]
    masks, weights = model.taught_masks(batch, [x["instances"] for x in batch], (24, 24))
    assert (masks.shape, weights.shape) == ((2, 1, 24, 24), (2,))
    assert ((weights > 0) == (masks.flatten(1).amax(1) > 0)).all()
    assert model.state_dict().keys() == model_of().state_dict().keys()
    view = model.training_view(batch)
    assert not torch.equal(view[0]["image"], batch[0]["image"])
    for key, value, problem in (("MODEL__MASK_ON", True, "MASK_ON False"), ("MODEL__EMA__ENABLED", False, "EMA")):
        with pytest.raises(ValueError, match=problem):
            model_of(**{**keys, key: value})


def test_scores_count_the_masks_where_asked():
    item, found = sample(SIZE, OBJECTS), []
    for rescore in (False, True):
        model = model_of(MODEL__FCOS__SCORE_THRESH_TEST=0.0, MODEL__BOXINST__RESCORE_TEST=rescore).eval()
        with torch.no_grad():
            found.append((model([item])[0]["instances"], model.detections([item], *model.predictions([item]))[0]))
    (plain, _), (rescored, raw) = found
    torch.testing.assert_close(plain.scores, raw.scores)
    expected = (raw.scores * raw.mask_certainty).sqrt().sort(descending=True).values
    torch.testing.assert_close(rescored.scores, expected)
    assert set(rescored.get_fields()) == set(plain.get_fields())


# ---------------------------------------------------------------------------------------------------- predictions
def test_detections_have_masks_of_the_original_size():
    model = model_of(MODEL__FCOS__SCORE_THRESH_TEST=0.0, TEST__DETECTIONS_PER_IMAGE=7).eval()
    items = [{**sample(SIZE, OBJECTS), "height": 33, "width": 41}, sample((60, 76), [])]
    with torch.no_grad():
        together = [x["instances"] for x in model(items)]
        alone = model(items[:1])[0]["instances"]
    torch.testing.assert_close(together[0].scores, alone.scores)
    assert torch.equal(together[0].pred_masks, alone.pred_masks)
    for found, size in zip(together, [(33, 41), (60, 76)], strict=True):
        assert found.image_size == size
        assert set(found.get_fields()) == {"pred_boxes", "pred_classes", "scores", "pred_masks"}
        assert (found.pred_masks.shape, found.pred_masks.dtype) == ((len(found), *size), torch.bool)
        assert 0 < len(found) <= 7
        assert (found.scores.diff() <= 0).all()
        assert ((found.scores > 0) & (found.scores < 1)).all()
    model.test_score_thresh = 1.0
    with torch.no_grad():
        nothing = model(items)[0]["instances"]
    assert nothing.pred_masks.shape == (0, 33, 41)


def iou(a, b):
    return ((a & b).sum() / (a | b).sum()).item()


def test_boxes_alone_teach_masks_that_are_no_boxes():
    """A short training on two pictures: the losses fall, and masks are nearer to the objects than filled boxes."""
    things = [(20, 18, 10, 0), (28, 29, 11, 1)]
    batch = [sample((48, 48), [thing]) for thing in things]
    model = model_of(
        SOLVER__MAX_ITER=150, MODEL__BOXINST__PAIRWISE_WARMUP=0.4, MODEL__BOXINST__SAMPLES_PER_IMAGE=8
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history = []
    for iteration in range(45):
        with EventStorage(iteration):
            losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    for name in ("loss_projection", "loss_fcos_cls"):
        assert history[-1][name] < 0.5 * history[0][name]
    model.eval()
    for item, (*where, kind) in zip(batch, things, strict=True):
        with torch.no_grad():
            best = model([item])[0]["instances"][:1]
        truth, box = diamond((48, 48), *where), item["instances"].gt_boxes
        filled = rasterize_boxes(box.tensor, (48, 48), 1)[0, 0] > 0
        assert best.pred_classes.tolist() == [kind]
        assert iou(best.pred_masks[0], truth) > iou(filled, truth) + 0.2


# ---------------------------------------------------------------------------------------------------- checkpoints
def test_published_names_become_ours():
    """On the shapes of the published R-50, of which nothing is allocated."""
    from boxsup_d2.model_zoo import get_config

    cfg = get_config("BoxInst/coco-R50-1x.yaml")
    with torch.device("meta"):
        ours = META_ARCH_REGISTRY.get("BoxInst")(cfg).state_dict()
    del ours["loss_normalizer"]  # theirs lack it
    fcos = "proposal_generator.fcos_head."
    theirs = {
        "head.controller.": "controller.",
        "head.cls_subnet.": f"{fcos}cls_tower.",
        "head.bbox_subnet.": f"{fcos}bbox_tower.",
        "head.cls_score.": f"{fcos}cls_logits.",
        "head.bbox_pred.": f"{fcos}bbox_pred.",
        "head.ctrness.": f"{fcos}ctrness.",
    }
    published = {}
    for name, value in ours.items():
        prefix = next((p for p in theirs if name.startswith(p)), "")
        published[theirs.get(prefix, "") + name.removeprefix(prefix)] = value
    for level in range(5):
        published[f"{fcos}scales.{level}.scale"] = published.pop(f"head.scales.{level}")
    shapes = {name: tuple(value.shape) for name, value in published.items()}
    expected = {
        "backbone.bottom_up.res5.2.conv3.norm.running_var": (2048,),
        "backbone.fpn_lateral3.weight": (256, 512, 1, 1),
        "backbone.top_block.p6.weight": (256, 256, 3, 3),
        "controller.weight": (233, 256, 3, 3),
        f"{fcos}cls_tower.9.weight": (256, 256, 3, 3),
        f"{fcos}cls_tower.10.bias": (256,),
        f"{fcos}cls_logits.bias": (80,),
        "mask_branch.refine.2.0.weight": (128, 256, 3, 3),
        "mask_branch.refine.2.1.running_mean": (128,),
        "mask_branch.tower.4.weight": (16, 128, 1, 1),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert "mask_branch.refine.0.0.bias" not in shapes
    published |= {"mask_head.sizes_of_interest": torch.zeros(6), "mask_head._iter": torch.zeros(1)}
    assert find_format(published) is PUBLISHED
    converted = PUBLISHED.convert(published)
    assert set(converted) == set(ours)
    assert all(converted[name] is ours[name] for name in ours)
    assert find_format(ours) is None
    with pytest.raises(ValueError, match=r"'mask_pred.weight' is none"):
        PUBLISHED.convert({"mask_pred.weight": torch.zeros(1)})
