"""``boxsup models``: the box-to-mask methods, and the trained networks that ship with the package."""

import argparse

from boxsup_cli.arguments import Commands

_EPILOG = """
examples:
  $ boxsup models
  $ boxsup label --json boxes.json --images photos --method NAME
"""


def add_parser(commands: Commands) -> argparse.ArgumentParser:
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

    from boxsup_cli.console import output
    from boxsup_d2.methods import DEFAULT_METHOD, methods

    del args
    table = Table(title="methods of boxsup label", title_justify="left")
    for column in ("name", "what it does", "needs", "recipe"):
        table.add_column(column, no_wrap=column in ("name", "recipe"))  # which are there to be typed
    for name, method in methods().items():
        info = method.info
        shown = f"{name} (default)" if name == DEFAULT_METHOD else name
        needs = ["weights that ship"] if info.weights else ["--weights"] if info.weights_key else []
        needs += [f"the extra '{info.extra}'"] if info.extra else []
        table.add_row(shown, info.summary, " and ".join(needs), info.recipe)
    output.print(table)
