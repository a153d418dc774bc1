"""Box-supervised segmentation for Detectron2.

Importing the package is quick and registers nothing: a command that prints its help needs no torch. What configs can
name (data sets, mappers, backbones, meta-architectures, heads) is registered with Detectron2 by
:func:`boxsup_d2.config.add_boxsup_config`, without which no config can name it, and by importing the parts themselves.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("boxsup_d2")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

# Names of the package that are imported when they are first asked for, and the modules that hold them.
_LAZY = {
    "add_boxsup_config": "boxsup_d2.config",
    "backbone": "boxsup_d2.modeling",
    "dataset_mappers": "boxsup_d2.data",
    "datasets": "boxsup_d2.data",
    "meta_arch": "boxsup_d2.modeling",
    "roi_heads": "boxsup_d2.modeling",
    "sem_seg_heads": "boxsup_d2.modeling",
}

__all__ = ["__version__", *_LAZY]  # noqa: PLE0604 - all of them are strings


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'boxsup_d2' has no attribute '{name}'")
    module = importlib.import_module(_LAZY[name])
    if hasattr(module, name):
        return getattr(module, name)
    return importlib.import_module(f"{_LAZY[name]}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
