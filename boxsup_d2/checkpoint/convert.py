"""Published checkpoints, and others of Detectron2's form, as files that ``MODEL.WEIGHTS`` can name.

:func:`~boxsup_d2.checkpoint.reading.read_checkpoint`, :func:`convert` and :func:`write_checkpoint` are the three steps,
:func:`convert_checkpoint` does them for a file. How published parameters are named is known to
:mod:`boxsup_d2.checkpoint.formats`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from boxsup_d2.checkpoint.checkpointer import recognise, save_atomically
from boxsup_d2.checkpoint.formats import CheckpointFormat, find_format, known_formats
from boxsup_d2.checkpoint.reading import parameters_of, read_checkpoint, reason_of
from boxsup_d2.utils.files import atomic_write
from boxsup_d2.version import __version__

# Follows the form in the "__author__" of what is written, by which a converted file can be told from one of ours.
_CONVERTED_BY = ", converted by boxsup_d2"


def convert(content: Any) -> tuple[str, dict[str, Any]]:
    """Parameters of a checkpoint's content, under our names.

    Args:
        content: of :func:`~boxsup_d2.checkpoint.reading.read_checkpoint`; not changed.

    Returns:
        What was recognised, and ``{"model": tensors by name, ...}`` for ``torch.save``.

    Raises:
        ValueError: the form is unknown, or the file holds something else than parameters.
    """
    native, state = parameters_of(content)
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
        content: of :func:`~boxsup_d2.checkpoint.reading.read_checkpoint`.

    Raises:
        ValueError: there are no parameters in it.
    """
    author = content.get("__author__") if isinstance(content, Mapping) else None
    for known in known_formats():
        if isinstance(author, str) and author.startswith(known.name + _CONVERTED_BY):
            return known
    return find_format({str(name): value for name, value in parameters_of(content)[1].items()})


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
    """Write under a temporary name and move into place; as safetensors or by ``torch.save``, as the suffix says.

    Raises:
        OSError: the file cannot be written, a full disk for instance; an older one is untouched.
    """
    try:
        if path.suffix == ".safetensors":
            texts = {key: str(value) for key, value in content.items() if key != "model"}
            with atomic_write(path, binary=True) as file:
                file.write(safetensors.torch.save(content["model"], metadata=texts))
        else:
            save_atomically(content, path)
    except RuntimeError as error:  # torch's, of whatever the disk says
        raise OSError(f"cannot write '{path}': {reason_of(error)}") from error


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


def convert_checkpoint(source: Path, target: Path, *, allow_code: bool = False, force: bool = False) -> Conversion:
    """Read a checkpoint, convert it and write it.

    Args:
        source: the published file, see :func:`~boxsup_d2.checkpoint.reading.read_checkpoint`.
        target: the file to write, ``*.safetensors`` or ``*.pth``; folders are made.
        allow_code: read the source even where that can run the code that it holds.
        force: overwrite the target.

    Raises:
        FileNotFoundError: there is no source.
        FileExistsError: the target is there already.
        ValueError: the target has another suffix, or the source is damaged, unknown or could run code; names the file.
        OSError: the target cannot be written.
    """
    if target.suffix not in (".safetensors", ".pth"):
        raise ValueError(f"the target '{target}' must end in .safetensors or .pth, by which formats are told apart")
    if target.exists() and not force:
        raise FileExistsError(f"'{target}' is there already: --force overwrites it")
    content = read_checkpoint(source, allow_code=allow_code, mmap=True)
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
