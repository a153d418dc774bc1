"""The processes of a run: what one of them does for all, and the cores that they share."""

import os
import signal
from collections.abc import Callable
from typing import Any, TypeVar

from detectron2.utils import comm

__all__ = ["hear_interrupts", "run_on_main", "usable_cores"]

T = TypeVar("T")


def run_on_main(function: Callable[[], T], *, share: bool = True) -> T:
    """Run a function on rank 0; every rank returns its result, or raises its error instead of waiting for ever.

    Args:
        function: called on rank 0 alone.
        share: send what it returns to the other ranks, pickled; without it they return None.
    """
    result: Any = None
    failure: Exception | None = None
    if comm.is_main_process():
        try:
            result = function()
        except Exception as error:
            failure = error
    shared, failure = comm.all_gather((result if share else None, failure))[0]
    if failure is not None:
        raise failure
    return shared if share else result


def hear_interrupts() -> None:
    """From now on Ctrl-C raises ``KeyboardInterrupt``, unless the shell lets this process ignore it.

    While the package is imported, the commands and the processes that they start just end.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def usable_cores() -> int:
    """Cores this process may run on, which is fewer than the machine has under taskset or a container's cpuset."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
