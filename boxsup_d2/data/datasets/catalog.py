"""Lazy registration: where data sets live, and metadata that is looked up when it is used.

Detectron2 freezes ``DETECTRON2_DATASETS`` when it is imported. Here paths are joined when a data set is *used*, so a
notebook or a test may set the variable at any time, and registering opens no file. This module knows nothing of any
file format.
"""

import logging
import os
import reprlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

logger = logging.getLogger(__name__)

ROOT_VARIABLE = "DETECTRON2_DATASETS"
# First examples that a summary of problems shows of each kind, and characters of each.
_MAX_EXAMPLES = 3
_MAX_EXAMPLE_LENGTH = 120
_brief = reprlib.Repr()
_brief.maxlevel, _brief.maxdict, _brief.maxstring, _brief.maxother = 2, 6, 60, 60


def datasets_root() -> str:
    """Folder that holds the data sets: ``DETECTRON2_DATASETS``, by default ``datasets``; read at every call."""
    return os.path.expanduser(os.getenv(ROOT_VARIABLE) or "datasets")


def under_root(*candidates: str) -> str:
    """Path of a file or folder below :func:`datasets_root`.

    Args:
        candidates: relative paths, the preferred one first; an absolute one stays as it is.

    Returns:
        The first one that exists, else the preferred one (which an error message then names).
    """
    paths = [os.path.join(datasets_root(), candidate) for candidate in candidates]
    return next((path for path in paths if os.path.exists(path)), paths[0])


class LazyMetadata(Metadata):
    """Metadata some of whose keys are computed whenever they are read.

    Args:
        name: of the data set.
        resolvers: key → function without arguments that returns its value now.
    """

    # Defaults, because copies of a namespace are made without arguments.
    def __init__(self, name: str = "N/A", resolvers: dict[str, Callable[[], Any]] | None = None):
        super().__init__(name=name)
        # Not by setattr: Metadata guards every attribute against changes by reading it first.
        self.__dict__["_resolvers"] = dict(resolvers or {})

    def __getattr__(self, key: str) -> Any:
        resolvers = self.__dict__.get("_resolvers", {})
        if key in resolvers:
            return resolvers[key]()
        return super().__getattr__(key)

    def as_dict(self) -> dict[str, Any]:
        """All metadata, the lazy ones with their present values."""
        values = {key: value for key, value in self.__dict__.items() if key != "_resolvers"}
        return {**values, **{key: resolve() for key, resolve in self._resolvers.items()}}


def register_dataset(
    name: str,
    load: Callable[[], list[dict[str, Any]]],
    *,
    lazy: dict[str, Callable[[], Any]] | None = None,
    **metadata: Any,
) -> None:
    """Register a data set and its metadata; a former one of that name is replaced.

    Args:
        name: of the data set.
        load: returns its dicts; called by every ``DatasetCatalog.get(name)``.
        lazy: metadata that is computed when read, see :class:`LazyMetadata`.
        metadata: constant metadata.
    """
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog:
            catalog.remove(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog[name] = LazyMetadata(name, lazy or {})
    MetadataCatalog.get(name).set(**metadata)


def require_path(path: str, dataset: str, fix: str = "") -> str:
    """Return ``path`` if it exists.

    Raises:
        FileNotFoundError: names the data set, the path, and what to do.
    """
    if os.path.exists(path):
        return path
    fix = fix or (
        f"Set {ROOT_VARIABLE} (now '{datasets_root()}') to the folder that holds the data sets, or lay the files out "
        "as datasets/README.md shows."
    )
    raise FileNotFoundError(f"Data set '{dataset}' expects '{path}', which does not exist. {fix}")


def require_images(file_names: Iterable[str], dataset: str, what: str = "images", fix: str = "") -> None:
    """Check that images exist, by one listing per folder: 100,000 single look-ups are slow on network drives.

    Args:
        file_names: their paths.
        dataset: name, for messages.
        what: they are, for messages.
        fix: what to do where some are missing.

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


class Problems:
    """Collects what is wrong with a file, to report all of it at once instead of the first thing only."""

    def __init__(self) -> None:
        self._examples: dict[str, list[str]] = defaultdict(list)
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, kind: str, example: Any) -> None:
        """Note one more problem of a kind, e.g. ``add("without an id", annotation)``."""
        self._counts[kind] += 1
        if len(self._examples[kind]) < _MAX_EXAMPLES:
            self._examples[kind].append(_shown(example))

    def kinds(self) -> list[tuple[str, int, list[str]]]:
        """Every kind, in the order of their first examples, with its count and its first examples: for tables."""
        return [(kind, count, list(self._examples[kind])) for kind, count in self._counts.items()]

    def __len__(self) -> int:
        return sum(self._counts.values())

    def __str__(self) -> str:
        return "; ".join(
            f"{count} {kind} (e.g. {', '.join(self._examples[kind])})" for kind, count in self._counts.items()
        )

    def raise_if_any(self, path: str, fix: str) -> None:
        """
        Raises:
            ValueError: there is a problem; names the file, every kind with its count and first examples, and the fix.
        """
        if len(self):
            raise ValueError(f"'{path}' cannot be used: {self}. {fix}")


def brief(value: Any) -> str:
    """A value of a json for a message: of nested ones the outside, however deep and long they are."""
    return _brief.repr(value)


def _shown(example: Any) -> str:
    # One line that any terminal takes: it comes out of a file that is damaged somehow.
    text = example if isinstance(example, str) else brief(example)
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:_MAX_EXAMPLE_LENGTH])
