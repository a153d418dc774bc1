"""The configs that ``boxsup train`` writes: a rounds config for data of the user, made to be read and edited.

They say what depends on the data and the command line. The rest is a shipped config (:mod:`boxsup_d2.model_zoo`), of
which a copy lies beside them: another version of the package changes nothing in a training that was started.
"""

import argparse
import os
import posixpath
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from boxsup_cli.errors import BadInput
from boxsup_cli.sources import Source
from boxsup_cli.train_compare import BEFORE, BEFORE_FOLDER, TEACHER, labelling_settings, teacher_settings
from boxsup_d2.data.datasets.salient import load_salient
from boxsup_d2.data.formats.pseudo_masks import PROVENANCE_KEY
from boxsup_d2.masks.rle import has_mask
from boxsup_d2.methods import method_config
from boxsup_d2.model_zoo import get_config, get_config_file

BOXES, SALIENT = "my_boxes", "my_salient"  # names of the data sets
MASK_RCNN = "mask-rcnn"  # name of its step; the box-to-mask network's is that of its method

COST_OF_BOXES_ALONE = (
    "No masks to learn from: none in the json, no --salient, no --init. The network learns the box losses alone, and "
    "its masks come from the box head. What that costs, on VOC (docs/benchmarks.md): mIoU* 48.2, less than the filled "
    "boxes (55.4) and GrabCut's masks, which need no training; with salient images it is 77.6."
)

AS_IT_IS = (
    "No masks to learn from: none in the json, no --salient. So the network that ships labels your boxes as it is: on "
    "boxes alone its masks get no better (docs/ablation_boxmask.md). --iterations N trains it nevertheless."
)

# Fewer boxes teach a network little.
_FEW_BOXES = 200
_NOTE_ON_FEW_BOXES = (
    "Few boxes: {} of {} classes, where some hundred are useful. Compare the masks with those of the network that "
    "ships, which needs no training: 'boxsup label'."
)

# The recipes are for some thousand samples. Of fewer, so many passes are enough; but so many updates are needed.
_PASSES, _LEAST_ITERATIONS = 40, 300

# Below this share of samples with masks, batches are mixed at a fixed ratio (as published for COCO), or the salient
# head would hardly be taught.
_FEW_MASKS = 0.25


@dataclass(frozen=True)
class _Recipe:
    """Names of the shipped configs that a size starts from.

    Attributes:
        step: name of the box-to-mask network's step, and of its method.
        network: the box-to-mask network.
        mask_rcnn: the Mask R-CNN.
        boxes_alone: the network where there are no masks to learn from; "": it is trained already.
    """

    step: str
    network: str
    mask_rcnn: str
    boxes_alone: str = ""


_RECIPES = {
    "shipped": _Recipe("boxmask", "zoo/boxmask-finetune.yaml", "quick/Base-Mask-RCNN.yaml"),
    "small": _Recipe("boxcaseg", "quick/Base-BoxCaseg.yaml", "quick/Base-Mask-RCNN.yaml", "quick/boxes-alone.yaml"),
    "full": _Recipe(
        "boxcaseg",
        "BoxCaseg/voc-joint-HRNet-W48.yaml",
        "BoxCaseg/voc-mask-rcnn-R50-FPN.yaml",
        "BoxCaseg/boxes-alone-HRNet-W48.yaml",
    ),
}


# Of networks that learn from a --teacher.
_STUDENTS = {
    "shipped": _Recipe("boxmask", "zoo/boxmask-student.yaml", "quick/Base-Mask-RCNN.yaml"),
    "small": _Recipe("boxmask", "quick/boxmask-student.yaml", "quick/Base-Mask-RCNN.yaml"),
}


@dataclass(frozen=True)
class Plan:
    """How a training will be done.

    Attributes:
        step: name of the box-to-mask network's step.
        keeps_masks: whether masks of the boxes' file stay as they are.
        compared: name of the step whose masks its own are compared with; "": nothing's.
        request: all that decides about the files, apart from what the package ships; as json holds it.
        files: names in the folder of the configs → their texts; the first one is the rounds config.
        summary: of the data, for the terminal.
        warnings: what will limit the result.
    """

    step: str
    keeps_masks: bool
    compared: str
    request: dict[str, Any]
    files: dict[str, str]
    summary: str
    warnings: tuple[str, ...]


