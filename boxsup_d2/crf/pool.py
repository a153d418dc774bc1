"""DenseCRF of class probabilities on many images at once.

A CRF takes a second or more per image and core, several times what a network takes on a GPU. Worker processes refine
images while the network goes on; it waits when too many are unfinished, so that memory stays bounded.
"""

from collections.abc import Hashable, Iterator

import numpy as np

from boxsup_d2.crf.refine import CRFParams, dense_crf
from boxsup_d2.crf.workers import default_workers, explain_dead_worker, start_workers
from boxsup_d2.utils.ordered_pool import OrderedPool

_SWITCH = "set TEST.SEM_SEG_CRF to ''"


def refine_label_map(image: np.ndarray, prob: np.ndarray, params: CRFParams) -> np.ndarray:
    """Label map of the refined probabilities of one image: H×W uint8 of H×W×3 uint8 and C×H×W float32.

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

    Use it as a context manager, or call :meth:`close`.
    """

    def __init__(self, params: CRFParams, workers: int = 0, max_pending: int = 0) -> None:
        """
        Args:
            params: kernels.
            workers: processes; 0: this process's share of the machine's cores.
            max_pending: unfinished images at most, each with its probabilities in memory; 0: two per worker.
        """
        self._params = params
        self.workers = workers or default_workers()
        self._pool = OrderedPool(start_workers(self.workers), _refine_named, max_pending or 2 * self.workers)

    def submit(self, key: Hashable, image: np.ndarray, prob: np.ndarray) -> list[tuple[Hashable, np.ndarray]]:
        """Hand over an image; waits while too many are unfinished.

        Args:
            key: returned with the result; names the image in errors.
            image: H×W×3 uint8.
            prob: C×H×W float32.

        Returns:
            (key, H×W uint8 label map) of the images that are ready.

        Raises:
            ValueError: an image cannot be refined; named.
            RuntimeError: a worker process died.
        """
        with explain_dead_worker(_SWITCH):
            return self._pool.submit(key, image, prob, self._params)

    def drain(self) -> Iterator[tuple[Hashable, np.ndarray]]:
        """The results of all unfinished images; errors as :meth:`submit`."""
        with explain_dead_worker(_SWITCH):
            yield from self._pool.drain()

    def close(self) -> None:
        """Stop the workers; unfinished images are dropped."""
        self._pool.close()

    def __enter__(self) -> "CRFPool":
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


def _refine_named(key: Hashable, image: np.ndarray, prob: np.ndarray, params: CRFParams) -> tuple[Hashable, np.ndarray]:
    """Runs in the workers."""
    try:
        return key, refine_label_map(image, prob, params)
    except ValueError as error:
        raise ValueError(f"'{key}': {error}") from error
