"""``boxsup eval``: masks of one json against the true masks of another."""

import argparse
import json
from typing import Any

_EPILOG = """
examples:
  $ boxsup eval masks.json truth.json
  the IoU of every object, for a spreadsheet; all figures, for a program:
    $ boxsup eval masks.json truth.json --csv objects.csv --json-out figures.json

Objects are matched by annotation id, else by image, class and box. mIoU* is the mean over classes of the mean IoU of
their objects; IoU@50 the share of objects whose IoU is above 0.5; AP ranks masks by 'score' or 'confidence'.
"""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the subcommand; returns its parser."""
    parser = commands.add_parser(
        "eval",
        help="masks against true masks: mIoU*, IoU@k, AP, per class and per object",
        description="Compare the masks of a COCO json with the true masks of another one.",
        epilog=_EPILOG,
    )
    parser.add_argument("predicted", metavar="PRED.json", help="json with masks, such as 'boxsup label' writes")
    parser.add_argument("truth", metavar="TRUTH.json", help="json with true masks, of all or some of the objects")
    parser.add_argument("--csv", metavar="F", help="write the IoU of every object")
    parser.add_argument("--json-out", metavar="F", help="write all figures")
    return parser


def run(args: argparse.Namespace) -> None:
    """Compare, and print.

    Raises:
        FileNotFoundError, ValueError: a json is missing or damaged, or no object of one is in the other.
    """
    from boxsup_d2.evaluation.mask_files import compare_mask_files

    scores = compare_mask_files(args.predicted, args.truth)
    json.dumps(scores)
