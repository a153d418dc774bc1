"""What people see: consoles, the progress bar, tables of problems, and the part of the log that concerns them."""

import contextlib
import logging
import os
import time
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from boxsup_d2.data.formats.problems import Problems

# Results go to the first, so that they can be piped; what is said beside them to the second.
output = Console()
errors = Console(stderr=True)

# Loggers whose information is for people: what the steps are doing, and losses with the time left. All of it is in the
# log file.
_TOLD = ("boxsup_d2.rounds.runner", "detectron2.utils.events", "d2.utils.events")


def show(text: str, style: str = "") -> None:
    """A result, as it is: paths are not broken into lines."""
    output.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def tell(text: str, style: str = "") -> None:
    """What is said beside results."""
    errors.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def short(path: str) -> str:
    """A path as people would type it: below the working folder without that."""
    relative = os.path.relpath(path)
    return path if relative.startswith(os.pardir) else relative


class _LogLines(logging.Handler):
    """The part of the log that concerns people: warnings, what the steps are doing, losses and the time left."""

    def __init__(self, hidden: tuple[str, ...]) -> None:
        super().__init__()
        self._hidden = hidden

    def emit(self, record: logging.LogRecord) -> None:
        # The summary of the command says what the rounds' own table does.
        told = record.name in _TOLD and not record.msg.startswith("Rounds in")
        if record.name not in self._hidden and (told or record.levelno >= logging.WARNING):
            tell(f"{time.strftime('%H:%M:%S')} {record.getMessage().strip()}")


class _Rate(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.2f} {task.fields['unit']}s/s" if task.speed else "", style="progress.data.speed")


class ProgressBar:
    """A progress bar with tqdm's interface (:data:`boxsup_d2.labelling.writer.ProgressBar`), drawn by rich."""

    def __init__(self, *, desc: str, total: int, initial: int = 0, unit: str = "image", mininterval: float = 0.5):
        """
        Args:
            desc: what is going on.
            total: units of work.
            initial: units that are done already; they do not count for the rate.
            unit: name of a unit.
            mininterval: seconds between two drawings.
        """
        self.total, self.n = total, initial
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=errors,
            refresh_per_second=1 / mininterval,
        )
        self._task = self._progress.add_task(desc, total=total, completed=initial, unit=unit)
        self._progress.start()

    def update(self, n: int) -> None:
        """Count so many more units."""
        self.n += n
        self._progress.update(self._task, completed=self.n)

    def close(self) -> None:
        """Leave the bar as it is; may be called twice."""
        self._progress.stop()


def problems_table(path: str, problems: Iterable["Problems"], notes: "Problems") -> Table:
    """What an inspection found: kind, count and first examples; notes, which stop nothing, come last."""
    table = Table(title=Text(f"What was found in {path}"), title_justify="left")
    table.add_column("what")
    table.add_column("how often", justify="right")
    table.add_column("for example", overflow="fold")
    rows = [(kind, "") for found in problems for kind in found.kinds()] + [(kind, "dim") for kind in notes.kinds()]
    for (kind, count, examples), style in rows:
        what = f"note: {kind}" if style else kind
        table.add_row(Text(what), str(count), Text("\n".join(examples)), style=style)
    return table


@contextlib.contextmanager
def quiet_setup(*, new_networks: bool) -> Iterator[None]:
    """Keep what Detectron2's set-up logs out of the terminal, and show people what concerns them from then on.

    Detectron2 gives its loggers a handler on the standard output of the moment: within this block that is nothing.
    Log files are not touched.

    Args:
        new_networks: networks start from weights of another task: that their heads are not among these is no news.
    """
    sink = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - the loggers' handlers keep it
    with contextlib.redirect_stdout(sink):
        yield
    handler = _LogLines(("fvcore.common.checkpoint",) if new_networks else ())
    for name in ("boxsup_d2", "detectron2", "fvcore"):
        logging.getLogger(name).addHandler(handler)
