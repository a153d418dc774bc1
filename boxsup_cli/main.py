"""The parser of ``boxsup``, and its exit codes."""

import argparse
import difflib
import sys
from collections.abc import Sequence
from typing import NoReturn

from boxsup_cli import convert, evaluate, export, label, models, predict, report, serve, tighten, train
from boxsup_cli.arguments import TellAndEnd, run_command
from boxsup_cli.errors import BAD_INPUT, exit_code_of

_EPILOG = """
from boxes to masks, and to a network of your own:
  $ boxsup label --json boxes.json --images photos --out masks.json         masks by a network that ships
  $ boxsup report masks.json --images photos                                a page to look at them
  $ boxsup train --json boxes.json --images photos --salient DUTS --out my  a network from your boxes
  $ boxsup predict my photos --overlays drawn                               objects in images without boxes
  $ boxsup eval masks.json truth.json                                       where you have true masks

'boxsup COMMAND --help' explains a command and what its options cost. An interrupted command resumes when it is run
again. Exit codes: 0 done, 1 the work failed, 2 bad usage or bad input (nothing was done), 130 interrupted.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser with all subcommands; every one sets ``run``, a function of the parsed arguments."""
    parser = argparse.ArgumentParser(
        prog="boxsup",
        description="Masks from bounding boxes, and networks that learn from boxes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=TellAndEnd, text=_version, help="show the version and end")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    for module in (label, train, predict, evaluate, report, tighten, serve, models, export, convert):
        command = module.add_parser(commands)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(run=module.run, parser=command)
    return parser


def _version() -> str:
    from boxsup_d2.version import __version__

    return f"boxsup_d2 {__version__}\n"


def _refuse(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> NoReturn:
    """End as argparse does, but with the usage of the subcommand, and what may have been meant."""
    options = [option for action in parser._actions for option in action.option_strings]
    near = difflib.get_close_matches(unknown[0].split("=")[0], options, n=1, cutoff=0.7)
    hint = f". Did you mean {near[0]}?" if near else ""
    parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: words after ``boxsup``; default those of this process.

    Returns:
        the exit code. Bad usage ends in ``SystemExit(2)``, as argparse has it.
    """
    parser = build_parser()
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        _refuse(getattr(args, "parser", parser), unknown)
    if not hasattr(args, "run"):
        parser.print_help(sys.stderr)
        return BAD_INPUT
    return exit_code_of("boxsup", lambda: run_command(args), debug=args.debug)
