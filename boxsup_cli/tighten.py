"""``boxsup tighten``: boxes drawn loosely become the tight boxes of their masks."""

import argparse
import os

from boxsup_cli.arguments import Commands, Existing
from boxsup_cli.errors import BadInput, bad_input

_EPILOG = """
example:
  $ boxsup tighten masks.json --out tight.json

Annotations with a mask get its tight box; the box that they had is kept as 'loose_bbox'. Boxes without a mask, empty
masks and crowd regions stay as they are, and so does all else.
"""


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the subcommand; returns its parser."""
    parser = commands.add_parser(
        "tighten",
        help="loose boxes to the tight boxes of their masks",
        description="Replace the boxes of a COCO json by the tight boxes of their masks.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "masks", action=Existing, metavar="MASKS.json", help="json with masks, such as 'boxsup label' writes"
    )
    parser.add_argument(
        "--out", default="tight.json", type=os.path.expanduser, metavar="F", help="json to write (default: %(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    return parser


def run(args: argparse.Namespace) -> None:
    """Tighten.

    Raises:
        BadInput: the json is missing or damaged, or the output is there.
        OSError: the output cannot be written.
    """
    if os.path.exists(args.out) and os.path.exists(args.masks) and os.path.samefile(args.out, args.masks):
        raise BadInput(f"--out is the json itself, '{args.out}': name another file.")
    if os.path.exists(args.out) and not args.force:
        raise BadInput(f"'{args.out}' is there already: replace it by --force, or name another --out.")
    from boxsup_cli.console import show
    from boxsup_d2.data.formats.coco import read_coco_json, with_tight_boxes
    from boxsup_d2.masks.rle import has_mask
    from boxsup_d2.utils.files import atomic_write, strict_json

    with bad_input():
        data = read_coco_json(args.masks, args.masks, "Correct the path.")
        tight, changed = with_tight_boxes(data, args.masks)
    if not any(has_mask(annotation.get("segmentation")) for annotation in data["annotations"]):
        raise BadInput(f"'{args.masks}' holds {len(data['annotations'])} boxes and no mask to fit them to.")
    with atomic_write(args.out) as file:
        file.write(strict_json(tight))
    show(f"{changed} of {len(data['annotations'])} boxes changed -> '{args.out}'")
