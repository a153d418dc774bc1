"""Processes that compute DenseCRFs, which take a second per image and core and hold Python's lock all the while."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from detectron2.utils import comm

from boxsup_d2.utils.processes import usable_cores


def start_workers(count: int) -> ProcessPoolExecutor:
    """Processes for functions of :mod:`boxsup_d2.crf.refine`.

    They end with the last reference to them, and with this process, however it ends.
    """
    return ProcessPoolExecutor(count, mp_context=_context(), initializer=_prepare_worker)


def default_workers() -> int:
    """Cores that this process may use, shared with the other ranks of the machine."""
    return max(usable_cores() // comm.get_local_size(), 1)


def worker_died(switch: str) -> RuntimeError:
    """The error to raise for a ``BrokenProcessPool``.

    Args:
        switch: how to do without a CRF.
    """
    return RuntimeError(
        "a DenseCRF worker process died. If it left no error above, then most likely for want of memory: each image "
        f"under way takes four bytes per pixel and class several times over. Free some memory, or {switch}. A script "
        "must stand in a file and do its work under `if __name__ == '__main__':`, since every worker imports it."
    )


def _context() -> Any:
    """Workers are not copies of this process, which may hold a GPU and running threads, but of a bare server's.

    The server imports the package, torch with it, once for all workers.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _prepare_worker() -> None:
    """End with the process that waits for the results, leave Ctrl-C to it, and let the allocator reuse what was freed.

    A worker waits for work on a queue whose other end it holds as well, so it would never learn that its process was
    killed: by a scheduler, for want of memory, or as a rank of a run in which another one failed.

    A CRF allocates some ten arrays of the probabilities' size in every iteration. Handed back to the system each time,
    their pages come back to be zeroed, which takes a seventh of the time. Only glibc has the switch; elsewhere nothing
    happens.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of <malloc.h>
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)  # no block of its own for a large array
        mallopt(trim_threshold, -1)  # never shrink the heap


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
