"""Losses: reference numbers, slow references, and what must hold for any input."""

import numpy as np
import pytest
import torch

from boxsup_d2.modeling import affinity
from boxsup_d2.modeling import losses as L


def _golden(shared, prefix):
    data = np.load(shared / "golden" / "seed_ops.npz")
    return {k.removeprefix(prefix): torch.from_numpy(np.asarray(data[k])) for k in data if k.startswith(prefix)}


def test_mil_reproduces_the_published_loss_and_gradient(shared):
    g = _golden(shared, "mil.")
    x = g["logits"].requires_grad_()
    loss = L.box_projection_mil_loss(x, g["box_mask"])
    loss.backward()
    assert loss.item() == pytest.approx(g["loss"].item(), rel=1e-5)
    assert (x.grad - g["grad"]).norm() / g["grad"].norm() < 1e-4


def test_pairwise_reproduces_the_published_loss_and_gradient(shared):
    g = _golden(shared, "pairwise.")
    x = _golden(shared, "mil.")["logits"].requires_grad_()
    loss = 0.05 * L.pairwise_smoothness_loss(x)
    loss.backward()
    assert loss.item() == pytest.approx(g["loss"].item(), rel=1e-5)
    assert (x.grad - g["grad"]).norm() / g["grad"].norm() < 1e-4


def test_pseudo_label_reproduces_the_published_loss_and_gradient(shared):
    g = _golden(shared, "psd.")
    q = g["full_prob"].requires_grad_()
    loss = L.pseudo_label_loss_from_probabilities(q, g["weak_prob"])
    loss.backward()
    assert loss.item() == pytest.approx(g["loss"].item(), rel=1e-5)
    assert (q.grad - g["grad"]).norm() / g["grad"].norm() < 1e-4


def test_mil_against_a_loop_over_bags():
    torch.manual_seed(0)
    logits, masks = torch.randn(2, 1, 5, 7), (torch.rand(2, 1, 5, 7) > 0.8).float()
    terms = []
    for n in range(2):
        lines = [(logits[n, 0, y], masks[n, 0, y]) for y in range(5)]
        lines += [(logits[n, 0, :, x], masks[n, 0, :, x]) for x in range(7)]
        for line, mask in lines:
            p, y = line.max().sigmoid(), mask.max()
            terms.append(-(y * p.log() + (1 - y) * (1 - p).log()))
    assert L.box_projection_mil_loss(logits, masks).item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)


def test_pairwise_against_a_loop_over_neighbours():
    torch.manual_seed(0)
    logits = torch.randn(1, 1, 4, 5)
    p = logits.sigmoid()[0, 0]
    offsets = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)]
    total = 0.0
    for y in range(4):
        for x in range(5):
            for dy, dx in offsets:
                inside = 0 <= y + dy < 4 and 0 <= x + dx < 5
                total += float(p[y, x] - (p[y + dy, x + dx] if inside else 0)) ** 2
    assert L.pairwise_smoothness_loss(logits).item() == pytest.approx(total / (8 * 20), rel=1e-5)


def test_mil_is_small_for_the_box_and_large_for_its_complement():
    mask = torch.zeros(1, 1, 12, 12)
    mask[..., 3:9, 2:7] = 1
    right, wrong = (mask * 2 - 1) * 20, (1 - mask * 2) * 20
    assert L.box_projection_mil_loss(right, mask) < 1e-6
    assert L.box_projection_mil_loss(wrong, mask) > 5


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_losses_are_finite_for_extreme_logits_in_half_precision(scale):
    logits = (torch.randn(2, 1, 8, 8) * scale).to(torch.bfloat16).requires_grad_()
    mask = torch.zeros(2, 1, 8, 8)
    mask[..., 2:6, 2:6] = 1
    total = (
        L.box_projection_mil_loss(logits, mask)
        + L.pairwise_smoothness_loss(logits)
        + L.salient_loss(logits, mask)
        + L.pseudo_label_loss(logits, logits)
    )
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(logits.grad).all()


