"""``boxsup label``: a mask for every box of a json."""

import argparse
import contextlib
import os
import shlex
import shutil
from typing import Any

from boxsup_d2.cli.errors import BadInput, bad_input
from boxsup_d2.cli.exports import EXPORTS
from boxsup_d2.cli.sources import Source, add_source_arguments, read_source
from boxsup_d2.methods import DEFAULT_METHOD, methods

_EPILOG = """
examples:
  masks by the network that ships, without any training:
    $ boxsup label --json boxes.json --images photos --out masks.json
  by a network that 'boxsup train' left:
    $ boxsup label --json boxes.json --images photos --config my/boxcaseg/config.yaml
  by weights of BoxCaseg, refined along the edges of the image (slower), by four processes:
    $ boxsup label --json boxes.json --images photos --method boxcaseg --weights boxcaseg.pth --crf --num-gpus 4
  from Pascal VOC's files to YOLO's:
    $ boxsup label --voc-xml Annotations --images JPEGImages --yolo-seg dataset

The output is your json: its ids, order, crowd regions and unknown fields are unchanged; every other annotation has
'segmentation' (run lengths, which any COCO tool reads), 'area', and between 0 and 1 'quality', the IoU with the true
mask to be expected, and 'confidence', how well the mask fills its box. Masks that were there are kept, with 1 for both.

Unfinished work is in <out>.work: the same command resumes it after a crash or Ctrl-C, and does nothing when the output
is complete.
"""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the subcommand; returns its parser."""
    parser = commands.add_parser(
        "label",
        help="boxes to masks: a json with boxes in, the same json with masks out",
        description="Give every box of a json its mask.",
        epilog=f"{_EPILOG}\n{_list_of_methods()}\n",
    )
    add_source_arguments(parser, only_json=False)
    method = parser.add_argument_group("method")
    method.add_argument(
        "--method", metavar="NAME", help=f"one of those below (default: {DEFAULT_METHOD}, or that of --config)"
    )
    method.add_argument("--weights", metavar="F", help="trained weights; default: model_final.pth beside --config")
    method.add_argument("--config", metavar="F", help="a config of a network, such as those that 'boxsup train' leaves")
    method.add_argument("--crf", action="store_true", help="refine masks by a dense CRF: better edges, slower")
    method.add_argument("--fast", action="store_true", help="a faster setting of the method, for somewhat worse masks")
    method.add_argument("--overwrite-masks", action="store_true", help="label boxes that have a mask, too")
    method.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config keys to set, in pairs")
    machine = parser.add_argument_group("machine")
    add_machine_arguments(machine)
    machine.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU where there is one")
    results = parser.add_argument_group("results")
    results.add_argument("--out", default="masks.json", metavar="F", help="json to write (default: %(default)s)")
    results.add_argument(
        "--force",
        action="store_true",
        help="replace what is there that another command wrote, other formats included",
    )
    results.add_argument(
        "--min-quality", type=_share, metavar="Q", help="leave boxes whose mask has a lower quality (0..1) without one"
    )
    results.add_argument("--polygons", action="store_true", help="polygons instead of run lengths; not exact")
    for option, kind in EXPORTS.items():
        results.add_argument(f"--{option}", metavar="DIR", help=f"also write {kind.what}")
    results.add_argument(
        "--report", metavar="F", help="also write a page to look at the masks, as 'boxsup report' does"
    )
    return parser


def _list_of_methods() -> str:
    """A line on each method: what it does, and what it needs."""
    infos = [method.info for method in methods().values()]
    width = max(len(info.name) for info in infos)
    lines = ["methods:"]
    for info in infos:
        needs = ["--weights"] if info.weights_key and not info.weights else []
        needs += [f"the extra '{info.extra}'"] if info.extra else []
        lines.append(f"  {info.name:{width}}  {info.summary}{'; needs ' if needs else ''}{' and '.join(needs)}")
    return "\n".join(lines)


def add_machine_arguments(group: Any) -> None:
    """Add ``--num-gpus`` and its other name, ``--workers``."""
    group.add_argument(
        "--num-gpus",
        "--workers",
        dest="num_gpus",
        type=_count,
        metavar="N",
        help="processes that share the images: one per GPU, or on the CPU where there is none (default: 1); 0: one "
        "process on the CPU. Every process needs the memory of the network once more",
    )


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {value}")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, not {text}")
    return value


def run(args: argparse.Namespace) -> None:
    """Label.

    Raises:
        BadInput: before anything is done.
        RuntimeError, ValueError, OSError: an image is damaged, the disk is full, another run is at work.
    """
    processes = 1 if args.num_gpus is None else args.num_gpus
    if args.device == "cpu" and processes > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # several processes use GPUs wherever they see some
    out = os.path.abspath(os.path.expanduser(args.out))
    if os.path.isdir(out):
        raise BadInput(
            f"--out: '{out}' is a folder; name a file in it, such as '{os.path.join(args.out, 'masks.json')}'."
        )
    given = args.json or args.annotations
    if given and os.path.exists(out) and os.path.exists(given) and os.path.samefile(out, given):
        raise BadInput(f"--out is the file that is labelled, '{out}': name another one.")

    from boxsup_d2.cli.console import short, show
    from boxsup_d2.cli.label_job import LabelJob, check_classes, job_config, label, request_of
    from boxsup_d2.cli.label_output import claim_folders, export, finish, is_done, missing_exports
    from boxsup_d2.engine.launch import launch
    from boxsup_d2.utils.lock import acquire_lock

    exports = {option: getattr(args, option.replace("-", "_")) for option in EXPORTS}
    exports = {option: os.path.abspath(folder) for option, folder in exports.items() if folder}
    source = read_source(args)
    job = _job(args, source, out, processes, LabelJob)
    with bad_input():
        check_classes(job, source.usable["categories"])
        request = request_of(job, job_config(job), source.sha256, polygons=args.polygons, min_quality=args.min_quality)
    work = _work_folder(out)
    if is_done(out, request, force=args.force):
        show(f"'{short(out)}' is done: the same command has written it. Nothing was labelled.")
        exports = missing_exports(out, exports)
        if exports:
            claim_folders(exports, source, work, force=args.force)
            export(out, source.image_root, exports)
        if os.path.isdir(work):  # what a kill after the last write left, or another command that is at work
            with contextlib.suppress(RuntimeError), acquire_lock(work, "lock"):
                shutil.rmtree(work, ignore_errors=True)
    else:
        claim_folders(exports, source, work, force=args.force)
        with bad_input():  # a folder that may not be written to
            os.makedirs(job.output_dir, exist_ok=True)
        with acquire_lock(work, "lock"):
            source.write(work)
            launch(label, processes, args=(job,))
            summary = finish(
                job.result,
                out,
                source,
                request,
                exports,
                polygons=args.polygons,
                min_quality=args.min_quality,
                overwrite=job.overwrite,
            )
            shutil.rmtree(work, ignore_errors=True)
        crowds = sum(bool(annotation.get("iscrowd")) for annotation in source.usable["annotations"])
        show(_summary_line(summary, short(out), crowds))
        look = _look_line(summary, short(out), short(source.image_root), report=bool(args.report))
        if look:
            show(look)
    if args.report:
        from boxsup_d2.cli.report import write

        write([out], source.image_root, args.report)


def _job(args: argparse.Namespace, source: Source, out: str, processes: int, kind: Any) -> Any:
    """The job, as every process needs it."""
    work = _work_folder(out)
    config, weights, method = args.config, args.weights, args.method
    if method is None and config is None:
        method = DEFAULT_METHOD
    if config and not weights:
        beside = os.path.join(os.path.dirname(os.path.abspath(config)), "model_final.pth")
        weights = beside if os.path.isfile(beside) else None
    if config and not os.path.isfile(config):
        raise BadInput(f"--config: there is no file '{config}'.")
    fast: tuple[Any, ...] = ()
    if args.fast:
        kinds = methods()
        fast = kinds[method].info.fast if method in kinds else ()
        if not fast:
            able = ", ".join(name for name, known in kinds.items() if known.info.fast)
            raise BadInput(f"--fast: '{method or config}' has no faster setting; there is one of: {able}.")
    return kind(
        json_file=source.json_file(work),
        image_root=source.image_root,
        # Work on other images is not resumed, though labelling knows images by their names alone.
        output_dir=os.path.join(work, source.sha256[:16], method or "network"),
        method=method,
        config=config,
        weights=weights,
        opts=(*fast, *args.opts),
        crf=args.crf,
        overwrite=args.overwrite_masks,
        device=args.device,
        processes=processes,
    )


def _work_folder(out: str) -> str:
    """Folder of unfinished work."""
    return f"{out}.work"


def _summary_line(summary: dict[str, Any], out: str, crowds: int) -> str:
    kept = f", {summary['kept']} masks kept" if summary.get("kept") else ""
    kept += f", {crowds} crowd regions (iscrowd 1) left as they are" if crowds else ""
    boxes = f", {summary['left_as_boxes']} of them left as boxes" if summary.get("left_as_boxes") else ""
    quality = f"mean quality {summary['mean_quality']:.2f}, " if "mean_quality" in summary else ""
    return (
        f"{summary['instances']} masks on {summary['images']} images{boxes}{kept}; {quality}mean confidence "
        f"{summary['mean_confidence_exact']:.2f}, {summary['share_empty']:.1%} empty -> '{out}'"
    )


def _look_line(summary: dict[str, Any], out: str, image_root: str, *, report: bool) -> str:
    """How many masks deserve a look, and the command that shows them; "": none does."""
    from boxsup_d2.masks.confidence import DOUBTFUL_QUALITY

    doubtful = summary.get("doubtful", 0)
    if not doubtful:
        return ""
    command = "" if report else f": boxsup report {shlex.quote(out)} --images {shlex.quote(image_root)}"
    masks = "mask deserves" if doubtful == 1 else "masks deserve"
    return f"{doubtful} {masks} a look (quality below {DOUBTFUL_QUALITY}){command}"
