"""``boxsup label``: a mask for every box of a json."""

import argparse
import contextlib
import os
import shlex
import shutil
from typing import TYPE_CHECKING, Any

from boxsup_cli.arguments import (
    Commands,
    Existing,
    add_device_argument,
    add_machine_arguments,
    hide_gpus,
    share,
)
from boxsup_cli.errors import BadInput, bad_input
from boxsup_cli.exports import EXPORTS, add_export_arguments, asked_exports, check_export
from boxsup_cli.method import add_method_arguments, chosen_method
from boxsup_cli.report import check_page, write
from boxsup_cli.sources import Source, add_source_arguments, read_source

if TYPE_CHECKING:  # imported when the command runs
    from boxsup_cli.label_job import LabelJob

_EPILOG = """
examples:
  masks by the network that ships, without any training:
    $ boxsup label --json boxes.json --images photos --out masks.json
  by a network that 'boxsup train' left:
    $ boxsup label --json boxes.json --images photos --config my/boxmask/config.yaml
  by weights of BoxCaseg, refined along the edges of the image (slower), by four processes:
    $ boxsup label --json boxes.json --images photos --method boxcaseg --weights boxcaseg.pth --crf --num-gpus 4
  from Pascal VOC's files to YOLO's:
    $ boxsup label --voc-xml Annotations --images JPEGImages --yolo-seg dataset
  boxes on a GeoTIFF, in WGS84 or its own coordinates (pip install 'boxsup_d2[geo]'):
    $ boxsup label --geojson boxes.geojson --images ortho.tif --out masks.geojson

The output is your json: its ids, order, crowd regions and unknown fields are unchanged; every other annotation has
'segmentation' (run lengths, which any COCO tool reads), 'area', and between 0 and 1 'quality', the IoU with the true
mask to be expected, and 'confidence', how well the mask fills its box. Masks that were there are kept, with 1 for both.

Unfinished work is in <out>.work: the same command resumes it after a crash or Ctrl-C, and does nothing when the output
is complete.
"""


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the subcommand; returns its parser."""
    parser = commands.add_parser(
        "label",
        help="boxes to masks: a json with boxes in, the same json with masks out",
        description="Give every box of a json its mask.",
        epilog=_EPILOG,
    )
    formats = add_source_arguments(parser)
    formats.add_argument(
        "--geojson",
        action=Existing,
        metavar="F",
        help="boxes as polygons of a GeoJSON; --images is then one raster of any size, and --out a GeoJSON with masks",
    )
    method = parser.add_argument_group("method")
    add_method_arguments(method)
    method.add_argument("--crf", action="store_true", help="refine masks by a dense CRF: better edges, slower")
    method.add_argument("--overwrite-masks", action="store_true", help="label boxes that have a mask, too")
    machine = parser.add_argument_group("machine")
    add_machine_arguments(machine)
    add_device_argument(machine)
    results = parser.add_argument_group("results")
    results.add_argument(
        "--out", default="masks.json", type=os.path.expanduser, metavar="F", help="json to write (default: %(default)s)"
    )
    results.add_argument(
        "--force",
        action="store_true",
        help="replace what is there that another command wrote, other formats included",
    )
    results.add_argument(
        "--min-quality", type=share, metavar="Q", help="leave boxes whose mask has a lower quality (0..1) without one"
    )
    results.add_argument("--polygons", action="store_true", help="polygons instead of run lengths; not exact")
    add_export_arguments(results)
    results.add_argument(
        "--report",
        type=os.path.expanduser,
        metavar="F",
        help="also write a page to look at the masks, as 'boxsup report' does",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Label.

    Raises:
        BadInput: before anything is done.
        RuntimeError, ValueError, OSError: an image is damaged, the disk is full, another run is at work.
    """
    hide_gpus(args)
    out = os.path.abspath(args.out)
    if os.path.isdir(out):
        raise BadInput(
            f"--out: '{out}' is a folder; name a file in it, such as '{os.path.join(args.out, 'masks.json')}'."
        )
    given = args.json or args.annotations or args.geojson
    if given and os.path.exists(out) and os.path.exists(given) and os.path.samefile(out, given):
        raise BadInput(f"--out is the file that is labelled, '{out}': name another one.")
    if args.report:
        check_page(args.report, "--report")
    if args.geojson:
        from boxsup_cli.label_geo import run_geo

        run_geo(args, out)
        return

    from boxsup_cli.console import short, show
    from boxsup_cli.label_job import check_classes, job_config, label, move_earlier_work, request_of
    from boxsup_cli.label_output import export, finish, is_done, missing_exports
    from boxsup_d2.data.formats.pseudo_masks import read_provenance
    from boxsup_d2.engine.launch import launch
    from boxsup_d2.utils.files import explain_unwritable
    from boxsup_d2.utils.lock import acquire_lock

    exports = asked_exports(args, ("polygons",))
    given = os.path.abspath(args.json or args.annotations or args.yolo or args.voc_xml)
    source = read_source(args)
    inside = bool(args.annotations) and os.path.commonpath([given, out]) == given
    if inside and os.path.exists(out) and read_provenance(out) is None:  # not even --force may lose it
        raise BadInput(f"--out '{out}' is a file of the annotations that are labelled: name another one.")
    job = make_job(args, source, out)
    with bad_input():
        check_classes(job, source.usable["categories"])
        request = request_of(
            job,
            job_config(job),
            source.sha256,
            polygons=args.polygons,
            simplify=args.simplify if args.polygons else 0.0,
            min_quality=args.min_quality,
        )
    work = work_folder(out)
    if is_done(out, request, force=args.force):
        show(f"'{short(out)}' is done: the same command has written it. Nothing was labelled.")
        exports = missing_exports(out, exports, args.simplify)
        if exports:
            _claim(exports, source, given, work, force=args.force)
            export(out, source.image_root, exports, simplify=args.simplify, outside_images=args.outside_images)
        if os.path.isdir(work):  # what a kill after the last write left, or another command that is at work
            with contextlib.suppress(RuntimeError), acquire_lock(work, "lock"):
                shutil.rmtree(work, ignore_errors=True)
    else:
        _claim(exports, source, given, work, force=args.force)
        with bad_input(), explain_unwritable(out):
            os.makedirs(job.output_dir, exist_ok=True)
        with acquire_lock(work, "lock"):
            source.write(work)
            move_earlier_work(job, work)
            launch(label, args.num_gpus, args=(job,), join=False)
            summary = finish(
                job.result,
                out,
                source,
                request,
                exports,
                polygons=args.polygons,
                simplify=args.simplify,
                min_quality=args.min_quality,
                overwrite=job.overwrite,
            )
            shutil.rmtree(work, ignore_errors=True)
        crowds = sum(bool(annotation.get("iscrowd")) for annotation in source.usable["annotations"])
        show(summary_line(summary, short(out), crowds))
        covered = round(summary["share_empty"] * summary["instances"]) if summary.get("kept") else 0
        if covered:
            show(
                f"{covered} masks are empty, most likely under masks that are kept: --overwrite-masks labels all boxes"
            )
        look = _look_line(summary, short(out), short(source.image_root), report=bool(args.report))
        if look:
            show(look)
    if args.report:
        write([out], source.image_root, args.report, keep_going=args.keep_going, outside_images=args.outside_images)


