"""The trainer: real small trainings on toy scenes, resumed, killed, and in two processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml
from detectron2.engine import HookBase

from boxsup_d2.checkpoint import BoxSupCheckpointer
from boxsup_d2.config import load_config
from boxsup_d2.engine.defaults import default_argument_parser
from boxsup_d2.engine.step import _joined, run_step
from boxsup_d2.engine.trainer import Trainer
from boxsup_d2.modeling.average import WeightAverage, average_decay
from boxsup_d2.rounds.runner import run_rounds
from boxsup_d2.toy.scenes import write_toy_datasets

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "MODEL.DEVICE", "cpu",
    "MODEL.WEIGHTS", "",
    "MODEL.FPN.OUT_CHANNELS", 8,
    "MODEL.BOXCASEG.HEAD_CHANNELS", 8,
    "INPUT.BOX_CROP.TRAIN_SIZE", 32,
    "INPUT.BOX_CROP.SALIENT_SIZE", 36,
    "INPUT.BOX_CROP.TEST_SIZE", 32,
    "DATALOADER.NUM_WORKERS", 0,
    "SOLVER.IMS_PER_BATCH", 4,
    "SOLVER.WARMUP_ITERS", 0,
    "SOLVER.MAX_ITER", 6,
    "SOLVER.CHECKPOINT_PERIOD", 3,
]  # fmt: skip


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy")
    write_toy_datasets(root, num_train=6, num_salient=6, num_val=3, size=96)
    return str(root)


@pytest.fixture
def cfg(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", toy)
    return load_config(str(ROOT / "configs/quick/voc-joint.yaml"), [*SMALL, "OUTPUT_DIR", str(tmp_path / "out")])


def train(cfg, resume=False):
    Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
    return run_step(cfg, resume=resume, eval_only=False)


def test_a_step_trains_labels_and_evaluates(cfg):
    results = train(cfg)
    assert 0 <= results["box_to_mask"]["mIoU*"] <= 100
    assert results["voc_2012_train_aug_box"]["pseudo_masks"]
    labelled = json.loads(Path(cfg.OUTPUT_DIR, "pseudo_masks/voc_2012_train_aug_box_pseudo.json").read_text())
    assert all("confidence" in a for a in labelled["annotations"])
    assert labelled["annotations"]
    assert labelled["info"]["boxsup_d2"]["checkpoint"].endswith("model_final.pth")


class CountingHook(HookBase):
    """Averages nothing, but stands where a mean teacher's hook would."""

    steps = 0

    def after_step(self) -> None:
        CountingHook.steps += 1


class TrainerOfSomebody(Trainer):
    """What a Detectron2 user overrides: a hook more, and other loaders and evaluators."""

    built: ClassVar[list[str]] = []

    def build_hooks(self):
        return [CountingHook(), *super().build_hooks()]

    @classmethod
    def build_train_loader(cls, cfg):
        cls.built.append("train loader")
        return super().build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        cls.built.append("test loader")
        return super().build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        cls.built.append("evaluator")
        return super().build_evaluator(cfg, dataset_name, output_folder)


def test_runners_take_a_subclass(cfg, tmp_path):
    """Of a step, and of rounds: its hooks run, and its builders make what it is tested with."""
    run_step(cfg, resume=False, eval_only=False, trainer_class=TrainerOfSomebody)
    assert CountingHook.steps == 6
    assert TrainerOfSomebody.built == ["train loader", "test loader", "evaluator"]
    steps = [{"NAME": "mine", "CONFIG": str(ROOT / "configs/quick/voc-joint.yaml"), "OPTS": [*SMALL]}]
    rounds = tmp_path / "rounds.yaml"
    rounds.write_text(yaml.safe_dump({"ROUNDS": [{"NAME": "1", "STEPS": steps}]}))
    words = ["--config-file", str(rounds), "OUTPUT_DIR", str(tmp_path / "rounds")]
    args = default_argument_parser().parse_args(words)
    run_rounds(load_config(args.config_file, args.opts), args, TrainerOfSomebody)
    assert CountingHook.steps == 12


def test_ctrl_c_leaves_a_checkpoint_of_the_iteration_under_way(cfg):
    class CtrlC(HookBase):
        def before_step(self):
            if self.trainer.iter == 1:
                os.kill(os.getpid(), signal.SIGINT)

    class Interrupted(Trainer):
        def build_hooks(self):
            return [CtrlC(), *super().build_hooks()]

    former = signal.getsignal(signal.SIGINT)
    Path(cfg.OUTPUT_DIR).mkdir()
    with pytest.raises(KeyboardInterrupt):
        run_step(cfg, resume=False, eval_only=False, trainer_class=Interrupted)
    assert signal.getsignal(signal.SIGINT) is former
    assert Path(cfg.OUTPUT_DIR, "last_checkpoint").read_text() == "model_0000001.pth"
    assert not Path(cfg.OUTPUT_DIR, "pseudo_masks").exists(), "half a network labels nothing"
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 2
    assert trainer.scheduler.last_epoch == 2


