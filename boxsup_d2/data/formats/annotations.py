"""Annotations of any format that is read, recognised by their content; each format's reader is a module beside this.

COCO, Label Studio, labelme and VIA as json; Pascal VOC and CVAT as XML; YOLO as text files.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from boxsup_d2.data.formats.coco import check_coco_form, read_json
from boxsup_d2.data.formats.coco_dialects import tidy_coco
from boxsup_d2.data.formats.cvat import read_cvat_xml
from boxsup_d2.data.formats.folders import list_files, locate_images
from boxsup_d2.data.formats.label_studio import is_label_studio, read_label_studio
from boxsup_d2.data.formats.labelme import read_labelme
from boxsup_d2.data.formats.problems import Problems
from boxsup_d2.data.formats.pseudo_masks import read_provenance
from boxsup_d2.data.formats.via import is_via, read_via
from boxsup_d2.data.formats.voc import parse_xml, read_voc_xml
from boxsup_d2.data.formats.yolo import holds_numbers, read_yolo

_KINDS = (".json", ".xml", ".txt")
# Stands in the folder of every training of several steps.
_RUN = "rounds.json"
# Files that people hand in and that cannot be read as they are.
_NO_ANNOTATIONS = {
    ".zip": "unpack it, and name the folder.",
    ".csv": "tables are not read. Export the annotations as COCO, Pascal VOC or YOLO.",
    ".txt": "one text file is no set of boxes: name the folder of YOLO's label files.",
}
# What each format that is not read looks like, as keys of its json, and the export to make instead.
_NOT_READ = {
    "Supervisely": ({"objects", "size", "tags"}, "Export the project as COCO in Supervisely ('Export to COCO')."),
    "FiftyOne": ({"samples"}, "Export it by dataset.export(dataset_type=fiftyone.types.COCODetectionDataset)."),
    "Labelbox": ({"data_row", "projects"}, "Convert it by Labelbox's COCO converter."),
    "GeoJSON": ({"features", "type"}, "Its coordinates are those of a map: convert them to pixels, as COCO."),
}


@dataclass(frozen=True)
class Annotations:
    """Annotations that were read.

    Attributes:
        path: of the file or folder that they are in; of a COCO json in a folder, the json.
        data: COCO dict.
        as_it_is: whether ``path`` is a COCO json that gives ``data`` when it is read again.
    """

    path: str
    data: dict[str, Any]
    as_it_is: bool


def read_annotations(
    path: str, images: str, names: str | None, problems: Problems, notes: Problems, suffix: str = ""
) -> Annotations:
    """Read annotations of whatever format.

    Args:
        path: a json or an XML file, or a folder of a format's files, such as a whole export.
        images: folder of the images.
        names: file of YOLO's class names, see :func:`read_yolo`.
        problems: gains what cannot be used.
        notes: gains what is worth knowing.
        suffix: take a folder's files of this kind, ".json", ".xml" or ".txt"; else the first kind that there is. A json
            that this program wrote into the folder counts where there is nothing else.

    Raises:
        FileNotFoundError: there are no annotations, or no images.
        ValueError: they are damaged, or of a format that is not read: the message says which, and what to do.
    """
    if not os.path.isdir(path):
        suffix = os.path.splitext(path)[1].lower()
        if suffix in _NO_ANNOTATIONS:
            raise ValueError(f"'{path}': {_NO_ANNOTATIONS[suffix]}")
        if suffix == ".xml":
            return _read_xml(path, [], images, problems, notes)
        return _read_json(path, read_json(path, "boxes"), images, problems, notes)
    files = list_files(path, _KINDS)
    runs = tuple(file.removesuffix(_RUN) for file in files if file.endswith(f"/{_RUN}"))
    files = [file for file in files if not file.startswith(runs)]
    listed = {kind: [file for file in files if file.lower().endswith(kind)] for kind in _KINDS}
    for kind in (suffix,) if suffix else _KINDS:
        # A README beside our json is no label file; of empty ones, which are, there is nothing to tell.
        labels = kind == ".txt" and (bool(suffix) or any(holds_numbers(os.path.join(path, f)) for f in listed[kind]))
        if listed[kind] and labels:
            return Annotations(path, read_yolo(path, images, names, problems, notes), False)
        if listed[kind] and kind == ".xml":
            return _read_xml(path, listed[kind], images, problems, notes)
        found = _json_of(path, listed[kind], ours=False) if kind == ".json" else None
        if found is not None:
            if listed[".xml"]:
                notes.add("xml files that are not read, since there is a json", f"'{path}/{listed['.xml'][0]}'")
            return _read_json(*found, images, problems, notes, path, listed[kind])
    found = _json_of(path, listed[".json"], ours=True) if suffix in ("", ".json") else None
    if found is not None:
        return _read_json(*found, images, problems, notes, path, listed[".json"])
    if listed[".txt"] and not suffix:
        return Annotations(path, read_yolo(path, images, names, problems, notes), False)
    raise FileNotFoundError(
        f"There is no {suffix or 'json, xml or txt'} file of annotations, in a format that is read, in '{path}'. "
        "Correct the path, or export them as COCO."
    )


def _read_xml(path: str, files: list[str], images: str, problems: Problems, notes: Problems) -> Annotations:
    tasks = []
    for relative in files or [""]:
        file = os.path.join(path, relative) if files else path
        try:
            tag = parse_xml(file).tag
        except ValueError:
            if not files:
                raise
            continue  # for the reader of the folder to tell
        if tag == "annotations":
            tasks.append(file)
        elif files:
            break  # Pascal VOC's, of which there may be thousands
    if len(tasks) > 1:
        raise ValueError(f"'{path}' holds several files of CVAT, such as {tasks[:2]}: name one of them.")
    if tasks:
        data = read_cvat_xml(tasks[0], problems, notes)
        return Annotations(tasks[0], locate_images(data, images, notes), False)
    if not files:
        raise ValueError(f"'{path}' is one XML file: name the folder of Pascal VOC's files, or a file of CVAT.")
    return Annotations(path, read_voc_xml(path, images, problems, notes), False)


def _json_of(folder: str, files: list[str], *, ours: bool) -> tuple[str, Any] | None:
    """The json of a folder that holds its annotations, or the first of labelme's, with its content; None: none does.

    ``ours``: whether what this program wrote counts.
    """
    found = []
    for relative in files:
        path = os.path.join(folder, relative)
        if not ours and read_provenance(path) is not None:
            continue
        try:
            data = read_json(path, relative)
        except (ValueError, OSError):  # not the annotations, or one of labelme's, which tells that
            continue
        if _is_labelme(data):
            return path, data
        if _is_set(data) or _format_not_read(data):
            found.append((path, data))
        if _format_not_read(data):
            break
    if len(found) > 1:
        names = [os.path.relpath(path, folder) for path, _ in found[:4]]
        raise ValueError(f"'{folder}' holds several jsons of annotations, such as {names}: name one of them.")
    return found[0] if found else None


def _is_labelme(data: Any) -> bool:
    return isinstance(data, dict) and isinstance(data.get("shapes"), list)


def _is_set(data: Any) -> bool:
    return (
        is_label_studio(data) or is_via(data) or (isinstance(data, dict) and {"images", "annotations"} <= data.keys())
    )


def _format_not_read(data: Any) -> str:
    """Which format a json has that is not read, and what to do; "" for others."""
    entry = data[0] if isinstance(data, list) and data else data
    if isinstance(entry, dict) and not {"images", "annotations"} & entry.keys():
        for tool, (keys, remedy) in _NOT_READ.items():
            if keys <= entry.keys():
                return f"is {tool}'s own format, which is not read. {remedy}"
    return ""


def _read_json(
    path: str, data: Any, images: str, problems: Problems, notes: Problems, folder: str = "", files: Sequence[str] = ()
) -> Annotations:
    """``folder``, ``files``: what was given, where it was a folder, and the jsons in it."""
    refusal = _format_not_read(data)
    if refusal:
        raise ValueError(f"'{path}' {refusal}")
    if _is_labelme(data):
        root, base = (folder, "") if folder else os.path.split(path)
        return Annotations(folder or path, read_labelme(root, files or [base], images, problems, notes), False)
    if is_via(data):
        return Annotations(path, read_via(data, images, problems, notes), False)
    if is_label_studio(data):
        return Annotations(path, locate_images(read_label_studio(data, problems, notes), images, notes), False)
    check_coco_form(data, path)
    tidy = tidy_coco(data, notes)
    located = locate_images(tidy, images, notes)
    return Annotations(path, located, located is tidy)
