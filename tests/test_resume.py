"""A training that was killed and resumed is the training that was not: same samples, same weights, same masks."""

import json
import multiprocessing
import os
import random
import time
from itertools import islice
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from torch import nn

from boxsup_d2.config import add_boxsup_config, load_config
from boxsup_d2.data.build import build_train_loader
from boxsup_d2.data.train_loader import ShuffledOrder, TrainLoader
from boxsup_d2.engine.accumulation import AccumulatingAMPTrainer
from boxsup_d2.engine.defaults import default_argument_parser
from boxsup_d2.engine.trainer import Trainer
from boxsup_d2.rounds.runner import run_rounds
from boxsup_d2.toy.scenes import write_toy_datasets
from boxsup_d2.utils.seeding import seed_all, seeded

BOXES, MASKED, SALIENT = "voc_2012_train_aug_box", "voc_2012_train_instance", "dut_tr_single"
KILLS = int(os.environ.get("BOXSUP_TEST_KILLS", "20"))


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy")
    write_toy_datasets(root, num_train=12, num_salient=6, num_val=3, size=96)
    return str(root)


@pytest.fixture
def cfg(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", toy)
    cfg = get_cfg()
    add_boxsup_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    (tmp_path / "out").mkdir()
    cfg.MODEL.DEVICE, cfg.SEED, cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = "cpu", 3, 4, 0
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.OPTIMIZER = 4, 2, "ADAMW"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (48, 64, 80), 96
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.SIZE = True, [0.8, 0.8]
    cfg.INPUT.BOX_CROP.TRAIN_SIZE, cfg.INPUT.BOX_CROP.SALIENT_SIZE = 32, 36
    cfg.INPUT.CLASS_CROP.SIZE = cfg.INPUT.SEM_SEG_CROP.SIZE = cfg.INPUT.MASK_CROP.SIZE = 32
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 21
    return cfg


def content(value):
    """What a sample holds, to be compared."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, (Boxes, BitMasks)):
        return content(value.tensor)
    if isinstance(value, PolygonMasks):
        return [[part.tobytes() for part in polygons] for polygons in value.polygons]
    if isinstance(value, Instances):
        return content(value.get_fields())
    if isinstance(value, dict):
        return {key: content(item) for key, item in value.items()}
    return [content(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("mapper", "datasets", "options"),
    [
        ("BoxCropDatasetMapper", (BOXES, SALIENT), ["DATALOADER.IMAGE_WINDOW", 2]),
        (
            "BoxCropDatasetMapper",
            (BOXES, SALIENT),
            ["DATALOADER.BOX_RATIO", 0.5, "DATALOADER.OVERLAP_DROP_PROB", 0.5, "DATALOADER.OVERLAP_IOU", 0.0],
        ),
        ("MaskCropDatasetMapper", (MASKED, BOXES, SALIENT), []),
        ("ClassMaskDatasetMapper", (MASKED,), []),
        ("SemSegDatasetMapper", ("voc_2012_train_sem_seg",), []),
        ("PseudoMaskDatasetMapper", (BOXES,), []),
        (
            "PseudoMaskDatasetMapper",
            (BOXES,),
            ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD", 0.7],
        ),
        ("PseudoMaskDatasetMapper", (BOXES,), ["DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler"]),
    ],
)
def test_a_loader_goes_on_where_it_stopped_whoever_reads(cfg, mapper, datasets, options):
    cfg.INPUT.TRAIN_MAPPER, cfg.DATASETS.TRAIN = mapper, datasets
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
    cfg.merge_from_list(options)
    loader = build_train_loader(cfg)
    unbroken = content(list(islice(loader, 9)))
    cfg.DATALOADER.NUM_WORKERS = 2
    resumed = build_train_loader(cfg)
    resumed.start_at(6, cfg.SEED)
    random.seed(5)
    torch.manual_seed(5)
    assert content(list(islice(resumed, 3))) == unbroken[6:]
    images = [[sample["image"] for sample in batch] for batch in unbroken]
    assert all(images[i] != images[j] for i in range(9) for j in range(i)), "no batch comes twice"
    loader.start_at(0, cfg.SEED + 1)
    assert content(next(iter(loader))) != unbroken[0], "the seed decides"


def test_no_sample_is_read_before_it_is_asked_for_nor_on_the_way():
    read = []
    order = ShuffledOrder(lambda seed: iter(range(seed, 1000)), batch_size=2, groups=[0, 0, 1] * 400)
    loader = TrainLoader(range(1000), lambda sample: read.append(sample) or sample, order, seed=0)
    batches = iter(loader)
    loader.start_at(2, seed=3)
    assert not read
    assert next(batches) == [5, 8], "after 3 and 4, and 6 and 7"
    assert read == [5, 8]


def test_a_useless_sample_is_replaced_and_useless_ones_alone_are_an_error():
    order = ShuffledOrder(lambda seed: iter(range(1000)), batch_size=4)

    def load(mapper):
        return next(iter(TrainLoader(range(1000), mapper, order, seed=0)))

    found = load(lambda sample: sample if sample > 2 else None)
    assert found[3] == 3
    assert found == load(lambda sample: sample if sample > 2 else None)
    with pytest.raises(ValueError, match="nothing of 100 samples"):
        load(lambda sample: None)


def test_an_unknown_sampler_is_named(cfg):
    cfg.DATASETS.TRAIN, cfg.INPUT.TRAIN_MAPPER = (BOXES,), "PseudoMaskDatasetMapper"
    cfg.DATALOADER.SAMPLER_TRAIN = "NoSampler"
    with pytest.raises(ValueError, match=r"SAMPLER_TRAIN is NoSampler.*RepeatFactor"):
        build_train_loader(cfg)


def test_seeding_a_block_leaves_no_trace():
    def draw():
        import numpy as np

        return random.random(), np.random.rand(), torch.rand(()).item()

    seed_all(1, 2)
    expected = draw(), draw()
    seed_all(1, 2)
    first = draw()
    with seeded(7, 0, 1):
        inside = draw()
    assert (first, draw()) == expected
    with seeded(7, 0, 1):
        assert draw() == inside
    with seeded(7, 1, 0):
        assert all(a != b for a, b in zip(draw(), inside, strict=True))


# ------------------------------------------------------------------------------------------------- whole trainings
@BACKBONE_REGISTRY.register()
class NoisyTestBackbone(Backbone):
    """Draws random numbers in training, as dropout does, and has batch norms."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.Dropout(0.5))

    size_divisibility = 4

    def forward(self, x):
        return {"res2": self.layers(x)}

    def output_shape(self):
        return {"res2": ShapeSpec(channels=8, stride=4)}


def noisy_segmenter(cfg):
    cfg.INPUT.TRAIN_MAPPER, cfg.DATASETS.TRAIN = "SemSegDatasetMapper", ("voc_2012_train_sem_seg",)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.BACKBONE.NAME = "DeepLabSegmenter", "NoisyTestBackbone"
    cfg.MODEL.SEM_SEG_HEAD.NAME, cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = "ASPPSumHead", ["res2"]
    cfg.TEST.PRECISE_BN.ENABLED, cfg.TEST.PRECISE_BN.NUM_ITER, cfg.TEST.EVAL_PERIOD = True, 2, 1
    cfg.SOLVER.ACCUMULATE, cfg.SEED = 2, -1  # a seed that was drawn goes on as well


def averaged_box_mask(cfg):
    cfg.INPUT.TRAIN_MAPPER, cfg.DATASETS.TRAIN = "MaskCropDatasetMapper", (MASKED, BOXES, SALIENT)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.BACKBONE.NAME = "BoxMask", "build_timm_backbone"
    cfg.MODEL.TIMM.NAME, cfg.MODEL.TIMM.OUT_FEATURES = "lcnet_035", [f"res{i}" for i in range(1, 6)]
    cfg.MODEL.BOXMASK.DECODER_CHANNELS = cfg.MODEL.BOXMASK.FINE_CHANNELS = 8
    cfg.MODEL.BOXMASK.TEACHER_START, cfg.MODEL.EMA.ENABLED = 1, True


def box_teacher(cfg):
    """Detectron2's FCOS divides its losses by a moving average, which goes on as well."""
    cfg.DATASETS.TRAIN, cfg.INPUT.CROP.ENABLED = (BOXES,), False
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.BACKBONE.NAME = "BoxTeacher", "NoisyTestBackbone"
    cfg.MODEL.FCOS.IN_FEATURES = cfg.MODEL.BOXINST.IN_FEATURES = ["res2"]
    cfg.MODEL.FCOS.NUM_CLASSES, cfg.MODEL.FCOS.NUM_CONVS, cfg.MODEL.EMA.ENABLED = 20, 1, True
    cfg.MODEL.BOXINST.BRANCH_CONVS, cfg.MODEL.BOXINST.BRANCH_CHANNELS, cfg.MODEL.BOXINST.BRANCH_NORM = 1, 8, "GN"


def unbroken_and_resumed(cfg, monkeypatch):
    """Checkpoints of a training at its end, and of one that went on from the second of four iterations."""
    monkeypatch.setattr(Trainer, "test", lambda *_: {})
    Trainer(cfg).train()
    output = Path(cfg.OUTPUT_DIR)
    expected = torch.load(output / "model_final.pth", map_location="cpu", weights_only=True)
    (output / "last_checkpoint").write_text("model_0000001.pth")
    seed_all(8)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 2
    trainer.train()
    return expected, torch.load(output / "model_final.pth", map_location="cpu", weights_only=True)


@pytest.mark.parametrize("network", [noisy_segmenter, averaged_box_mask, box_teacher])
def test_a_resumed_training_ends_with_the_same_weights(cfg, network, monkeypatch):
    network(cfg)
    expected, found = unbroken_and_resumed(cfg, monkeypatch)
    assert content(found["model"]) == content(expected["model"])
    assert content(found["trainer"]) == content(expected["trainer"])


@pytest.mark.gpu
def test_the_loss_scale_goes_on_as_well(cfg, monkeypatch):
    """Mixed precision with the CPU's own scaler, which grows in the third update: after the break, at two."""

    def in_mixed_precision(*args, amp, batches):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
        return AccumulatingAMPTrainer(*args, grad_scaler=scaler, batches=batches)

    monkeypatch.setattr("boxsup_d2.engine.trainer.build_inner_trainer", in_mixed_precision)
    noisy_segmenter(cfg)
    expected, found = unbroken_and_resumed(cfg, monkeypatch)
    scaler = found["trainer"]["_trainer"]["grad_scaler"]
    assert (scaler["scale"], scaler["_growth_tracker"]) == (2048.0, 1)
    assert content(found["model"]) == content(expected["model"])
    assert content(found["trainer"]) == content(expected["trainer"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("network", [noisy_segmenter, averaged_box_mask])
@pytest.mark.parametrize("batches", [1, 2])
def test_mixed_precision_on_a_gpu_goes_on(cfg, network, batches, monkeypatch):
    network(cfg)
    cfg.MODEL.DEVICE, cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.ACCUMULATE = "cuda", True, batches
    expected, found = unbroken_and_resumed(cfg, monkeypatch)
    scalers = [x["trainer"]["_trainer"]["grad_scaler"] for x in (expected, found)]
    assert scalers[0] == scalers[1]
    assert scalers[0]["scale"] > 0
    # A GPU sums up in any order.
    torch.testing.assert_close(found["model"], expected["model"], rtol=0.01, atol=0.01)


def run_demo(toy, output):
    """The first round of the demo, in a process of its own."""
    os.environ["DETECTRON2_DATASETS"] = toy
    with open(f"{output}.log", "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # loaders' workers are made as in any training
    config = Path(__file__).resolve().parents[1] / "configs/toy/BoxCaseg-rounds.yaml"
    words = ["--config-file", str(config), "--round", "boxcaseg", "OUTPUT_DIR", output]
    words += ["MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", "12", "SOLVER.CHECKPOINT_PERIOD", "2"]
    words += ["SOLVER.IMS_PER_BATCH", "4", "SOLVER.WARMUP_ITERS", "2", "DATALOADER.NUM_WORKERS", "1"]
    words += ["MODEL.FPN.OUT_CHANNELS", "16", "MODEL.BOXCASEG.HEAD_CHANNELS", "16", "PSEUDO_MASKS.REPORT_IMAGES", "0"]
    words += ["INPUT.BOX_CROP.TRAIN_SIZE", "32", "INPUT.BOX_CROP.SALIENT_SIZE", "36", "INPUT.BOX_CROP.TEST_SIZE", "32"]
    words += ["INPUT.MIN_SIZE_TRAIN", "(48, 64)", "INPUT.MIN_SIZE_TEST", "64", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"]
    args = default_argument_parser().parse_args(words)
    run_rounds(load_config(args.config_file, args.opts), args)


def start(toy, output):
    # Forked off a server that has imported everything: a start then takes no time, and no thread is lost in the fork.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["boxsup_d2.rounds.runner", "boxsup_d2.toy.scenes"])
    process = context.Process(target=run_demo, args=(toy, str(output)))
    process.start()
    return process


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_random_kills_change_nothing(toy, tmp_path):
    """In trainings, while checkpoints are written, in labelling and evaluation of a rounds run."""
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    begun = time.monotonic()
    process = start(toy, tmp_path / "unbroken")
    process.join()
    assert process.exitcode == 0
    longest = 4 * (time.monotonic() - begun) / KILLS  # so that the kills spread over the run
    kills = 0
    while True:
        process = start(toy, tmp_path / "killed")
        process.join(rng.uniform(0, longest) + 2 if kills < KILLS else None)
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        kills += 1
    print(f"seed {seed}: {kills} kills")
    assert process.exitcode == 0, (tmp_path / "killed.log").read_text()[-3000:]
    assert kills >= KILLS // 4

    def without_time(found):
        return {k: without_time(v) if isinstance(v, dict) else v for k, v in found.items() if k != "seconds"}

    def outcome(name):
        output = tmp_path / name
        labelled = json.loads((output / f"joint/pseudo_masks/{BOXES}_pseudo.json").read_text())
        steps = json.loads((output / "rounds.json").read_text())["steps"]
        results = json.dumps({step: without_time(entry["results"]) for step, entry in steps.items()}, sort_keys=True)
        weights = [torch.load(output / step / "model_final.pth", weights_only=True)["model"] for step in steps]
        return json.dumps(labelled["annotations"]), results, content(weights)

    assert outcome("killed") == outcome("unbroken")
