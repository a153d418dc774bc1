"""Box-supervised segmentation for Detectron2.

Importing the package registers its data sets, mappers, backbones, meta-architectures and heads with Detectron2, so
that configs can name them. No file is opened and no network is built.

:func:`load`, :func:`label`, :func:`predict` and :func:`register` are those of :mod:`boxsup_d2.api`, which is imported
with the first of them that is used.
"""

import os
import warnings
from typing import TYPE_CHECKING, Any

from boxsup_d2.utils.imports import quick_imports
from boxsup_d2.version import __version__

# Before torch starts its threads: on a busy machine, threads that spin while they wait for others without a core made a
# prediction 30 times as slow. Has no effect where torch was imported before, nor where the user says otherwise.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Imported for what they register.
with warnings.catch_warnings(), quick_imports():
    # Detectron2 and timm use it where they are imported, which nobody who runs a command can change.
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
    from boxsup_d2 import modeling
    from boxsup_d2.config import add_boxsup_config
    from boxsup_d2.data import dataset_mappers, datasets
    from boxsup_d2.plugins import load_plugins

load_plugins()

if TYPE_CHECKING:
    from boxsup_d2.api import label, load, predict, register

__all__ = [
    "__version__",
    "add_boxsup_config",
    "dataset_mappers",
    "datasets",
    "label",
    "load",
    "modeling",
    "predict",
    "register",
]


def __getattr__(name: str) -> Any:
    """The functions of :mod:`boxsup_d2.api`; imported late, since the engine below them takes a while to load."""
    if name in ("label", "load", "predict", "register"):
        from boxsup_d2 import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What there is, those functions included, for completion."""
    return sorted({*globals(), *__all__})
