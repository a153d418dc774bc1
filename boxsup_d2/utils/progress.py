"""How far long work is: a bar where standard error is a terminal, and else a line now and then."""

import math
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["ProgressBar", "console", "track"]

T = TypeVar("T")

# Messages go through this one, so that they stand above a bar instead of inside it.
console = Console(stderr=True)

# Seconds between two drawings of a bar.
_REFRESH = 0.25


class ProgressBar:
    """Shows how much of a piece of work is done, from one process; where there are several, rank 0 counts for all.

    It is drawn when it is updated and by no thread: processes that fork meanwhile could inherit a thread's locks.
    """

    def __init__(self, description: str, total: int, *, done: int = 0, unit: str = "image", line_every: float = 60):
        """
        Args:
            description: what is going on.
            total: units of work.
            done: units that are done already; they do not count for the rate.
            unit: name of a unit.
            line_every: seconds between two lines, where there is no terminal.
        """
        self.description, self.total, self.done = description, total, done
        self._unit, self._line_every, self._before = unit, line_every, done
        self._begun = self._shown = time.monotonic()
        self._first = True
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}", style="progress.data.speed"),
                TimeElapsedColumn(),
                console=console,
                auto_refresh=False,
            )
            self._task = self._bar.add_task(description, total=total, completed=done, rate="")
            self._bar.start()
            console.show_cursor()  # rich hides it, and a process that is killed could not bring it back

    def update(self, number: int = 1, description: str | None = None) -> None:
        """Count so many more units.

        Args:
            number: of units, 0 or more.
            description: what is going on from now on; None: the same as before.
        """
        self.done += number
        self.description = self.description if description is None else description
        now = time.monotonic()
        # The first one tells those who wait for long how long it will be.
        told = self._first and number > 0 and (self._bar or self._seconds_left() > self._line_every)
        self._first = self._first and number <= 0
        if not told and now - self._shown < (_REFRESH if self._bar else self._line_every):
            return
        self._shown = now
        if self._bar:
            self._draw()
        else:
            line = f"{self.description}: {self.done} of {self.total} {self._unit}s, {self._rate()}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the bar as it is; may be called twice."""
        if self._bar:
            self._draw()
            self._bar.stop()
            self._bar = None

    def _draw(self) -> None:
        if self._bar:
            self._bar.update(self._task, description=self.description, completed=self.done, rate=self._rate())
            self._bar.refresh()

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self._begun, 1e-9)
        rate = f"{(self.done - self._before) / seconds:.2f} {self._unit}s/s"
        left = self._seconds_left()
        return f"{rate}, {_duration(left)} left" if 0 < left < math.inf else rate

    def _seconds_left(self) -> float:
        """Estimated; infinite where nothing was done yet."""
        seconds, done = time.monotonic() - self._begun, self.done - self._before
        return seconds / done * (self.total - self.done) if done > 0 else math.inf


def _duration(seconds: float) -> str:
    """Seconds in the unit that a person would use."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}" if unit == "h" else f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def track(items: Iterable[T], description: str, total: int, *, unit: str = "image", shown: bool = True) -> Iterator[T]:
    """The same items, with a bar of how many of them were used.

    Args:
        items: anything to iterate over.
        description, total, unit: as of :class:`ProgressBar`.
        shown: without it there is no bar.
    """
    if not shown:
        yield from items
        return
    bar = ProgressBar(description, total, unit=unit)
    try:
        for item in items:
            yield item
            bar.update()
    finally:
        bar.close()
