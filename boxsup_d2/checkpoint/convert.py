"""Published checkpoints, and others of Detectron2's form, as files that ``MODEL.WEIGHTS`` can name.

:func:`read_checkpoint`, :func:`convert` and :func:`write_checkpoint` are the three steps, :func:`convert_checkpoint`
does them for a file. How published parameters are named is known to :mod:`boxsup_d2.checkpoint.formats`.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from boxsup_d2.checkpoint.checkpointer import recognise, save_atomically
from boxsup_d2.checkpoint.formats import CheckpointFormat, find_format, known_formats
from boxsup_d2.version import __version__

# Follows the form in the "__author__" of what is written, by which a converted file can be told from one of ours.
_CONVERTED_BY = ", converted by boxsup_d2"

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


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dicts, lists, numbers, strings and NumPy arrays, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _SAFE_NAMES:
            raise pickle.UnpicklingError(f"it holds a {module}.{name}")
        return super().find_class(module, name)


def read_checkpoint(path: Path, *, trust: bool) -> Any:
    """Content of a checkpoint file.

    Args:
        path: of a file of ``torch.save`` or ``pickle.dump``, whatever its suffix.
        trust: unpickle all of it, which can run any code.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, no checkpoint, or holds more than tensors and arrays and is not trusted.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file '{path}'")
    try:
        if _is_torch_file(path):
            # Mapped into memory where torch can: names are looked at long before the numbers are needed.
            mmap = zipfile.is_zipfile(path)
            return torch.load(str(path), map_location="cpu", weights_only=not trust, mmap=mmap)
        with open(path, "rb") as file:
            # latin1: for arrays that Python 2 wrote.
            unpickler = pickle.Unpickler if trust else _ArrayUnpickler
            return unpickler(file, encoding="latin1").load()
    except (ImportError, AttributeError) as error:  # a pickle names its classes, and fetches them from where they were
        raise ValueError(
            f"'{path}' needs the code that wrote it ({error}): run this again with PYTHONPATH set to that project"
        ) from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"'{path}' is damaged, or holds more than tensors and arrays, and reading the rest can run code "
            f"({_reason(error)}). If you trust its source, convert it with --trust"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, ArithmeticError, MemoryError) as error:
        raise ValueError(f"cannot read '{path}' ({_reason(error)}): is it complete, and a checkpoint?") from error


def _is_torch_file(path: Path) -> bool:
    """Whether ``torch.save`` wrote it: a zip archive, or, before torch 1.6, a pickle that begins with a number."""
    with open(path, "rb") as file:
        head = file.read(64)
    return zipfile.is_zipfile(path) or _TORCH_LEGACY in head


def _reason(error: Exception) -> str:
    # torch explains at length; of interest is only what it stumbled over.
    refused = re.search(r"GLOBAL (\S+)", str(error))
    if refused:
        return f"it holds a {refused.group(1)}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def convert(content: Any) -> tuple[str, dict[str, Any]]:
    """Parameters of a checkpoint's content, under our names.

    Args:
        content: of :func:`read_checkpoint`; not changed.

    Returns:
        What was recognised, and ``{"model": tensors by name, ...}`` for ``torch.save``.

    Raises:
        ValueError: the form is unknown, or the file holds something else than parameters.
    """
    native, state = _parameters(content)
    model = _tensors(state, extras_allowed=native)
    known = find_format(model)
    if known is None and not (native and model):
        kinds = ", ".join(each.name for each in known_formats())
        raise ValueError(f"unknown form, neither Detectron2's nor one of {kinds}; it holds {_first_names(state)}")
    form = known.name if known is not None else "Detectron2's form"
    converted = recognise({"model": model})
    if native and content.get("matching_heuristics"):
        converted["matching_heuristics"] = True  # the parameters are a backbone's without its prefix
    return form, {**converted, "__author__": f"{form}{_CONVERTED_BY} {__version__}"}


