"""Configs out of files and overrides, with errors that name the file, the key and the one that was probably meant."""

import difflib
import logging
import os
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.file_io import PathManager

from boxsup_d2.compat import MAIN_BRANCH_KEYS
from boxsup_d2.config.keys import add_boxsup_config

logger = logging.getLogger(__name__)

_ABSENT = object()
# Keys of names, whose defaults, being empty, do not show it.
_NAMES = ("DATASETS.TRAIN", "DATASETS.TEST", "DATASETS.PSEUDO_MASKS", "PSEUDO_MASKS.DATASETS")


def load_config(config_file: str, opts: Sequence[Any] = ()) -> CfgNode:
    """Read a config: Detectron2's defaults, ours, the file (with its ``_BASE_``), then overrides.

    Args:
        config_file: a yaml file; "" reads none.
        opts: overrides, ``[KEY, VALUE, KEY, VALUE, ...]``; values may be strings, as on a command line.

    Returns:
        the config, not frozen.

    Raises:
        FileNotFoundError: if the file is absent.
        ValueError: if a key does not exist (the nearest one that does is named), or a value has the wrong type.
    """
    cfg = get_cfg()
    add_boxsup_config(cfg)
    if config_file:
        _merge_file(cfg, config_file)
    merge_overrides(cfg, opts)
    return cfg


def _merge_file(cfg: CfgNode, config_file: str) -> None:
    if not PathManager.isfile(config_file):
        raise FileNotFoundError(f"There is no config file {config_file} (working folder: {os.getcwd()}).")
    content = _read_with_bases(cfg, config_file)
    if not isinstance(content, dict):
        raise ValueError(f"{config_file}, or a _BASE_ of it, holds no KEY: VALUE pairs.")
    values = dict(_flat_values(content))
    foreign = _add_foreign_keys(cfg, values)
    problems = (_value_problem(cfg, key, value) for key, value in values.items())
    problem: object = next(filter(None, problems), None)
    if problem is None:
        try:
            cfg.merge_from_file(config_file, allow_unsafe=False)
        except (KeyError, ValueError, AssertionError, AttributeError, TypeError) as error:
            problem = next(filter(None, (_key_problem(cfg, key) for key in values)), error)
        else:
            _drop_foreign_keys(cfg, foreign, config_file)
            return
    raise ValueError(f"{config_file}: {problem}")


def _read_with_bases(cfg: CfgNode, config_file: str) -> Any:
    """What a file and its bases hold together; whatever it is."""
    try:
        # Detectron2's default would run code that a yaml names.
        return cfg.load_yaml_with_base(config_file, allow_unsafe=False)
    except yaml.constructor.ConstructorError as error:
        raise ValueError(f"{config_file}, or a _BASE_ of it, holds more than plain values: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{config_file} is not valid yaml: {error}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{config_file} has a _BASE_ that does not exist: {error.filename}") from error
    except OSError as error:
        raise ValueError(f"{config_file} has a _BASE_ that cannot be read: {error}") from error
    except RecursionError as error:
        raise ValueError(
            f"{config_file} has a _BASE_ that leads back to it or to itself, or is nested too deeply."
        ) from error
    except (AssertionError, AttributeError) as error:
        raise ValueError(f"{config_file}: its _BASE_ is no path, or does not fit it: {error}") from error
    except ValueError as error:  # a path with a null byte, a number of thousands of digits
        raise ValueError(f"{config_file}, or a _BASE_ of it, cannot be read: {error}") from error
    except TypeError:  # an empty file
        return None


def _add_foreign_keys(cfg: CfgNode, keys: Iterable[str]) -> list[str]:
    """Give a config those of a file's keys that only Detectron2's main branch has; returns them."""
    foreign = [key for key in keys if key in MAIN_BRANCH_KEYS and _find(cfg, key) is _ABSENT]
    for key in foreign:
        section, _, name = key.rpartition(".")
        (_find(cfg, section) if section else cfg)[name] = MAIN_BRANCH_KEYS[key]
    return foreign


def _drop_foreign_keys(cfg: CfgNode, keys: Sequence[str], config_file: str) -> None:
    for key in keys:
        if _find(cfg, key) != MAIN_BRANCH_KEYS[key]:
            raise ValueError(
                f"{config_file}: {key} {_find(cfg, key)} is a setting of Detectron2's main branch, which is not "
                "installed here: install it (INSTALL.md), or remove the key."
            )
        section, _, name = key.rpartition(".")
        del (_find(cfg, section) if section else cfg)[name]
    if keys:
        logger.info("%s: left out %s, the defaults of Detectron2's main branch", config_file, ", ".join(keys))


