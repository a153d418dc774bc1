"""``boxsup export``: a trained network as a file that runs without Detectron2."""

import argparse
import os

from boxsup_cli.arguments import Commands, Existing, add_opts_argument
from boxsup_cli.errors import BadInput, bad_input

_EPILOG = """
examples:
  the network that ships, and one that 'boxsup train' trained, from the windows around boxes to masks:
    $ boxsup export boxmask boxmask.onnx --image photo.jpg
    $ boxsup export my/boxmask boxmask.pt --image photo.jpg
  a Mask R-CNN, from images to objects, as TorchScript:
    $ boxsup export my/mask-rcnn mask-rcnn.pt --image photo.jpg

The file is written only if its outputs on the image are those of the network, with windows and images of other numbers
and shapes than it was made with. docs/python_api.md has the lines that run it. Needs the extra 'onnx' for .onnx.
"""


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the subcommand; returns its parser."""
    parser = commands.add_parser(
        "export",
        help="a trained network as ONNX or TorchScript, which run without Detectron2",
        description="Write a box-to-mask network or a Mask R-CNN as ONNX or TorchScript.",
        epilog=_EPILOG,
    )
    parser.add_argument("model", metavar="MODEL", help="name of a method, folder of a training, checkpoint or config")
    parser.add_argument("out", metavar="OUT", help="file to write, .onnx or .pt")
    parser.add_argument(
        "--image", action=Existing, required=True, metavar="F", help="a photograph such as it will see, for the check"
    )
    parser.add_argument("--weights", metavar="F", help="trained weights; default: those beside the config")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    add_opts_argument(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    """Export.

    Raises:
        BadInput: a file is missing or is there already, or such a network or format cannot be written.
        OSError, RuntimeError, ImportError: see :func:`boxsup_d2.export.export_network`.
    """
    if not os.path.isfile(os.path.expanduser(args.image)):
        raise BadInput(f"--image: there is no file '{args.image}'.")
    if os.path.exists(os.path.expanduser(args.out)) and not args.force:
        raise BadInput(f"'{args.out}' is there already: replace it with --force, or name another file.")
    from boxsup_cli.console import show
    from boxsup_d2.export import export_network

    with bad_input((ValueError, FileNotFoundError)):
        done = export_network(args.model, args.out, args.image, weights=args.weights, opts=args.opts)
    show(done)