def plan_training(
    args: argparse.Namespace, source: Source, salient: tuple[str, str] | None, out: str, processes: int
) -> Plan:
    """Decide how to train on what there is.

    Args:
        args: the command line.
        source: the boxes.
        salient: folders of salient images and their masks, or None.
        out: folder of the training.
        processes: that share a batch; 0 counts as 1.

    Raises:
        FileNotFoundError, ValueError: the salient folders do not fit each other, or there is no such teacher.
        BadInput: there is nothing that --truth could compare.
    """
    recipe, ranks = (_STUDENTS if args.teacher else _RECIPES)[args.size], max(processes, 1)
    info = source.data.get("info")
    predicted = isinstance(info, dict) and PROVENANCE_KEY in info
    objects = [annotation for annotation in source.usable["annotations"] if not annotation.get("iscrowd")]
    masks = 0 if predicted else sum(has_mask(annotation.get("segmentation")) for annotation in objects)
    salient_images = len(load_salient(*salient, SALIENT)) if salient else 0
    taught = masks + salient_images
    boxes_alone = bool(recipe.boxes_alone) and not taught and not args.init
    few = (
        bool(recipe.boxes_alone) and 0 < taught < _FEW_MASKS * (len(objects) - masks + taught) and len(objects) > masks
    )
    as_it_is = not (recipe.boxes_alone or taught or args.iterations or args.init or args.teacher)
    if args.truth and as_it_is:
        raise BadInput(
            "--truth compares the network with itself before, and without masks to learn from it stays as it is: leave "
            "--truth out, and measure its masks by 'boxsup eval'."
        )
    compared = TEACHER if args.teacher else BEFORE if args.truth else ""
    use_masks, classes = "none" if predicted else "kept", len(source.usable["categories"])
    network = recipe.boxes_alone if boxes_alone else recipe.network
    texts = {
        "rounds.yaml": _rounds(args, source, salient, out, use_masks, recipe.step, as_it_is=as_it_is),
        f"my-{recipe.step}.yaml": _network(
            args, network, recipe, ranks, len(objects) + salient_images, salient is not None, few
        ),
        **_with_bases(network),
    }
    if args.teacher:
        texts[f"my-{TEACHER}.yaml"] = _labelling(
            "The method whose masks the box-to-mask network starts from.",
            teacher_settings(args.teacher, args.teacher_weights),
        )
    if compared == BEFORE:
        began = get_config(network)
        began.merge_from_list([x for pair in _beginning(args, recipe.step).items() for x in pair])
        texts[f"my-{BEFORE}.yaml"] = _labelling(
            f"What {recipe.step} starts from, to be compared with.", labelling_settings(began)
        )
        texts["rounds-before.yaml"] = _before(source, out, use_masks)
    if args.mask_rcnn:
        texts[f"my-{MASK_RCNN}.yaml"] = _mask_rcnn(args, recipe.mask_rcnn, ranks, len(source.usable["images"]), classes)
        texts.update(_with_bases(recipe.mask_rcnn))
    summary = (
        f"{len(objects)} boxes, {masks} of them with a mask{f', {salient_images} salient images' if salient else ''}; "
        f"{classes} classes"
    )
    if predicted:
        summary += f" (the masks in '{source.path}' are predictions of this program: only its boxes are used)"
    request = {
        "size": args.size,
        "init": _init(args.init) if args.init else "",
        "mask_rcnn": args.mask_rcnn,
        "iterations": [args.iterations, args.mask_rcnn_iterations],
        "processes": ranks,
        "boxes": [source.json_file(os.path.join(out, "configs")), source.image_root, use_masks, classes],
        "salient": list(salient or ()),
        "few_masks": few,
        "boxes_alone": boxes_alone,
        "as_it_is": as_it_is,
        "out": out,
    }
    if args.teacher:  # not a key of all: a training of before, without one, is the same request
        given = (args.teacher, args.teacher_weights or "")
        request["teacher"] = [_init(name) if os.path.exists(name) else name for name in given]
    warnings = [COST_OF_BOXES_ALONE] if boxes_alone else [AS_IT_IS] if as_it_is else []
    if len(objects) < _FEW_BOXES and not as_it_is:
        warnings.append(_NOTE_ON_FEW_BOXES.format(len(objects), classes))
    return Plan(recipe.step, not predicted, compared, request, texts, summary, tuple(warnings))


def _with_bases(name: str) -> dict[str, str]:
    """File names and texts of a shipped config and of those that it inherits from; all of them lie in one folder."""
    text = Path(get_config_file(name)).read_text(encoding="utf-8")
    base = yaml.safe_load(text).get("_BASE_")
    inherited = _with_bases(posixpath.join(posixpath.dirname(name), base)) if base else {}
    return {posixpath.basename(name): text, **inherited}


