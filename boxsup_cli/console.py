"""What the terminal shows: results, messages, tables of problems, and part of the log."""

import contextlib
import logging
import os
import time
import warnings
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from boxsup_d2.data.formats.problems import Problems
from boxsup_d2.utils.progress import console

# Results go to the first, so that they can be piped; messages to the second.
output, errors = Console(), console

# Loggers that are listened to, and those whose information is shown: the steps. The log file has everything.
_LOGGERS = ("boxsup_d2", "detectron2", "fvcore")
_SHOWN = ("boxsup_d2.rounds.runner",)


def show(text: str, style: str = "") -> None:
    """Print a result; paths are not broken into lines."""
    output.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def tell(text: str, style: str = "") -> None:
    """Print a message."""
    errors.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def short(path: str) -> str:
    """A path below the working folder as relative, any other as it is."""
    relative = os.path.relpath(path)
    return path if relative.startswith(os.pardir) else relative


class _LogLines(logging.Handler):
    """Shows warnings and steps."""

    def __init__(self, hidden: tuple[str, ...]) -> None:
        super().__init__()
        self._hidden = hidden

    def emit(self, record: logging.LogRecord) -> None:
        # The summary of the command says what the rounds' own table does.
        shown = record.name in _SHOWN and not record.msg.startswith("Rounds in")
        if record.name not in self._hidden and (shown or record.levelno >= logging.WARNING):
            tell(f"{time.strftime('%H:%M:%S')} {record.getMessage().strip()}")


def problems_table(path: str, problems: Iterable["Problems"], notes: Iterable["Problems"]) -> Table:
    """What an inspection found: kind, count and first examples. Notes, which stop nothing, come last."""
    table = Table(title=Text(f"What was found in {path}"), title_justify="left")
    table.add_column("what")
    table.add_column("how often", justify="right")
    table.add_column("for example", overflow="fold")
    rows = [(kind, "") for found in problems for kind in found.kinds()]
    rows += [(kind, "dim") for found in notes for kind in found.kinds()]
    for (kind, count, examples), style in rows:
        what = f"note: {kind}" if style else kind
        table.add_row(Text(what), str(count), Text("\n".join(examples)), style=style)
    return table


def quiet_libraries() -> None:
    """Let nobody but this package warn in this process: whoever runs a command can change nothing about libraries."""
    warnings.filterwarnings("ignore", module=r"(?!boxsup)")


@contextlib.contextmanager
def quiet_setup(*, new_networks: bool) -> Iterator[None]:
    """Keep the log of Detectron2's set-up out of the terminal, and show a part of it (:data:`_SHOWN`) from then on.

    Detectron2 gives its loggers a handler on the standard output of the moment: within this block that is nothing.
    Log files are not touched.

    Args:
        new_networks: networks start from weights of another task, so that missing heads are not worth a warning.
    """
    for name in _LOGGERS:
        for former in [known for known in logging.getLogger(name).handlers if isinstance(known, _LogLines)]:
            logging.getLogger(name).removeHandler(former)  # of a run before in this process
    sink = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - the loggers' handlers keep it
    with contextlib.redirect_stdout(sink):
        yield
    quiet_libraries()
    handler = _LogLines(("fvcore.common.checkpoint",) if new_networks else ())
    for name in _LOGGERS:
        logging.getLogger(name).addHandler(handler)
