"""The files that ``boxsup train`` writes for a :class:`~boxsup_cli.train_config.Plan`: those that were edited stay."""

import hashlib
import os
from typing import Any

from boxsup_cli.errors import BadInput
from boxsup_cli.train_config import Plan
from boxsup_d2.data.formats.coco import read_json
from boxsup_d2.utils.files import atomic_write, strict_json

_RECORD = "written.json"


def write_configs(folder: str, plan: Plan, *, force: bool) -> str:
    """Write the configs, unless the same request has written them before.

    Then edits of the user stay, and so does what another version of the package wrote; lost files come back.

    Args:
        folder: to write to.
        plan: the training.
        force: replace edited files.

    Returns:
        Path of the rounds config.

    Raises:
        BadInput: a file was edited, and another request wants to replace it.
    """
    record_path = os.path.join(folder, _RECORD)
    record: dict[str, Any] = {}
    if os.path.isfile(record_path):
        fix = "Put back a good copy, or move its folder aside."
        record = read_json(record_path, "request", damaged=fix)
        if not isinstance(record, dict) or not isinstance(record.get("files", {}), dict):
            raise ValueError(f"'{record_path}' is damaged: it holds no request and files. {fix}")
    same, texts, written = record.get("request") == plan.request, plan.files, record.get("files", {})
    if same and not force:
        texts = {name: text for name, text in texts.items() if not os.path.isfile(os.path.join(folder, name))}
    elif not force:
        found = {name: _digest_of(os.path.join(folder, name)) for name in written}
        edited = [name for name, digest in found.items() if digest not in ("", written[name])]
        if edited:
            raise BadInput(
                f"{', '.join(edited)} in '{folder}' was edited, and another command than this one wrote it. Run that "
                "again to use the edited files, or add --force to replace them, or name another --out."
            )
    if texts:
        for name, text in texts.items():
            with atomic_write(os.path.join(folder, name)) as file:
                file.write(text)
        files = {**(written if same else {}), **{name: _digest(text) for name, text in texts.items()}}
        with atomic_write(record_path) as file:
            file.write(strict_json({"request": plan.request, "files": files}, indent=1))
    return os.path.join(folder, next(iter(plan.files)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _digest_of(path: str) -> str:
    if not os.path.isfile(path):
        return ""
    with open(path, encoding="utf-8") as file:
        return _digest(file.read())