def _yaml(comments: Iterable[str], config: dict[str, Any]) -> str:
    """A config below the comments on it; long paths are not broken into lines."""
    return "".join(f"# {line}\n" for line in comments) + yaml.safe_dump(config, sort_keys=False, width=sys.maxsize)


def _rounds(
    args: argparse.Namespace,
    source: Source,
    salient: tuple[str, str] | None,
    out: str,
    use_masks: str,
    network: str,
    *,
    as_it_is: bool,
) -> str:
    data_sets = [_boxes(source, out, use_masks)]
    steps: list[dict[str, Any]] = [{"NAME": network, "CONFIG": f"my-{network}.yaml"}]
    if as_it_is:
        steps[0]["EVAL_ONLY"] = True
    if args.teacher:
        steps[0]["PSEUDO_MASKS"] = [TEACHER]
        steps.insert(0, {"NAME": TEACHER, "CONFIG": f"my-{TEACHER}.yaml", "EVAL_ONLY": True})
    comments = [
        "Written by `boxsup train`. Edit it, and run the same command again, or from a checkout of boxsup_d2:",
        "  python train_net.py --config-file <this file>",
        "Finished steps are skipped, changed ones restart; their former folders are kept.",
        'MASKS: with "kept", boxes that have a mask teach by it, and keep it; with "none", boxes teach alone.',
        f"Step {network} {'' if as_it_is else 'learns from the boxes, then '}gives each of the boxes a mask.",
    ]
    if args.teacher:
        comments.append(f"Before it step {TEACHER} gave them masks, with which {network} starts.")
    if salient:
        data_sets.append({"NAME": SALIENT, "IMAGES": salient[0], "SALIENT_MASKS": salient[1]})
    if args.mask_rcnn:
        steps.append({"NAME": MASK_RCNN, "CONFIG": f"my-{MASK_RCNN}.yaml", "PSEUDO_MASKS": [network]})
        comments.append(f"Step {MASK_RCNN} learns from these masks.")
    config = {
        "OUTPUT_DIR": out,
        "DATASETS": {"REGISTER": data_sets},
        "ROUNDS": [{"NAME": "1", "STEPS": steps}],
        "VERSION": 2,
    }
    return _yaml(comments, config)


def _boxes(source: Source, out: str, use_masks: str) -> dict[str, Any]:
    """The boxes as a data set of DATASETS.REGISTER."""
    json_file = source.json_file(os.path.join(out, "configs"))
    return {"NAME": BOXES, "JSON": json_file, "IMAGES": source.image_root, "MASKS": use_masks}


def _before(source: Source, out: str, use_masks: str) -> str:
    config = {
        "OUTPUT_DIR": os.path.join(out, BEFORE_FOLDER),
        "DATASETS": {"REGISTER": [_boxes(source, out, use_masks)]},
        "ROUNDS": [{"NAME": "1", "STEPS": [{"NAME": BEFORE, "CONFIG": f"my-{BEFORE}.yaml", "EVAL_ONLY": True}]}],
        "VERSION": 2,
    }
    return _yaml(["Written by `boxsup train --truth`: masks by the network as it was before."], config)


def _labelling(comment: str, settings: dict[str, Any]) -> str:
    """A config that only labels the boxes."""
    data_sets = {"DATASETS": {"TRAIN": [], "TEST": []}, "PSEUDO_MASKS": {"DATASETS": [BOXES]}}
    return _yaml([comment], {**settings, **data_sets, "VERSION": 2})