def test_resuming_restores_weights_optimizer_schedule_and_iteration(cfg):
    train(cfg)
    last = torch.load(Path(cfg.OUTPUT_DIR, "model_final.pth"), weights_only=True)
    Path(cfg.OUTPUT_DIR, "last_checkpoint").write_text("model_0000002.pth")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 3
    saved = torch.load(Path(cfg.OUTPUT_DIR, "model_0000002.pth"), weights_only=True)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, saved["model"][name]), name
    momenta = [s["exp_avg"] for s in trainer.optimizer.state.values()]
    assert momenta
    assert all(torch.isfinite(m).all() for m in momenta)
    assert any(m.abs().sum() > 0 for m in momenta)
    assert trainer.scheduler.last_epoch == 3
    trainer.train()
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-6)
    again = torch.load(Path(cfg.OUTPUT_DIR, "model_final.pth"), weights_only=True)
    assert again["iteration"] == last["iteration"] == 5
    for name, value in last["model"].items():
        assert torch.equal(again["model"][name], value), name


def test_the_average_is_what_is_kept_and_resumes_bit_for_bit(cfg):
    cfg.PSEUDO_MASKS.DATASETS, cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = (), 4, 2
    cfg.MODEL.EMA.ENABLED, cfg.MODEL.EMA.DECAY = True, 0.9
    tested = []

    class Recorder(Trainer):
        @classmethod
        def test(cls, cfg, model, evaluators=None):
            tested.append({name: value.clone() for name, value in model.state_dict().items()})
            return {}

    def run(resume):
        Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
        torch.manual_seed(0)  # of the weights to begin with
        run_step(cfg, resume=resume, eval_only=False, trainer_class=Recorder)
        return torch.load(Path(cfg.OUTPUT_DIR, "model_final.pth"), weights_only=True)

    whole = run(resume=False)
    Path(cfg.OUTPUT_DIR, "last_checkpoint").write_text("model_0000001.pth")
    again = run(resume=True)
    assert again["weights"] == "average"
    for name, value in whole["model"].items():
        assert torch.equal(again["model"][name], value), name
        assert torch.equal(tested[0][name], value), name
    trained = [content["trainer"]["hooks"]["EMAHook"]["trained"] for content in (whole, again)]
    assert all(torch.equal(trained[1][name], value) for name, value in trained[0].items())
    assert any(not torch.equal(whole["model"][name], value) for name, value in trained[0].items())
    # The same training, at whose end the weights that it began with are mixed in.
    cfg.MODEL.EMA.INITIAL_SHARE = 0.25
    with pytest.raises(ValueError, match=r"INITIAL_SHARE needs the weights that training began with"):
        run(resume=True)
    mixed = run(resume=False)
    begun = mixed["trainer"]["hooks"]["EMAHook"]["initial"]
    Path(cfg.OUTPUT_DIR, "last_checkpoint").write_text("model_0000001.pth")
    resumed = run(resume=True)
    for name, value in whole["model"].items():
        expected = 0.75 * value + 0.25 * begun[name] if value.is_floating_point() else value
        torch.testing.assert_close(mixed["model"][name], expected)
        assert torch.equal(resumed["model"][name], mixed["model"][name]), name
    assert all(torch.equal(mixed["trainer"]["hooks"]["EMAHook"]["trained"][k], v) for k, v in trained[0].items())
    # Ended earlier, at a checkpoint, or later than it was to end.
    half = torch.load(Path(cfg.OUTPUT_DIR, "model_0000001.pth"), weights_only=True)["model"]
    Path(cfg.OUTPUT_DIR, "last_checkpoint").write_text("model_0000001.pth")
    cfg.SOLVER.MAX_ITER = 2
    for name, value in run(resume=True)["model"].items():
        expected = 0.75 * half[name] + 0.25 * begun[name] if value.is_floating_point() else half[name]
        torch.testing.assert_close(value, expected)
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.LR_SCHEDULER_NAME = 4, "WarmupMultiStepLR"
    cfg.SOLVER.STEPS = ()
    unbroken = run(resume=False)["model"]
    cfg.SOLVER.MAX_ITER = 2
    run(resume=False)
    cfg.SOLVER.MAX_ITER = 4
    for name, value in run(resume=True)["model"].items():
        torch.testing.assert_close(value, unbroken[name])
    cfg.TEST.PRECISE_BN.ENABLED = True
    with pytest.raises(ValueError, match=r"TEST.PRECISE_BN .*MODEL.EMA"):
        Trainer(cfg)


