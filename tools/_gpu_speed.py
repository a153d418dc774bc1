"""The parts of ``gpu_check.py`` that measure time and memory: recipes, labelling, and waiting for the loader."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from _gpu_parts import BOXES, MASKED, MIN_AGREEMENT, SALIENT, SEM_SEG, Job, each
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.data import transforms as T
from detectron2.engine import SimpleTrainer
from detectron2.layers import FrozenBatchNorm2d
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from boxsup_d2.engine.accumulation import build_inner_trainer
from boxsup_d2.engine.trainer import Trainer
from boxsup_d2.methods import DEFAULT_METHOD, load_model, method_config

# Config, overrides that bring toy scenes, and overrides of a quick run.
RECIPES: dict[str, tuple[str, list[Any], list[Any]]] = {
    "BoxCaseg, HRNet-W48, 288 px": (
        "BoxCaseg/voc-joint-HRNet-W48.yaml",
        ["DATASETS.TRAIN", (BOXES, SALIENT), "SOLVER.IMS_PER_BATCH", 16],
        [
            "INPUT.BOX_CROP.TRAIN_SIZE",
            64,
            "INPUT.BOX_CROP.SALIENT_SIZE",
            72,
            "INPUT.BOX_CROP.TEST_SIZE",
            64,
            "MODEL.TIMM.NAME",
            "hrnet_w18_small",
        ],
    ),
    "LPG, hourglass, 512 px": (
        "LPG/coco60-generator.yaml",
        ["DATASETS.TRAIN", (MASKED,), "INPUT.CLASS_CROP.SIZE", 512],
        ["INPUT.CLASS_CROP.SIZE", 128],
    ),
    "DeepLabV2, R-101, three scales": (
        "LPG/voc-DeepLabV2-R101-MSC.yaml",
        ["DATASETS.TRAIN", (SEM_SEG,)],
        ["INPUT.SEM_SEG_CROP.SIZE", 65, "MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.STEM_MAX_POOL", True],
    ),
    "Mask R-CNN, R-101": (
        "BoxCaseg/voc-mask-rcnn-R101-FPN.yaml",
        ["DATASETS.TRAIN", (MASKED,), "SOLVER.IMS_PER_BATCH", 16],
        ["INPUT.MIN_SIZE_TRAIN", (96,), "MODEL.RESNETS.DEPTH", 50],
    ),
    "BoxInst, R-101": (
        "BoxInst/coco-R101-3x.yaml",
        ["DATASETS.TRAIN", (BOXES,), "SOLVER.IMS_PER_BATCH", 16],
        ["INPUT.MIN_SIZE_TRAIN", (96,), "MODEL.RESNETS.DEPTH", 50],
    ),
}
ITERATIONS, WARM_UP = 50, 5
WORKERS = (0, 2, 4, 8, 16)
# The GPU waits for the loader where it takes more of an iteration than this.
WAITS = 0.02


def _recipe(job: Job, name: str, *opts: Any) -> CfgNode:
    config, toy, quick = RECIPES[name]
    # So small a learning rate that nothing diverges: the networks begin at random.
    small = [*quick, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.ACCUMULATE", 1] if job.quick else []
    common = ["DATASETS.TEST", (), "PSEUDO_MASKS.DATASETS", (), "SOLVER.BASE_LR", 1e-7, "SOLVER.MAX_ITER", 1000]
    return job.config(config, "recipe", *toy, *small, *common, *opts)


def _trainer(cfg: CfgNode, batches: Any) -> SimpleTrainer:
    """Detectron2's inner trainer, without hooks."""
    model = Trainer.build_model(cfg).train()
    for name, module in model.named_modules():
        # Without trained weights, residual branches that are only added up grow without end.
        if isinstance(module, FrozenBatchNorm2d) and name.endswith(("conv3.norm", "bn3")):
            module.weight.fill_(0.1)
    optimizer = Trainer.build_optimizer(cfg, model)
    amp = cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE != "cpu"
    return build_inner_trainer(model, batches, optimizer, amp=amp, batches=cfg.SOLVER.ACCUMULATE)


def _run(job: Job, trainer: SimpleTrainer, iterations: int, warm_up: int) -> tuple[float, float]:
    """Seconds of an iteration, and of it those in which the trainer waits for the loader; the first do not count."""
    with EventStorage(0) as storage:
        waited, started = 0.0, time.perf_counter()
        for number in range(warm_up + iterations):
            if number == warm_up:
                job.sync()
                waited, started = 0.0, time.perf_counter()
            trainer.iter = number
            trainer.run_step()
            waited += storage.history("data_time").latest()
            storage.step()
        job.sync()
        return (time.perf_counter() - started) / iterations, waited / iterations


