"""Errors on the command line: one line, and an exit code."""

import contextlib
import re
from collections.abc import Iterator

# Exit codes, beside 0.
FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130

# What the package raises for mistakes that are not its own; the messages say what to do.
EXPECTED = (ValueError, OSError, RuntimeError, ImportError)

# The last line of a traceback: it is not indented and names the error.
_RAISED = re.compile(r"^(?:[\w.]+\.)?(\w+(?:Error|Exception|Exit)): (.*)", re.MULTILINE | re.DOTALL)


class BadInput(Exception):
    """The command or the data cannot be used: nothing was done, and the message says what to change."""


@contextlib.contextmanager
def bad_input() -> Iterator[None]:
    """Turn expected errors of the block into :class:`BadInput` with the same message."""
    try:
        yield
    except EXPECTED as error:
        raise BadInput(message_of(error)) from error


def message_of(error: BaseException) -> str:
    """The message of an error; of one from another process, what was raised there, without its traceback."""
    text = str(error).strip()
    if type(error).__name__ == "ProcessRaisedException":
        raised = text
        while found := _RAISED.search(raised):  # errors that led to others come first
            text, raised = found[2].strip(), found[2]
    return text or type(error).__name__
