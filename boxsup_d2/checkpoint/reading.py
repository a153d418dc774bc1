"""The one way from a file to the content of a checkpoint, whoever asks: it runs no code that the file names."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open

#: Option of ``boxsup convert`` that lets a file run code.
ALLOW_CODE = "--allow-code"

# All that a pickle of arrays needs; anything else could run code. NumPy moved its core in 2.0.
_SAFE_NAMES = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *((core + ".multiarray", name) for core in ("numpy.core", "numpy._core") for name in ("_reconstruct", "scalar")),
    *((core + ".numeric", "_frombuffer") for core in ("numpy.core", "numpy._core")),
}
_TORCH_LEGACY = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
_EXPECTED = "expected parameters by name, as torch.save, safetensors or Detectron2's pickles hold them"


class _RefusedError(pickle.UnpicklingError):
    """A pickle names something that can run code."""


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dicts, lists, numbers, strings and NumPy arrays, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _SAFE_NAMES:
            return super().find_class(module, name)
        if re.fullmatch(r"[A-Za-z_][\w.]*", f"{module}.{name}"):
            raise _RefusedError(f"it holds a {module}.{name}")
        raise pickle.UnpicklingError("it is no pickle")  # a text begins like one by chance


def read_checkpoint(path: Path, *, allow_code: bool = False, mmap: bool = False) -> Any:
    """Content of a checkpoint file, whatever its suffix.

    Args:
        path: of a file of ``torch.save``, ``pickle.dump`` or safetensors. Of the last, the texts that
            :func:`boxsup_d2.checkpoint.convert.write_checkpoint` keeps beside the tensors are put back.
        allow_code: unpickle all of it, which can run any code.
        mmap: map tensors into memory, where torch can, for those who want their names long before their numbers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, no checkpoint, or holds more than tensors and arrays without ``allow_code``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file '{path}'")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                texts = file.metadata() or {}
            return {**texts, "model": safetensors.torch.load_file(path)}
        if _is_torch_file(path):
            mmap = mmap and zipfile.is_zipfile(path)
            return torch.load(str(path), map_location="cpu", weights_only=not allow_code, mmap=mmap)
        with open(path, "rb") as opened:
            # latin1: for arrays that Python 2 wrote.
            return (pickle.Unpickler if allow_code else _ArrayUnpickler)(opened, encoding="latin1").load()
    except (ImportError, AttributeError) as error:  # a pickle names its classes, and fetches them from where they were
        raise ValueError(
            f"'{path}' needs the code that wrote it ({error}): run this again with PYTHONPATH set to that project"
        ) from error
    except Exception as error:  # damaged bytes lead to whatever error
        if isinstance(error, _RefusedError) or _named_by_torch(error):
            raise ValueError(
                f"'{path}' holds more than tensors and arrays, and reading the rest can run code ({reason_of(error)}). "
                f"Get it as .safetensors; or, if you trust its source, 'boxsup convert {path} {ALLOW_CODE} --out "
                "new.safetensors'"
            ) from error
        raise ValueError(
            f"cannot read '{path}' ({reason_of(error)}): it is damaged, or no checkpoint; {_EXPECTED}"
        ) from error


def parameters_of(content: Any) -> tuple[bool, Mapping[str, Any]]:
    """The parameters by name in a checkpoint's content, and whether it is in Detectron2's form.

    Raises:
        ValueError: there are none.
    """
    native = isinstance(content, Mapping) and isinstance(content.get("model"), Mapping | torch.nn.Module)
    state = content["model"] if native else content
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if isinstance(state, torch.nn.Module):
        state = state.state_dict()
    if not isinstance(state, Mapping):
        raise ValueError(f"it holds a {type(state).__name__}; {_EXPECTED}")
    if not state or not all(isinstance(name, str) for name in state):
        raise ValueError(f"it holds {'nothing' if not state else 'names that are no texts'}; {_EXPECTED}")
    return native, state


def _is_torch_file(path: Path) -> bool:
    """Whether ``torch.save`` wrote it: a zip archive, or, before torch 1.6, a pickle that begins with a number."""
    with open(path, "rb") as file:
        head = file.read(64)
    return zipfile.is_zipfile(path) or _TORCH_LEGACY in head


def _named_by_torch(error: Exception) -> re.Match[str] | None:
    return re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None


def reason_of(error: Exception) -> str:
    """An error in a line: torch explains at length, and of interest is only what it stumbled over."""
    refused = _named_by_torch(error)
    if refused:
        return f"it holds a {refused.group(1)}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
