"""The configs that ``boxsup train`` writes: a rounds config for data of the user, made to be read and edited.

The recipes are those of ``configs/quick`` and ``configs/BoxCaseg``, which also lie in ``recipes`` of this package, so
that an installation without the repository finds them.
"""

import argparse
import hashlib
import json
import os
from dataclasses import dataclass
from importlib.resources import files

from boxsup_d2.cli.errors import BadInput
from boxsup_d2.cli.sources import Source
from boxsup_d2.data.datasets.salient import load_salient
from boxsup_d2.data.formats.pseudo_masks import PROVENANCE_KEY
from boxsup_d2.masks.rle import has_mask
from boxsup_d2.methods import method_config
from boxsup_d2.utils.files import atomic_write

BOXES, SALIENT = "my_boxes", "my_salient"  # names of the data sets

COST_OF_BOXES_ALONE = (
    "No masks to learn from: none in the json, no --salient, no --init. The network learns the box losses alone and "
    "answers from its box head. What that costs, on VOC (docs/benchmarks.md): mIoU* 46.3, less than the filled "
    "boxes (55.4) and GrabCut's masks, which need no training; with salient images it is 77.7."
)

# Below this share of samples with masks, batches are mixed at a fixed ratio (as published for COCO), or the salient
# head would hardly be taught.
_FEW_MASKS = 0.25
_RECORD = "written.json"


@dataclass(frozen=True)
class _Recipe:
    """What differs between the sizes.

    Attributes:
        bases: files of ``recipes`` for the box-to-mask network and the Mask R-CNN.
        batches: samples per update of the two.
        rates: their learning rates.
        iterations: their updates; None: ``epochs``.
        epochs: passes over the data of the box-to-mask network, as published.
        mask_rcnn: further settings of the Mask R-CNN.
    """

    bases: tuple[str, str]
    batches: tuple[int, int]
    rates: tuple[float, float]
    iterations: tuple[int | None, int]
    epochs: int = 0
    mask_rcnn: str = ""


_RECIPES = {
    "small": _Recipe(("Base-BoxCaseg.yaml", "Base-Mask-RCNN.yaml"), (24, 4), (0.001, 0.001), (1200, 1800)),
    "full": _Recipe(
        ("Base-BoxCaseg-HRNet-W48.yaml", "Base-Mask-RCNN-FPN.yaml"),
        (32, 6),
        (0.004, 0.0075),
        (None, 22500),
        epochs=40,
        mask_rcnn='  WEIGHTS: "detectron2://ImageNetPretrained/MSRA/R-50.pkl"\n  RESNETS:\n    DEPTH: 50\n',
    ),
}


