"""What each process of ``boxsup train`` does, and the summary at the end."""

import argparse
import contextlib
import os
import shlex
from collections.abc import Sequence

from detectron2.engine import hooks
from detectron2.modeling import build_model
from detectron2.utils import comm

from boxsup_cli.console import output, quiet_setup, show
from boxsup_cli.train_compare import BEFORE, BEFORE_FOLDER, TEACHER, comparison_table
from boxsup_cli.train_config import BOXES, MASK_RCNN
from boxsup_d2.checkpoint import WholeCheckpointer
from boxsup_d2.config import load_config, merge_overrides
from boxsup_d2.engine.defaults import setup
from boxsup_d2.engine.hooks import ProgressBarHook
from boxsup_d2.engine.trainer import Trainer
from boxsup_d2.labelling.driver import pseudo_mask_path
from boxsup_d2.modeling.build import explain_build_errors
from boxsup_d2.rounds.runner import run_rounds


def run_rounds_config(path: str, opts: Sequence[str], processes: int, verbose: bool, new_networks: bool) -> None:
    """Run a rounds config, as ``train_net.py`` does; all ranks call it together.

    Args:
        path: of the rounds config.
        opts: overrides for all steps, in pairs.
        processes: as ``--num-gpus`` says.
        verbose: show the whole log.
        new_networks: see :func:`boxsup_cli.console.quiet_setup`.
    """
    args = argparse.Namespace(
        config_file=path, opts=list(opts), num_gpus=processes, round="", eval_only=False, resume=False
    )
    with contextlib.nullcontext() if verbose else quiet_setup(new_networks=new_networks):
        cfg = setup(args)
    run_rounds(cfg, args, Trainer if verbose else _TrainerWithBar)


class _TrainerWithBar(Trainer):
    """Shows how far a training is, instead of a line of losses now and then."""

    def build_hooks(self) -> list[hooks.HookBase]:
        built = super().build_hooks()
        if comm.is_main_process():
            built.insert(self.first_hook_at_the_end(built), ProgressBarHook(os.path.basename(self.cfg.OUTPUT_DIR)))
        return built


def check_init(config: str, checkpoint: str, opts: Sequence[str]) -> None:
    """Check that ``--init`` holds the whole network: what it lacks would start from random values, unnoticed.

    Args:
        config: file of the network to train.
        checkpoint: to start from.
        opts: overrides, in pairs.

    Raises:
        FileNotFoundError, RuntimeError: it is missing, damaged, or of another network.
    """
    cfg = load_config(config)
    merge_overrides(cfg, opts)
    cfg.MODEL.DEVICE, cfg.MODEL.TIMM.PRETRAINED = "cpu", False
    fix = "Give the weights of a box-to-mask network of the same --size."
    with explain_build_errors(cfg):
        model = build_model(cfg)
    WholeCheckpointer(model, what="--init", fix=fix).load_whole(checkpoint)


def compare(out: str, first: str, network: str, truth: str | None) -> None:
    """Print the table of a network's masks, and of its teacher's, or of the network that it started from.

    Args:
        out: folder of the training.
        first: name of the other's step.
        network: name of its step.
        truth: json with true masks, or None.

    Raises:
        ValueError: no object of theirs is in the truth.
    """
    folder = os.path.join(out, BEFORE_FOLDER) if first == BEFORE else out
    files = [pseudo_mask_path(path, BOXES) for path in (os.path.join(folder, first), os.path.join(out, network))]
    names = {TEACHER: ("teacher", "student"), BEFORE: ("before", "after")}[first]
    table = comparison_table(files[0], files[1], names, truth)
    if table is None:
        show(f"{' and '.join(names)} cannot be compared: all masks, or all that have a true one, are the json's own")
    else:
        output.print(table)


def summary(out: str, images: str, network: str, *, mask_rcnn: bool) -> str:
    """Where the results are, and commands that use them.

    Args:
        out: folder of the training.
        images: folder of its images.
        network: name of the box-to-mask network's step.
        mask_rcnn: whether there is a Mask R-CNN.
    """
    steps = [(network, "box-to-mask network"), (MASK_RCNN, "Mask R-CNN")][: 1 + mask_rcnn]
    weights = {step: os.path.join(out, step, "model_final.pth") for step, _ in steps}
    # A network that was used as it is has left none.
    lines = [f"{what}: {weights[step]}" for step, what in steps if os.path.isfile(weights[step])]
    masks = pseudo_mask_path(os.path.join(out, network), BOXES)
    lines.append(f"masks of your boxes: {masks}")
    lines.append("look at them:")
    lines.append(f"  boxsup report {shlex.quote(masks)} --images {shlex.quote(images)}")
    if mask_rcnn:
        lines.append("objects in other images, without boxes:")
        lines.append(f"  boxsup predict {shlex.quote(out)} DIR --overlays drawn --out found.json")
    lines.append("masks for boxes of other images:")
    last = steps[-1][0]
    by = ""
    if os.path.isfile(weights[last]):
        config = os.path.join(out, last, "config.yaml")
        by = f"--config {shlex.quote(config)} --weights {shlex.quote(weights[last])} "
    lines.append(f"  boxsup label --json boxes.json --images DIR {by}--out masks.json")
    return "\n".join(lines)
