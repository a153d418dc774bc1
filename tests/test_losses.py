"""Losses: reference numbers, slow references, and what must hold for any input."""

import numpy as np
import pytest
import torch

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
    ],
)
def test_an_empty_batch_is_a_connected_zero(loss):
    weight = torch.randn(1, requires_grad=True)
    value = loss(torch.zeros(0, 1, 8, 8) * weight, torch.zeros(0, 1, 8, 8))
    value.backward()
    assert value.item() == 0
    assert weight.grad is not None
