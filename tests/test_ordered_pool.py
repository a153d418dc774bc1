"""The pool behind the CRF of label maps and the report: order, bound, errors."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from boxsup_d2.utils.ordered_pool import OrderedPool


def late_when_even(number: int) -> int:
    time.sleep(0.02 * (number % 2 == 0))
    return number


def test_results_come_in_order_and_few_wait():
    seen = []
    with OrderedPool(ThreadPoolExecutor(3), late_when_even, max_pending=4) as pool:
        for number in range(20):
            seen += pool.submit(number)
            assert len(seen) >= number - 2, "at most three are pending after a submit"
        seen += pool.drain()
    assert seen == list(range(20))
    assert list(pool.drain()) == []


def test_errors_reach_the_caller():
    with OrderedPool(ThreadPoolExecutor(1), lambda number: 1 / number, max_pending=1) as pool:
        assert pool.submit(2) == [0.5]
        with pytest.raises(ZeroDivisionError):
            pool.submit(0)
        assert pool.submit(4) == [0.25]


def test_closing_drops_what_has_not_begun():
    started = []
    with OrderedPool(ThreadPoolExecutor(1), lambda number: started.append(number), max_pending=9) as pool:
        release = threading.Event()
        pool._executor.submit(release.wait, 60)  # nothing can begin before the end
        assert pool.submit(1) == []
        (waiting,) = pool._pending
        waiting.add_done_callback(lambda future: release.set())  # cancelled by the end of the block
    assert (started, waiting.cancelled()) == ([], True)
