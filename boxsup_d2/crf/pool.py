"""DenseCRF on many images at once: a pool of processes behind a bounded queue.

A CRF takes a second or more per image on one core, several times what a network takes on a GPU. The pool works while
the network goes on, and makes it wait when too many images are under way, so that memory stays bounded.
"""

from collections import deque
from collections.abc import Hashable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from boxsup_d2.crf.refine import CRFParams, dense_crf
from boxsup_d2.crf.workers import default_workers, start_workers, worker_died

_SWITCH = "set TEST.SEM_SEG_CRF to ''"


def refine_label_map(image: np.ndarray, prob: np.ndarray, params: CRFParams) -> np.ndarray:
    """Label map of the refined probabilities of one image: H x W uint8 of H x W x 3 uint8 and C x H x W float32.

    Raises:
        ValueError: the sizes differ, or ``prob`` are no probabilities.
    """
    total = prob.sum(axis=0)
    if prob.size and (prob.min() < 0 or abs(float(total.min()) - 1) > 0.01 or abs(float(total.max()) - 1) > 0.01):
        raise ValueError(
            "DenseCRF needs probabilities that sum to 1 over the classes, and the model gave other scores: "
            f"{_SWITCH} for this model."
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
        self._pool = start_workers(self.workers)
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
            raise worker_died(_SWITCH) from error
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
            raise worker_died(_SWITCH) from error
        except ValueError as error:
            raise ValueError(f"'{key}': {error}") from error