@pytest.mark.parametrize("average_buffers", [False, True])
def test_average_of_weights_is_the_sum_that_it_should_be(average_buffers):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    average = WeightAverage(model, decay=0.6, ramp=1.0, average_buffers=average_buffers)
    weights, variances, expected = [], [], []
    for i, alpha in enumerate([0, 1 / 2, 0.6, 0.6]):
        with torch.no_grad():
            model[0].weight.normal_()
            model[1].running_var.uniform_()
            model[1].num_batches_tracked.add_(1)
        weights.append(model[0].weight.clone())
        variances.append(model[1].running_var.clone())
        for values in (weights, variances):
            expected.append(values[-1] if i == 0 else alpha * expected[-2] + (1 - alpha) * values[-1])
        average.update(i)
    assert torch.allclose(average.network[0].weight, expected[-2])
    assert torch.allclose(average.network[1].running_var, expected[-1] if average_buffers else variances[-1])
    assert average.network[1].num_batches_tracked == 4
    assert not average.network.training
    assert not any(p.requires_grad for p in average.network.parameters())
    for i, ramp, alpha in ((999, 1, 0.999), (99, 1, 0.99), (9, 1, 0.9), (0, 10, 0), (10, 10, 0.5)):
        assert average_decay(i, 0.999, ramp) == pytest.approx(alpha)
    for wrong in ({"decay": 1.0}, {"decay": 0.5, "ramp": 0.0}):
        with pytest.raises(ValueError, match=r"MODEL.EMA.DECAY"):
            WeightAverage(model, **wrong)
    with pytest.raises(ValueError, match=r"MODEL.EMA.INITIAL_SHARE is 1.0"):
        WeightAverage(model, decay=0.5, initial_share=1.0)


def test_a_run_killed_just_before_its_last_checkpoint_can_finish(cfg):
    train(cfg)
    final = Path(cfg.OUTPUT_DIR, "model_final.pth")
    expected = torch.load(final, weights_only=True)["model"]
    final.unlink()
    Path(cfg.OUTPUT_DIR, "last_checkpoint").write_text("model_0000005.pth")
    train(cfg, resume=True)
    saved = torch.load(final, weights_only=True)
    assert saved["iteration"] == 5
    assert all(torch.equal(saved["model"][name], value) for name, value in expected.items())


def test_an_error_ends_training_without_labelling_or_evaluating(cfg, monkeypatch):
    def full(self, name, **kwargs):
        raise RuntimeError("disk full")

    monkeypatch.setattr(BoxSupCheckpointer, "save", full)
    monkeypatch.setattr(Trainer, "test", lambda *args: pytest.fail("evaluated"))
    cfg.SOLVER.MAX_ITER = cfg.SOLVER.CHECKPOINT_PERIOD = 2
    with pytest.raises(RuntimeError, match="disk full"):
        train(cfg)
    assert not Path(cfg.OUTPUT_DIR, "pseudo_masks").exists()


def test_a_set_that_is_labelled_and_tested_keeps_both_metrics():
    joined = _joined({"a": {"pseudo_masks": 1}}, {"a": {"box_to_mask": 2}, "b": {"box_to_mask": 3}})
    assert joined == {"a": {"pseudo_masks": 1, "box_to_mask": 2}, "b": {"box_to_mask": 3}}


def test_same_seed_gives_the_same_network(cfg, tmp_path):
    weights = []
    for name in ("a", "b"):
        cfg.OUTPUT_DIR = str(tmp_path / name)
        cfg.PSEUDO_MASKS.DATASETS = cfg.DATASETS.TEST = ()
        from detectron2.utils.env import seed_all_rng

        seed_all_rng(5)
        train(cfg)
        weights.append(torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"])
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_epochs_are_turned_into_iterations(cfg):
    cfg.SOLVER.MAX_EPOCHS = 2
    trainer = Trainer(cfg)
    samples = trainer.data_loader.samples_per_epoch
    assert trainer.max_iter == -(-2 * samples // 4)
    cfg.DATALOADER.BOX_RATIO = 0.5
    assert Trainer(cfg).max_iter == 2 * 12 // 4, "an epoch shows each of the six salient images once, and six boxes"


@pytest.mark.parametrize(("name", "kind"), [("SGD", torch.optim.SGD), ("ADAMW", torch.optim.AdamW)])
def test_optimizer_is_a_switch_with_detectron2s_groups(cfg, name, kind):
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.WEIGHT_DECAY_NORM = name, 0.0
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1))
    optimizer = Trainer.build_optimizer(cfg, model)
    assert isinstance(optimizer, kind)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay[id(model[1].weight)] == 0
    assert decay[id(model[0].weight)] == cfg.SOLVER.WEIGHT_DECAY
    cfg.SOLVER.OPTIMIZER = "LION"
    with pytest.raises(ValueError, match="LION"):
        Trainer.build_optimizer(cfg, model)


