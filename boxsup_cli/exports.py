"""The formats that commands write masks in, beside COCO's: each one once."""

import argparse
import importlib
import os
from typing import Any, NamedTuple

from boxsup_cli.arguments import Group, non_negative
from boxsup_cli.errors import BadInput, bad_input


class Export(NamedTuple):
    """A format.

    Attributes:
        what: is written, for the help.
        writer: module of :mod:`boxsup_d2`, and function; imported when it is used.
        files: what it writes into its folder; "": files of any name.
        root: name of a function beside the writer that returns the folder that is really written to.
        images: whether the writer is told the folder of the images.
        polygons: whether the writer is told how far polygons may pass the edges of masks.
        boxes: whether an object without a mask is written as its box.
        annotations: whether what it writes is read as annotations by the next command.
        pictures: ending of files that it names as the images; "": it writes none.
    """

    what: str
    writer: str
    files: tuple[str, ...] = ("",)
    root: str = ""
    images: bool = False
    polygons: bool = False
    boxes: bool = False
    annotations: bool = False
    pictures: str = ""


EXPORTS = {
    "overlays": Export(
        "a picture of every image with its masks, boxes and classes over it",
        "report.overlays:write_overlays",
        images=True,
        pictures=".jpg",
    ),
    "png": Export("a black and white PNG per mask", "data.formats.export:write_mask_pngs"),
    "voc-png": Export(
        "SegmentationObject/ and SegmentationClass/ as Pascal VOC has them",
        "data.formats.export:write_voc_png",
        ("SegmentationObject", "SegmentationClass", "class_names.txt"),
    ),
    "yolo-seg": Export(
        "a data set for 'yolo train': labels/, images/ (links) and data.yaml",
        "data.formats.export:write_yolo_seg",
        ("labels", "data.yaml"),
        root="yolo_root",
        images=True,
        polygons=True,
        annotations=True,
    ),
    "labelme": Export(
        "labelme's jsons, to correct boxes and masks there",
        "data.formats.labelme:write_labelme",
        images=True,
        polygons=True,
        boxes=True,
        annotations=True,
    ),
    "label-studio": Export(
        "tasks.json, pre-annotations to be imported into Label Studio, and config.xml, their labelling interface",
        "data.formats.label_studio:write_label_studio",
        ("tasks.json", "config.xml"),
        boxes=True,
        annotations=True,
    ),
}

# What writers count as left out, in words: of one and of several.
_LEFT_OUT = {
    "without_mask": ("object without a mask", "objects without a mask"),
    "covered": ("object that others cover", "objects that others cover"),
    "crowds": ("crowd region", "crowd regions"),
    "images_of_crowds": ("image that has crowd regions alone", "images that have crowd regions alone"),
}


def add_export_arguments(group: Group) -> None:
    """Add an option per format, and what they share."""
    for option, export in EXPORTS.items():
        group.add_argument(f"--{option}", type=os.path.expanduser, metavar="DIR", help=f"also write {export.what}")
    group.add_argument(
        "--simplify",
        type=non_negative,
        default=0.0,
        metavar="PX",
        help="polygons of fewer points, which may pass the edges of new masks by so many pixels: 1 leaves a third of "
        "them, less than 0.4 changes nothing; with --polygons in every format",
    )


def asked_exports(args: argparse.Namespace, others: tuple[str, ...] = ()) -> dict[str, str]:
    """The formats that were asked for, and their folders, absolute.

    Args:
        args: of the command.
        others: its options beside the formats that write polygons.

    Raises:
        BadInput: there is no polygon for ``--simplify``.
    """
    asked = {option: getattr(args, option.replace("-", "_")) for option in EXPORTS}
    drawn = [*others, *(option for option, export in EXPORTS.items() if export.polygons)]
    if args.simplify and not any(getattr(args, option.replace("-", "_")) for option in drawn):
        raise BadInput(
            f"--simplify is for polygons: give --{' or --'.join(drawn)} as well, or leave it out. Those of GeoJSON are "
            "exact."
        )
    return {option: os.path.abspath(folder) for option, folder in asked.items() if folder}


def targets(name: str, folder: str) -> list[str]:
    """What a format writes, or finds and might replace, in its folder."""
    export = EXPORTS[name]
    if export.root:
        folder = _function(export, export.root)(folder)
    if export.files == ("",):
        return [os.path.join(folder, base) for base in os.listdir(folder)] if os.path.isdir(folder) else []
    return [os.path.join(folder, base) for base in export.files]


def check_export(name: str, folder: str, data: dict[str, Any], image_root: str) -> None:
    """Find what would stop a format after the work; ``data`` needs no masks.

    Raises:
        BadInput: files of the user lie where a format would link to other images, it cannot number so many classes or
            objects, or not tell the images apart.
    """
    from boxsup_d2.data.formats.export import check_voc_png, yolo_links
    from boxsup_d2.data.formats.folders import output_stems

    with bad_input():
        # Label Studio's tasks are in one file.
        stems = output_stems(data["images"]) if name != "label-studio" else []
        if name == "voc-png":
            check_voc_png(data, folder)
    if EXPORTS[name].pictures:
        # Any picture there may be somebody's, whatever its format, named in the json or not.
        images = {os.path.realpath(os.path.join(image_root, os.path.dirname(i["file_name"]))) for i in data["images"]}
        for stem in stems:
            if os.path.realpath(os.path.join(folder, os.path.dirname(stem))) in images:
                raise BadInput(f"--{name} '{folder}' would write pictures among the images: name another folder.")
    if name != "yolo-seg":
        return
    for link, picture in yolo_links(data, folder, image_root):
        if os.path.lexists(link) and not (os.path.exists(link) and os.path.samefile(link, picture)):
            raise BadInput(f"--{name}: '{link}' is another image than '{picture}': name another folder.")


def write(name: str, data: dict[str, Any], folder: str, image_root: str, simplify: float) -> list[str]:
    """Write a COCO dict, see the writers, in a format into a folder; returns what is left out, in words."""
    export = EXPORTS[name]
    function = _function(export, export.writer.split(":")[1])
    options = {"tolerance": simplify} if export.polygons else {}
    counts = function(data, folder, image_root, **options) if export.images else function(data, folder, **options)
    left = {key: counts.get(key, 0) for key in _LEFT_OUT} if isinstance(counts, dict) else {}
    if export.boxes:
        left["without_mask"] = 0
    return [f"{number} {_LEFT_OUT[key][number > 1]}" for key, number in left.items() if number]


def _function(export: Export, name: str) -> Any:
    return getattr(importlib.import_module(f"boxsup_d2.{export.writer.split(':')[0]}"), name)