def recipes(job: Job) -> Iterator[dict[str, Any]]:
    """Iterations of the published recipes on batches that are there, in mixed precision and, if there is time, not."""
    job.toy_datasets(96 if job.quick else 500)
    iterations, warm_up = (1, 1) if job.quick else (ITERATIONS, WARM_UP)

    def measure(name: str, amp: bool) -> str:
        cfg = _recipe(job, name, "SOLVER.AMP.ENABLED", amp)
        batches = list(itertools.islice(Trainer.build_train_loader(cfg), 1 if job.quick else 4))
        seconds, _ = _run(job, _trainer(cfg, itertools.cycle(batches)), iterations, warm_up)
        images = cfg.SOLVER.IMS_PER_BATCH * cfg.SOLVER.ACCUMULATE
        return f"{1000 * seconds:.0f} ms an iteration of {images} samples, {images / seconds:.1f} samples/s"

    for amp in (True, False)[0 if job.on_gpu else 1 :]:
        precision = "mixed precision" if amp else "float32"
        yield from each(job, {f"{name}, {precision}": partial(measure, name, amp) for name in RECIPES})


# ------------------------------------------------------------------------------------------------- steps
STEPS = 200  # of which the first and the last tenth tell whether the loss falls


def steps(job: Job) -> Iterator[dict[str, Any]]:
    """COCO's BoxInst as one GPU trains it, beside the same network taught by masks, and whether its loss falls."""
    job.toy_datasets(96 if job.quick else 500)
    shape, number = ((96, 160), 10) if job.quick else ((800, 1333), STEPS)
    sizes = f"R-50, 2 images of {shape[0]} x {shape[1]} px{', mixed precision' if job.on_gpu else ''}"

    def measure(from_masks: bool) -> str:
        opts = ["MODEL.MASK_ON", from_masks, "DATASETS.TRAIN", (MASKED,), "DATASETS.TEST", ()]
        opts += ["SOLVER.IMS_PER_BATCH", 2, "SOLVER.BASE_LR", 0.01 / 8, "SOLVER.AMP.ENABLED", job.on_gpu]
        cfg = job.config("BoxInst/coco-R50-1x.yaml", "steps", *opts)
        resize = [T.Resize(shape)]
        mapper = DatasetMapper(
            True, augmentations=resize, image_format="BGR", use_instance_mask=True, instance_mask_format="bitmask"
        )
        samples = [mapper(item) for item in DatasetCatalog.get(MASKED)]
        batches = itertools.cycle(list(zip(samples[::2], samples[1::2], strict=False)))
        trainer = _trainer(cfg, batches)
        tenth, losses = number // 10, []
        # The schedule's middle, so that all losses have their weight.
        with EventStorage(cfg.SOLVER.MAX_ITER // 2) as storage:
            for iteration in range(number):
                if iteration == tenth:
                    job.sync()
                    started = time.perf_counter()
                trainer.iter = storage.iter
                trainer.run_step()
                losses.append(storage.history("total_loss").latest())
                storage.step()
            job.sync()
        ms = 1000 * (time.perf_counter() - started) / (number - tenth)
        first, last = np.mean(losses[:tenth]), np.mean(losses[-tenth:])
        result = f"{ms:.0f} ms a step, loss from {first:.2f} to {last:.2f} in {number} steps"
        return result if last < first else f"FAILED: {result}"

    yield from each(
        job,
        {f"{name}, {sizes}": partial(measure, masks) for name, masks in (("CondInst", True), ("BoxInst", False))},
    )


# ------------------------------------------------------------------------------------------------- labelling
def _prompts(images: int, boxes: int, side: int) -> list[dict[str, Any]]:
    """Images of noise with boxes of a fifth to half of the side."""
    rng = np.random.default_rng(0)
    inputs = []
    for number in range(images):
        sides = rng.uniform(0.2, 0.5, (boxes, 2)) * side
        corners = rng.uniform(0, 1, (boxes, 2)) * (side - sides)
        corners = np.concatenate([corners, corners + sides], axis=1)
        instances = Instances((side, side), gt_boxes=Boxes(torch.from_numpy(corners).float()))
        instances.gt_classes = torch.zeros(boxes, dtype=torch.int64)
        image = torch.from_numpy(rng.integers(0, 256, (3, side // 8, side // 8), dtype=np.uint8)).float()
        image = nn.functional.interpolate(image[None], (side, side), mode="bilinear")[0].to(torch.uint8)
        inputs.append({"image": image, "height": side, "width": side, "image_id": number, "instances": instances})
    return inputs


def labels(job: Job) -> Iterator[dict[str, Any]]:
    """Boxes per second, from an image to its masks, by precision, compiled or not."""
    inputs = _prompts(2, 2, 96) if job.quick else _prompts(8, 32, 500)
    boxes = sum(len(item["instances"]) for item in inputs)
    precisions: dict[str, torch.dtype | None] = {"float32": None}
    if job.on_gpu:  # most CPUs have no half precision, and take minutes in its place
        precisions |= {"float16": torch.float16, "bfloat16": torch.bfloat16}
    backend = "eager" if job.quick else "inductor"
    expected: dict[str, torch.Tensor] = {}

    def ships() -> nn.Module:
        return load_model(method_config(DEFAULT_METHOD, device=job.device))

    def hrnet() -> nn.Module:
        model: Any = Trainer.build_model(_recipe(job, "BoxCaseg, HRNet-W48, 288 px"))
        # Its weights are random: without statistics that fit them, features grow beyond what half precision holds.
        for module in model.backbone.train().modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        side = 64 if job.quick else 288
        with torch.no_grad():
            model.backbone(torch.randn(8, 3, side, side).to(job.device))
        return model.eval()

    def measure(name: str, build: Callable[[], nn.Module], part: str, dtype: torch.dtype | None, compiled: bool) -> str:
        torch.manual_seed(0)
        model: Any = build()
        if compiled:
            # Sizes that change become dynamic by themselves; were all dynamic, tracing would take minutes.
            setattr(model, part, torch.compile(getattr(model, part), backend=backend))
        kind = job.device.split(":")[0]
        autocast = torch.autocast(kind, dtype) if dtype is not None else contextlib.nullcontext()
        with autocast, torch.no_grad():
            for _ in range(2):  # the first compiles, chooses algorithms and fills caches
                found = model(inputs)
            job.sync()
            started, rounds = time.perf_counter(), 0
            while rounds < 1 or (time.perf_counter() - started < 2 and not job.quick):
                model(inputs)
                rounds += 1
            job.sync()
            speed = boxes * rounds / (time.perf_counter() - started)
        masks = torch.cat([output["instances"].pred_masks.full().flatten().cpu() for output in found])
        reference = expected.setdefault(name, masks)
        iou = float((masks & reference).sum() / (masks | reference).sum().clamp(min=1))
        result = f"{speed:.0f} boxes/s, IoU of all masks with those of float32 {iou:.4f}"
        return f"FAILED: {result} ({MIN_AGREEMENT} is allowed)" if iou < MIN_AGREEMENT else result

    networks = {"the network that ships": (ships, "net"), "BoxCaseg, HRNet-W48": (hrnet, "backbone")}
    entries = {
        f"{name}, {precision}{', torch.compile' if compiled else ''}": partial(
            measure, name, build, part, dtype, compiled
        )
        # What takes a minute to compile comes last.
        for compiled in (False, True)
        for name, (build, part) in networks.items()
        for precision, dtype in precisions.items()
        if not compiled or dtype is not None or not job.on_gpu
    }
    yield from each(job, entries)


# ------------------------------------------------------------------------------------------------- loader
def loader(job: Job) -> Iterator[dict[str, Any]]:
    """The share of an iteration in which the GPU waits for the loader, with more and more workers."""
    job.toy_datasets(96 if job.quick else 500)
    iterations, warm_up = (2, 1) if job.quick else (15, 5)

    def measure(name: str) -> str:
        shares = []
        for workers in WORKERS[: 2 if job.quick else None]:
            opts = ["DATALOADER.NUM_WORKERS", workers, "SOLVER.AMP.ENABLED", job.on_gpu]
            cfg = _recipe(job, name, *opts)
            seconds, waited = _run(job, _trainer(cfg, Trainer.build_train_loader(cfg)), iterations, warm_up)
            shares.append(f"{waited / seconds:.0%} with {workers}")
            if waited / seconds < WAITS or job.is_over:
                break
        end = f"{workers} workers end it" if waited / seconds < WAITS else f"more than {workers} workers are needed"
        return f"waits {', '.join(shares)}: {end}"

    names = list(RECIPES)
    yield from each(job, {name: partial(measure, name) for name in (names[:1] if job.quick else (names[0], names[3]))})
