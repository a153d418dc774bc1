"""Data sets of the user: the list ``DATASETS.REGISTER`` of a config.

A config that says where its data are can be run by any command, in any number of processes; nothing has to be
registered in Python. The formats themselves are read by the modules beside this one.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from boxsup_d2.data.datasets.coco import register_coco_boxes, register_coco_masks
from boxsup_d2.data.datasets.salient import register_salient

# Fields of an entry of DATASETS.REGISTER that hold paths: where data lie does not decide what comes out of them.
PATH_FIELDS = ("JSON", "IMAGES", "SALIENT_MASKS")
_FIELDS = ("NAME", "MASKS", *PATH_FIELDS)
_MASKS = ("none", "kept")


def register_listed(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Register what ``DATASETS.REGISTER`` lists, and return the names; nothing is opened, and doing it again is safe.

    Args:
        entries: ``{NAME, JSON, IMAGES, MASKS: none|kept}`` or ``{NAME, IMAGES, SALIENT_MASKS}`` each, see
            ``boxsup_d2/config/keys.py``.

    Raises:
        ValueError: an entry lacks a field, has one that there is not, or takes the name of another data set.
    """
    names: list[str] = []
    for entry in entries:
        _check(entry)
        entry = {key: os.path.expandvars(value) if key in PATH_FIELDS else value for key, value in entry.items()}
        name = entry["NAME"]
        if name in names:
            raise ValueError(f"DATASETS.REGISTER has two entries called {name}.")
        if name in DatasetCatalog and not MetadataCatalog.get(name).get("listed_in_config", False):
            raise ValueError(f"DATASETS.REGISTER: there is a data set '{name}' already; choose another NAME.")
        if "SALIENT_MASKS" in entry:
            # Here a relative path counts from the working folder, as all others of a config do.
            folders = (os.path.abspath(os.path.expanduser(entry[key])) for key in ("IMAGES", "SALIENT_MASKS"))
            register_salient(name, *folders)
        else:
            register = register_coco_masks if entry.get("MASKS", "none") == "kept" else register_coco_boxes
            register(name, entry["JSON"], entry["IMAGES"])
        MetadataCatalog.get(name).set(listed_in_config=True)
        names.append(name)
    return names


def _check(entry: Any) -> None:
    where = f"DATASETS.REGISTER, entry {entry!r}"
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where}: an entry has the fields {', '.join(_FIELDS)}.")
    for key, value in entry.items():
        if key not in _FIELDS:
            raise ValueError(f"{where}: there is no field {key}, but {', '.join(_FIELDS)}.")
        if not isinstance(value, str) or not value:
            raise ValueError(f"{where}: {key} must be a text, not {value!r}.")
    if "NAME" not in entry or "IMAGES" not in entry or ("JSON" in entry) == ("SALIENT_MASKS" in entry):
        raise ValueError(
            f"{where}: it needs NAME, IMAGES, and either JSON (boxes, with or without masks) or SALIENT_MASKS (the "
            "folder of the masks of salient images)."
        )
    if "MASKS" in entry and ("SALIENT_MASKS" in entry or entry["MASKS"] not in _MASKS):
        raise ValueError(f"{where}: MASKS says whether masks of a JSON are used: {' or '.join(_MASKS)}.")
