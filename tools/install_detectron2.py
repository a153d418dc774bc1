#!/usr/bin/env python3
"""Install Detectron2 from the package index, where it has no official release.

The index has ``pb1-detectron2`` 0.6: the Python files of Detectron2's tag v0.6 without its C++ sources, so that
``pip install pb1-detectron2`` fails to build. boxsup_d2 needs only pure Python, which runs on current Python, torch,
NumPy and Pillow after a few edits that Detectron2's main branch made later. This tool fetches the archive, checks its
sha256, makes the edits, and installs the result as the distribution ``detectron2``.

An existing installation of any version is left alone. Only the standard library is used, so that the tool can say what
is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from _detectron2_edits import InstallError, prepare

REQUIREMENT = "pb1-detectron2==0.6"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
# Why an older pip may be needed: see `pip_that_downloads`.
FIRST_PIP_THAT_REFUSES = (26, 3)
OFFICIAL_URL = "https://github.com/facebookresearch/detectron2"
OFFICIAL_COMMAND = f"{Path(sys.executable).name} -m pip install --no-build-isolation 'git+{OFFICIAL_URL}.git'"


# ------------------------------------------------------------------------------------------------- archive
def check_sha256(archive: Path, expected: str = SHA256) -> None:
    """Raise InstallError unless the file has the expected sha256."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != expected:
        raise InstallError(f"{archive} has sha256 {digest}, expected {expected}: delete the file and run this again")


def extract(archive: Path, target: Path) -> Path:
    """Extract a .tar.gz whose members are all in one folder; returns that folder.

    Raises:
        InstallError: the archive is damaged, or has a member that is no plain file or folder, or leaves `target`;
            nothing is written then.
    """
    try:
        with tarfile.open(archive, "r:gz") as tar:
            members = tar.getmembers()
            for member in members:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts or "\\" in member.name:
                    raise InstallError(f"{archive} has {member.name!r}, which leaves the folder: not extracted")
                if not (member.isfile() or member.isdir()):
                    raise InstallError(f"{archive} has {member.name!r}, a link or device: not extracted")
            roots = {PurePosixPath(member.name).parts[0] for member in members if PurePosixPath(member.name).parts}
            if len(roots) != 1:
                raise InstallError(f"{archive} has {len(roots)} top folders instead of one")
            for member in members:
                member.mode = 0o755 if member.isdir() else 0o644
            # Python's own check comes on top where it is there (3.10.12 and later).
            options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            tar.extractall(target, members=members, **options)  # type: ignore[arg-type]
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InstallError(f"cannot read {archive} as a .tar.gz: {error}") from error
    return target / roots.pop()


