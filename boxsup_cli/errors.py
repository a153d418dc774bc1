"""Errors on the command line: one line, and an exit code."""

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator

# Exit codes, beside 0.
FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130

# What the package raises for mistakes that are not its own; the messages say what to do. Detectron2 raises the last but
# one where a loss is no number.
EXPECTED = (ValueError, OSError, RuntimeError, ImportError, FloatingPointError, MemoryError)


class BadInput(Exception):
    """The command or the data cannot be used: nothing was done, and the message says what to change."""


@contextlib.contextmanager
def bad_input(kinds: tuple[type[Exception], ...] = EXPECTED) -> Iterator[None]:
    """Turn errors of the block into :class:`BadInput` with the same message."""
    try:
        yield
    except kinds as error:
        from boxsup_d2.utils.errors import message_of

        raise BadInput(message_of(error)) from error


def exit_code_of(program: str, work: Callable[[], object], *, debug: bool) -> int:
    """Do the work of a program, and tell what stops it in one line on standard error.

    Args:
        program: its name, for the line.
        work: called without arguments.
        debug: raise errors, with their traceback, instead.

    Returns:
        0, :data:`FAILED`, :data:`BAD_INPUT` or :data:`INTERRUPTED`.
    """
    try:
        work()
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():  # or the interpreter would wait for them
            process.terminate()
        _tell("Interrupted. Run the same command again to go on.")
        return INTERRUPTED
    except Exception as error:
        if debug:
            raise
        if isinstance(error, BadInput):  # for which nothing needs to be imported
            _tell(f"{program}: error: {' '.join(str(error).split())}")
            return BAD_INPUT
        from boxsup_d2.utils.errors import cause_of

        kind, message = cause_of(error)
        message = " ".join(message.split())
        if issubclass(kind, (*EXPECTED, BadInput)):
            _tell(f"{program}: error: {message}")
        else:
            _tell(
                f"{program}: unexpected {kind.__name__}: {message} (a mistake in boxsup_d2: run it again with --debug, "
                "and report what it shows)"
            )
        return BAD_INPUT if issubclass(kind, BadInput) else FAILED
    return 0


def _tell(message: str) -> None:
    from rich.console import Console  # and not boxsup_cli.console, which is slow to import

    Console(stderr=True).print(message, style="bold red", markup=False, highlight=False, soft_wrap=True)
