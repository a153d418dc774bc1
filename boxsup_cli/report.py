"""``boxsup report``: a page to look at masks with."""

import argparse
import os
from collections.abc import Sequence

from boxsup_cli.arguments import Commands, Existing
from boxsup_cli.errors import BadInput, bad_input
from boxsup_cli.sources import add_outside_argument

_EPILOG = """
examples:
  $ boxsup report masks.json --images photos
  two methods side by side, sorted by IoU with true masks, worst first:
    $ boxsup report grabcut.json boxcaseg.json --images photos --truth truth.json --out compare.html

The page needs no server and no network: open it in a browser, copy it, attach it. Up to 300 images it is one file;
above, thumbnails lie in a folder beside it.
"""


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the subcommand; returns its parser."""
    parser = commands.add_parser(
        "report",
        help="a page to look at masks: a gallery, figures, and several files side by side",
        description="Write an HTML page that shows the masks of one or more jsons over their images.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "masks",
        nargs="+",
        action=Existing,
        metavar="MASKS.json",
        help="COCO jsons with masks; images are the first one's",
    )
    parser.add_argument(
        "--images", action=Existing, metavar="DIR", required=True, help="folder that the file names are relative to"
    )
    parser.add_argument(
        "--truth", action=Existing, metavar="F", help="COCO json with true masks: IoU of every mask, and the averages"
    )
    parser.add_argument(
        "--out",
        default="report.html",
        type=os.path.expanduser,
        metavar="F",
        help="page to write (default: %(default)s)",
    )
    parser.add_argument("--max-images", type=int, metavar="N", help="show so many at most, from worst to best")
    parser.add_argument(
        "--keep-going", action="store_true", help="show images that are missing or outside of --images in grey"
    )
    add_outside_argument(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    """Write the page.

    Raises:
        BadInput: a json or image is missing or damaged.
        OSError: the page cannot be written.
    """
    write(
        args.masks,
        args.images,
        args.out,
        truth=args.truth,
        max_images=args.max_images,
        keep_going=args.keep_going,
        outside_images=args.outside_images,
    )


def check_page(path: str, option: str) -> None:
    """
    Raises:
        BadInput: there is a folder, or a file that is no page and would be lost.
    """
    if os.path.isdir(path) or (os.path.exists(path) and not path.lower().endswith((".html", ".htm"))):
        raise BadInput(f"{option} '{path}' is there, and no page: name another file, one that ends in .html.")


def write(
    masks: Sequence[str],
    images: str,
    out: str,
    *,
    truth: str | None = None,
    max_images: int | None = None,
    keep_going: bool = False,
    outside_images: bool = False,
) -> None:
    """Write a page, and say where it is.

    Args:
        masks: COCO jsons with masks.
        images: folder of the first one's images.
        out: path of the page.
        truth: COCO json with true masks.
        max_images: to show at most.
        keep_going, outside_images: see :func:`boxsup_d2.report.write_report`.
    """
    from boxsup_cli.console import show
    from boxsup_d2.report import MaskSet, write_report

    for path in [*masks, *([truth] if truth else [])]:
        if not os.path.isfile(path):
            raise BadInput(f"There is no file '{path}'.")
    if not os.path.isdir(images):
        raise BadInput(f"--images: there is no folder '{images}'.")
    check_page(out, "--out")
    if any(os.path.exists(out) and os.path.samefile(out, path) for path in [*masks, *([truth] if truth else [])]):
        raise BadInput(f"--out is one of the jsons, '{out}': name another file.")
    stems = [os.path.splitext(os.path.basename(path))[0] for path in masks]
    # Files of one name in several folders are told apart by what differs in their paths.
    common = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in masks])
    names = [
        stem if stems.count(stem) == 1 else os.path.relpath(path, common)
        for stem, path in zip(stems, masks, strict=True)
    ]
    sets = [MaskSet(name=name, path=path) for name, path in zip(names, masks, strict=True)]
    with bad_input((FileNotFoundError, ValueError)):  # of the jsons and images; nothing is written then
        page = write_report(
            sets,
            images,
            out,
            truth=truth,
            title=", ".join(names),
            max_images=max_images,
            keep_going=keep_going,
            outside_images=outside_images,
        )
    show(f"report -> '{page}'")
