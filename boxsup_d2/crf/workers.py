"""Processes that compute DenseCRFs. Threads would not do: a CRF holds Python's lock for a second and more."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from multiprocessing.context import BaseContext

from detectron2.utils import comm

from boxsup_d2.utils.processes import usable_cores


def start_workers(count: int) -> ProcessPoolExecutor:
    """Processes for functions of :mod:`boxsup_d2.crf.refine`.

    They end with the last reference to them, and with this process, even if it is killed.
    """
    return ProcessPoolExecutor(count, mp_context=_context(), initializer=_prepare_worker)


def default_workers() -> int:
    """Cores that this process may use, shared with the other ranks of the machine."""
    return max(usable_cores() // comm.get_local_size(), 1)


@contextlib.contextmanager
def explain_dead_worker(switch: str) -> Iterator[None]:
    """Turn a ``BrokenProcessPool`` into a RuntimeError that says what to do.

    Args:
        switch: how to do without a CRF.
    """
    try:
        yield
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a DenseCRF worker process died. If there is no error above, it most likely ran out of memory: each image "
            f"takes several times four bytes per pixel and class. Free some memory, or {switch}. A script must be a "
            "file and do its work under `if __name__ == '__main__':`, since every worker imports it."
        ) from error


def _context() -> BaseContext:
    """Workers are not forked from this process, which may use a GPU and threads, but from a bare server.

    The server imports the package, and torch with it, once for all workers.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    # Deaf to Ctrl-C, as its workers are: what it imports takes seconds, and would end in a traceback.
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
    return context


def _prepare_worker() -> None:
    """End with the parent process, leave Ctrl-C to it, and keep freed memory.

    A worker holds both ends of the queue on which it waits for work, so it does not notice when the parent is killed.

    A CRF allocates some ten arrays of the probabilities' size in every iteration. To give them back to the system and
    get them zeroed again takes a seventh of the time. Only glibc has the switch; elsewhere nothing happens.
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
