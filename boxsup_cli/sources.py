"""Reading boxes in any format, and their inspection before any work.

Formats are those of :mod:`boxsup_d2.data.formats`. With ``--keep-going`` the good part of a source is used, and the
rest is copied to the output unchanged.
"""

import argparse
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from boxsup_cli.arguments import Group
from boxsup_cli.errors import BadInput, bad_input

if TYPE_CHECKING:  # imported when the command runs
    from boxsup_d2.data.formats.inspection import Inspection
    from boxsup_d2.data.formats.problems import Problems


@dataclass(frozen=True)
class Source:
    """Boxes that were read and inspected.

    Attributes:
        path: the json or folder that they came from, absolute.
        image_root: folder of the images, absolute.
        data: COCO dict as it was read, from which the output is made.
        usable: COCO dict of its good part, with image sizes.
        sha256: of the json (of another format, of the COCO dict), of its usable part, and of the sizes of the image
            files: they change with the content, but not when a folder is moved or copied.
        as_it_is: whether all of the file at ``path`` is usable, so that it can be registered itself.
    """

    path: str
    image_root: str
    data: dict[str, Any]
    usable: dict[str, Any]
    sha256: str
    as_it_is: bool

    def json_file(self, folder: str) -> str:
        """Path of a COCO json of the usable part: the user's own, or what :meth:`write` writes to ``folder``."""
        return self.path if self.as_it_is else os.path.join(folder, "usable.json")

    def write(self, folder: str) -> None:
        """Write :meth:`json_file`, unless it is the user's own."""
        from boxsup_d2.utils.files import atomic_write

        if not self.as_it_is:
            with atomic_write(self.json_file(folder)) as file:
                json.dump(self.usable, file)


def add_keep_going_argument(group: Group) -> None:
    """Add ``--keep-going``."""
    group.add_argument(
        "--keep-going",
        action="store_true",
        help="use the good part of data that have mistakes; without it any mistake stops the command before the work",
    )


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that name boxes and images to the parser of a subcommand."""
    group = parser.add_argument_group("boxes and images")
    formats = group.add_mutually_exclusive_group(required=True)
    formats.add_argument("--json", metavar="F", help="boxes as a COCO-format json; unknown fields are kept")
    formats.add_argument("--voc-xml", metavar="DIR", help="boxes as a folder of Pascal VOC's xml files")
    formats.add_argument("--yolo", metavar="DIR", help="boxes as a folder of YOLO's txt files")
    group.add_argument("--names", metavar="F", help="class names of --yolo: a txt file with a name per line, or yaml")
    group.add_argument("--images", metavar="DIR", required=True, help="folder that the file names are relative to")
    add_keep_going_argument(group)


def read_source(args: argparse.Namespace) -> Source:
    """Read and inspect what :func:`add_source_arguments` named, and show what is wrong with it.

    Raises:
        BadInput: files are missing or damaged, there are no boxes, or there are mistakes and no ``--keep-going``.
    """
    from boxsup_cli.console import tell
    from boxsup_d2.utils.files import json_sha256

    with bad_input():
        path, image_root, data, digest, unreadable = _read(args)
    inspection, mistakes = inspect_source(path, image_root, data, unreadable, keep_going=args.keep_going)
    usable = inspection.usable
    if not any(not annotation.get("iscrowd") for annotation in usable["annotations"]):
        raise BadInput(f"'{path}' has no usable box: there is nothing to do.")
    for what, count in inspection.filled.items():
        tell(f"{what}: {count}")
    as_it_is = bool(args.json) and not mistakes and not inspection.filled
    if not as_it_is:  # the usable part changes when missing images come back
        digest = json_sha256([digest, usable])
    sizes = [os.path.getsize(os.path.join(image_root, image["file_name"])) for image in usable["images"]]
    digest = json_sha256([digest, sizes])
    return Source(path, image_root, data, usable, digest, as_it_is)


def inspect_source(
    path: str, image_root: str, data: dict[str, Any], unreadable: "Problems", *, keep_going: bool
) -> tuple["Inspection", int]:
    """Inspect a COCO dict, and show what is wrong with it.

    Args:
        path: where it came from.
        image_root: folder of its images.
        data: the COCO dict.
        unreadable: what did not get into it.
        keep_going: mistakes are left out.

    Returns:
        What was found, and the number of mistakes.

    Raises:
        BadInput: there are mistakes, and not ``keep_going``; or no image is there.
    """
    from boxsup_cli.console import errors, problems_table
    from boxsup_d2.data.formats.inspection import inspect_coco

    with bad_input():
        inspection = inspect_coco(data, image_root, path=path)
    if data["images"] and not inspection.usable["images"]:
        _refuse_wrong_folder(path, image_root, data["images"])
    mistakes = len(unreadable) + len(inspection.problems)
    if mistakes or len(inspection.notes):
        errors.print(problems_table(path, [unreadable, inspection.problems], inspection.notes))
    if mistakes and not keep_going:
        raise BadInput(
            f"'{path}' has {mistakes} mistake(s), listed above: nothing was done. Correct them, or use the rest with "
            "--keep-going."
        )
    return inspection, mistakes


def _refuse_wrong_folder(path: str, image_root: str, images: list[Any]) -> None:
    """If no image at all is there, the folder is wrong and not the json."""
    from boxsup_d2.data.paths import missing_files

    names = [image["file_name"] for image in images if isinstance(image, dict) and image.get("file_name")]
    if names and len(missing_files(os.path.join(image_root, str(name)) for name in names)) == len(names):
        raise BadInput(
            f"None of the {len(names)} images of '{path}' is in '{image_root}', not even '{names[0]}': name the folder "
            "that its file names are relative to as --images."
        )


def _read(args: argparse.Namespace) -> tuple[str, str, dict[str, Any], str, "Problems"]:
    """Path, image folder, COCO dict, its sha256, and what of other formats could not be read."""
    from boxsup_d2.data.formats.coco import read_coco_json
    from boxsup_d2.data.formats.problems import Problems
    from boxsup_d2.utils.files import file_sha256, json_sha256

    given = args.json or args.voc_xml or args.yolo
    path, image_root = (os.path.abspath(os.path.expanduser(value)) for value in (given, args.images))
    for name, where, exists in (("--images", image_root, os.path.isdir), ("boxes", path, os.path.exists)):
        if not exists(where):
            raise FileNotFoundError(f"{name}: there is no '{where}'.")
    if args.json:
        return path, image_root, read_coco_json(path, "boxes"), file_sha256(path), Problems()
    from boxsup_d2.data.formats.voc import read_voc_xml
    from boxsup_d2.data.formats.yolo import read_yolo

    unreadable = Problems()
    if args.voc_xml:
        data = read_voc_xml(path, image_root, unreadable)
    else:
        data = read_yolo(path, image_root, args.names, unreadable)
    digest = json_sha256(data)
    return path, image_root, data, digest, unreadable
