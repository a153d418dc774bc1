"""Optimizers, schedules and accumulated gradients."""

import copy
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.solver import build_optimizer as build_detectron2_optimizer
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from boxsup_d2.config import add_boxsup_config, load_config
from boxsup_d2.engine.accumulation import build_inner_trainer
from boxsup_d2.engine.solver import SteppedPolynomial, build_lr_scheduler, build_optimizer, lr_factors
from boxsup_d2.engine.trainer import Trainer
from boxsup_d2.modeling.sem_seg_heads import ASPPSumHead, LargeFOVHead
from boxsup_d2.toy.scenes import write_toy_datasets

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_boxsup_config(cfg)
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY = 0.001, 0.0005
    return cfg


# ------------------------------------------------------------------------------------------------- parameter groups
class Segmenter(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.sem_seg_head = head


def settings(optimizer, model):
    """(learning rate, weight decay) by parameter name."""
    by_id = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    return {name: by_id[id(p)] for name, p in model.named_parameters()}


def test_published_deeplab_recipe_of_learning_rates_and_weight_decays(cfg):
    cfg.SOLVER.BIAS_LR_FACTOR, cfg.SOLVER.WEIGHT_DECAY_BIAS = 2.0, 0.0
    model = Segmenter(LargeFOVHead(in_feature="x", in_channels=4, num_classes=2, hidden_channels=8))
    found = settings(build_optimizer(cfg, model), model)
    assert found["backbone.0.weight"] == pytest.approx((0.001, 0.0005))
    assert found["backbone.0.bias"] == pytest.approx((0.002, 0))
    assert found["sem_seg_head.fc7.weight"] == pytest.approx((0.001, 0.0005))
    assert found["sem_seg_head.fc7.bias"] == pytest.approx((0.002, 0))
    assert found["sem_seg_head.fc8.weight"] == pytest.approx((0.01, 0.0005))
    assert found["sem_seg_head.fc8.bias"] == pytest.approx((0.02, 0))
    model = Segmenter(ASPPSumHead(in_feature="x", in_channels=4, num_classes=2))
    found = settings(build_optimizer(cfg, model), model)
    for i in range(4):
        assert found[f"sem_seg_head.convs.{i}.weight"] == pytest.approx((0.01, 0.0005))
        assert found[f"sem_seg_head.convs.{i}.bias"] == pytest.approx((0.02, 0))


def test_schedule_keeps_the_ratios(cfg):
    cfg.SOLVER.LR_SCHEDULER_NAME, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER = "WarmupPolyLR", 0, 10
    model = Segmenter(ASPPSumHead(in_feature="x", in_channels=4, num_classes=2))
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    found = settings(optimizer, model)
    assert found["backbone.0.weight"][0] == pytest.approx(0.001 * 0.6**0.9)
    assert found["sem_seg_head.convs.0.weight"][0] == pytest.approx(0.01 * 0.6**0.9)


def test_models_without_factors_have_detectron2s_groups(cfg):
    cfg.SOLVER.WEIGHT_DECAY_NORM, cfg.SOLVER.MOMENTUM, cfg.SOLVER.NESTEROV = 0.0, 0.8, True
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    ours, theirs = build_optimizer(cfg, model), build_detectron2_optimizer(cfg, model)
    assert type(ours) is type(theirs)
    for group in (*ours.param_groups, *theirs.param_groups):
        group.pop("foreach", None)  # how, not what: the main branch decides it
    assert ours.state_dict() == theirs.state_dict()


def test_factors_that_meet_multiply_and_unknown_names_are_refused():
    class Part(nn.Module):
        def __init__(self, factors):
            super().__init__()
            self.inner = nn.Linear(1, 1)
            self.lr_factors = lambda: factors

    model = nn.ModuleDict({"a": Part({"inner": 3.0}), "b": Part({"inner.bias": 0.5})})
    model.lr_factors = lambda: {"a.inner.bias": 2.0}
    found = lr_factors(model)
    assert found == {
        model["a"].inner.weight: 3.0,
        model["a"].inner.bias: 6.0,
        model["b"].inner.bias: 0.5,
    }
    with pytest.raises(ValueError, match=r"Part.*'inne'"):
        lr_factors(Part({"inne": 2.0}))


def test_adam_takes_weight_decay_for_an_l2_penalty(cfg):
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR = "ADAM", 0.1
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(3.0)
    optimizer = build_optimizer(cfg, model)
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    # Adam divides the penalty's gradient by its own size: one whole step of the learning rate.
    assert model.weight.item() == pytest.approx(2.9, abs=1e-4)
    cfg.SOLVER.OPTIMIZER = "LION"
    with pytest.raises(ValueError, match="LION"):
        build_optimizer(cfg, model)


def test_gradient_clipping_reaches_every_optimizer(cfg):
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED, cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = True, "value"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.25
    for name in ("SGD", "ADAM", "ADAMW"):
        cfg.SOLVER.OPTIMIZER = name
        model = nn.Linear(1, 1, bias=False)
        optimizer = build_optimizer(cfg, model)
        model.weight.grad = torch.full_like(model.weight, 4.0)
        optimizer.step()
        assert model.weight.grad.item() == 0.25


# ------------------------------------------------------------------------------------------------- schedule
@pytest.mark.parametrize(("max_iter", "interval"), [(200, 50), (130, 50), (10, 1), (100_000, 50)])
def test_polynomial_decay_steps_at_multiples_of_the_interval(max_iter, interval):
    schedule = SteppedPolynomial(0.9, max_iter, interval)
    for t in range(0, max_iter + 1, max(max_iter // 1000, 1)):
        assert schedule(t / max_iter) == pytest.approx((1 - (t // interval * interval) / max_iter) ** 0.9), t


def test_a_fraction_that_rounds_down_is_not_an_interval_early():
    max_iter = 100_000
    schedule = SteppedPolynomial(1.0, max_iter, 50)
    late = [t for t in range(0, max_iter, 50) if (t / max_iter) * max_iter < t]
    assert late, "no such t: the test tests nothing"
    assert all(schedule(t / max_iter) == pytest.approx(1 - t / max_iter) for t in late)
    with pytest.raises(ValueError, match="POLY_LR_INTERVAL"):
        SteppedPolynomial(1.0, 10, 0)


# ------------------------------------------------------------------------------------------------- accumulation
class Regression(nn.Module):
    """Without batch norm, and its loss is the mean over the samples of a batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()

    def forward(self, batch):
        x, y = torch.stack([s for s, _ in batch]), torch.stack([t for _, t in batch])
        error = self.net(x)[:, 0] - y
        return {"loss_a": (error**2).mean(), "loss_b": error.abs().mean()}


def stream(batch_size, count=240, seed=0):
    """The same samples in the same order, whatever the batch size."""
    generator = torch.Generator().manual_seed(seed)
    xs = torch.randn(count, 3, generator=generator, dtype=torch.double)
    ys = torch.randn(count, generator=generator, dtype=torch.double)
    pairs = list(zip(xs, ys, strict=True))
    return [pairs[i : i + batch_size] for i in range(0, count, batch_size)]


def inner_trainer(batches, batch_size, loader=None, **kwargs):
    model = Regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    return build_inner_trainer(model, loader or stream(batch_size), optimizer, amp=False, batches=batches, **kwargs)


def run(trainer, steps, start=0):
    logged = []
    with EventStorage(start) as trainer.storage:
        for trainer.iter in range(start, start + steps):
            trainer.storage.iter = trainer.iter
            trainer.run_step()
            logged.append({key: value for key, (value, _) in trainer.storage.latest().items()})
    return logged


def test_accumulated_batches_equal_one_large_batch():
    small, large = inner_trainer(5, 2), inner_trainer(1, 10)
    assert type(large) is SimpleTrainer
    logged = run(small, 20), run(large, 20)
    for a, b in zip(small.model.parameters(), large.model.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)
    assert not torch.allclose(next(small.model.parameters()), next(Regression().parameters()))
    for a, b in zip(*logged, strict=True):
        for key in ("loss_a", "loss_b", "total_loss"):
            assert a[key] == pytest.approx(b[key], rel=1e-12), key
        assert a["data_time"] >= 0


def test_resumed_accumulation_goes_on_exactly():
    whole = inner_trainer(3, 2)
    run(whole, 10)
    first = inner_trainer(3, 2)
    run(first, 4)
    state = copy.deepcopy({"model": first.model.state_dict(), "trainer": first.state_dict()})
    second = inner_trainer(3, 2, loader=stream(2)[3 * 4 :])
    second.model.load_state_dict(state["model"])
    second.load_state_dict(state["trainer"])
    run(second, 6, start=4)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True))


def test_a_loss_that_is_not_finite_stops_before_the_update():
    loader = stream(2)
    loader[1] = [(torch.full((3,), float("nan"), dtype=torch.double), y) for _, y in loader[1]]
    trainer = inner_trainer(2, 2, loader=loader)
    before = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(FloatingPointError, match="loss_a"):
        run(trainer, 1)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_accumulation_in_mixed_precision_unscales_once_and_skips_an_overflow():
    model = Regression().float()
    reference = copy.deepcopy(model)
    loader = [[(x.float(), y.float()) for x, y in batch] for batch in stream(2)]
    overflow = [(torch.ones(3), torch.tensor(3e38)) for _ in range(2)]
    loader[2:2] = [overflow]  # the first batch of the second update
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    trainer = build_inner_trainer(model, loader, optimizer, amp=True, batches=2)
    assert isinstance(trainer, AMPTrainer)
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    trainer.precision = torch.bfloat16
    trainer._write_metrics = lambda *args: None  # which refuses infinite losses
    run(trainer, 1)
    sum(reference([s for batch in loader[:2] for s in batch]).values()).backward()
    for ours, expected in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours, expected - 0.05 * expected.grad, atol=3e-3)
        assert not torch.equal(ours, expected)
    before = copy.deepcopy(model.state_dict())
    run(trainer, 1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert trainer.grad_scaler.get_scale() == 32
    run(trainer, 1)
    assert not all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_hooks_after_the_backward_pass_run_once_an_update():
    """Detectron2's main branch has them; 0.6 does not call them."""
    trainer = inner_trainer(3, 2)
    gradients = []
    trainer.after_backward = lambda: gradients.append([p.grad.clone() for p in trainer.model.parameters()])
    run(trainer, 2)
    assert len(gradients) == 2
    last = [p.grad for p in trainer.model.parameters()]
    assert all(torch.equal(*pair) for pair in zip(gradients[1], last, strict=True))


def test_accumulate_must_be_positive():
    with pytest.raises(ValueError, match=r"SOLVER\.ACCUMULATE.*0"):
        inner_trainer(0, 2)


def _two_ranks(folder: str) -> None:
    rank = comm.get_rank()
    model = DistributedDataParallel(Regression())
    syncs = []

    def count(state, bucket):
        syncs.append(1)
        return (
            torch.distributed.all_reduce(bucket.buffer() / 2, async_op=True).get_future().then(lambda f: f.value()[0])
        )

    model.register_comm_hook(None, count)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    # Batches of a rank are every other one, as the loaders of two ranks give them.
    trainer = build_inner_trainer(model, stream(2)[rank::2], optimizer, amp=False, batches=3)
    run(trainer, 4)
    torch.save((model.module.state_dict(), len(syncs)), f"{folder}/{rank}.pth")


def test_two_ranks_average_their_accumulated_gradients_once_per_update(tmp_path, in_two_processes):
    in_two_processes(_two_ranks, str(tmp_path))
    one = inner_trainer(1, 12)
    run(one, 4)
    for rank in (0, 1):
        state, syncs = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        assert syncs == 4
        for name, value in one.model.state_dict().items():
            assert torch.allclose(state[name], value, rtol=0, atol=1e-12), name


# ------------------------------------------------------------------------------------------------- the trainer
def test_the_trainer_counts_updates(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_toy_datasets(tmp_path, num_train=4, num_salient=4, num_val=1, size=96)
    small = [
        "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.FPN.OUT_CHANNELS", 8, "MODEL.BOXCASEG.HEAD_CHANNELS", 8,
        "INPUT.BOX_CROP.TRAIN_SIZE", 32, "INPUT.BOX_CROP.SALIENT_SIZE", 36, "DATALOADER.NUM_WORKERS", 0,
        "SOLVER.IMS_PER_BATCH", 2, "SOLVER.ACCUMULATE", 3, "SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2,
        "PSEUDO_MASKS.DATASETS", "()", "DATASETS.TEST", "()", "OUTPUT_DIR", str(tmp_path / "out"),
    ]  # fmt: skip
    cfg = load_config(str(ROOT / "configs/quick/voc-joint.yaml"), small)
    Path(cfg.OUTPUT_DIR).mkdir()
    trainer = Trainer(cfg)
    seen = []
    forward = trainer.model.forward
    trainer.model.forward = lambda batch: seen.append(len(batch)) or forward(batch)
    trainer.train()
    assert seen == [2] * 12
    saved = torch.load(tmp_path / "out/model_final.pth", weights_only=True)
    assert saved["iteration"] == 3
    assert trainer.scheduler.last_epoch == 4
    (tmp_path / "out/last_checkpoint").write_text("model_0000001.pth")
    resumed = Trainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2
    resumed.train()
    assert resumed.scheduler.last_epoch == 4
    cfg.SOLVER.MAX_EPOCHS = 6
    samples = resumed.data_loader.samples_per_epoch
    assert Trainer(cfg).max_iter == -(-6 * samples // 6)