def merge_overrides(cfg: CfgNode, opts: Sequence[Any]) -> None:
    """Change a config by overrides, ``[KEY, VALUE, ...]``; values may be strings, as on a command line.

    Raises:
        ValueError: as :func:`load_config`.
    """
    opts = list(opts)
    for word in opts:
        if isinstance(word, str) and word.startswith("--"):
            raise ValueError(f"{word} comes after the overrides {opts}: options go before the first KEY VALUE pair.")
    if len(opts) % 2:
        raise ValueError(f"Overrides come in pairs KEY VALUE; these are {len(opts)} words: {opts}")
    for key, value in zip(opts[0::2], opts[1::2], strict=True):
        problem = _key_problem(cfg, str(key))
        if problem:
            raise ValueError(f"Overrides: {problem}")
        before = _find(cfg, str(key))
        try:
            cfg.merge_from_list([key, value])
        except (ValueError, AssertionError, TypeError, RecursionError, MemoryError) as error:
            raise ValueError(f"Override {key} {value}: {error}") from error
        now = _find(cfg, str(key))
        problem = _impossible(str(key), now) or ("" if before is None else _type_problem(before, str(key), now))
        if problem:
            raise ValueError(f"Override {key} {value}: {problem}")


def _flat_values(node: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat_values(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _value_problem(cfg: CfgNode, key: str, value: Any) -> str:
    """What is wrong with a value that yacs, which does not look into lists, would take; "" if nothing is."""
    default = _find(cfg, key)
    if default is _ABSENT or default is None:  # an unknown key, or one that an older version of Detectron2 had
        return _impossible(key, value)
    return _impossible(key, value) or _type_problem(default, key, value)


def _type_problem(default: Any, key: str, value: Any) -> str:
    if value is None:
        return f"{key} has no value; by default it is {'a section' if isinstance(default, CfgNode) else repr(default)}."
    if key == "VERSION" and not isinstance(value, int):  # Detectron2 compares it first
        return f"VERSION is {value!r}, which is no number."
    if isinstance(default, list | tuple) and isinstance(value, list | tuple):
        for kind, what in ((str, "texts"), ((int, float), "numbers")):
            known = all(isinstance(item, kind) for item in default) if default else key in _NAMES and kind is str
            if known and not all(isinstance(item, kind) for item in value):
                return f"{key} is {value!r}: it must be made of {what}."
    return ""


def _impossible(key: str, value: Any) -> str:
    """Why no key can have a value: what stumbles over it later would not say which; "" if one can."""
    if isinstance(value, dict | list | tuple):
        items = value.values() if isinstance(value, dict) else value
        return next(filter(None, (_impossible(key, item) for item in items)), "")
    if isinstance(value, int) and abs(value) >= 2**63:
        return f"{key} is {reprlib.repr(value)}: no counter holds so large a number."
    return f"{key} is {reprlib.repr(value)}: it holds a null byte." if isinstance(value, str) and "\0" in value else ""


def _find(cfg: CfgNode, key: str) -> Any:
    node: Any = cfg
    for part in key.split("."):
        node = node.get(part, _ABSENT) if isinstance(node, CfgNode) else _ABSENT
    return node


def _key_problem(cfg: CfgNode, key: str) -> str:
    """Why no value can be given to this key, with the key that was probably meant; "" if one can."""
    node = _find(cfg, key)
    if isinstance(node, CfgNode):
        return f"{key} is a section; give values to its keys, for example {key}.{next(iter(node), '...')}."
    if node is not _ABSENT:
        return ""
    valid = [name for name, _ in _flat_values(cfg)]
    near = _nearest(key.upper(), valid)
    hint = f" Did you mean {near}?" if near else " See boxsup_d2/config/keys.py and detectron2/config/defaults.py."
    return f"there is no config key {key}.{hint}"


def _nearest(key: str, valid: list[str]) -> str:
    """The one of the valid keys that was probably meant by a key in upper case; "" if none is like it."""
    section, _, last = key.rpartition(".")
    # The key but for its first sections or its case; the right name in another section.
    found = [name for name in valid if f".{name}".upper().endswith(f".{key}")]
    found = found or [name for name in valid if name.upper().rpartition(".")[2] == last]
    if found:
        return difflib.get_close_matches(key, found, n=1, cutoff=0)[0]
    leaves = {name.rpartition(".")[2]: name for name in valid if not section or name.startswith(f"{section}.")}
    if leaves:  # one like it in this section
        near = difflib.get_close_matches(last, leaves, n=1)
        near = near or sorted((leaf for leaf in leaves if f"_{last}_" in f"_{leaf}_"), key=len)
        return leaves[near[0]] if near else ""
    return next(iter(difflib.get_close_matches(key, valid, n=1, cutoff=0.75)), "")
