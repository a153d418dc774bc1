"""Files that are whole or not there, and what is in them as a hash."""

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

__all__ = ["atomic_write", "explain_unwritable", "file_sha256", "json_sha256", "seen_from", "strict_json"]

# What a system says of a folder that cannot be written to, or is none.
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def file_sha256(path: str) -> str:
    """sha256 of a file as hex digits, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def json_sha256(value: Any) -> str:
    """sha256 of a value that json can hold, whatever the order of its keys, as hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def seen_from(file: str, path: str) -> str:
    """A path as it is from a file's folder, for files that are given away, or moved together with what they name.

    Args:
        file: that says the path.
        path: where it is not absolute, it stays.
    """
    if not os.path.isabs(path):
        return path
    # Links are followed, as whoever goes up from the file's folder does.
    return os.path.relpath(os.path.realpath(path), os.path.realpath(os.path.dirname(file)))


def strict_json(value: Any, **options: Any) -> str:
    """A value as the text of a json that every reader takes: NaN and infinities, of which json knows none, are null.

    Args:
        value: of dicts, lists and plain values.
        options: of ``json.dumps``.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], hint: str = "", *, binary: bool = False) -> Iterator[IO[Any]]:
    """A file that takes its name only when it is complete and on the disk.

    It is written under a temporary name in the same folder, which a failure removes. What a killed process leaves
    under that name is overwritten by the next one.

    Args:
        path: final name; its folder is made.
        hint: appended to the message where the disk is full.
        binary: bytes are written; else text in UTF-8.

    Raises:
        OSError: the disk is full (the message names the file, the space that is left and ``hint``), or the folder may
            not be written to, or the file cannot be written for another reason.
    """
    path = os.path.abspath(path)
    folder, base = os.path.split(path)
    with explain_unwritable(path, hint):
        os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{base}.tmp")
    try:
        with (
            explain_unwritable(path, hint),
            open(temporary, "wb" if binary else "w", encoding=None if binary else "utf-8") as file,
        ):
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # it may not have been made
            os.unlink(temporary)
        raise
    _sync_folder(folder)


@contextlib.contextmanager
def explain_unwritable(path: str, hint: str = "") -> Iterator[None]:
    """Say which file cannot be written and what to do, where a disk is full or a folder may not be written to.

    Args:
        path: as the user knows it, whatever temporary file or folder beside it is refused.
        hint: appended to the message where the disk is full.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error.__cause__, OSError):  # explained already, of a file inside
            raise
        whole = Path(os.path.abspath(path))
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(next((p for p in whole.parents if p.is_dir()), Path.cwd())).free
            reason = (
                f"the disk is full or a quota is reached ({free / 1e6:.0f} MB free). Free some space and run the same "
                f"command again. {hint}"
            )
        elif error.errno in _REFUSED and _belongs_to(error.filename, whole):
            reason = f"{os.strerror(error.errno).lower()} ('{error.filename}'). Write to another folder."
        else:
            raise
        raise OSError(error.errno, f"Cannot write '{path}': {reason}".rstrip()) from error


def _belongs_to(name: Any, path: Path) -> bool:
    """Whether a name is that of a folder of the path, or of what is written beside it until it is complete."""
    if not isinstance(name, str):
        return False
    refused, folder = Path(os.path.abspath(name)), path.parent
    if refused == folder or refused in folder.parents:
        return True
    return folder in refused.parents and refused.relative_to(folder).parts[0].lstrip(".").startswith(path.stem)


def _sync_folder(folder: str) -> None:
    # Makes the new name survive a power failure; not every file system lets a folder be opened.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
