"""``boxsup convert``: published checkpoints as files that can run no code."""

import argparse
import os
from pathlib import Path

from boxsup_cli.arguments import Commands, Existing, TellAndEnd
from boxsup_cli.errors import BadInput, bad_input

_EPILOG = """
examples:
  $ boxsup convert published.pth --out boxcaseg.safetensors
  a pickle that holds more than tensors, if you trust where it comes from:
    $ boxsup convert published.pth --out boxcaseg.safetensors --allow-code

It knows Detectron2's own form and those that --forms lists, as .pth, .pkl or .safetensors, alone or beside optimizer
and schedule.

Other commands and train_net.py read these forms as they are, so long as they hold no code; a converted file holds
parameters alone: it is smaller.
"""


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the subcommand; returns its parser."""
    parser = commands.add_parser(
        "convert",
        help="published checkpoints as files for MODEL.WEIGHTS",
        description="Convert a published checkpoint into one that MODEL.WEIGHTS can name.",
        epilog=_EPILOG,
    )
    parser.add_argument("checkpoint", action=Existing, metavar="CKPT", help="a published checkpoint, .pth or .pkl")
    parser.add_argument(
        "--out", required=True, type=os.path.expanduser, metavar="F", help="file to write (.safetensors or .pth)"
    )
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    parser.add_argument("--allow-code", action="store_true", help="let the file run code while it is read")
    parser.add_argument("--forms", action=TellAndEnd, text=_forms, help="list the forms that are known, and end")
    return parser


def _forms() -> str:
    import boxsup_d2  # noqa: F401 - registers the forms, which methods know
    from boxsup_d2.checkpoint.formats import known_formats

    return "".join(f"{known.name}\n" for known in known_formats())


def run(args: argparse.Namespace) -> None:
    """Convert.

    Raises:
        BadInput: there is no such checkpoint, it is of no known kind, or the file to write is there already.
        OSError: it cannot be read or written.
    """
    if not os.path.isfile(args.checkpoint):
        raise BadInput(f"There is no file '{args.checkpoint}'.")
    from boxsup_cli.console import show
    from boxsup_d2.checkpoint.convert import convert_checkpoint

    if os.path.exists(args.out) and not args.force:
        raise BadInput(f"'{args.out}' is there already: replace it with --force, or name another file.")
    with bad_input((ValueError,)):
        done = convert_checkpoint(Path(args.checkpoint), Path(args.out), allow_code=args.allow_code, force=args.force)
    show(str(done))
