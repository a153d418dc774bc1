"""The installer of Detectron2: its edits on snippets and on a small archive, and what it refuses."""

from __future__ import annotations

import hashlib
import importlib
import io
import re
import subprocess
import sys
import tarfile
import types
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TOOL = Path(__file__).resolve().parents[1] / "tools" / "install_detectron2.py"

# Every file that an edit names, holding just the lines that the edit is about, as v0.6 has them.
SOURCES = {
    "detectron2/layers/deform_conv.py": "from torch import nn\n\nfrom detectron2 import _C\n",
    "detectron2/layers/roi_align_rotated.py": "from detectron2 import _C\n",
    "detectron2/layers/rotated_boxes.py": "from detectron2 import _C\n",
    "detectron2/evaluation/coco_evaluation.py": (
        "from pycocotools.cocoeval import COCOeval\n\n"
        "from detectron2.evaluation.fast_eval_api import COCOeval_opt\n\n\n"
        "class COCOEvaluator:\n"
        "    def __init__(self, use_fast_impl=True):\n"
        "        self._use_fast_impl = use_fast_impl\n"
    ),
    "detectron2/export/__init__.py": "from .api import *\nfrom .flatten import TracingAdapter\n",
    "detectron2/data/build.py": "histogram = np.zeros((3,), dtype=np.int)\n",
    "detectron2/data/datasets/pascal_voc.py": "ids = np.loadtxt(f, dtype=np.str)\n",
    "detectron2/evaluation/pascal_voc_evaluation.py": "d = np.array([1]).astype(np.bool)\n",
    "detectron2/evaluation/sem_seg_evaluation.py": "a = np.full(2, np.nan, dtype=np.float)\nb = x.astype(np.float)\n",
    "detectron2/structures/masks.py": "m = np.zeros((2, 2)).astype(np.bool)\n",
    "detectron2/utils/video_visualizer.py": "c = np.zeros((2,), dtype=np.bool)\n",
    "detectron2/utils/visualizer.py": "v = x.numpy().astype(np.bool)\n",
    "detectron2/data/transforms/transform.py": "def f(interp=Image.LINEAR, fill=0):\n    pass\n",
    "detectron2/data/common.py": "i = self._rng.sample(self._fallback_candidates, k=1)[0]\n",
    "detectron2/engine/hooks.py": "ok = isinstance(s, torch.optim.lr_scheduler._LRScheduler)\n",
    "detectron2/model_zoo/model_zoo.py": (
        "import pkg_resources\n"
        "cfg_file = pkg_resources.resource_filename(\n"
        '    "detectron2.model_zoo", os.path.join("configs", config_path)\n'
        ")\n"
    ),
    "detectron2/evaluation/fast_eval_api.py": "from detectron2 import _C\n\n\nclass COCOeval_opt:\n    pass\n",
    "detectron2/projects/__init__.py": "",
    "projects/PointRend/point_rend/__init__.py": "",
    "projects/DeepLab/deeplab/__init__.py": "",
    "projects/Panoptic-DeepLab/panoptic_deeplab/__init__.py": "",
    "setup.py": "raise SystemExit('compiles what is not there')\n",
    "setup.cfg": "[egg_info]\n",
}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """The script, imported as a module."""
    sys.path.insert(0, str(TOOL.parent))
    try:
        return importlib.import_module(TOOL.stem)
    finally:
        sys.path.remove(str(TOOL.parent))


