"""``boxsup convert``: published checkpoints as files that can run no code."""

import argparse
import os
from pathlib import Path
from typing import Any

from boxsup_d2.checkpoint.formats import known_formats
from boxsup_d2.checkpoint.reading import ALLOW_CODE
from boxsup_d2.cli.errors import BadInput

_EPILOG = """
examples:
  $ boxsup convert published.pth --out boxcaseg.safetensors
  a pickle that holds more than tensors, if you trust where it comes from:
    $ boxsup convert published.pth --out boxcaseg.safetensors --allow-code

It knows Detectron2's own form and those listed below, as .pth, .pkl or .safetensors, alone or beside optimizer and
schedule.

Other commands and train_net.py read these forms as they are, so long as they hold no code; a converted file holds
parameters alone: it is smaller.
"""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the subcommand; returns its parser."""
    parser = commands.add_parser(
        "convert",
        help="published checkpoints as files for MODEL.WEIGHTS",
        description="Convert a published checkpoint into one that MODEL.WEIGHTS can name.",
        epilog=f"{_EPILOG}\nforms:\n" + "\n".join(f"  {known.name}" for known in known_formats()) + "\n",
    )
    parser.add_argument("checkpoint", metavar="CKPT", help="a published checkpoint, .pth or .pkl")
    parser.add_argument("--out", required=True, metavar="F", help="file to write (.safetensors or .pth)")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    parser.add_argument(ALLOW_CODE, action="store_true", help="let the file run code while it is read")
    return parser


def run(args: argparse.Namespace) -> None:
    """Convert.

    Raises:
        BadInput: there is no such checkpoint.
        ValueError, OSError: it is of no known kind, or cannot be read or written.
    """
    if not os.path.isfile(args.checkpoint):
        raise BadInput(f"There is no file '{args.checkpoint}'.")
    from boxsup_d2.checkpoint.convert import convert_checkpoint
    from boxsup_d2.cli.console import show

    done = convert_checkpoint(Path(args.checkpoint), Path(args.out), allow_code=args.allow_code, force=args.force)
    show(str(done))
