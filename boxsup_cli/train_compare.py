"""What ``boxsup train`` compares a network with, a ``--teacher`` or itself before, and the configs of both."""

import os
from typing import TYPE_CHECKING, Any

from detectron2.config import CfgNode

from boxsup_cli.errors import BadInput
from boxsup_cli.sources import Source
from boxsup_d2.evaluation.label_comparison import ComparedObjects, compare_labellings
from boxsup_d2.evaluation.mask_matching import match_images, read_mask_file
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


def check_truth(path: str, source: Source) -> None:
    """Find what would stop the comparison after the training.

    Args:
        path: json with true masks.
        source: the boxes.

    Raises:
        FileNotFoundError, ValueError: it is missing or damaged, or has no mask in any of the images.
    """
    truth = read_mask_file(path)
    known = [{**record, "id": record["image_id"]} for record in truth.records]
    partners = [known[i] for i in match_images(source.usable["images"], known, "id") if i is not None]
    if not any(annotation["segmentation"] for record in partners for annotation in record["annotations"]):
        raise ValueError(f"--truth: '{path}' has no mask in any image of '{source.path}'. Correct the path.")


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
    for column in ("boxes", "objects", *names, "difference", "95 %", "agreement"):
        table.add_column(column, justify="left" if column == "boxes" else "right", no_wrap=True)
    for row in compared:
        table.add_row(row.name, str(row.count), *_figures(row))
    return table


def _figures(row: ComparedObjects) -> list[str]:
    interval = f"{100 * row.low:+.1f} to {100 * row.high:+.1f}"
    values = [f"{100 * value:.1f}" for value in (row.before, row.after, row.agreement)]
    return [*values[:2], f"{100 * (row.after - row.before):+.1f}", interval, values[2]]
