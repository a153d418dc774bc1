"""What is wrong with a file, collected: all kinds with counts and first examples, instead of the first thing only."""

import reprlib
from collections import defaultdict
from typing import Any

# First examples that a summary of problems shows of each kind, and characters of each.
_MAX_EXAMPLES = 3
_MAX_EXAMPLE_LENGTH = 120
_brief = reprlib.Repr()
_brief.maxlevel, _brief.maxdict, _brief.maxstring, _brief.maxother = 2, 6, 60, 60


class Problems:
    """Collects what is wrong with a file, to report all of it at once instead of the first thing only."""

    def __init__(self) -> None:
        self._examples: dict[str, list[str]] = defaultdict(list)
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, kind: str, example: Any) -> None:
        """Note one more problem of a kind, e.g. ``add("without an id", annotation)``."""
        self._counts[kind] += 1
        if len(self._examples[kind]) < _MAX_EXAMPLES:
            self._examples[kind].append(_shown(example))

    def kinds(self) -> list[tuple[str, int, list[str]]]:
        """Every kind, in the order of their first examples, with its count and its first examples: for tables."""
        return [(kind, count, list(self._examples[kind])) for kind, count in self._counts.items()]

    def __len__(self) -> int:
        return sum(self._counts.values())

    def __str__(self) -> str:
        return "; ".join(
            f"{count} {kind} (e.g. {', '.join(self._examples[kind])})" for kind, count in self._counts.items()
        )

    def raise_if_any(self, path: str, fix: str) -> None:
        """
        Raises:
            ValueError: there is a problem; names the file, every kind with its count and first examples, and the fix.
        """
        if len(self):
            raise ValueError(f"'{path}' cannot be used: {self}. {fix}")


def brief(value: Any) -> str:
    """A value of a json for a message: of nested ones the outside, however deep and long they are."""
    return _brief.repr(value)


def _shown(example: Any) -> str:
    # One line that any terminal takes: it comes out of a file that is damaged somehow.
    text = example if isinstance(example, str) else brief(example)
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:_MAX_EXAMPLE_LENGTH])
