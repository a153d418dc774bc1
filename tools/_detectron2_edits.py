"""The edits that make Detectron2 v0.6, as published on the package index, run on current Python, torch and NumPy.

Used by ``tools/install_detectron2.py``. Every edit is one that Detectron2's main branch made later; running it twice
changes nothing, and it fails when the code to change is missing. Standard library only.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Replaces the archive's build files, whose setup.py compiles an extension that is not there and pins packages of 2021.
# torch and torchvision must be installed before (see `check_environment`); named here, pip warns when they are removed.
PYPROJECT = """\
[build-system]
requires = ["setuptools>=64"]
build-backend = "setuptools.build_meta"

[project]
name = "detectron2"
version = "0.6"
description = "Detectron2 v0.6 as pure Python, edited to run on current Python, torch, NumPy and Pillow"
requires-python = ">=3.10"
dependencies = [
    "torch>=2.4",
    "torchvision>=0.19",
    "numpy>=1.26",
    "Pillow>=10",
    "matplotlib",
    "pycocotools>=2.0.7",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.9",
    "omegaconf>=2.1",
    "hydra-core>=1.1",
    "packaging",
]

[project.optional-dependencies]
lazy = ["black"]

[project.urls]
Source = "https://github.com/facebookresearch/detectron2"

[tool.setuptools.packages.find]
include = ["detectron2*"]
namespaces = false

