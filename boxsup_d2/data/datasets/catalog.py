"""Lazy registration: a data set opens no file, and looks up its metadata, before it is used."""

import contextlib
from collections.abc import Callable
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata


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

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, for worker processes, as plain metadata with the values of now; what needs an absent file and the
        ``source`` stay behind."""
        values = {key: value for key, value in self.__dict__.items() if key not in ("_resolvers", "source")}
        for key, resolve in self._resolvers.items():
            with contextlib.suppress(FileNotFoundError):
                values[key] = resolve()
        return _plain_metadata, (values,)


def _plain_metadata(values: dict[str, Any]) -> Metadata:
    return Metadata(**values)


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