def test_pseudo_label_teaches_one_head_only():
    student, teacher = torch.randn(1, 1, 6, 6, requires_grad=True), torch.randn(1, 1, 6, 6, requires_grad=True)
    L.pseudo_label_loss(student, teacher).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_a_constant_teacher_gives_a_finite_loss():
    assert torch.isfinite(L.pseudo_label_loss(torch.randn(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)))


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, m: L.box_projection_mil_loss(x, m),
        lambda x, m: L.pairwise_smoothness_loss(x),
        lambda x, m: L.salient_loss(x, m),
        lambda x, m: L.pseudo_label_loss(x, x),
        lambda x, m: L.projection_dice_loss(x, m),
        lambda x, m: L.pairwise_affinity_loss(x, torch.zeros(0, 8, 8, 8, dtype=torch.bool), m),
        lambda x, m: L.mask_affinity_loss(x, m, m, m, torch.zeros(0)),
    ],
)
def test_an_empty_batch_is_a_connected_zero(loss):
    weight = torch.randn(1, requires_grad=True)
    value = loss(torch.zeros(0, 1, 8, 8) * weight, torch.zeros(0, 1, 8, 8))
    value.backward()
    assert value.item() == 0
    assert weight.grad is not None


# ------------------------------------------------------- losses of BoxInst, BoxTeacher and Mask Auto-Labeler
# A picture of 4 x 4 greys, logits, a box of 3 x 3, and a lowest row that is nobody's neighbour; the expected numbers
# were computed apart, in double precision, from the formulas of the papers.
GREYS = torch.tensor([[200, 201, 200, 90], [199, 200, 202, 92], [201, 199, 120, 90], [90, 91, 92, 90]])
LOGITS = torch.tensor([[3, 2, 1, -2], [2, 4, 0.5, -3], [1, 0, -1, -4], [-2, -3, -4, -5]])[None, None]
BOX, VALID = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
BOX[..., :3, :3], VALID[..., 3, :] = 1, 0


def grey_picture(greys):
    return torch.as_tensor(greys).float().expand(1, 3, *torch.as_tensor(greys).shape[-2:])


def near(value):
    return pytest.approx(value, abs=1e-4)


def test_lab_of_greys_and_what_passes_the_threshold():
    lab = affinity.rgb_to_lab(grey_picture([[200, 201, 120]]))[0, :, 0]
    torch.testing.assert_close(lab[0], torch.tensor([80.604, 80.965, 50.431]), atol=1e-3, rtol=0)
    assert lab[1:].abs().max() < 0.004
    pairs = torch.cat([grey_picture([[200, 200 + step]]) for step in range(1, 9)])
    similar = affinity.color_similarity(pairs, torch.ones(8, 1, 1, 2), dilation=1)[:, 0, 0, 0]
    expected = torch.tensor([0.835, 0.697, 0.582, 0.486, 0.406, 0.340, 0.284, 0.237])
    torch.testing.assert_close(similar, expected, atol=6e-4, rtol=0)


def test_projection_and_pairwise_numbers_also_in_mixed_precision():
    picture = grey_picture(GREYS)
    with torch.autocast("cpu", torch.bfloat16):
        edges = {d: affinity.color_similarity(picture, VALID, dilation=d) >= 0.3 for d in (1, 2)}
        pairwise = {d: L.pairwise_affinity_loss(LOGITS, edges[d], BOX, dilation=d).item() for d in (1, 2)}
        assert L.projection_dice_loss(LOGITS, BOX).item() == near(0.0328837)
        assert L.projection_dice_loss(LOGITS, BOX, eps=2e-3).item() == near(0.0336056)
    assert pairwise == {1: near(0.395220), 2: near(0.480451)}
    assert (edges[2] & (BOX > 0)).sum() == 10
    assert (edges[1] & (BOX > 0)).sum() == 34
    same = torch.zeros(1, 8, 1, 2, dtype=torch.bool)
    same[:, 0] = True
    value = L.pairwise_affinity_loss(torch.tensor([[[[3.0, 1.0]]]]), same, torch.ones(1, 1, 1, 2), dilation=1)
    assert value.item() == near(0.343699)


@pytest.mark.parametrize(
    ("columns", "one_end", "both_ends", "projection"),
    [(3, 0.7250, 0.0360, 0.0004), (2, 0.0360, 0.0360, 0.1960), (4, 0.0360, 0.0360, 0.1410)],
    ids=["filled box", "true mask", "everything"],
)
def test_only_one_gated_end_tells_the_filled_box_from_the_mask(columns, one_end, both_ends, projection):
    picture = grey_picture([[200, 200, 90, 90]] * 4)
    box = torch.zeros(1, 1, 4, 4)
    box[..., :3] = 1
    logits = torch.full((1, 1, 4, 4), -4.0)
    logits[..., :columns] = 4
    for valid, expected in ((torch.ones_like(box), one_end), (box, both_ends)):
        edges = affinity.color_similarity(picture, valid, dilation=1) >= 0.3
        assert L.pairwise_affinity_loss(logits, edges, box, dilation=1).item() == near(expected)
    assert L.projection_dice_loss(logits, box).item() == near(projection)