@dataclass(frozen=True)
class Plan:
    """A training that was asked for.

    Attributes:
        files: names in the folder of the configs → their texts; the first one is the rounds config.
        told: what will be done, for people.
        boxes_alone: whether there are no masks to learn from.
    """

    files: dict[str, str]
    told: str
    boxes_alone: bool


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
        FileNotFoundError, ValueError: the salient folders do not fit each other.
    """
    recipe, ranks = _RECIPES[args.size], max(processes, 1)
    info = source.data.get("info")
    predicted = isinstance(info, dict) and PROVENANCE_KEY in info
    objects = [annotation for annotation in source.usable["annotations"] if not annotation.get("iscrowd")]
    masks = 0 if predicted else sum(has_mask(annotation.get("segmentation")) for annotation in objects)
    salient_images = len(load_salient(*salient, SALIENT)) if salient else 0
    taught = masks + salient_images
    boxes_alone = not taught and not args.init
    few = 0 < taught < _FEW_MASKS * (len(objects) - masks + taught) and len(objects) > masks
    texts = {
        "rounds.yaml": _rounds(args, source, salient, out, "none" if predicted else "kept"),
        "boxcaseg.yaml": _boxcaseg(args, recipe, ranks, salient is not None, few, boxes_alone),
    }
    if args.mask_rcnn:
        texts["mask-rcnn.yaml"] = _mask_rcnn(args, recipe, ranks, len(source.usable["categories"]))
    for base in recipe.bases[: 1 + args.mask_rcnn]:
        texts[base] = files("boxsup_d2.cli").joinpath("recipes", base).read_text(encoding="utf-8")
    told = (
        f"{len(objects) - masks} boxes, {masks} boxes with masks, {salient_images} salient images; "
        f"{len(source.usable['categories'])} classes"
    )
    if predicted:
        told += f" (the masks in '{source.path}' are predictions of this program: only its boxes are used)"
    return Plan(texts, told, boxes_alone)


def write_configs(folder: str, texts: dict[str, str], *, force: bool) -> str:
    """Write the configs, those apart that the same command wrote before: what the user edited stays edited.

    Args:
        folder: to write to.
        texts: name → text; the first one is the rounds config.
        force: replace edited files.

    Returns:
        Path of the rounds config.

    Raises:
        BadInput: a file was edited, and another command wants to replace it.
    """
    record_path = os.path.join(folder, _RECORD)
    record: dict[str, str] = {}
    if os.path.isfile(record_path):
        with open(record_path, encoding="utf-8") as file:
            record = json.load(file)
    wanted = {name: _digest(text) for name, text in texts.items()}
    lost = [name for name in texts if not os.path.isfile(os.path.join(folder, name))]
    if record == wanted and not force:
        texts = {name: texts[name] for name in lost}
    if texts:
        edited = [name for name, digest in record.items() if _digest_of(os.path.join(folder, name)) not in ("", digest)]
        if edited and not force and record != wanted:
            raise BadInput(
                f"{', '.join(edited)} in '{folder}' was edited, and another command than this one wrote it. Run that "
                "again to use the edited files, or add --force to write them anew, or name another --out."
            )
        for name, text in texts.items():
            with atomic_write(os.path.join(folder, name)) as file:
                file.write(text)
        with atomic_write(record_path) as file:
            json.dump(wanted, file, indent=1)
    return os.path.join(folder, next(iter(wanted)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _digest_of(path: str) -> str:
    if not os.path.isfile(path):
        return ""
    with open(path, encoding="utf-8") as file:
        return _digest(file.read())


def _rounds(args: argparse.Namespace, source: Source, salient: tuple[str, str] | None, out: str, use_masks: str) -> str:
    """The rounds config; strings are written as json, which is yaml as well."""
    text = (
        "# Written by `boxsup train`; edit it, and run the same command again. From a checkout of boxsup_d2 this does\n"
        "# the same:\n"
        "#   python train_net.py --config-file <this file>\n"
        "# Finished steps are skipped, changed ones start anew; their former folders are kept.\n"
        f"OUTPUT_DIR: {json.dumps(out)}\n"
        "DATASETS:\n"
        "  REGISTER:\n"
        f'    - NAME: "{BOXES}"\n'
        f"      JSON: {json.dumps(source.json_file(os.path.join(out, 'configs')))}\n"
        f"      IMAGES: {json.dumps(source.image_root)}\n"
        f'      MASKS: "{use_masks}"  # "kept": boxes that have a mask teach by it, and keep it; "none": boxes alone\n'
    )
    if salient:
        text += (
            f'    - NAME: "{SALIENT}"\n'
            f"      IMAGES: {json.dumps(salient[0])}\n"
            f"      SALIENT_MASKS: {json.dumps(salient[1])}\n"
        )
    text += (
        "ROUNDS:\n"
        '  - NAME: "1"\n'
        "    STEPS:\n"
        '      - NAME: "boxcaseg"        # learns from the boxes, then gives each of them a mask\n'
        '        CONFIG: "boxcaseg.yaml"\n'
    )
    if args.mask_rcnn:
        text += (
            '      - NAME: "mask-rcnn"       # learns from these masks\n'
            '        CONFIG: "mask-rcnn.yaml"\n'
            '        PSEUDO_MASKS: ["boxcaseg"]\n'
        )
    return text + "VERSION: 2\n"


def _boxcaseg(
    args: argparse.Namespace,
    recipe: _Recipe,
    ranks: int,
    with_salient: bool,
    few_masks: bool,
    boxes_alone: bool,
) -> str:
    train = [BOXES, SALIENT] if with_salient else [BOXES]
    batch, rate = _batch(recipe, 0, ranks)
    text = f'_BASE_: "{recipe.bases[0]}"\n'
    model = ""
    if args.init:
        init = _init(args.init)
        model += f"  WEIGHTS: {json.dumps(init)}\n{_normalisation(init)}"
        rate /= 10
    if boxes_alone:
        model += '  BOXCASEG:\n    TEST_HEAD: "box"  # nothing teaches the salient head\n'
    elif args.size == "full":
        model += "  BOXCASEG:\n    ALPHA: 0.7\n"
    text += f"MODEL:\n{model}" if model else ""
    text += f"DATASETS:\n  TRAIN: {json.dumps(train)}\n  TEST: []  # nothing is measured: that would need true masks\n"
    text += f'PSEUDO_MASKS:\n  DATASETS: ["{BOXES}"]\n'
    if few_masks:
        text += "DATALOADER:\n  BOX_RATIO: 0.6875  # masks are few: a fixed share of every batch has one\n"
    text += f"SOLVER:\n  IMS_PER_BATCH: {batch}\n  BASE_LR: {rate:g}"
    text += "  # a tenth of the recipe's: the weights are trained already\n" if args.init else "\n"
    iterations = args.iterations or recipe.iterations[0]
    return text + (_iterations(iterations) if iterations else f"  MAX_EPOCHS: {recipe.epochs}\n") + "VERSION: 2\n"


def _mask_rcnn(args: argparse.Namespace, recipe: _Recipe, ranks: int, classes: int) -> str:
    batch, rate = _batch(recipe, 1, ranks)
    iterations = args.mask_rcnn_iterations or (args.iterations and args.iterations * 3 // 2) or recipe.iterations[1]
    steps = f"  STEPS: [{max(iterations * 2 // 3, 1)}]\n" if args.size == "full" else ""
    return (
        f'_BASE_: "{recipe.bases[1]}"\n'
        f"MODEL:\n{recipe.mask_rcnn}"
        f"  ROI_HEADS:\n    NUM_CLASSES: {classes}  # as many as the json has\n"
        f'DATASETS:\n  TRAIN: ["{BOXES}_pseudo"]\n  TEST: []\n'
        f"SOLVER:\n  IMS_PER_BATCH: {batch}\n  BASE_LR: {rate:g}\n{_iterations(iterations)}{steps}"
        "VERSION: 2\n"
    )


def _iterations(number: int) -> str:
    # A warm-up as long as a short training would be all of it; the recipes' longest is 1,000 iterations.
    return f"  MAX_ITER: {number}\n  WARMUP_ITERS: {min(100, number // 10)}\n"


def _batch(recipe: _Recipe, step: int, ranks: int) -> tuple[int, float]:
    """Samples per update, rounded up so that they divide over the processes, and the rate in proportion."""
    batch, rate = recipe.batches[step], recipe.rates[step]
    rounded = -(-batch // ranks) * ranks
    return rounded, rate * rounded / batch


def _normalisation(init: str) -> str:
    """How the network to start from was shown its images, where that is known: published ones in another way."""
    try:
        trained = method_config("boxcaseg", init).MODEL
    except FileNotFoundError:  # neither a published network nor one with a config beside it
        return ""
    return f"  PIXEL_MEAN: {list(trained.PIXEL_MEAN)}\n  PIXEL_STD: {list(trained.PIXEL_STD)}\n"


def _init(path: str) -> str:
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))
