"""Reading boxes in any format, and their inspection before any work.

Formats are those of :mod:`boxsup_d2.data.formats`. With ``--keep-going`` the good part of a source is used, and the
rest is copied to the output unchanged.
"""

import argparse
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from boxsup_cli.arguments import Existing, Group
from boxsup_cli.errors import BadInput, bad_input

if TYPE_CHECKING:  # imported when the command runs
    from boxsup_d2.data.formats.annotations import Annotations
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
        from boxsup_d2.utils.files import atomic_write, strict_json

        if not self.as_it_is:
            with atomic_write(self.json_file(folder)) as file:
                file.write(strict_json(self.usable))


def add_keep_going_argument(group: Group) -> None:
    """Add ``--keep-going``."""
    group.add_argument(
        "--keep-going",
        action="store_true",
        help="use the good part of data that have mistakes; without it any mistake stops the command before the work",
    )


def add_outside_argument(group: argparse._ActionsContainer) -> None:
    """Add ``--outside-images``."""
    group.add_argument(
        "--outside-images",
        action="store_true",
        help="also read images that absolute names, '..' or links lead to outside of --images",
    )


def add_source_arguments(parser: argparse.ArgumentParser) -> Group:
    """Add the options that name boxes and images to the parser of a subcommand; returns those that name boxes."""
    group = parser.add_argument_group("boxes and images")
    formats = group.add_mutually_exclusive_group(required=True)
    formats.add_argument(
        "--json",
        action=Existing,
        metavar="F",
        help="boxes as a COCO-format json, whose unknown fields are kept, or one of other tools",
    )
    formats.add_argument(
        "--voc-xml", action=Existing, metavar="DIR", help="boxes as a folder of Pascal VOC's xml files"
    )
    formats.add_argument("--yolo", action=Existing, metavar="DIR", help="boxes as a folder of YOLO's txt files")
    formats.add_argument(
        "--annotations",
        action=Existing,
        metavar="PATH",
        help="boxes as any of these, as CVAT's xml, or of Label Studio, labelme or VIA: a file, or a whole export",
    )
    group.add_argument(
        "--names", action=Existing, metavar="F", help="class names of --yolo: a txt file with a name per line, or yaml"
    )
    group.add_argument(
        "--images", action=Existing, metavar="DIR", required=True, help="folder that the file names are relative to"
    )
    add_keep_going_argument(group)
    add_outside_argument(group)
    return formats


def read_source(args: argparse.Namespace) -> Source:
    """Read and inspect what :func:`add_source_arguments` named, and show what is wrong with it.

    Raises:
        BadInput: files are missing or damaged, there are no boxes, or there are mistakes and no ``--keep-going``.
    """
    from boxsup_cli.console import tell
    from boxsup_d2.data.formats.problems import Problems
    from boxsup_d2.utils.files import json_sha256

    notes = Problems()
    with bad_input():
        found, image_root, digest, unreadable = _read(args, notes)
    path, data = found.path, found.data
    inspection, mistakes = inspect_source(
        path,
        image_root,
        data,
        unreadable,
        notes,
        keep_going=args.keep_going,
        outside_images=args.outside_images,
        decode=args.keep_going,
    )
    usable = inspection.usable
    if not any(not annotation.get("iscrowd") for annotation in usable["annotations"]):
        raise BadInput(f"'{path}' has no usable box: there is nothing to do.")
    for what, count in inspection.filled.items():
        tell(f"{what}: {count}")
    as_it_is = found.as_it_is and not mistakes and not inspection.filled
    if not as_it_is:  # the usable part changes when missing images come back
        digest = json_sha256([digest, usable])
    sizes = [os.path.getsize(os.path.join(image_root, image["file_name"])) for image in usable["images"]]
    digest = json_sha256([digest, sizes])
    return Source(path, image_root, data, usable, digest, as_it_is)


def inspect_source(
    path: str,
    image_root: str,
    data: dict[str, Any],
    unreadable: "Problems",
    notes: "Problems",
    *,
    keep_going: bool,
    outside_images: bool,
    decode: bool = False,
) -> tuple["Inspection", int]:
    """Inspect a COCO dict, and show what is wrong with it.

    Args:
        path: where it came from.
        image_root: folder of its images.
        data: the COCO dict.
        unreadable, notes: what did not get into it, and what else is worth knowing.
        keep_going: mistakes are left out.
        outside_images: images may lie outside of ``image_root``.
        decode: read images whole, to find those that are damaged.

    Returns:
        What was found, and the number of mistakes.

    Raises:
        BadInput: there are mistakes, and not ``keep_going``; or no image is there.
    """
    from boxsup_cli.console import errors, problems_table
    from boxsup_d2.data.formats.inspection import OUTSIDE, inspect_coco

    with bad_input():
        inspection = inspect_coco(data, image_root, path=path, decode=decode, outside_images=outside_images)
    if data["images"] and not inspection.usable["images"]:
        _refuse_wrong_folder(path, image_root, data["images"])
    mistakes = len(unreadable) + len(inspection.problems)
    if mistakes or len(notes) or len(inspection.notes):
        errors.print(problems_table(path, [unreadable, inspection.problems], [notes, inspection.notes]))
    if mistakes and not keep_going:
        outside = any(kind.startswith(OUTSIDE) for kind, *_ in inspection.problems.kinds())
        raise BadInput(
            f"'{path}' has {mistakes} mistake(s), listed above: nothing was done. Correct them, or use the rest with "
            f"--keep-going{' (images outside of the folder: with --outside-images)' if outside else ''}."
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


def _read(args: argparse.Namespace, notes: "Problems") -> tuple["Annotations", str, str, "Problems"]:
    """The annotations, image folder, sha256, and what could not be read; ``notes``: gains what is worth knowing."""
    from boxsup_d2.data.formats.annotations import read_annotations
    from boxsup_d2.data.formats.problems import Problems
    from boxsup_d2.utils.files import file_sha256, json_sha256

    named = {".json": args.json, ".xml": args.voc_xml, ".txt": args.yolo, "": args.annotations}
    suffix, given = next((suffix, given) for suffix, given in named.items() if given)
    path, image_root = (os.path.abspath(os.path.expanduser(value)) for value in (given, args.images))
    for name, where, exists in (("--images", image_root, os.path.isdir), ("boxes", path, os.path.exists)):
        if not exists(where):
            raise FileNotFoundError(f"{name}: there is no '{where}'.")
    unreadable = Problems()
    found = read_annotations(path, image_root, args.names, unreadable, notes, suffix)
    digest = file_sha256(found.path) if found.as_it_is else json_sha256(found.data)
    return found, image_root, digest, unreadable