def test_polynomial_schedule(cfg):
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER = 0.1, 10
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = Trainer.build_lr_scheduler(cfg, optimizer)
    for t in range(10):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * (1 - t / 10) ** 0.9)
        optimizer.step()
        scheduler.step()


def test_training_a_method_without_parameters_is_a_clear_error(cfg):
    cfg.MODEL.META_ARCHITECTURE = "BoxFill"
    with pytest.raises(ValueError, match=r"BoxFill.*--eval-only"):
        Trainer(cfg)


def command(output, *extra):
    opts = [str(x) for x in [*SMALL, "OUTPUT_DIR", output, *extra]]
    return [
        sys.executable, "-W", "ignore", str(ROOT / "train_net.py"), "--resume",
        "--config-file", str(ROOT / "configs/quick/voc-joint.yaml"),
    ], opts  # fmt: skip


def test_a_network_is_not_used_with_weights_that_are_partly_random(cfg, tmp_path):
    """Other than for training, for which an ImageNet network is a start."""
    with pytest.raises(ValueError, match=r"MODEL.WEIGHTS is empty.*BoxCaseg"):
        run_step(cfg, resume=False, eval_only=True)
    state = Trainer.build_model(cfg).state_dict()
    cfg.MODEL.WEIGHTS = str(tmp_path / "headless.pth")
    torch.save({"model": {k: v for k, v in state.items() if k.startswith("backbone.")}}, cfg.MODEL.WEIGHTS)
    with pytest.raises(RuntimeError, match=r"headless.pth' lacks \d+ parameters.*box_head"):
        run_step(cfg, resume=False, eval_only=True)
    assert not Path(cfg.OUTPUT_DIR, "pseudo_masks").exists()


def test_killed_training_goes_on_from_its_checkpoint(toy, tmp_path):
    output = tmp_path / "out"
    program, opts = command(output, "SOLVER.MAX_ITER", 300, "SOLVER.CHECKPOINT_PERIOD", 5)
    environment = {**os.environ, "DETECTRON2_DATASETS": toy}
    process = subprocess.Popen(program + opts, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (output / "last_checkpoint").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = torch.load(output / (output / "last_checkpoint").read_text(), weights_only=True)["iteration"]
    assert reached < 299
    program, opts = command(output, "SOLVER.MAX_ITER", reached + 3)
    done = subprocess.run(program + opts, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"Starting training from iteration {reached + 1}" in (output / "log.txt").read_text()
    assert (output / "pseudo_masks/voc_2012_train_aug_box_pseudo.json").exists()


def test_two_cpu_processes_train_label_and_evaluate_together(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", toy)
    program, opts = command(tmp_path / "out", "DATALOADER.BOX_RATIO", 0.5, "MODEL.EMA.ENABLED", True)
    done = subprocess.run(
        [*program, "--num-gpus", "2", "--dist-url", "auto", *opts],
        env={**os.environ, "DETECTRON2_DATASETS": toy, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    labelled = json.loads((tmp_path / "out/pseudo_masks/voc_2012_train_aug_box_pseudo.json").read_text())
    assert all(a.get("segmentation") for a in labelled["annotations"])
    saved = torch.load(tmp_path / "out/model_final.pth", weights_only=True)
    # One process with the saved weights predictions as the two did: they shared rank 0's batch-norm statistics.
    two = json.loads((tmp_path / "out/inference/voc_2012_val_instance/box_to_mask_instances.json").read_text())
    cfg = load_config(str(ROOT / "configs/quick/voc-joint.yaml"), [*SMALL, "OUTPUT_DIR", str(tmp_path / "one")])
    cfg.MODEL.WEIGHTS, cfg.PSEUDO_MASKS.DATASETS = str(tmp_path / "out/model_final.pth"), ()
    run_step(cfg, resume=False, eval_only=True)
    one = json.loads((tmp_path / "one/inference/voc_2012_val_instance/box_to_mask_instances.json").read_text())
    assert one == two
    assert saved["iteration"] == 5
    assert all(torch.isfinite(v).all() for v in saved["model"].values())
