"""Importing the libraries below this package, without work that nobody asked them for.

torchvision and timm import torch's compiler, 900 modules, only to be able to ask it something later: half of what
importing torch itself costs, before the first line of whoever imports this package runs.
"""

import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

_UTILS = "torch._dynamo.utils"


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Within it, importing a library does not import torch's compiler; what needs it imports it when it is called.

    Nor does the collector of garbage run: what modules leave behind stays, and it would look at all of it every time,
    and twice more as at something new.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        with _compiler_when_called():
            yield
    finally:
        if not gc.get_freeze_count():  # else somebody has frozen objects, which are to stay so
            # Together they make all that there is old, without a look at it.
            gc.freeze()
            gc.unfreeze()
        if collects:
            gc.enable()


@contextlib.contextmanager
def _compiler_when_called() -> Iterator[None]:
    import torch  # here, with the collector at rest

    if "torch._dynamo" in sys.modules:
        yield
        return
    disable = torch.compiler.disable
    stand_in, finder = _StandIn(_UTILS), _Finder()
    torch.compiler.disable = _disable
    sys.modules[_UTILS] = stand_in
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        stand_in.step_aside()
        torch.compiler.disable = disable


def _disable(fn: Any = None, recursive: bool = True, *, reason: str | None = None) -> Any:
    """``torch.compiler.disable`` as torch decorates its own functions."""
    from torch._compile import _disable_dynamo

    del reason
    return _disable_dynamo(fn, recursive)


class _StandIn(ModuleType):
    """What torchvision imports one function from; whatever else is looked for makes room for the module itself."""

    @staticmethod
    def is_compile_supported(device_type: str) -> bool:
        return importlib.import_module(_UTILS).is_compile_supported(device_type)

    def step_aside(self) -> None:
        if sys.modules.get(_UTILS) is self:
            del sys.modules[_UTILS]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of the import system, which asks every module for them
            raise AttributeError(name)
        self.step_aside()
        return getattr(importlib.import_module(_UTILS), name)


class _Finder:
    """Finds nothing, but hears of imports: where torch's compiler is imported after all, it gets its own module."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        del path, target
        stand_in = sys.modules.get(_UTILS)
        if name == "torch._dynamo" and isinstance(stand_in, _StandIn):
            stand_in.step_aside()
