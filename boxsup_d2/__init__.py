"""Box-supervised segmentation for Detectron2.

Importing the package is quick and registers nothing: a command that prints its help needs no torch. What configs can
name (data sets, mappers, backbones, meta-architectures, heads) is registered with Detectron2 by
:func:`boxsup_d2.config.add_boxsup_config`, without which no config can name it, and by importing the parts themselves.

:func:`load`, :func:`label` and :func:`register` are those of :mod:`boxsup_d2.api`, which is imported with the first of
them that is used.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("boxsup_d2")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

if TYPE_CHECKING:
    from boxsup_d2.api import label, load, register
    from boxsup_d2.config import add_boxsup_config
    from boxsup_d2.data import dataset_mappers, datasets
    from boxsup_d2.modeling import backbone, meta_arch, roi_heads, sem_seg_heads

__all__ = [
    "__version__",
    "add_boxsup_config",
    "backbone",
    "dataset_mappers",
    "datasets",
    "label",
    "load",
    "meta_arch",
    "register",
    "roi_heads",
    "sem_seg_heads",
]

# Where the functions and the subpackages are that are imported when they are first asked for.
_FUNCTIONS = {
    "add_boxsup_config": "boxsup_d2.config",
    "label": "boxsup_d2.api",
    "load": "boxsup_d2.api",
    "register": "boxsup_d2.api",
}
_SUBPACKAGES = {
    "backbone": "boxsup_d2.modeling.backbone",
    "dataset_mappers": "boxsup_d2.data.dataset_mappers",
    "datasets": "boxsup_d2.data.datasets",
    "meta_arch": "boxsup_d2.modeling.meta_arch",
    "roi_heads": "boxsup_d2.modeling.roi_heads",
    "sem_seg_heads": "boxsup_d2.modeling.sem_seg_heads",
}


def __getattr__(name: str) -> Any:
    """The names of ``__all__``, imported late."""
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(_SUBPACKAGES[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