def run_pip(arguments: Sequence[str], advice: str, pip_folder: Path | None = None) -> None:
    """Run this Python's pip, or the one installed in `pip_folder`, its output passed through.

    Raises:
        InstallError: pip failed; the message ends with `advice`.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    environment = dict(os.environ)
    if pip_folder is not None:
        environment["PYTHONPATH"] = str(pip_folder)
    print("+", " ".join(command), flush=True)
    if subprocess.run(command, check=False, env=environment).returncode != 0:
        raise InstallError(f"pip {arguments[0]} failed (see above). {advice}")


def pip_that_downloads(folder: Path) -> Path | None:
    """A folder with a pip that can fetch the archive; None when this Python's own can.

    The archive declares an extra that names a download outside the index. pip 26.3 and later refuse to download such a
    package, even without dependencies; an older pip fetches it. `write_build_files` drops the extra.
    """
    version = importlib.metadata.version("pip")
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < FIRST_PIP_THAT_REFUSES:
        return None
    target = folder / "pip"
    first = ".".join(map(str, FIRST_PIP_THAT_REFUSES))
    run_pip(
        ["install", "--quiet", "--target", str(target), f"pip<{first}"],
        "Check that the package index can be reached, or get the archive elsewhere and pass it by --archive.",
    )
    return target


def download(folder: Path) -> Path:
    """Fetch the archive with pip into `folder`; returns its path.

    pip itself checks the hash, before it runs the archive's setup.py to learn its metadata. That script imports torch,
    hence no build isolation.

    Raises:
        InstallError: pip cannot get it.
    """
    pip_folder = pip_that_downloads(folder)
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{SHA256}\n")
    run_pip(
        [
            "download",
            *("--no-deps", "--no-build-isolation", "--no-binary", "pb1-detectron2", "--require-hashes"),
            *("--dest", str(folder), "--requirement", str(requirements)),
        ],
        "Check that the package index can be reached, or get the archive elsewhere and pass it by --archive.",
        pip_folder,
    )
    archives = sorted(folder.glob("pb1*detectron2-0.6.tar.gz"))
    if len(archives) != 1:
        raise InstallError(f"pip downloaded {[path.name for path in folder.iterdir()]}, no pb1-detectron2-0.6.tar.gz")
    return archives[0]


# ------------------------------------------------------------------------------------------------- environment
def installed_version() -> str | None:
    """Version of the Detectron2 that this Python imports; None when there is none.

    A source checkout on the path counts; a folder named `detectron2` without an `__init__.py` does not.
    """
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:
        return None
    try:
        return importlib.metadata.version("detectron2")
    except importlib.metadata.PackageNotFoundError:
        return f"without a distribution, in {Path(spec.origin).parent}"


def check_environment() -> None:
    """Raise InstallError when something is missing that building or importing Detectron2 needs."""
    if sys.version_info < (3, 10):  # noqa: UP036 - the very case that the message is for
        raise InstallError(f"Python 3.10 or later is needed, this is {sys.version.split()[0]}")
    for module, advice in (
        ("pip", "python -m ensurepip"),
        ("setuptools", "python -m pip install 'setuptools<81' wheel"),
        ("torch", "python -m pip install torch torchvision"),
        ("torchvision", "python -m pip install torch torchvision"),
    ):
        if importlib.util.find_spec(module) is None:
            raise InstallError(f"{sys.executable} has no {module}: run '{advice}' with it first, then this again")


def verify() -> None:
    """Import what boxsup_d2 needs of the new installation, in a fresh process.

    Raises:
        InstallError: the import fails.
    """
    code = (
        "import detectron2, torchvision, detectron2.engine, detectron2.evaluation, detectron2.modeling, "
        "detectron2.model_zoo, detectron2.projects.point_rend; "
        "detectron2.model_zoo.get_config_file('COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml'); "
        "print('Detectron2', detectron2.__version__, 'imports from', detectron2.__path__[0])"
    )
    # From another folder, so that it cannot import a folder named detectron2 beside the caller.
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=folder, check=False).returncode != 0:
            raise InstallError("Detectron2 was installed, but does not import (see above); INSTALL.md lists the causes")


def build_wheel(archive: Path, folder: Path) -> Path:
    """Check and edit an archive, and build its wheel in `folder`, without a network; returns the wheel.

    Raises:
        InstallError: any step failed.
    """
    check_sha256(archive)
    print(f"{archive.name}: sha256 as expected")
    source = extract(archive, folder / "source")
    for line in prepare(source):
        print(f"edited  {line}")
    run_pip(
        [
            "wheel",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            str(folder),
            str(source),
        ],
        "setuptools of this environment may be too old: run 'python -m pip install 'setuptools<81' wheel'.",
    )
    (wheel,) = folder.glob("detectron2-*.whl")
    return wheel


def install(archive: Path | None, constraint: Path | None, replace: bool) -> None:
    """Fetch (unless `archive` is given), check, edit and install; `replace` reinstalls what has the same version.

    Raises:
        InstallError: any step failed.
    """
    with tempfile.TemporaryDirectory(prefix="install_detectron2_") as name:
        folder = Path(name)
        if archive is None:
            archive = download(folder)
        elif not archive.is_file():
            raise InstallError(f"there is no file {archive}")
        wheel = build_wheel(archive, folder)
        advice = "The archive is fine, so the package index or the disk is the likely cause; then run this again."
        if replace:
            # Apart from the dependencies, which --force-reinstall would reinstall as well, torch included.
            run_pip(["install", "--no-deps", "--force-reinstall", str(wheel)], advice)
        constraints = [] if constraint is None else ["--constraint", str(constraint)]
        run_pip(["install", *constraints, str(wheel)], advice)
    verify()


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, help="use this pb1-detectron2-0.6.tar.gz instead of fetching it")
    parser.add_argument("--constraint", type=Path, help="constraints file for Detectron2's dependencies")
    parser.add_argument("--force", action="store_true", help="install even if a detectron2 is there, replacing it")
    parser.add_argument("--official", action="store_true", help="only say how to install the official main branch")
    return parser


OFFICIAL_TEXT = f"""\
The official main branch, with its C++ extension (needs git, a C++ compiler, and access to GitHub):

    {OFFICIAL_COMMAND}

into an environment that has torch, torchvision and setuptools. boxsup_d2 runs on it as it does on 0.6, and this tool
leaves it alone. To replace an earlier installation, first run
'{Path(sys.executable).name} -m pip uninstall detectron2'.
"""


def main(
    argv: Sequence[str] | None = None, installer: Callable[[Path | None, Path | None, bool], None] = install
) -> int:
    """Run the command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    if args.official:
        print(OFFICIAL_TEXT)
        return 0
    version = installed_version()
    if version is not None and not args.force:
        print(f"Detectron2 is installed already ({version}): left alone. --force replaces it.")
        return 0
    try:
        check_environment()
        installer(args.archive, args.constraint, version is not None)
    except InstallError as error:
        print(f"install_detectron2: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
