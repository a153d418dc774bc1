"""Shipped configs by name.

A name is a path below ``configs/`` of the repository, such as ``quick/voc-joint.yaml``. Here ``configs`` is a link to
that folder; a built package holds the files themselves.
"""

import difflib
from functools import cache
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from boxsup_d2.config import load_config, use_available_device
from boxsup_d2.methods import load_model, method_config, methods

__all__ = ["config_names", "get", "get_config", "get_config_file"]

_FOLDER = Path(__file__).parent / "configs"


@cache
def config_names() -> tuple[str, ...]:
    """Names of all shipped configs, in alphabetical order; those of ``Base*`` files are inherited from, not run."""
    return tuple(sorted(path.relative_to(_FOLDER).as_posix() for path in _FOLDER.glob("*/*.yaml")))


def get_config_file(name: str) -> str:
    """Path of a shipped config.

    Args:
        name: such as ``quick/voc-joint.yaml``, see :func:`config_names`.

    Raises:
        FileNotFoundError: there is none of this name; names that are near are listed.
    """
    names = config_names()
    if name not in names:
        # The right file in the wrong folder is nearer than another file in the right one.
        stem = name.rsplit("/", 1)[-1].removesuffix(".yaml")
        near = [known for known in names if Path(known).stem == stem]
        near = near or difflib.get_close_matches(name, names, n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else "boxsup_d2.model_zoo.config_names() lists them."
        raise FileNotFoundError(f"No config '{name}' ships with boxsup_d2. {hint}")
    return str(_FOLDER / name)


def get_config(name: str) -> CfgNode:
    """A shipped config, with Detectron2's keys and ours; not frozen.

    Args:
        name: see :func:`get_config_file`.

    Raises:
        FileNotFoundError: as :func:`get_config_file`.
    """
    return load_config(get_config_file(name))


def get(name: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """The network of a shipped config, in evaluation mode.

    Args:
        name: see :func:`get_config_file`.
        trained: with the weights that ship with the package; else it starts as a training of the config would, without
            reading ``MODEL.WEIGHTS``.
        device: "cpu", "cuda"; None: a GPU where there is one.

    Raises:
        FileNotFoundError: as :func:`get_config_file`.
        ValueError: no weights ship for this config.
    """
    cfg = get_config(name)
    if trained:
        shipped = {kind.info.recipe: method for method, kind in methods().items() if kind.info.weights}
        if name not in shipped:
            raise ValueError(f"No weights ship for '{name}', but for {', '.join(sorted(shipped)) or 'no config'}.")
        return load_model(method_config(shipped[name], device=device))
    if device is not None:
        cfg.MODEL.DEVICE = device
    use_available_device(cfg)
    return build_model(cfg).eval()
