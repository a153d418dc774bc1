"""``boxsup predict``: objects in images without boxes, by a trained network."""

import argparse
import os
import shlex
import shutil
from typing import Any

from boxsup_cli.arguments import (
    Commands,
    Existing,
    add_device_argument,
    add_machine_arguments,
    add_opts_argument,
    hide_gpus,
    positive,
    share,
)
from boxsup_cli.errors import BadInput, bad_input
from boxsup_cli.exports import add_export_arguments, asked_exports, check_export
from boxsup_cli.sources import add_keep_going_argument, add_outside_argument, inspect_source

_EPILOG = """
examples:
  the Mask R-CNN that 'boxsup train --mask-rcnn --out my' left, on a folder of photographs:
    $ boxsup predict my photos --out found.json
  pictures to look at, of two classes alone:
    $ boxsup predict my 'shots/*.jpg' --overlays drawn --classes cat dog
  any Detectron2 network, on the images of a json:
    $ boxsup predict config.yaml test.json --images photos --weights model_final.pth

--out is a bare list of COCO's results, for pycocotools' loadRes. Beside it, found.coco.json has the images and classes
as well: 'boxsup report', 'boxsup eval' and other tools read that one. Networks for semantic segmentation give a region
per class and image, with score 1; --voc-png writes them as label maps.

An interrupted command goes on when it is run again, and does nothing when all is done.
"""


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the subcommand; returns its parser."""
    parser = commands.add_parser(
        "predict",
        help="objects in images without boxes, by a network that was trained",
        description="Find objects and their masks in images, by a trained Mask R-CNN or any other Detectron2 network.",
        epilog=_EPILOG,
    )
    parser.add_argument("model", metavar="MODEL", help="folder that a training left, or a config (with --weights)")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="folders, images, patterns, or one json of images")
    network = parser.add_argument_group("network")
    network.add_argument("--weights", metavar="F", help="trained weights; default: model_final.pth beside the config")
    network.add_argument(
        "--names",
        action=Existing,
        metavar="F",
        help="class names in the network's order: a txt file with a name per line, or yaml",
    )
    add_opts_argument(network)
    images = parser.add_argument_group("images")
    images.add_argument(
        "--images", action=Existing, metavar="DIR", help="folder of the images of a json (default: the json's)"
    )
    add_keep_going_argument(images)
    add_outside_argument(images)
    machine = parser.add_argument_group("machine")
    add_machine_arguments(machine)
    add_device_argument(machine)
    machine.add_argument(
        "--batch-size", type=positive, default=1, metavar="N", help="images at once (default: %(default)s)"
    )
    results = parser.add_argument_group("results")
    results.add_argument(
        "--out",
        default="predictions.json",
        type=os.path.expanduser,
        metavar="F",
        help="json to write (default: %(default)s)",
    )
    results.add_argument("--force", action="store_true", help="replace what is there that another command wrote")
    results.add_argument(
        "--min-score", type=share, default=0.5, metavar="S", help="leave out what is less sure (default: %(default)s)"
    )
    results.add_argument("--classes", nargs="+", default=[], metavar="NAME", help="these classes alone")
    add_export_arguments(results)
    return parser


def run(args: argparse.Namespace) -> None:
    """Predict.

    Raises:
        BadInput: before anything is done.
        RuntimeError, ValueError, OSError: an image is damaged, the disk is full, another run is at work.
    """
    if not os.path.exists(os.path.expanduser(args.model)):
        raise BadInput(f"There is no '{args.model}': name the folder of a training, or a config and --weights.")
    hide_gpus(args)
    out = os.path.abspath(args.out)
    if os.path.isdir(out):
        raise BadInput(f"--out: '{out}' is a folder; name a file in it.")

    from boxsup_cli.console import short, show
    from boxsup_cli.label_output import claim_folders, export, is_done, missing_exports
    from boxsup_cli.predict_job import PredictJob, predict
    from boxsup_d2.data.formats.problems import Problems
    from boxsup_d2.engine.launch import launch
    from boxsup_d2.prediction import dataset_path, image_list, prediction_identity
    from boxsup_d2.utils.lock import acquire_lock

    with bad_input():
        path, image_root, data = image_list(args.inputs, args.images)
    if path == out:
        raise BadInput(f"--out is the json of the images, '{out}': name another one.")
    inspection, _ = inspect_source(
        path,
        image_root,
        data,
        Problems(),
        Problems(),
        keep_going=args.keep_going,
        outside_images=args.outside_images,
    )
    images = inspection.usable
    if not images["images"]:
        raise BadInput(f"'{path}' has no usable image: there is nothing to do.")
    exports = asked_exports(args)
    job = PredictJob(
        args.model,
        args.weights,
        args.names,
        tuple(args.opts),
        "cpu" if args.num_gpus == 0 else args.device,
        images,
        image_root,
        out,
        args.min_score,
        tuple(args.classes),
        args.batch_size,
        args.keep_going,
    )
    dataset, work = dataset_path(out), f"{out}.work"
    for name, folder in exports.items():
        check_export(name, folder, {**images, "annotations": []}, image_root)
    with bad_input():
        identity = prediction_identity(
            job.network(), images, image_root, min_score=args.min_score, classes=args.classes
        )
    done = is_done(dataset, identity, force=args.force) and os.path.isfile(out)
    if not done and os.path.exists(out) and not os.path.exists(dataset) and not args.force:
        raise BadInput(f"'{out}' was not written by this command: replace it with --force, or name another --out.")
    exports = missing_exports(dataset, exports, args.simplify) if done else exports
    claim_folders(exports, path, work, force=args.force)
    with bad_input():  # a folder that may not be written to
        os.makedirs(work, exist_ok=True)
    with acquire_lock(work, "lock"):
        if done:
            show(f"'{short(out)}' is done: the same command has written it. Nothing was predicted.")
        else:
            if not os.path.exists(out) and os.path.exists(dataset):  # which alone would count as done
                os.remove(dataset)
            launch(predict, args.num_gpus, args=(job,), join=False)
        if exports:
            export(dataset, image_root, exports, simplify=args.simplify, outside_images=args.outside_images)
        shutil.rmtree(work, ignore_errors=True)
    if not done:
        _tell_results(dataset, out, image_root)


def _tell_results(dataset: str, out: str, image_root: str) -> None:
    from boxsup_cli.console import short, show
    from boxsup_d2.data.formats.pseudo_masks import read_provenance

    summary: dict[str, Any] = (read_provenance(dataset) or {})["summary"]
    for problem in summary["unreadable"]:
        show(f"left out: {problem}", style="yellow")
    show(
        f"{summary['objects']} objects of {summary['classes']} classes on {summary['images']} images -> "
        f"'{short(out)}', with images and classes '{short(dataset)}'"
    )
    if not summary["objects"]:
        show("no object is surer than --min-score: a lower one shows what the network thinks at all", style="yellow")
    else:
        show(f"look at them: boxsup report {shlex.quote(short(dataset))} --images {shlex.quote(short(image_root))}")