def _claim(exports: dict[str, str], source: Source, given: str, work: str, *, force: bool) -> None:
    from boxsup_cli.label_output import claim_folders

    for name, folder in exports.items():
        if EXPORTS[name].annotations and os.path.isdir(given) and os.path.commonpath([given, folder]) == given:
            raise BadInput(
                f"--{name} '{folder}' is in the folder of the annotations, which would be read with it the next time: "
                "name another folder."
            )
        check_export(name, folder, source.usable, source.image_root)
    claim_folders(exports, source.path, work, force=force)


def make_job(args: argparse.Namespace, source: Source, out: str) -> "LabelJob":
    """The job, as every process needs it."""
    from boxsup_cli.label_job import LabelJob

    work = work_folder(out)
    choice = chosen_method(args)
    return LabelJob(
        json_file=source.json_file(work),
        image_root=source.image_root,
        # Work on other images is not resumed, though labelling knows images by their names alone.
        output_dir=os.path.join(work, source.sha256[:16], choice.method or "network"),
        method=choice.method,
        config=choice.config,
        weights=choice.weights,
        opts=choice.opts,
        crf=args.crf,
        overwrite=args.overwrite_masks,
        device=args.device,
        processes=args.num_gpus,
    )


def work_folder(out: str) -> str:
    """Folder of unfinished work."""
    return f"{out}.work"


def summary_line(summary: dict[str, Any], out: str, crowds: int) -> str:
    kept = f", {summary['kept']} masks kept" if summary.get("kept") else ""
    kept += f", {crowds} crowd region{'s' * (crowds > 1)} (iscrowd 1) left alone" if crowds else ""
    left = summary.get("left_as_boxes", 0)
    boxes = f", {left} boxes left without one" if left else ""
    quality = f"mean quality {summary['mean_quality']:.2f}, " if "mean_quality" in summary else ""
    means = f"; {quality}mean confidence {summary['mean_confidence_exact']:.2f}, {summary['share_empty']:.1%} empty"
    # Of no mask there are no means.
    means = means if summary["instances"] else ""
    return f"{summary['instances'] - left} masks on {summary['images']} images{boxes}{kept}{means} -> '{out}'"


def _look_line(summary: dict[str, Any], out: str, image_root: str, *, report: bool) -> str:
    """How many masks deserve a look, and the command that shows them; "": none does."""
    from boxsup_d2.masks.confidence import DOUBTFUL_QUALITY

    doubtful = summary.get("doubtful", 0)
    if not doubtful:
        return ""
    command = "" if report else f": boxsup report {shlex.quote(out)} --images {shlex.quote(image_root)}"
    masks = "mask deserves" if doubtful == 1 else "masks deserve"
    return f"{doubtful} {masks} a look (quality below {DOUBTFUL_QUALITY}){command}"