def test_numbers_of_pseudo_masks():
    mask = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])[None, None]
    assert L.dice_loss(LOGITS.sigmoid(), mask).item() == near(0.134937)
    args = (LOGITS, mask, BOX, VALID)
    assert L.mask_affinity_loss(*args, torch.ones(1)).item() == near(0.656741)
    assert 0.1 * L.mask_affinity_loss(*args, torch.tensor([0.867752])).item() == near(0.056989)
    # Samples of confidence 0 do not count; a low confidence lowers the loss.
    twice = [torch.cat([x, x]) for x in args]
    assert L.mask_affinity_loss(*twice, torch.tensor([0.5, 0])).item() == near(0.656741 / 2)
    assert L.mean_of_counted(torch.tensor([1.0, 3]), torch.tensor([0.5, 0])).item() == 0.5


def test_numbers_of_the_mean_field():
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    picture = (grey_picture(GREYS) / 255 - mean[:, None, None]) / std[:, None, None]
    start, box = LOGITS.sigmoid(), BOX
    expected = torch.full((4, 4), 0.1)
    expected[:3, :3] = 0.9
    expected[2, 2] = 0.268941  # grey 120: like none of its neighbours
    once, often = (affinity.mean_field(start, picture, box, iterations=n)[0, 0] for n in (1, 100))
    torch.testing.assert_close(once, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(often, expected, atol=1e-3, rtol=0)
    label = (often > 0.5).float()[None, None]
    dice = L.dice_loss(start, label, eps=2e-3).item()
    assert dice == near(0.051076)
    assert 4 * L.projection_dice_loss(LOGITS, BOX, eps=2e-3).item() + 0.5 * dice == near(0.159960)


def test_contrast_is_how_much_commoner_a_colour_is_in_the_box():
    picture, box = torch.full((2, 3, 16, 16), 90.0), torch.zeros(2, 1, 16, 16)
    red = torch.tensor([200.0, 40, 40])[:, None, None]
    box[..., 4:12, 4:12] = 1  # 64 of 256 pixels
    picture[..., 4:12, 4:8] = red  # half of the box
    picture[1, :, :, :2] = red  # and a sixth of what surrounds it
    valid = torch.ones_like(box)
    found = affinity.box_contrast(picture, box, valid, background=0.5)
    assert not found[box == 0].any()
    # 1 - background * share of the surroundings / share of the box
    for image, red_one, grey_one in ((0, 1, 1 - 0.5 / 0.5), (1, 1 - 0.5 * (1 / 6) / 0.5, 1 - 0.5 * (5 / 6) / 0.5)):
        assert found[image, 0, 5, 5].item() == pytest.approx(red_one, abs=0.03)
        assert found[image, 0, 5, 10].item() == pytest.approx(grey_one, abs=0.03)
    valid[..., :2] = 0
    assert torch.equal(affinity.box_contrast(picture, box, valid)[1], found[0]), "what is no image does not count"
    assert affinity.box_contrast(picture[:0], box[:0], valid[:0]).shape == (0, 1, 16, 16)


@pytest.mark.parametrize("dilation", [1, 2, 7])
def test_pairs_of_neighbours_against_a_loop(dilation):
    images, valid = torch.rand(2, 3, 5, 6) * 30 + 100, (torch.rand(2, 1, 5, 6) > 0.3).float()
    logits, boxes = torch.randn(2, 1, 5, 6), (torch.rand(2, 1, 5, 6) > 0.4).float()
    masks = torch.rand(2, 1, 5, 6)
    soft = (masks + torch.nn.functional.avg_pool2d(masks, 3, 1, 1)) / 2
    lab, p = affinity.rgb_to_lab(images), logits.sigmoid()
    offsets = [*affinity.HALF_NEIGHBOURS, *((-y, -x) for y, x in affinity.HALF_NEIGHBOURS)]
    assert len(set(offsets)) == 8
    color, mask = torch.zeros(2, 8, 5, 6), torch.zeros(2, 8, 5, 6)
    losses = []
    for n in range(2):
        for k, (dy, dx) in enumerate(offsets):
            for y in range(5):
                for x in range(6):
                    v, u = y + dy * dilation, x + dx * dilation
                    if not (0 <= v < 5 and 0 <= u < 6):
                        continue
                    color[n, k, y, x] = torch.exp(-(lab[n, :, y, x] - lab[n, :, v, u]).norm() / 2) * valid[n, 0, v, u]
                    a, b = soft[n, 0, y, x], soft[n, 0, v, u]
                    mask[n, k, y, x] = (a * b + (1 - a) * (1 - b)) * valid[n, 0, v, u]
                    if color[n, k, y, x] >= 0.1 and boxes[n, 0, y, x]:
                        a, b = p[n, 0, y, x], p[n, 0, v, u]
                        losses.append(-(a * b + (1 - a) * (1 - b)).log())
    torch.testing.assert_close(affinity.color_similarity(images, valid, dilation=dilation), color)
    torch.testing.assert_close(affinity.mask_similarity(masks, valid, dilation=dilation), mask)
    expected = torch.stack(losses).mean().item() if losses else 0
    value = L.pairwise_affinity_loss(logits, color >= 0.1, boxes, dilation=dilation)
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_pairwise_gradient_leaves_the_box_only_through_edges_that_start_in_it():
    logits = torch.randn(1, 1, 9, 9, requires_grad=True)
    box = torch.zeros(1, 1, 9, 9)
    box[..., 3:6, 3:6] = 1
    L.pairwise_affinity_loss(logits, torch.ones(1, 8, 9, 9, dtype=torch.bool), box, dilation=1).backward()
    reached = torch.zeros(9, 9, dtype=torch.bool)
    reached[2:7, 2:7] = True
    assert torch.equal(logits.grad[0, 0] != 0, reached)


def test_box_losses_are_finite_for_extreme_half_precision_logits_and_boxes_without_a_cell():
    logits = torch.tensor([80.0, -80, 80, 80, -80, 0, -80, 80, 0.1]).reshape(1, 1, 3, 3).half().repeat(2, 1, 1, 1)
    logits.requires_grad_()
    box = torch.ones(2, 1, 3, 3)
    box[1] = 0
    edges = torch.ones(2, 8, 3, 3, dtype=torch.bool)
    pairwise = L.pairwise_affinity_loss(logits, edges, box, dilation=1)
    affine = L.mask_affinity_loss(logits, box, box, box, torch.ones(2), dilation=1)
    projection = L.projection_dice_loss(logits, box)
    (pairwise + affine + projection).backward()
    assert all(torch.isfinite(x) for x in (pairwise, affine, projection))
    assert torch.isfinite(logits.grad).all()
    assert projection.item() == L.projection_dice_loss(logits[:1], box[:1]).item(), "a box without a cell says nothing"


def test_filled_boxes_are_no_optimum_unless_both_ends_are_gated():
    """Free logits, taught by boxes and colours alone, become discs; with both ends gated they fill their boxes."""
    y, x = torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij")
    discs = torch.stack([(y - cy) ** 2 + (x - cx) ** 2 < r**2 for cy, cx, r in [(11, 12, 8), (9, 8, 6)]])[:, None]
    boxes = (discs.any(2, keepdim=True) & discs.any(3, keepdim=True)).float()
    pictures = torch.where(discs, 200.0, 90.0).expand(-1, 3, -1, -1)
    overlap = {}
    for name, valid in (("one", torch.ones_like(boxes)), ("both", boxes)):
        logits = torch.zeros(2, 1, 24, 24, requires_grad=True)
        edges = affinity.color_similarity(pictures, valid, dilation=2) >= 0.3
        optimizer = torch.optim.Adam([logits], lr=0.1)
        for _ in range(200):
            optimizer.zero_grad()
            (L.projection_dice_loss(logits, boxes) + L.pairwise_affinity_loss(logits, edges, boxes)).backward()
            optimizer.step()
        found = logits.detach() > 0
        overlap[name] = ((found & discs).sum() / (found | discs).sum()).item()
    assert overlap["one"] > 0.95
    assert overlap["both"] < 0.9