def checkpoint_format(content: Any) -> CheckpointFormat | None:
    """The kind of a checkpoint's content; files that :func:`convert` made of one count as that. None: ours or unknown.

    Args:
        content: of :func:`read_checkpoint`.

    Raises:
        ValueError: there are no parameters in it.
    """
    author = content.get("__author__") if isinstance(content, Mapping) else None
    for known in known_formats():
        if isinstance(author, str) and author.startswith(known.name + _CONVERTED_BY):
            return known
    return find_format({str(name): value for name, value in _parameters(content)[1].items()})


def _parameters(content: Any) -> tuple[bool, Mapping[Any, Any]]:
    """Whether the content is in Detectron2's form, and what it holds by name."""
    native = isinstance(content, Mapping) and isinstance(content.get("model"), Mapping | torch.nn.Module)
    state = content["model"] if native else content
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if isinstance(state, torch.nn.Module):
        state = state.state_dict()
    if not isinstance(state, Mapping) or not state:
        raise ValueError(f"no parameters by name in it, but {'nothing' if not state else f'a {type(state).__name__}'}")
    return native, state


def _tensors(state: Mapping[Any, Any], extras_allowed: bool) -> dict[str, torch.Tensor]:
    """The parameters as tensors on the CPU that share no memory; numbers and texts among them may be left out."""
    tensors = {}
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            tensors[str(name)] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        elif isinstance(value, np.ndarray | np.number) and np.asarray(value).dtype.kind in "fiub":
            tensors[str(name)] = torch.tensor(np.asarray(value))
        elif not (extras_allowed and isinstance(value, str | int | float | None)):
            raise ValueError(
                f"unknown form: '{name}' is no parameter but a {type(value).__name__}; it holds {_first_names(state)}"
            )
    return tensors


def _first_names(state: Mapping[Any, Any]) -> str:
    return ", ".join(map(str, list(state)[:5])) + (f" and {len(state) - 5} more" if len(state) > 5 else "")


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write under a temporary name and move into place.

    Raises:
        OSError: the file cannot be written, a full disk for instance; an older one is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_atomically(content, path)
    except (OSError, RuntimeError) as error:
        raise OSError(f"cannot write '{path}': {_reason(error)}") from error


@dataclass(frozen=True)
class Conversion:
    """What :func:`convert_checkpoint` did.

    Attributes:
        form: what the source was recognised as.
        target: the file that was written.
        tensors: in it.
        parameters: numbers in them, statistics of batch norms left out.
        help: how to use it, where its form needs more than its path; else "".
    """

    form: str
    target: Path
    tensors: int
    parameters: int
    help: str

    def __str__(self) -> str:
        lines = [
            f"{self.form}: {self.tensors} tensors, {self.parameters / 1e6:.2f} M parameters -> {self.target}",
            f"MODEL.WEIGHTS {self.target}",
        ]
        return "\n".join([*lines, self.help] if self.help else lines)


def convert_checkpoint(source: Path, target: Path, *, trust: bool = False, force: bool = False) -> Conversion:
    """Read a checkpoint, convert it and write it.

    Args:
        source: the published file, see :func:`read_checkpoint`.
        target: the file to write, ``*.pth``; folders are made.
        trust: read the source even where that can run the code that it holds.
        force: overwrite the target.

    Raises:
        FileNotFoundError: there is no source.
        FileExistsError: the target is there already.
        ValueError: the target is no ``.pth``, or the source is damaged, unknown or not trusted; names the file.
        OSError: the target cannot be written.
    """
    if target.suffix != ".pth":
        raise ValueError(f"the target '{target}' must end in .pth, by which Detectron2 tells formats apart")
    if target.exists() and not force:
        raise FileExistsError(f"'{target}' is there already: --force overwrites it")
    content = read_checkpoint(source, trust=trust)
    try:
        form, converted = convert(content)
    except ValueError as error:
        raise ValueError(f"'{source}': {error}") from error
    write_checkpoint(converted, target)
    model = converted["model"]
    numbers = sum(value.numel() for name, value in model.items() if not _is_statistic(name))
    return Conversion(
        form, target, len(model), numbers, next((known.help for known in known_formats() if known.name == form), "")
    )


def _is_statistic(name: str) -> bool:
    """Whether this is a buffer of a batch norm, which nobody counts as parameters."""
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))
