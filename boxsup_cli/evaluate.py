"""``boxsup eval``: masks of one json against the true masks of another."""

import argparse
import csv
import os
from typing import TYPE_CHECKING

from boxsup_cli.arguments import Commands, Existing
from boxsup_cli.errors import BadInput, bad_input

if TYPE_CHECKING:  # imported when the command runs
    from rich.table import Table

    from boxsup_d2.evaluation.mask_files import MaskFileScores

_EPILOG = """
examples:
  $ boxsup eval masks.json truth.json
  the IoU of every object, for a spreadsheet; all figures, for a program:
    $ boxsup eval masks.json truth.json --csv objects.csv --json-out figures.json

Objects are matched by annotation id, else by class and box; images by file name, else by id. mIoU* is the mean over
classes of the mean IoU of their objects; IoU@50 the share of objects whose IoU is at least 0.5; AP ranks masks by
the first of 'score', 'quality' and 'confidence' that all of them have.
"""


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the subcommand; returns its parser."""
    parser = commands.add_parser(
        "eval",
        help="masks against true masks: mIoU*, IoU@k, AP, per class and per object",
        description="Compare the masks of a COCO json with the true masks of another one.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "predicted", action=Existing, metavar="PRED.json", help="json with masks, such as 'boxsup label' writes"
    )
    parser.add_argument(
        "truth", action=Existing, metavar="TRUTH.json", help="json with true masks, of all or some of the objects"
    )
    parser.add_argument(
        "--rank-by", metavar="FIELD", help="field that ranks masks for AP (default: score, quality or confidence)"
    )
    parser.add_argument("--csv", type=os.path.expanduser, metavar="F", help="write the IoU of every object")
    parser.add_argument("--json-out", type=os.path.expanduser, metavar="F", help="write all figures, in percent")
    return parser


def run(args: argparse.Namespace) -> None:
    """Compare, and print.

    Raises:
        BadInput: a json is missing or damaged, or no object of one is in the other.
        OSError: an output cannot be written.
    """
    inputs = {os.path.realpath(path) for path in (args.predicted, args.truth)}
    for name, path in (("--csv", args.csv), ("--json-out", args.json_out)):
        if path and os.path.realpath(path) in inputs:
            raise BadInput(f"{name} is one of the jsons, '{path}': name another file.")
    if args.csv and args.json_out and os.path.realpath(args.csv) == os.path.realpath(args.json_out):
        raise BadInput(f"--csv and --json-out are one file, '{args.csv}': name two.")
    from boxsup_cli.console import output, show
    from boxsup_d2.evaluation.mask_files import compare_mask_files

    with bad_input():
        scores = compare_mask_files(args.predicted, args.truth, rank_by=args.rank_by)
    output.print(_table(scores))
    if scores.ap:
        figures = ", ".join(f"{name} {100 * value:.1f}" for name, value in scores.ap.items())
        show(f"masks ranked by {scores.ranking}: {figures}")
    for what, count in scores.unmatched.items():
        show(f"not compared: {what}: {count}")
    if args.csv:
        _write_csv(scores, args.csv)
    if args.json_out:
        from boxsup_d2.utils.files import atomic_write, strict_json

        content = {"results": scores.results(), "ranking": scores.ranking, "unmatched": scores.unmatched}
        with atomic_write(args.json_out) as file:
            file.write(strict_json(content, indent=1))


def _table(scores: "MaskFileScores") -> "Table":
    """Figures of each class that has objects, and of all; percent."""
    from rich.table import Table
    from rich.text import Text

    summary = scores.summary
    table = Table(title="percent", title_justify="left")
    table.add_column("class")
    for column in ("objects", "mIoU*", *(f"IoU@{k}" for k in summary.iou_at)):
        table.add_column(column, justify="right")
    for index, name in enumerate(scores.class_names):
        if summary.counts[index]:
            values = [summary.per_class_iou[index], *(at[index] for at in summary.per_class_iou_at.values())]
            table.add_row(Text(name), str(summary.counts[index]), *(f"{100 * value:.1f}" for value in values))
    table.add_section()
    values = [summary.miou_present, *summary.iou_at.values()]
    table.add_row("all", str(summary.counts.sum()), *(f"{100 * value:.1f}" for value in values), style="bold")
    return table


def _write_csv(scores: "MaskFileScores", path: str) -> None:
    from boxsup_d2.utils.files import atomic_write

    with atomic_write(path) as file:
        writer = csv.writer(file)
        writer.writerow(["annotation_id", "truth_id", "image_id", "file_name", "class", "iou", "matched_by"])
        for row in scores.rows:
            matched_by = "id" if row.by_id else "box"
            values = [row.annotation_id, row.truth_id, row.image_id, row.file_name, row.class_name]
            writer.writerow([*values, f"{row.iou:.6f}", matched_by])
