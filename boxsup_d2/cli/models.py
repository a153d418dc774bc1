"""``boxsup models``: the box-to-mask methods, and the trained networks that ship with the package."""

import argparse
from typing import Any

_EPILOG = """
examples:
  $ boxsup models
  $ boxsup label --json boxes.json --images photos --method NAME
"""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the subcommand; returns its parser."""
    return commands.add_parser(
        "models",
        help="the methods for 'boxsup label', and which networks ship with weights",
        description="List the box-to-mask methods, what each needs, and the trained networks that ship.",
        epilog=_EPILOG,
    )


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    from rich.table import Table

    from boxsup_d2.cli.console import output
    from boxsup_d2.methods import DEFAULT_METHOD, methods

    del args
    table = Table(title="methods of boxsup label", title_justify="left")
    for column in ("name", "what it does", "weights", "recipe"):
        table.add_column(column)
    for name, method in methods().items():
        info = method.info
        shown = f"{name} (default)" if name == DEFAULT_METHOD else name
        weights = "ship with boxsup_d2" if info.weights else "needs --weights" if info.weights_key else "has none"
        table.add_row(shown, info.summary, weights, info.recipe)
    output.print(table)
