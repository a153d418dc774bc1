"""Text tables for logs and for the demo."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from tabulate import tabulate


def format_table(headers: Sequence[str], rows: Iterable[Sequence[Any]], digits: int = 1) -> str:
    """A table that reads well in a terminal and in Markdown.

    Args:
        headers: Column titles; say the unit there.
        rows: Cells; floats are rounded to ``digits``, None and NaN are shown as a dash.
        digits: Decimals of float cells.
    """

    def show(cell: Any) -> str:
        if cell is None or (isinstance(cell, float) and math.isnan(cell)):
            return "-"
        return f"{cell:.{digits}f}" if isinstance(cell, float) else str(cell)

    shown = [[show(cell) for cell in row] for row in rows]
    # All cells are strings by now; columns of numbers stay on the right.
    alignment = ["left"] + ["right"] * (len(headers) - 1)
    return tabulate(shown, headers=list(headers), tablefmt="pipe", colalign=alignment, disable_numparse=True)
