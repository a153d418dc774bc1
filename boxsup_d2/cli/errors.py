"""Errors as the command line tells them: one line, and an exit code that says whose turn it is."""

import contextlib
import re
from collections.abc import Iterator

# Exit codes, beside 0.
FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130

# What the package raises for things that can be wrong outside of it, with messages that say what to do.
EXPECTED = (ValueError, OSError, RuntimeError, ImportError)

# The last line of a traceback: it is not indented and names the error.
_RAISED = re.compile(r"^(?:[\w.]+\.)?(\w+(?:Error|Exception|Exit)): (.*)", re.MULTILINE | re.DOTALL)


class BadInput(Exception):
    """The command or the data cannot be used as they are: nothing was done, and the message says what to change."""


@contextlib.contextmanager
def bad_input() -> Iterator[None]:
    """Errors of the block are errors of the input: :class:`BadInput` with the same message."""
    try:
        yield
    except EXPECTED as error:
        raise BadInput(message_of(error)) from error


def message_of(error: BaseException) -> str:
    """What to tell about an error; of one in another process, what was raised there, without its traceback."""
    text = str(error).strip()
    if type(error).__name__ == "ProcessRaisedException":
        raised = text
        while found := _RAISED.search(raised):  # errors that led to others come first
            text, raised = found[2].strip(), found[2]
    return text or type(error).__name__
