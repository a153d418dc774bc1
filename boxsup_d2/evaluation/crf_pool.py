"""DenseCRF on many images at once: a pool of processes behind a bounded queue.

A CRF takes a second or more per image on one core, several times what a network takes on a GPU. The pool works while
the network goes on, and makes it wait when too many images are under way, so that memory stays bounded.
"""

import contextlib
import ctypes
import multiprocessing
import os
from collections import deque
from collections.abc import Hashable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
from detectron2.utils import comm

from boxsup_d2.pseudo_masks.refine import CRFParams, dense_crf


def refine_label_map(image: np.ndarray, prob: np.ndarray, params: CRFParams) -> np.ndarray:
    """Label map of the refined probabilities of one image: H x W uint8 of H x W x 3 uint8 and C x H x W float32.

    Raises:
        ValueError: the sizes differ, or ``prob`` are no probabilities.
    """
    total = prob.sum(axis=0)
    if prob.size and (prob.min() < 0 or abs(float(total.min()) - 1) > 0.01 or abs(float(total.max()) - 1) > 0.01):
        raise ValueError(
            "DenseCRF needs probabilities that sum to 1 over the classes, and the model gave other scores: set "
            "TEST.SEM_SEG_CRF to '' for this model."
        )
    return dense_crf(image, prob, params).numpy().argmax(axis=0).astype(np.uint8)


class CRFPool:
    """Refines the probabilities of images in worker processes; the results come back in the order of the images.

    Use as a context manager, or call :meth:`close`.
    """

    def __init__(self, params: CRFParams, workers: int = 0, max_pending: int = 0) -> None:
        """
        Args:
            params: kernels.
            workers: processes; 0: this process's share of the machine's cores.
            max_pending: images under way at most, each with its probabilities in memory; 0: two per worker.
        """
        self._params = params
        self.workers = workers or default_workers()
        self._max_pending = max_pending or 2 * self.workers
        self._pool = ProcessPoolExecutor(self.workers, mp_context=_context(), initializer=_keep_freed_memory)
        self._pending: deque[tuple[Hashable, Future]] = deque()

    def submit(self, key: Hashable, image: np.ndarray, prob: np.ndarray) -> list[tuple[Hashable, np.ndarray]]:
        """Hand over an image; waits while too many are under way.

        Args:
            key: returned with the result; names the image in errors.
            image: H x W x 3 uint8.
            prob: C x H x W float32.

        Returns:
            (key, H x W uint8 label map) of images that became ready meanwhile.

        Raises:
            ValueError: an image cannot be refined; named.
            RuntimeError: a worker process died.
        """
        try:
            self._pending.append((key, self._pool.submit(refine_label_map, image, prob, self._params)))
        except BrokenProcessPool as error:
            raise _died() from error
        ready = []
        while self._pending and (len(self._pending) >= self._max_pending or self._pending[0][1].done()):
            ready.append(self._oldest())
        return ready

    def drain(self) -> Iterator[tuple[Hashable, np.ndarray]]:
        """The results of all images that are still under way; errors as :meth:`submit`."""
        while self._pending:
            yield self._oldest()

    def close(self) -> None:
        """Stop the workers; what is still under way is dropped."""
        self._pending.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "CRFPool":
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def _oldest(self) -> tuple[Hashable, np.ndarray]:
        key, future = self._pending.popleft()
        try:
            return key, future.result()
        except BrokenProcessPool as error:
            raise _died() from error
        except ValueError as error:
            raise ValueError(f"'{key}': {error}") from error


def _context() -> Any:
    """Workers are not copies of this process, which may hold a GPU and running threads, but of a bare server's.

    The server imports this module, torch with it, once for all workers.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _keep_freed_memory() -> None:
    """Let a worker's allocator reuse what it freed instead of handing it back to the system.

    A CRF allocates some ten arrays of the probabilities' size in every iteration; pages that come anew from the system
    are zeroed each time, which takes a seventh of its time. Only glibc has the switch; elsewhere nothing happens.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of <malloc.h>
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)  # no block of its own for a large array
        mallopt(trim_threshold, -1)  # never shrink the heap


def default_workers() -> int:
    """Cores that this process may use, shared with the other ranks of the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores // comm.get_local_size(), 1)


def _died() -> RuntimeError:
    return RuntimeError(
        "a DenseCRF worker process died, most likely for want of memory: each image under way takes four bytes per "
        "pixel and class several times over. Free some memory, or set TEST.SEM_SEG_CRF to ''."
    )
