"""What ``boxsup train`` compares a network with, a ``--teacher`` or itself before, and the configs of both."""

import os
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from detectron2.config import CfgNode

from boxsup_cli.errors import BadInput
from boxsup_cli.sources import Source
from boxsup_d2.evaluation.label_comparison import ComparedObjects, compare_labellings
from boxsup_d2.evaluation.mask_matching import match_images, match_objects, objects_of, read_mask_file
from boxsup_d2.masks.rle import has_mask
from boxsup_d2.methods import file_config, method_config
from boxsup_d2.same_work import changed_settings

if TYPE_CHECKING:  # imported when the command runs
    from rich.table import Table

TEACHER, BEFORE = "teacher", "before"  # names of their steps
# Of itself before, rounds of their own: with or without --truth the training is the same.
BEFORE_FOLDER = "compared"

# What of a method's config decides its masks; the rest is the machine's, or of how it was trained.
_SECTIONS = ("MODEL.", "INPUT.")
_NOT_OURS = ("MODEL.DEVICE",)


def teacher_settings(method: str, weights: str | None) -> dict[str, Any]:
    """The config of a teacher as a step's yaml holds it: what differs from the defaults, in sections.

    Args:
        method: name of a method, or path of a network's config or checkpoint.
        weights: of the method or config; None: those that ship, or lie beside the config.

    Raises:
        ValueError, FileNotFoundError: see :func:`boxsup_d2.methods.method_config`.
    """
    weights = os.path.abspath(weights) if weights and os.path.exists(weights) else weights
    if not os.path.isfile(method):
        cfg = method_config(method, weights)
    else:
        folder = os.path.dirname(os.path.abspath(method))
        if not method.endswith((".yaml", ".yml")):
            if weights:
                raise BadInput(f"--teacher '{method}' is a checkpoint already: leave --teacher-weights out.")
            method, weights = os.path.join(folder, "config.yaml"), os.path.abspath(method)
        elif not weights:
            beside = os.path.join(folder, "model_final.pth")
            weights = beside if os.path.isfile(beside) else None
        cfg = file_config(method, weights)
    return labelling_settings(cfg)


def labelling_settings(cfg: CfgNode) -> dict[str, Any]:
    """What of a network's config decides its masks, in sections, as yaml holds it."""
    settings: dict[str, Any] = {}
    for key, value in changed_settings(cfg).items():
        if key.startswith(_SECTIONS) and key not in _NOT_OURS:
            *sections, name = key.split(".")
            node = settings
            for section in sections:
                node = node.setdefault(section, {})
            node[name] = value
    return settings


def check_truth(path: str, source: Source, *, kept: bool) -> None:
    """Find what would stop the comparison after the training.

    Args:
        path: json with true masks.
        source: the boxes.
        kept: whether masks that these have are kept, and so compare nothing.

    Raises:
        FileNotFoundError, ValueError: it is missing or damaged, or has no mask of a box that will get one.
    """
    truth, data = read_mask_file(path), source.usable
    names = {category["id"]: category["name"] for category in data["categories"]}
    known = [{**record, "id": record["image_id"]} for record in truth.records]
    objects: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in data["annotations"]:
        if not annotation.get("iscrowd"):
            objects[annotation["image_id"]].append(annotation)
    for image, position in zip(data["images"], match_images(data["images"], known, "id"), strict=True):
        if position is None:
            continue
        ours, theirs = objects[image["id"]], objects_of(known[position])
        classes = [names.get(a["category_id"], "") for a in ours]
        for pair in match_objects(ours, theirs, classes, [truth.class_names[a["category_id"]] for a in theirs]):
            drawn = kept and has_mask(ours[pair.ours].get("segmentation"))
            if theirs[pair.theirs]["segmentation"] and not drawn:
                return
    raise ValueError(
        f"--truth: '{path}' has no mask of any box of '{source.path}' that has none there: there is nothing to compare."
    )


def comparison_table(first: str, second: str, names: tuple[str, str], truth: str | None) -> "Table | None":
    """A network's masks beside what came before, in percent; None where all masks were kept from the json.

    Args:
        first, second: the files of their masks, of what came before and of the network.
        names: of both.
        truth: json with true masks, or None.

    Raises:
        ValueError: no object of theirs is in the truth.
    """
    from rich.table import Table

    compared = compare_labellings(first, second, truth)
    if not compared:
        return None
    measure = "IoU with the truth" if truth else "IoU of box and tight box of the mask; no --truth"
    table = Table(title=f"{names[1]} against {names[0]}: {measure}, percent", title_justify="left")
    table.caption = (
        "gain: with its 95 % interval over images; alike: IoU of both masks; small, medium, large: boxes of less than "
        "32², less than 96², and more pixels"
    )
    for column in ("boxes", "count", *names, "gain", "95 %", "alike"):
        table.add_column(column, justify="left" if column == "boxes" else "right", no_wrap=True)
    for row in compared:
        table.add_row(row.name, str(row.count), *_figures(row))
    return table


def _figures(row: ComparedObjects) -> list[str]:
    low, gain, high = (f"{round(100 * value, 1) + 0.0:+.1f}" for value in (row.low, row.after - row.before, row.high))
    values = [f"{100 * value:.1f}" for value in (row.before, row.after, row.agreement)]
    return [*values[:2], gain, f"{low} to {high}", values[2]]
