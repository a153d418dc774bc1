"""The parts of ``gpu_check.py``, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode

from boxsup_d2.config import load_config
from boxsup_d2.data.datasets import register_from_cfg
from boxsup_d2.data.images import read_label_map
from boxsup_d2.engine.step import run_step
from boxsup_d2.labelling.driver import pseudo_mask_path
from boxsup_d2.masks.rle import decode
from boxsup_d2.toy.scenes import write_toy_datasets

ROOT = Path(__file__).resolve().parents[1]
BOXES, MASKED, SALIENT = "voc_2012_train_aug_box", "voc_2012_train_instance", "dut_tr_single"
SEM_SEG = "voc_2012_train_sem_seg"
# How far the CPU and the GPU, or two precisions, may be apart: IoU or share of pixels of labels at least, points of
# metrics at most.
MIN_AGREEMENT, MAX_POINTS = 0.95, 2.0


@dataclass
class Job:
    """What a part is told.

    Attributes:
        device: "cuda", "cuda:1", "cpu".
        quick: tiny sizes.
        folder: for whatever it writes.
        seconds: that it has, from now on.
    """

    device: str
    quick: bool
    folder: Path
    seconds: float
    started: float = field(default_factory=time.monotonic)

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def is_over(self) -> bool:
        """Whether it is too late to begin with anything."""
        return time.monotonic() - self.started > 0.9 * self.seconds

    def sync(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def toy_datasets(self, size: int) -> None:
        """Toy scenes of this side, as the data sets that configs name."""
        count = (8, 4, 3) if self.quick else (16, 8, 4)
        numbers = dict(zip(("num_train", "num_salient", "num_val"), count, strict=True))
        root = write_toy_datasets(self.folder / f"toy{size}", size=size, **numbers)
        os.environ["DETECTRON2_DATASETS"] = str(root)

    def config(self, name: str, output: str, *opts: Any, device: str | None = None) -> CfgNode:
        """A config of ``configs/`` with overrides, for networks that begin at random; its data sets are registered."""
        common = ["MODEL.WEIGHTS", "", "MODEL.TIMM.PRETRAINED", False, "DATALOADER.NUM_WORKERS", 0]
        common += ["MODEL.DEVICE", device or self.device, "OUTPUT_DIR", str(self.folder / output)]
        common += ["SOLVER.CHECKPOINT_PERIOD", 10**6, "TEST.EVAL_PERIOD", 0]
        cfg = load_config(str(ROOT / "configs" / name), [*common, *opts])
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
        register_from_cfg(cfg)
        cfg.freeze()
        return cfg


def each(job: Job, entries: Mapping[str, Callable[[], str]]) -> Iterator[dict[str, Any]]:
    """Run functions one after the other; a row each, with their memory, time and, where they fail, the error."""
    for what, run in entries.items():
        if job.is_over:
            yield {"what": what, "result": "left out: no time", "GiB": None, "seconds": None}
            continue
        if job.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(job.device)
        started = time.monotonic()
        try:
            result = run()
        except Exception as error:  # whatever it is: the others go on
            traceback.print_exc()
            lines = str(error).strip().splitlines()
            result = f"FAILED: {type(error).__name__}: {lines[0] if lines else 'without a message'}"
        memory = torch.cuda.max_memory_allocated(job.device) / 2**30 if job.on_gpu else None
        yield {"what": what, "result": result, "GiB": memory, "seconds": time.monotonic() - started}


def write_rows(part: str, device: str, folder: Path, *, quick: bool, seconds: float) -> None:
    """Run a part; every row is in ``<folder>/<part>.jsonl`` as soon as it is there."""
    from _gpu_speed import labels, loader, recipes, steps

    kinds = {"tests": tests, "methods": methods, "steps": steps, "recipes": recipes, "labels": labels, "loader": loader}
    job = Job(device, quick, folder, seconds)
    torch.manual_seed(0)
    with (folder / f"{part}.jsonl").open("w") as file:
        for row in kinds[part](job):
            file.write(json.dumps(row) + "\n")
            file.flush()


# ------------------------------------------------------------------------------------------------- tests
def tests(job: Job) -> Iterator[dict[str, Any]]:
    """The tests that a GPU is needed for, or that are about what only GPUs use."""

    def run() -> str:
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
        # Their files only: to import all the others takes longer than the tests themselves.
        files = [str(path) for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in path.read_text()]
        assert files, "no test is marked gpu"
        done = subprocess.run([*words, *files], cwd=ROOT, capture_output=True, text=True, check=False)
        print(done.stdout, done.stderr)
        summary = (done.stdout.strip().splitlines() or ["pytest said nothing"])[-1].strip("= ")
        return summary if done.returncode == 0 else f"FAILED: {summary}"

    name = torch.cuda.get_device_name(job.device) if job.on_gpu else "cpu"
    yield from each(job, {f"pytest -m gpu ({name}, torch {torch.__version__})": run})


# ------------------------------------------------------------------------------------------------- methods
# Config and overrides; which have masks to write, and which are trained.
METHODS: dict[str, tuple[str, list[Any]]] = {
    "BoxMask": (
        "zoo/boxmask.yaml",
        [
            *("DATASETS.REGISTER", [], "DATASETS.TRAIN", (MASKED, BOXES, SALIENT), "DATALOADER.SOURCE_WEIGHTS", ()),
            *("DATASETS.TEST", ("voc_2012_val_instance",), "INPUT.MASK_CROP.UNION_DATASETS", ()),
            *("INPUT.MASK_CROP.SIZE", 64, "MODEL.BOXMASK.TRAIN_SIZES", [], "MODEL.BOXMASK.TRAIN_SIZE_STEPS", []),
            *("PSEUDO_MASKS.DATASETS", (BOXES,), "MODEL.BOXMASK.TEACHER_START", 1),
        ],
    ),
    "BoxCaseg": (
        "quick/voc-joint.yaml",
        [
            *("INPUT.BOX_CROP.TRAIN_SIZE", 64, "INPUT.BOX_CROP.SALIENT_SIZE", 72),
            # Unsure networks, as after a random start, make other masks of crops a grey level apart, and a GPU's resize
            # is so far from a CPU's: it begins with what ships, and moves little.
            *("MODEL.WEIGHTS", "package://boxsup_d2/model_zoo/weights/boxcaseg.safetensors", "SOLVER.BASE_LR", 1e-5),
        ],
    ),
    "LPG": (
        "quick/lpg-generator.yaml",
        [
            *("DATASETS.TRAIN", (MASKED,), "DATASETS.TEST", (SEM_SEG,), "TEST.TASKS", ("box_to_sem_seg",)),
            *("PSEUDO_MASKS.DATASETS", (BOXES,), "INPUT.CLASS_CROP.SIZE", 96),
        ],
    ),
    "DeepLabSegmenter": (
        "quick/lpg-voc-segmenter.yaml",
        ["DATASETS.TRAIN", (SEM_SEG,), "INPUT.SEM_SEG_CROP.SIZE", 96],
    ),
    "PromptableRCNN": (
        "quick/voc-retrain.yaml",
        ["DATASETS.TRAIN", (MASKED,), "PSEUDO_MASKS.DATASETS", (BOXES,), "INPUT.MIN_SIZE_TRAIN", (96,)],
    ),
    "BoxInst": ("quick/voc-boxinst.yaml", ["INPUT.MIN_SIZE_TRAIN", (96,)]),
    "GrabCut": ("quick/voc-grabcut.yaml", []),
    "BoxFill": ("quick/voc-box-fill.yaml", []),
}


def methods(job: Job) -> Iterator[dict[str, Any]]:
    """Each meta-architecture trained on toy scenes, then labelling and evaluation, on the device and on the CPU."""
    job.toy_datasets(96)
    yield from each(job, {name: lambda name=name: _method(job, name) for name in METHODS})  # type: ignore[misc]
    yield from each(job, {"SAM, SalientONNX": lambda: "not run: their networks are others'"})


def _method(job: Job, name: str) -> str:
    config, opts = METHODS[name]
    iterations = 2 if job.quick else 40
    short = ["SOLVER.MAX_ITER", iterations, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.WARMUP_ITERS", 0]
    short += ["SOLVER.AMP.ENABLED", job.on_gpu]
    cfg = job.config(config, f"{name}/device", *opts, *short)
    trained = bool(cfg.DATASETS.TRAIN)
    on_device = run_step(cfg, resume=False, eval_only=not trained)
    weights = ["MODEL.WEIGHTS", f"{cfg.OUTPUT_DIR}/model_final.pth"] if trained else []
    cpu_cfg = job.config(config, f"{name}/cpu", *opts, *short, *weights, device="cpu")
    on_cpu = run_step(cpu_cfg, resume=False, eval_only=True)

    found, expected = _numbers(on_device), _numbers(on_cpu)
    both = found.keys() & expected.keys()
    if not both:
        raise RuntimeError("no metric was measured on both")
    points = max(abs(found[key] - expected[key]) for key in both)
    parts = [f"trained {iterations} iterations{' in mixed precision' if job.on_gpu else ''}"] if trained else []
    parts.append(f"{len(both)} metrics within {points:.2f} of the CPU's")
    agreement = _agreement(cfg, cpu_cfg)
    if agreement is not None:
        parts.append(f"labels agree with the CPU's by {agreement:.4f}")
    result = ", ".join(parts)
    wrong = points > MAX_POINTS or (agreement is not None and agreement < MIN_AGREEMENT)
    return f"FAILED: {result} ({MAX_POINTS} and {MIN_AGREEMENT} are allowed)" if wrong else result


def _numbers(results: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Finite numbers of nested results, without the time that something took."""
    found: dict[str, float] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            found.update(_numbers(value, f"{prefix}{key}/"))
        elif isinstance(value, int | float) and key != "seconds" and abs(value) < float("inf"):
            found[f"{prefix}{key}"] = float(value)
    return found


def _agreement(cfg: CfgNode, other: CfgNode) -> float | None:
    """IoU of all masks of two labellings, of label maps the share of equal pixels; None without a pixel of them."""
    if not cfg.PSEUDO_MASKS.DATASETS:
        return None
    paths = [pseudo_mask_path(c.OUTPUT_DIR, cfg.PSEUDO_MASKS.DATASETS[0], c.PSEUDO_MASKS.FORMAT) for c in (cfg, other)]
    contents = [json.loads(Path(path).read_text()) for path in paths]
    both, either = 0, 0
    if cfg.PSEUDO_MASKS.FORMAT == "sem_seg":
        for images in zip(*(content["images"] for content in contents), strict=True):
            ours, theirs = (read_label_map(str(Path(p).parent / i["png"])) for p, i in zip(paths, images, strict=True))
            both, either = both + int((ours == theirs).sum()), either + ours.size
    else:
        for annotations in zip(*(content["annotations"] for content in contents), strict=True):
            ours, theirs = (decode(a["segmentation"], *a["segmentation"]["size"]) for a in annotations)
            both, either = both + int((ours & theirs).sum()), either + int((ours | theirs).sum())
    return both / either if either else None
