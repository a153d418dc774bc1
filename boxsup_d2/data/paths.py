"""Where data sets live, and clear errors where something is not there.

Detectron2 freezes ``DETECTRON2_DATASETS`` when it is imported. Here paths are joined when a data set is *used*, so a
notebook or a test may set the variable at any time.
"""

import os
from collections import defaultdict
from collections.abc import Iterable

ROOT_VARIABLE = "DETECTRON2_DATASETS"
# First examples of missing files that an error names.
_MAX_EXAMPLES = 3


def datasets_root() -> str:
    """Folder that holds the data sets: ``DETECTRON2_DATASETS``, by default ``datasets``; read at every call."""
    return os.path.expanduser(os.getenv(ROOT_VARIABLE) or "datasets")


def under_root(*candidates: str) -> str:
    """The first of some paths below :func:`datasets_root` that exists, else the first; absolute ones stay."""
    paths = [os.path.join(datasets_root(), candidate) for candidate in candidates]
    return next((path for path in paths if os.path.exists(path)), paths[0])


def require_path(path: str, dataset: str, fix: str = "") -> str:
    """Return ``path`` if it exists.

    Raises:
        FileNotFoundError: names the data set, the path, and what to do.
    """
    if os.path.exists(path):
        return path
    if not fix and os.path.isabs(path) and not path.startswith(os.path.join(os.path.abspath(datasets_root()), "")):
        fix = "Correct the path, or put it there."
    fix = fix or (
        f"Set {ROOT_VARIABLE} (now '{datasets_root()}') to the folder that holds the data sets, or lay the files out "
        "as datasets/README.md shows."
    )
    raise FileNotFoundError(f"Data set '{dataset}' expects '{path}', which does not exist. {fix}")


def require_images(file_names: Iterable[str], dataset: str, what: str = "images", fix: str = "") -> None:
    """Check that files exist, by one listing per folder: 100,000 single look-ups are slow on network drives.

    Raises:
        FileNotFoundError: some are missing; gives their number and the first ones.
    """
    paths = list(file_names)
    missing = missing_files(paths)
    if missing:
        fix = fix or f"Finish the download or the copy, or set {ROOT_VARIABLE} (now '{datasets_root()}')."
        raise FileNotFoundError(
            f"Data set '{dataset}' lacks {len(missing)} of its {len(paths)} {what}, first "
            f"{', '.join(repr(path) for path in missing[:_MAX_EXAMPLES])}. {fix}"
        )


def outside_names(root: str, names: Iterable[str]) -> set[str]:
    """Those of some file names of a json that lead out of their folder: absolute, by "..", or over a link.

    Whoever made the json could otherwise have any image of this machine read, and shown in a report.
    """
    found: set[str] = set()
    by_folder: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir:
            found.add(name)
        else:
            by_folder[os.path.dirname(name)].append(name)
    home = os.path.join(os.path.realpath(root), "")
    for folder, inner in by_folder.items():
        path = os.path.join(root, folder)
        if not os.path.isdir(path):
            continue
        if not os.path.join(os.path.realpath(path), "").startswith(home):
            found.update(inner)
            continue
        links = {entry.name for entry in os.scandir(path) if entry.is_symlink()}
        for name in inner:
            linked = os.path.basename(name) in links
            if linked and not os.path.realpath(os.path.join(root, name)).startswith(home):
                found.add(name)
    return found


def missing_files(paths: Iterable[str]) -> list[str]:
    """Those of some paths that do not exist, by one listing per folder."""
    by_folder: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        folder, base = os.path.split(path)
        by_folder[folder].append(base)
    missing = []
    for folder, bases in by_folder.items():
        present = set(os.listdir(folder or os.curdir)) if os.path.isdir(folder or os.curdir) else set()
        missing += [os.path.join(folder, base) for base in bases if base not in present]
    return missing
