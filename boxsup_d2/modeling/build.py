"""Building the network of a config, with errors that say which key is wrong."""

import contextlib
import difflib
import re
from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

_KEY = "MODEL.META_ARCHITECTURE"


def check_architecture(cfg: CfgNode, config_file: str) -> None:
    """
    Raises:
        ValueError: there is no such ``MODEL.META_ARCHITECTURE``; names the file.
    """
    name, known = cfg.MODEL.META_ARCHITECTURE, [name for name, _ in META_ARCH_REGISTRY]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean '{near[0]}'?" if near else f"There are {', '.join(known)}."
        raise ValueError(f"{config_file}: {_KEY} is '{name}', which is not known. {hint}")


@contextlib.contextmanager
def explain_build_errors(cfg: CfgNode, *, only_names: bool = False) -> Iterator[None]:
    """Around ``build_model``: whatever wrong values lead to becomes a ValueError, which names the key if it can.

    ``only_names``: of something else than networks; other errors than an unknown name pass as they are.
    """
    try:
        yield
    except (ValueError, RuntimeError, OSError, ImportError):
        raise
    except Exception as error:
        missing = re.search(r"No object named '(.+)' found in '(.+)' registry", str(error))
        named = missing or (isinstance(error, KeyError) and not only_names)
        name = missing[1] if missing else str(error).strip("'")
        keys = _keys_of(cfg, name) if named else []
        if keys:
            where = f" in Detectron2's registry {missing[2]}" if missing else ""
            message = f"{' or '.join(keys)}: there is no '{name}'{where}."
        elif only_names:
            raise
        else:
            message = f"The network cannot be built ({type(error).__name__}: {error}): correct the values of MODEL."
        raise ValueError(message) from error


def _keys_of(node: CfgNode, wanted: str, prefix: str = "") -> list[str]:
    """Keys whose value this is, or is among."""
    found = []
    for key, value in node.items():
        if isinstance(value, CfgNode):
            found += _keys_of(value, wanted, f"{prefix}{key}.")
        elif value == wanted or (isinstance(value, list | tuple) and wanted in value):
            found.append(prefix + key)
    return found
