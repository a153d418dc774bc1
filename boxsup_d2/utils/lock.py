"""A lock on an output folder: one run at a time works in it."""

import logging
import os
from typing import TextIO

logger = logging.getLogger(__name__)


def acquire_lock(folder: str, base: str) -> TextIO:
    """Lock a folder for as long as the returned file is open; the system lets go of it however the process ends.

    Args:
        folder: exists already.
        base: name of the lock's file in it.

    Raises:
        RuntimeError: another run holds it.
        OSError: the file cannot be made.
    """
    import fcntl  # absent on Windows, where Detectron2 does not run either

    file = open(os.path.join(folder, base), "a", encoding="utf-8")  # noqa: SIM115 - open files are the lock
    try:
        # lockf and not flock: data loader workers, which outlive a killed run for a while, do not inherit it
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise RuntimeError(f"Another run is at work in {folder}: wait for it or end it.") from error
    except OSError as error:  # some network file systems have no locks
        logger.warning("%s cannot be locked (%s): see to it that only one run uses it.", folder, error)
    return file