[tool.setuptools.package-data]
"detectron2.model_zoo" = ["configs/**/*.yaml", "configs/**/*.py"]
"""

# Projects that upstream installs below `detectron2.projects`.
PROJECTS = {
    "point_rend": "projects/PointRend/point_rend",
    "deeplab": "projects/DeepLab/deeplab",
    "panoptic_deeplab": "projects/Panoptic-DeepLab/panoptic_deeplab",
}


class InstallError(RuntimeError):
    """An error with a message that tells the user what to do."""


@dataclass(frozen=True)
class Edit:
    """One change to the sources, as a pure function on a file's text.

    Attributes:
        name: for messages.
        files: paths below the source root that the edit must change, or find changed.
        pattern: regular expression of what is replaced.
        replacement: the replacement, as for `re.sub`.
        done: regular expression that is found where the edit was made before or is not needed.
        reason: what breaks without it.
    """

    name: str
    files: tuple[str, ...]
    pattern: str
    replacement: str
    done: str
    reason: str

    def apply(self, text: str, where: str) -> str:
        """The edited text; the text itself where the edit was made before.

        Raises:
            InstallError: neither the code to change nor the changed code is there.
        """
        edited, count = re.subn(self.pattern, self.replacement, text, flags=re.MULTILINE)
        if count == 0 and not re.search(self.done, text, flags=re.MULTILINE):
            raise InstallError(
                f"edit '{self.name}' found nothing to change in {where}: this is not Detectron2 v0.6 as expected. "
                f"Use the archive that install_detectron2.py fetches, or the official main branch (--official says how)"
            )
        return edited


EDITS = (
    Edit(
        name="optional C++ extension",
        files=(
            "detectron2/layers/deform_conv.py",
            "detectron2/layers/roi_align_rotated.py",
            "detectron2/layers/rotated_boxes.py",
        ),
        # Unindented only: the replacement has the line indented.
        pattern=r"^from detectron2 import _C$",
        replacement="try:\n    from detectron2 import _C\nexcept ImportError:  # built without the C++ extension\n"
        "    _C = None",
        done=r"^    from detectron2 import _C$",
        reason="the archive has no C++ sources; only rotated boxes and old deformable convolution need them",
    ),
    Edit(
        name="COCO evaluation without the C++ extension (import)",
        files=("detectron2/evaluation/coco_evaluation.py",),
        pattern=r"^from detectron2\.evaluation\.fast_eval_api import COCOeval_opt$",
        replacement="try:\n    from detectron2.evaluation.fast_eval_api import COCOeval_opt\n"
        "except ImportError:  # built without the C++ extension\n    COCOeval_opt = COCOeval",
        done=r"^    from detectron2\.evaluation\.fast_eval_api import COCOeval_opt$",
        reason="COCOEvaluator, by default, scores with the extension; pycocotools gives the same figures",
    ),
    Edit(
        name="COCO evaluation without the C++ extension (use)",
        files=("detectron2/evaluation/coco_evaluation.py",),
        pattern=r"^( +)self\._use_fast_impl = use_fast_impl$",
        replacement=r"\1self._use_fast_impl = use_fast_impl and COCOeval_opt is not COCOeval",
        done=r"COCOeval_opt is (not )?COCOeval\b",
        reason="the log would name the evaluation that is not there",
    ),
    Edit(
        name="optional caffe2",
        files=("detectron2/export/__init__.py",),
        pattern=r"^from \.api import \*$",
        replacement="try:\n    import caffe2.proto.caffe2_pb2\nexcept ImportError:  # it left torch\n    pass\n"
        "else:\n    from .api import *",
        done=r"^    from \.api import \*$",
        reason="without caffe2, the exports that do not need it are missing as well",
    ),
    Edit(
        name="NumPy's removed aliases",
        files=(
            "detectron2/data/build.py",
            "detectron2/data/datasets/pascal_voc.py",
            "detectron2/evaluation/pascal_voc_evaluation.py",
            "detectron2/evaluation/sem_seg_evaluation.py",
            "detectron2/structures/masks.py",
            "detectron2/utils/video_visualizer.py",
            "detectron2/utils/visualizer.py",
        ),
        pattern=r"\bnp\.(int|float|bool|str|object)\b",
        replacement=r"\1",
        done=r"(dtype=|astype\()(int|float|bool|str|object)\b",
        reason="np.bool and its like left NumPy in 1.24",
    ),
    Edit(
        name="Pillow's removed filter name",
        files=("detectron2/data/transforms/transform.py",),
        pattern=r"\bImage\.LINEAR\b",
        replacement="Image.BILINEAR",
        done=r"interp=Image\.BILINEAR",
        reason="Image.LINEAR left Pillow in 10",
    ),
    Edit(
        name="sampling from a set",
        files=("detectron2/data/common.py",),
        pattern=r"self\._rng\.sample\(self\._fallback_candidates, k=1\)",
        # Sorted, so that a seed gives the same choice on every run.
        replacement="self._rng.sample(sorted(self._fallback_candidates), k=1)",
        done=r"self\._rng\.sample\((sorted|list|tuple)\(self\._fallback_candidates\), k=1\)",
        reason="Python 3.11 refuses it, so that every mapper that returns None ends the training",
    ),
    Edit(
        name="base class of schedulers",
        files=("detectron2/engine/hooks.py",),
        pattern=r"\blr_scheduler\._LRScheduler\b",
        replacement="lr_scheduler.LRScheduler",
        done=r"\blr_scheduler\.LRScheduler\b",
        reason="torch's own schedulers are no _LRScheduler since torch 2.0, and lost their state in checkpoints",
    ),
    Edit(
        name="resources without pkg_resources (import)",
        files=("detectron2/model_zoo/model_zoo.py",),
        pattern=r"^import pkg_resources$",
        replacement="import importlib.resources",
        done=r"^import importlib\.resources$",
        reason="pkg_resources left setuptools in 82",
    ),
    Edit(
        name="resources without pkg_resources (use)",
        files=("detectron2/model_zoo/model_zoo.py",),
        pattern=r"pkg_resources\.resource_filename\(\s*\"detectron2\.model_zoo\", "
        r"os\.path\.join\(\"configs\", config_path\)\s*\)",
        replacement='str(importlib.resources.files("detectron2.model_zoo") / "configs" / config_path)',
        done=r"importlib\.resources\.files\(",
        reason="as above",
    ),
)

# What must be gone from all of `detectron2/` afterwards, in case an edit's list of files misses one.
LEFT_OVERS = {
    # fast_eval_api.py aside, which is imported under a guard.
    "C++ extension imported without a guard": r"(?s)\A(?!.*^class COCOeval_opt\b).*^from detectron2 import _C$",
    "removed NumPy alias": r"\bnp\.(int|float|bool|str|object)\b",
    "removed Pillow filter": r"\bImage\.LINEAR\b",
    "pkg_resources": r"\bpkg_resources\b",
}


def apply_edits(source: Path, edits: Sequence[Edit] = EDITS) -> list[str]:
    """Make all edits below `source`; a second run changes nothing.

    Returns:
        One line per edit: its name and how many files it changed.

    Raises:
        InstallError: a file is missing or is not what an edit expects.
    """
    report = []
    for edit in edits:
        changed = 0
        for name in edit.files:
            path = source / name
            if not path.is_file():
                raise InstallError(f"edit '{edit.name}' needs {name}, which is not in the archive")
            text = path.read_text(encoding="utf-8")
            edited = edit.apply(text, name)
            if edited != text:
                path.write_text(edited, encoding="utf-8")
                changed += 1
        report.append(f"{edit.name}: {changed} file(s)")
    return report


def check_left_overs(source: Path) -> None:
    """Raise InstallError when code that an edit should have changed is still in the package."""
    for path in sorted((source / "detectron2").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for what, pattern in LEFT_OVERS.items():
            if re.search(pattern, text, flags=re.MULTILINE):
                raise InstallError(f"{path.relative_to(source)} still has: {what}")


def move_projects(source: Path) -> None:
    """Copy the projects that upstream ships to `detectron2/projects`, from where they are imported.

    Raises:
        InstallError: a project is neither in its old nor in its new place.
    """
    target_root = source / "detectron2" / "projects"
    for name, origin in PROJECTS.items():
        target = target_root / name
        if target.is_dir():
            continue
        if not (source / origin).is_dir():
            raise InstallError(f"{origin} is not in the archive")
        shutil.copytree(source / origin, target)


def write_build_files(source: Path) -> None:
    """Replace the archive's build files by ours."""
    for name in ("setup.py", "setup.cfg"):
        (source / name).unlink(missing_ok=True)
    for stale in source.glob("*.egg-info"):
        shutil.rmtree(stale)
    (source / "pyproject.toml").write_text(PYPROJECT, encoding="utf-8")


def prepare(source: Path) -> list[str]:
    """Turn the extracted archive into a source tree that pip can install; returns what was edited."""
    report = apply_edits(source)
    move_projects(source)
    check_left_overs(source)
    write_build_files(source)
    return report
