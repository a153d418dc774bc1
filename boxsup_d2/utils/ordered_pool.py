"""Work on many items side by side: results in the order of the items, and a bounded number of them in memory."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Generic, ParamSpec, TypeVar

__all__ = ["OrderedPool"]

P = ParamSpec("P")
T = TypeVar("T")


class OrderedPool(Generic[P, T]):
    """Runs one function on many items in an executor. Use it as a context manager, or call :meth:`close`."""

    def __init__(self, executor: Executor, function: Callable[P, T], max_pending: int) -> None:
        """
        Args:
            executor: Threads or processes; the pool ends them.
            function: What is done with each item.
            max_pending: From so many unfinished items on, :meth:`submit` waits for the oldest one.
        """
        self._executor = executor
        self._function = function
        self._max_pending = max_pending
        self._pending: deque[Future[T]] = deque()

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """Hand over an item; returns the results that are ready and whose predecessors are, too.

        Raises:
            Exception: What the function raised on one of those, or the executor.
        """
        self._pending.append(self._executor.submit(self._function, *args, **kwargs))
        ready = []
        while self._pending and (len(self._pending) >= self._max_pending or self._pending[0].done()):
            ready.append(self._pending.popleft().result())
        return ready

    def drain(self) -> Iterator[T]:
        """The results of all items that are not finished yet; errors as :meth:`submit`."""
        while self._pending:
            yield self._pending.popleft().result()

    def close(self) -> None:
        """Drop what has not begun, and end the executor."""
        self._pending.clear()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "OrderedPool[P, T]":
        return self

    def __exit__(self, *args: object) -> None:
        self.close()