def _network(
    args: argparse.Namespace,
    name: str,
    sizes: _Recipe,
    ranks: int,
    samples: int,
    with_salient: bool,
    few_masks: bool,
) -> str:
    recipe, base = get_config(name), posixpath.basename(name)
    comments = [
        f"The box-to-mask network: what differs from the recipe, {base}.",
        "DATASETS.TEST is empty, since measuring would need true masks.",
    ]
    config: dict[str, Any] = {"_BASE_": base}
    if args.init:
        config["MODEL"] = {key.removeprefix("MODEL."): value for key, value in _beginning(args, sizes.step).items()}
    gently = bool(args.init and sizes.boxes_alone)
    if gently:
        comments.append("SOLVER.BASE_LR is a tenth of the recipe's: the weights are trained already.")
    boxes = f"{BOXES}_pseudo" if args.teacher else BOXES
    config["DATASETS"] = {"TRAIN": [boxes, SALIENT] if with_salient else [boxes], "TEST": []}
    config["PSEUDO_MASKS"] = {"DATASETS": [BOXES]}
    if few_masks:
        config["DATALOADER"] = {"BOX_RATIO": 0.6875}
        comments.append("DATALOADER.BOX_RATIO: masks are few, so a fixed share of every batch has one.")
    config["SOLVER"] = _batch(recipe, ranks, 0.1 if gently else 1)
    if args.iterations and recipe.SOLVER.MAX_EPOCHS:
        config["SOLVER"]["MAX_EPOCHS"] = 0
    if args.iterations or not recipe.SOLVER.MAX_EPOCHS:
        config["SOLVER"].update(_iterations(args.iterations or _enough(recipe, samples)))
    return _yaml(comments, {**config, "VERSION": 2})


def _mask_rcnn(args: argparse.Namespace, name: str, ranks: int, images: int, classes: int) -> str:
    recipe, base = get_config(name), posixpath.basename(name)
    usual = recipe.SOLVER.MAX_ITER
    iterations = args.mask_rcnn_iterations or (args.iterations and args.iterations * 3 // 2)
    iterations = iterations or _enough(recipe, images)
    solver = {**_batch(recipe, ranks), **_iterations(iterations)}
    if recipe.SOLVER.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        solver["STEPS"] = [max(step * iterations // usual, 1) for step in recipe.SOLVER.STEPS]
    comments = [
        f"The Mask R-CNN: what differs from the recipe, {base}.",
        "NUM_CLASSES is as many as the json has. DATASETS.TEST is empty, since measuring would need true masks.",
    ]
    model: dict[str, Any] = {"ROI_HEADS": {"NUM_CLASSES": classes}}
    if args.size != "full":  # whose recipe is the published one
        comments.append(
            "Masks count by their quality, the best of three ways with the one seed tried (docs/benchmarks.md)."
        )
        model["ROI_MASK_HEAD"] = {
            "CONFIDENCE_KEY": "quality",
            "CONFIDENCE_THRESHOLD": 0.0,
            "CONFIDENCE_WEIGHTING": True,
        }
    config = {
        "_BASE_": base,
        "MODEL": model,
        "DATASETS": {"TRAIN": [f"{BOXES}_pseudo"], "TEST": []},
        "SOLVER": solver,
        "VERSION": 2,
    }
    return _yaml(comments, config)


def _enough(recipe: CfgNode, samples: int) -> int:
    """Updates of a training: the recipe's, or fewer where there are few samples."""
    passes = -(-_PASSES * samples // recipe.SOLVER.IMS_PER_BATCH)
    return min(recipe.SOLVER.MAX_ITER, max(passes, _LEAST_ITERATIONS))


def _iterations(number: int) -> dict[str, int]:
    # A warm-up as long as a short training would be all of it; the recipes' longest is 1,000 iterations.
    return {"MAX_ITER": number, "WARMUP_ITERS": min(100, number // 10)}


def _batch(recipe: CfgNode, ranks: int, share_of_rate: float = 1) -> dict[str, Any]:
    """Samples per update, rounded up so that they divide over the processes, and the rate in proportion."""
    batch = recipe.SOLVER.IMS_PER_BATCH
    rounded = -(-batch // ranks) * ranks
    rate = recipe.SOLVER.BASE_LR * rounded / batch * share_of_rate
    return {"IMS_PER_BATCH": rounded, "BASE_LR": float(f"{rate:g}")}  # six digits: it is read by people


def _normalisation(init: str, method: str) -> dict[str, list[float]]:
    """How the network to start from was shown its images, where that is known: published ones in another way."""
    try:
        trained = method_config(method, init).MODEL
    except FileNotFoundError:  # neither a published network nor one with a config beside it
        return {}
    return {"PIXEL_MEAN": list(trained.PIXEL_MEAN), "PIXEL_STD": list(trained.PIXEL_STD)}


def _beginning(args: argparse.Namespace, method: str) -> dict[str, Any]:
    """Config keys of the weights that ``--init`` names; none without it."""
    if not args.init:
        return {}
    init = _init(args.init)
    return {"MODEL.WEIGHTS": init, **{f"MODEL.{key}": value for key, value in _normalisation(init, method).items()}}


def _init(path: str) -> str:
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))
