"""``boxsup train``: networks from the boxes of a json, by a rounds config that is written for them."""

import argparse
import multiprocessing
import os

from boxsup_cli.arguments import Commands, Existing, add_machine_arguments, add_opts_argument, positive
from boxsup_cli.errors import BadInput, bad_input
from boxsup_cli.sources import add_source_arguments, read_source

_EPILOG = """
examples:
  the network that ships gives your boxes masks, and a Mask R-CNN learns from these:
    $ boxsup train --json boxes.json --images photos --out my --mask-rcnn
  masks for some of the boxes are in the json already: they teach the network, and are kept
    $ boxsup train --json some_masks.json --images photos --out my
  BoxCaseg from its beginnings, with photographs of single objects with masks (DIR: DUTS, or images/ and masks/):
    $ boxsup train --size small --json boxes.json --images photos --salient DIR --out my
  a network starts from another method's masks, and corrects them; the table at the end says what it gained
    $ boxsup train --size small --teacher grabcut --json boxes.json --images photos --truth some_true.json --out my
  start from a network that was trained before:
    $ boxsup train --json boxes.json --images photos --init other/boxmask/model_final.pth --out my

Where do masks come from? Boxes bound an object and say nothing of its shape. The network that ships knows masks of many
things; it is fine-tuned where there are masks to learn from, in the json or --salient, and used as it is on boxes
alone, from which it does not get better. One that is trained from its beginnings (--size small, full) needs some true
masks, of any objects: those in the json, --salient, or --init; else the masks of its box head are worse than the filled
boxes: mIoU* 48.2 against 55.4, and 77.6 with salient images (docs/benchmarks.md). Classes and their number are the
json's. Nothing has to be validated.

What it costs: fine-tuning (300 iterations) and --size small (1,200) took 24 minutes each on one thread of a busy CPU; a
Mask R-CNN takes about as long. --size full is the published network, for GPUs, and downloads its ImageNet weights.

All is written to --out: configs/ (yours to edit; the same command then uses them as they are), a folder per step with
weights, log and masks, and rounds.json. The same command resumes after a crash or Ctrl-C, which writes a checkpoint,
and skips what is done.
"""