@pytest.fixture(scope="module")
def edits(tool: ModuleType) -> ModuleType:
    """The module with its edits."""
    return sys.modules["_detectron2_edits"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small source tree with everything that the edits look for."""
    root = tmp_path / "pb1-detectron2-0.6"
    for name, text in SOURCES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def make_archive(path: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    """Write a .tar.gz with these files and symbolic links."""
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type = tarfile.SYMTYPE
            info.linkname = target
            tar.addfile(info)
    return path


def read_all(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()}


# ------------------------------------------------------------------------------------------------- edits
def test_edits_do_what_they_are_for(edits: ModuleType, source: Path) -> None:
    edits.apply_edits(source)
    text = read_all(source)
    for name in ("deform_conv", "roi_align_rotated", "rotated_boxes"):
        assert "except ImportError" in text[f"detectron2/layers/{name}.py"]
    assert text["detectron2/data/build.py"] == "histogram = np.zeros((3,), dtype=int)\n"
    assert text["detectron2/data/datasets/pascal_voc.py"] == "ids = np.loadtxt(f, dtype=str)\n"
    assert text["detectron2/evaluation/sem_seg_evaluation.py"] == (
        "a = np.full(2, np.nan, dtype=float)\nb = x.astype(float)\n"
    )
    assert "interp=Image.BILINEAR" in text["detectron2/data/transforms/transform.py"]
    assert "lr_scheduler.LRScheduler" in text["detectron2/engine/hooks.py"]
    assert "sample(sorted(self._fallback_candidates), k=1)[0]" in text["detectron2/data/common.py"]
    assert text["detectron2/model_zoo/model_zoo.py"] == (
        "import importlib.resources\n"
        'cfg_file = str(importlib.resources.files("detectron2.model_zoo") / "configs" / config_path)\n'
    )
    for name in text:
        if name.endswith(".py") and name != "setup.py":
            compile(text[name], name, "exec")
    edits.check_left_overs(source)


def test_edited_import_works_with_and_without_the_extension(edits: ModuleType, source: Path) -> None:
    edits.apply_edits(source)
    code = (source / "detectron2/layers/rotated_boxes.py").read_text().replace("detectron2", "no_such_package")
    namespace: dict[str, object] = {}
    exec(code, namespace)
    assert namespace["_C"] is None


@pytest.mark.parametrize("built", [False, True])
def test_coco_evaluation_falls_back_to_pycocotools(
    edits: ModuleType, source: Path, monkeypatch: pytest.MonkeyPatch, built: bool
) -> None:
    edits.apply_edits(source)
    fast = types.ModuleType("detectron2.evaluation.fast_eval_api")
    if built:
        fast.COCOeval_opt = object()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "detectron2.evaluation.fast_eval_api", fast)
    namespace: dict[str, Any] = {}
    exec((source / "detectron2/evaluation/coco_evaluation.py").read_text(), namespace)
    assert (namespace["COCOeval_opt"] is namespace["COCOeval"]) is not built
    assert namespace["COCOEvaluator"]()._use_fast_impl is built
    assert namespace["COCOEvaluator"](use_fast_impl=False)._use_fast_impl is False


def test_export_needs_no_caffe2(edits: ModuleType, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edits.apply_edits(source)
    package = source / "detectron2" / "export"
    (package / "api.py").write_text("import caffe2\n\nEXPORTED = 1\n")
    (package / "flatten.py").write_text("TracingAdapter = 2\n")
    package.rename(source / "edited_export")
    monkeypatch.syspath_prepend(str(source))
    assert importlib.import_module("edited_export").TracingAdapter == 2


def test_edits_are_idempotent(tool: ModuleType, source: Path) -> None:
    tool.prepare(source)
    once = read_all(source)
    tool.prepare(source)
    assert read_all(source) == once


@pytest.mark.parametrize("name", [n for n in SOURCES if re.match("detectron2/(?!projects|evaluation/fast)", n)])
def test_edit_says_so_when_it_finds_nothing(tool: ModuleType, edits: ModuleType, source: Path, name: str) -> None:
    (source / name).write_text("nothing = 'of the kind'\n")
    with pytest.raises(tool.InstallError, match="found nothing to change in " + name):
        edits.apply_edits(source)


def test_missing_file_is_named(tool: ModuleType, edits: ModuleType, source: Path) -> None:
    (source / "detectron2/engine/hooks.py").unlink()
    with pytest.raises(tool.InstallError, match=r"needs detectron2/engine/hooks\.py"):
        edits.apply_edits(source)


def test_other_names_are_not_touched(edits: ModuleType) -> None:
    edit = next(edit for edit in edits.EDITS if edit.name == "NumPy's removed aliases")
    text = "np.int64(np.float32(x)); np.bool_; np.strings; xnp.intp; y.astype(bool)\n"
    assert edit.apply(text, "x.py") == text


@pytest.mark.parametrize("line", ["x = np.bool(1)", "import pkg_resources", "from detectron2 import _C"])
def test_forgotten_file_is_found(tool: ModuleType, edits: ModuleType, source: Path, line: str) -> None:
    edits.apply_edits(source)
    (source / "detectron2/forgotten.py").write_text(line + "\n")
    with pytest.raises(tool.InstallError, match=r"forgotten\.py still has"):
        edits.check_left_overs(source)


def test_prepared_tree_is_ours_to_build(tool: ModuleType, source: Path) -> None:
    (source / "pb1_detectron2.egg-info").mkdir()
    tool.prepare(source)
    assert not (source / "setup.py").exists()
    assert not (source / "setup.cfg").exists()
    assert not list(source.glob("*.egg-info"))
    assert 'name = "detectron2"' in (source / "pyproject.toml").read_text()
    for project in ("point_rend", "deeplab", "panoptic_deeplab"):
        assert (source / "detectron2" / "projects" / project / "__init__.py").is_file()


# ------------------------------------------------------------------------------------------------- archive
def test_archive_roundtrip(tool: ModuleType, edits: ModuleType, source: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, arcname="pb1-detectron2-0.6")
    extracted = tool.extract(archive, tmp_path / "out")
    assert extracted.name == "pb1-detectron2-0.6"
    assert read_all(extracted) == read_all(source)
    assert len(tool.prepare(extracted)) == len(edits.EDITS)


@pytest.mark.parametrize("name", ["../evil.py", "root/../../evil.py", "/tmp/evil.py", "root/..\\evil.py"])
def test_path_traversal_is_refused(tool: ModuleType, tmp_path: Path, name: str) -> None:
    archive = make_archive(tmp_path / "a.tar.gz", {"root/good.py": b"", name: b"evil"})
    with pytest.raises(tool.InstallError, match="leaves the folder"):
        tool.extract(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists(), "nothing may be written before all members are checked"
    assert not (tmp_path / "evil.py").exists()


def test_links_are_refused(tool: ModuleType, tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a.tar.gz", {"root/good.py": b""}, {"root/link": "/etc/passwd"})
    with pytest.raises(tool.InstallError, match="a link or device"):
        tool.extract(archive, tmp_path / "out")


def test_two_top_folders_are_refused(tool: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(tool.InstallError, match="2 top folders"):
        tool.extract(make_archive(tmp_path / "a.tar.gz", {"a/x": b"", "b/x": b""}), tmp_path / "out")


@pytest.mark.parametrize("damage", ["garbage", "cut"])
def test_damaged_archive_is_named(tool: ModuleType, tmp_path: Path, damage: str) -> None:
    archive = make_archive(tmp_path / "a.tar.gz", {"a/x": bytes(range(256)) * 200})
    archive.write_bytes(b"not a tar" if damage == "garbage" else archive.read_bytes()[:80])
    with pytest.raises(tool.InstallError, match=r"cannot read .*a\.tar\.gz"):
        tool.extract(archive, tmp_path / "out")


def test_sha256_mismatch_names_both(tool: ModuleType, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(b"something else")
    with pytest.raises(tool.InstallError) as caught:
        tool.check_sha256(archive)
    assert hashlib.sha256(b"something else").hexdigest() in str(caught.value)
    assert tool.SHA256 in str(caught.value)
    tool.check_sha256(archive, hashlib.sha256(b"something else").hexdigest())


# ------------------------------------------------------------------------------------------------- command line
def refuse_to_install(archive: object, constraint: object, replace: bool) -> None:
    raise AssertionError("nothing may be installed here")


def test_existing_installation_is_left_alone(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool, "installed_version", lambda: "0.6+main")
    assert tool.main([], installer=refuse_to_install) == 0
    assert "installed already (0.6+main): left alone" in capsys.readouterr().out


def test_force_replaces(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(tool, "installed_version", lambda: "0.6")
    monkeypatch.setattr(tool, "check_environment", lambda: None)
    archive = tmp_path / "a.tar.gz"
    assert tool.main(["--force", "--archive", str(archive)], installer=lambda *args: calls.append(args)) == 0
    assert calls == [(archive, None, True)]


def test_this_environment_has_detectron2(tool: ModuleType) -> None:
    assert tool.installed_version()


def test_missing_package_is_named_with_the_command(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool.importlib.util, "find_spec", lambda name: None if name == "torchvision" else object())
    with pytest.raises(tool.InstallError, match="no torchvision: run 'python -m pip install torch torchvision'"):
        tool.check_environment()


@pytest.mark.parametrize("content", [None, b"not the archive"])
def test_failure_is_one_line_and_nonzero(
    tool: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    content: bytes | None,
) -> None:
    monkeypatch.setattr(tool, "installed_version", lambda: None)
    monkeypatch.setattr(tool, "run_pip", refuse_to_install)
    archive = tmp_path / "a.tar.gz"
    if content is not None:
        archive.write_bytes(content)
    assert tool.main(["--archive", str(archive)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("install_detectron2: ")
    assert str(archive) in error
    assert len(error.strip().splitlines()) == 1


def test_official_tells_the_command(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--official"], installer=refuse_to_install) == 0
    assert "git+https://github.com/facebookresearch/detectron2.git" in capsys.readouterr().out


def test_needs_only_the_standard_library() -> None:
    """-S leaves out site-packages, as on a fresh machine."""
    subprocess.run([sys.executable, "-S", "-E", str(TOOL), "--help"], check=True, stdout=subprocess.DEVNULL)
