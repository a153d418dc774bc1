"""Errors that come from other processes, as they were raised there: torch hands them on as the text of a traceback."""

import builtins
import sys

__all__ = ["cause_of", "message_of"]

_TRACEBACK = "Traceback (most recent call last):"
_MEMORY = "Most likely memory ran out: use fewer processes (--num-gpus) or loader workers (DATALOADER.NUM_WORKERS 0)."


def cause_of(error: BaseException) -> tuple[type[BaseException], str]:
    """Type and message of an error; of one from a loader's worker or another rank, of what was raised there.

    Unwraps what torch's loaders (``ExceptionWrapper``) and launchers (``ProcessRaisedException``,
    ``ProcessExitedException``) make of errors, also one inside the other.
    """
    kind, text = type(error), str(error).strip()
    if kind.__name__ == "ProcessExitedException":
        return RuntimeError, f"A process of this run died ({text}). {_MEMORY}"
    if _TRACEBACK in text:
        # Errors that led to others come first, and a wrapped one stands inside the message of its wrapper.
        lines = text.rpartition(_TRACEBACK)[2].splitlines()
        while lines and (not lines[0] or lines[0].startswith(" ")):
            del lines[0]
        name, _, text = "\n".join(lines).partition(": ")
        kind, text = _class_named(name.strip()), text.strip() or name.strip()
    if text.startswith("DataLoader worker"):
        text = f"{text}. {_MEMORY}"
    return kind, text or kind.__name__


def message_of(error: BaseException) -> str:
    """The message of :func:`cause_of`."""
    return cause_of(error)[1]


def _class_named(name: str) -> type[BaseException]:
    module, _, base = name.rpartition(".")
    found = getattr(sys.modules.get(module) if module else builtins, base, None)
    return found if isinstance(found, type) and issubclass(found, BaseException) else Exception