# After Ctrl-C, for the iteration under way and its checkpoint.
_SECONDS_TO_SAVE = 60


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the subcommand; returns its parser."""
    parser = commands.add_parser(
        "train",
        help="networks from boxes: a box-to-mask network, and on request a Mask R-CNN",
        description="Train a box-to-mask network on boxes of yours, give each of them a mask by it, and on "
        "request train a Mask R-CNN on these masks.",
        epilog=_EPILOG,
    )
    add_source_arguments(parser)
    masks = parser.add_argument_group("where masks come from, beside those in the json")
    masks.add_argument(
        "--salient",
        action=Existing,
        metavar="DIR",
        help="salient images: a folder with two, of images and of masks of the same stems (images and masks, imgs and "
        "gt, DUTS-TR-Image and DUTS-TR-Mask, ...)",
    )
    masks.add_argument(
        "--salient-images", action=Existing, metavar="DIR", help="the two folders by name, instead of --salient"
    )
    masks.add_argument("--salient-masks", action=Existing, metavar="DIR", help="white is the object; png or jpg")
    masks.add_argument(
        "--init", metavar="CKPT", help="weights of a box-to-mask network of the same --size to start from"
    )
    masks.add_argument(
        "--teacher",
        metavar="METHOD",
        help="a method whose masks of your boxes BoxMask starts from, weighted by their quality (see 'boxsup models'), "
        "or a config or checkpoint of a network; with --size shipped or small",
    )
    masks.add_argument("--teacher-weights", metavar="F", help="its weights, where it needs some")
    masks.add_argument(
        "--truth",
        action=Existing,
        metavar="F",
        help="a json with true masks of boxes that have none in the boxes' file: a table at the end says how much "
        "better the network became than the --teacher, or than itself before; nothing learns from it",
    )
    networks = parser.add_argument_group("networks")
    networks.add_argument(
        "--size",
        choices=["shipped", "small", "full"],
        default="shipped",
        help="shipped: BoxMask as it ships (default); small: BoxCaseg, EfficientNet-lite0, also without "
        "GPU; full: BoxCaseg with HRNet-W48 and a ResNet-50, as published",
    )
    networks.add_argument("--mask-rcnn", action="store_true", help="also train a Mask R-CNN; doubles the time")
    networks.add_argument(
        "--iterations",
        type=positive,
        metavar="N",
        help="updates of the box-to-mask network (default: the recipe's, fewer for few boxes and salient images)",
    )
    networks.add_argument(
        "--mask-rcnn-iterations",
        type=positive,
        metavar="N",
        help="updates of the Mask R-CNN (default: likewise, or 1.5 times N)",
    )
    add_opts_argument(networks, "config keys for all steps, in pairs")
    machine = parser.add_argument_group("machine and results")
    add_machine_arguments(machine)
    machine.add_argument(
        "--out",
        default="boxsup-train",
        type=os.path.expanduser,
        metavar="DIR",
        help="folder to write to (default: %(default)s)",
    )
    machine.add_argument("--force", action="store_true", help="replace configs in --out that were edited")
    machine.add_argument("--verbose", action="store_true", help="show the whole log")
    return parser


def run(args: argparse.Namespace) -> None:
    """Train.

    Raises:
        BadInput: before anything is trained.
        RuntimeError, ValueError, OSError: a step failed; what is done is kept.
    """
    folders = _salient_folders(args)
    if args.mask_rcnn_iterations and not args.mask_rcnn:
        raise BadInput("--mask-rcnn-iterations without --mask-rcnn: there is no Mask R-CNN to train. Give both.")
    if args.teacher_weights and not args.teacher:
        raise BadInput("--teacher-weights are a --teacher's: name one.")
    if args.truth and not args.teacher and not args.init and args.size != "shipped":
        raise BadInput("--truth compares with a --teacher, with --init or, by --size shipped, the network that ships.")
    if args.teacher and args.size == "full":
        raise BadInput("--teacher teaches BoxMask: use --size shipped or small.")
    if args.truth and not os.path.isfile(args.truth):
        raise BadInput(f"--truth: there is no file '{args.truth}'.")
    if args.init and not os.path.isfile(args.init) and "://" not in args.init:
        raise BadInput(f"--init: there is no file '{args.init}'.")

    from boxsup_cli.console import short, show
    from boxsup_cli.train_compare import BEFORE, check_truth
    from boxsup_cli.train_config import plan_training
    from boxsup_cli.train_files import write_configs
    from boxsup_cli.train_job import check_init, compare, run_rounds_config, summary
    from boxsup_d2.config import load_config, merge_overrides
    from boxsup_d2.engine.launch import launch

    out = os.path.abspath(args.out)
    source = read_source(args)
    with bad_input():
        merge_overrides(load_config(""), args.opts)  # whether there are such keys, before anything is written
        plan = plan_training(args, source, folders, out, args.num_gpus)
        if args.truth:
            check_truth(args.truth, source, kept=plan.keeps_masks)
        rounds_config = write_configs(os.path.join(out, "configs"), plan, force=args.force)
        source.write(os.path.join(out, "configs"))
        if args.init:
            check_init(os.path.join(out, "configs", f"my-{plan.step}.yaml"), args.init, args.opts)
    show(f"{plan.summary} -> '{short(out)}'")
    for warning in plan.warnings:
        show(warning, style="yellow")
    files = [rounds_config]
    if plan.compared == BEFORE:
        files.append(os.path.join(out, "configs", "rounds-before.yaml"))
    try:
        for file in files:
            arguments = (file, tuple(args.opts), args.num_gpus, args.verbose, not args.init)
            launch(run_rounds_config, args.num_gpus, args=arguments, join=False)
    except KeyboardInterrupt:
        if args.num_gpus > 1:  # the processes write a checkpoint, and this one would end them
            for process in multiprocessing.active_children():
                process.join(_SECONDS_TO_SAVE)
        raise
    show(summary(short(out), args.images, plan.step, mask_rcnn=args.mask_rcnn))
    if plan.compared:
        with bad_input():
            compare(out, plan.compared, plan.step, args.truth)


def _salient_folders(args: argparse.Namespace) -> tuple[str, str] | None:
    """Folders of the salient images and of their masks; None where none are given."""
    images, masks = args.salient_images, args.salient_masks
    if args.salient and (images or masks):
        raise BadInput("--salient names both folders: leave --salient-images and --salient-masks out.")
    if bool(images) != bool(masks):
        raise BadInput("--salient-images and --salient-masks belong together: give both, or --salient.")
    for folder in filter(None, (args.salient, images, masks)):
        if not os.path.isdir(os.path.expanduser(folder)):
            raise BadInput(f"There is no folder '{folder}'.")
    if args.salient:
        from boxsup_d2.data.formats.salient import salient_folders

        with bad_input():
            images, masks = salient_folders(os.path.expanduser(args.salient))
    return (os.path.abspath(os.path.expanduser(images)), os.path.abspath(os.path.expanduser(masks))) if images else None
