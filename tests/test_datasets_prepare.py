"""The scripts that make data sets out of official downloads."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

import boxsup_d2.data.datasets  # noqa: F401  (registers the sets that the scripts write)


def load_script(root: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, root / "datasets" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def train_aug(project_root) -> ModuleType:
    return load_script(project_root, "prepare_voc_train_aug")


@pytest.fixture(scope="module")
def dut(project_root) -> ModuleType:
    return load_script(project_root, "prepare_dut_tr_single")


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("script", ["prepare_voc_train_aug", "prepare_dut_tr_single"])
def test_help(project_root, script, capsys):
    with pytest.raises(SystemExit) as end:
        load_script(project_root, script).main(["--help"])
    assert end.value.code == 0
    assert "--datasets" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ train_aug


@pytest.fixture
def downloads(datasets_root, tmp_path) -> tuple[Path, Path]:
    """VOC with train {1, 2} and val {3, 4}; SBD with train {2, 3, 5} and val {4, 6}."""
    voc = datasets_root / "VOC2012"
    sbd = tmp_path / "benchmark_RELEASE" / "dataset"
    for folder in (*(voc / name for name in ("Annotations", "JPEGImages", "SegmentationClass")), sbd / "cls"):
        folder.mkdir(parents=True)
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    for path, numbers in (
        (voc / "ImageSets" / "Segmentation" / "train.txt", (1, 2)),
        (voc / "ImageSets" / "Segmentation" / "val.txt", (3, 4)),
        (sbd / "train.txt", (2, 3, 5)),
        (sbd / "val.txt", (4, 6)),
    ):
        path.write_text("".join(f"2008_00000{number}\n" for number in numbers))
    savemat = pytest.importorskip("scipy.io").savemat
    for number in range(1, 7):
        stem = f"2008_00000{number}"
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(voc / "JPEGImages" / f"{stem}.jpg")
        (voc / "Annotations" / f"{stem}.xml").write_text(
            "<annotation><size><width>6</width><height>4</height></size></annotation>"
        )
        mask = np.full((4, 6), number, np.uint8)
        if number <= 4:
            Image.fromarray(mask + 10).save(voc / "SegmentationClass" / f"{stem}.png")
        else:
            savemat(sbd / "cls" / f"{stem}.mat", {"GTcls": {"Segmentation": mask, "Boundaries": np.zeros(3)}})
    return voc, sbd.parent


def test_train_aug_list(train_aug, downloads, datasets_root, capsys):
    voc, sbd = downloads
    with pytest.raises(FileNotFoundError, match=r"train_aug\.txt"):
        DatasetCatalog.get("voc_2012_train_aug_box")
    assert train_aug.main(["--datasets", str(datasets_root), "--sbd", str(sbd)]) == 0
    assert "not (whole) official" in capsys.readouterr().out
    names = [Path(record["file_name"]).stem for record in DatasetCatalog.get("voc_2012_train_aug_box")]
    assert names == [f"2008_00000{number}" for number in (1, 2, 5, 6)]
    before = snapshot(voc)
    assert train_aug.main(["--datasets", str(datasets_root), "--sbd", str(sbd / "dataset")]) == 0
    assert snapshot(voc) == before
    assert "up to date" in capsys.readouterr().out


def test_train_aug_masks(train_aug, downloads, datasets_root):
    voc, sbd = downloads
    arguments = ["--datasets", str(datasets_root), "--sbd", str(sbd), "--masks"]
    assert train_aug.main(arguments) == 0
    folder = voc / "SegmentationClassAug"
    values = {path.stem[-1]: np.unique(Image.open(path)).tolist() for path in folder.iterdir()}
    assert values == {"1": [11], "2": [12], "5": [5], "6": [6]}, "VOC's own masks come before SBD's"
    with Image.open(folder / "2008_000005.png") as image:
        assert image.mode == "P"
        assert image.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
    (folder / "2008_000006.png").unlink()
    before = snapshot(folder)
    assert train_aug.main(arguments) == 0
    after = snapshot(folder)
    assert after.keys() - before.keys() == {"2008_000006.png"}
    assert {name: after[name] for name in before} == before


def test_train_aug_missing_files(train_aug, downloads, datasets_root, capsys):
    voc, sbd = downloads
    arguments = ["--datasets", str(datasets_root), "--sbd", str(sbd)]
    (voc / "Annotations" / "2008_000005.xml").unlink()
    assert train_aug.main(arguments) == 1
    assert "1 files are missing" in capsys.readouterr().err
    assert not (voc / "ImageSets" / "Segmentation" / "train_aug.txt").exists()
    assert train_aug.main([*arguments, "--skip-missing"]) == 0
    assert len(DatasetCatalog.get("voc_2012_train_aug_box")) == 3
    (sbd / "dataset" / "cls" / "2008_000006.mat").write_bytes(b"cut off")
    assert train_aug.main([*arguments, "--skip-missing", "--masks"]) == 1
    assert "2008_000006.mat' is damaged" in capsys.readouterr().err
    (sbd / "dataset" / "val.txt").unlink()
    assert train_aug.main(arguments) == 1
    assert "val.txt" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ DUT-TR-Single


def flood_components(mask: np.ndarray) -> int:
    """Slow reference: 8-connected components."""
    rest = {tuple(point) for point in np.argwhere(mask)}
    count = 0
    while rest:
        count += 1
        stack = [rest.pop()]
        while stack:
            y, x = stack.pop()
            for near in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if near in rest:
                    rest.remove(near)
                    stack.append(near)
    return count


@pytest.fixture
def duts(datasets_root) -> Path:
    """One object; two objects; one object and a speck; a diagonal touch; nothing."""
    source = datasets_root / "DUTS" / "DUTS-TR"
    masks = {name: np.zeros((40, 40), np.uint8) for name in ("one", "two", "speck", "diagonal", "nothing")}
    masks["one"][5:20, 5:20] = 255
    masks["two"][5:10, 5:10] = masks["two"][20:30, 20:30] = 255
    masks["speck"][5:35, 5:35] = 255
    masks["speck"][0, 0] = 255
    masks["diagonal"][5:10, 5:10] = masks["diagonal"][10:15, 10:15] = 255
    masks["nothing"][:] = 127
    for kind in ("Image", "Mask"):
        (source / f"DUTS-TR-{kind}").mkdir(parents=True)
    for name, mask in masks.items():
        Image.fromarray(mask).save(source / "DUTS-TR-Mask" / f"{name}.png")
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(source / "DUTS-TR-Image" / f"{name}.jpg")
    return source


def test_dut(dut, duts, datasets_root, capsys):
    assert dut.main(["--datasets", str(datasets_root)]) == 0
    assert "not the published list" in capsys.readouterr().out
    records = DatasetCatalog.get("dut_tr_single")
    assert [Path(record["file_name"]).stem for record in records] == ["diagonal", "one", "speck"]
    before = snapshot(datasets_root)
    assert not any("partial" in name or "tmp" in name for name in before)
    assert dut.main(["--datasets", str(datasets_root)]) == 0
    assert snapshot(datasets_root) == before
    assert dut.main(["--datasets", str(datasets_root), "--min-area", "0"]) == 1
    assert "holds another list" in capsys.readouterr().err
    assert snapshot(datasets_root) == before


@pytest.mark.parametrize("stop_at", range(8))
def test_dut_goes_on_after_a_kill(dut, duts, datasets_root, monkeypatch, stop_at):
    """Stopped at any file operation, the sets are absent, or whole; the next run completes them."""
    calls = 0

    def killer(original):
        def wrapped(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls > stop_at:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(dut.shutil, "copyfile", killer(dut.shutil.copyfile))
        patch.setattr(dut.Path, "rename", killer(dut.Path.rename))
        with pytest.raises(KeyboardInterrupt):
            dut.prepare(datasets_root / "DUTS")
        with pytest.raises(FileNotFoundError):
            DatasetCatalog.get("dut_tr_single")
    assert dut.prepare(datasets_root / "DUTS") == ["diagonal", "one", "speck"]
    assert len(DatasetCatalog.get("dut_tr_single")) == 3


def test_dut_components_against_slow_reference(dut, tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random((12, 14)) < 0.25
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "mask.png")
        assert dut.count_components(tmp_path / "mask.png", 0) == flood_components(mask)


def test_dut_errors(dut, duts, datasets_root, capsys):
    assert dut.main(["--datasets", str(datasets_root / "nowhere")]) == 1
    assert "DUTS-TR.zip" in capsys.readouterr().err
    (duts / "DUTS-TR-Mask" / "one.png").write_bytes(b"")
    assert dut.main(["--datasets", str(datasets_root)]) == 1
    assert "one.png' is damaged" in capsys.readouterr().err
    (duts / "DUTS-TR-Mask" / "one.png").unlink()
    assert dut.main(["--datasets", str(datasets_root)]) == 1
    assert "1 of 5 images have no mask" in capsys.readouterr().err
    assert dut.main(["--datasets", str(datasets_root), "--min-area", "1.5"]) == 1
    assert "--min-area" in capsys.readouterr().err
