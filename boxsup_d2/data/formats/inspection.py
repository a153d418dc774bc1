"""Everything that is wrong with a COCO json and its images, found before any work starts, in one summary.

The strict reader (:mod:`boxsup_d2.data.formats.coco_dicts`) stops a run at such a file. Here the same rules
(:mod:`boxsup_d2.data.formats.coco_checks`), and those that need the images, sort the file into what can be used and
what cannot, so that a person decides once. Images are listed and their headers read; none is decoded unless asked for.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from boxsup_d2.data.formats.coco import check_coco_form
from boxsup_d2.data.formats.coco_checks import (
    Fault,
    box_fault,
    category_fault,
    crowd_fault,
    id_fault,
    image_fault,
    is_int,
    reference_fault,
    size_fault,
    unused_ids,
)
from boxsup_d2.data.formats.problems import Problems, brief
from boxsup_d2.data.formats.pseudo_masks import provenance_of
from boxsup_d2.data.images import ImageHeader, image_header, read_image
from boxsup_d2.data.paths import missing_files, outside_names
from boxsup_d2.masks.segmentation import segmentation_fault

#: How the kind of problem begins that ``outside_images`` lets pass.
OUTSIDE = "names or links that lead out of"
#: Keys of :attr:`Inspection.filled`.
SIZES_READ = "image sizes read from the files"
IDS_MADE = "annotation ids made"

# Headers read side by side: they wait for the drive, and on a network drive for long.
_THREADS = 8
_BATCH = 1024
# How far a box may reach out of its image before that is worth a note: VOC's boxes are often written by tools that
# count from 0 where others count from 1, and sums of rounded numbers end a little behind the last pixel.
_TOLERANCE = 1.0
# Boxes from which on all of them together tell that their numbers mean something else.
_MANY = 4


@dataclass(frozen=True)
class Inspection:
    """What :func:`inspect_coco` found.

    Attributes:
        path: of the file, for messages.
        problems: what keeps entries from being used, or shows that the file is not what it should be.
        notes: what is worth knowing and does no harm.
        filled: what was made up for, and how often: :data:`SIZES_READ`, :data:`IDS_MADE`.
        usable: COCO json of the good part. Unknown fields, ids, order, crowd regions and masks are those of the file;
            entries that nothing was changed in are the file's own objects.
        images, annotations: number of them in the file.
    """

    path: str
    problems: Problems
    notes: Problems
    filled: dict[str, int]
    usable: dict[str, Any]
    images: int
    annotations: int

    def raise_if_any(self) -> None:
        """
        Raises:
            ValueError: there is a problem: all kinds, with counts and first examples.
        """
        self.problems.raise_if_any(self.path, "Correct or remove these entries, or go on with the others.")


def inspect_coco(
    data: dict[str, Any],
    image_root: str,
    *,
    path: str,
    headers: bool = True,
    decode: bool = False,
    outside_images: bool = False,
) -> Inspection:
    """Find everything that is wrong with a COCO json.

    What becomes of it in :attr:`Inspection.usable`:

    * An image that is missing, unreadable, outside of its folder, of another size than the json says, or has a repeated
      file name is left out with its annotations. Sizes are compared upright, as EXIF data turn the image. Missing
      heights and widths are taken from the files.
    * Of entries that share an image id, the first is kept if all of them name the same file. Otherwise nobody knows
      which image the annotations are of, and all are left out.
    * Annotations without an id, as many tools export them, get one (that is no problem, but said in ``filled``). Of a
      repeated id the first keeps it, an exact copy is left out, and others, for the boxes are good, get a new one.
    * Annotations of unknown images or categories, or with an unusable box (not four finite numbers, inverted, without
      extent, smaller than a pixel in width and height, or wholly outside of the image) are left out. Boxes partly
      outside are kept as they are: methods cut them off. Crowd regions may have any box.
    * A damaged mask is taken from its annotation, whose box is good: it will be labelled as if it had none.

    Args:
        data: the json, as :func:`boxsup_d2.data.formats.coco.read_coco_json` returns it; it is not changed.
        image_root: folder that its file names are relative to.
        path: where it came from.
        headers: read the header of every image; without, only of those whose size the json lacks. Files are looked up
            in one listing per folder in any case.
        decode: read images whole, which finds those that are damaged past their header.
        outside_images: also take images that names or links lead to outside of ``image_root``.

    Raises:
        ValueError: it has not the outer form of a COCO json.
    """
    check_coco_form(data, path)
    drawn = provenance_of(data) is None
    inspector = _Inspector(image_root, headers, decode, outside_images, drawn)
    categories = inspector.categories(data["categories"])
    images = inspector.images(data["images"])
    annotations = inspector.annotations(data["annotations"])
    inspector.look_for_corners(annotations)
    return Inspection(
        path=path,
        problems=inspector.problems,
        notes=inspector.notes,
        filled={key: count for key, count in inspector.filled.items() if count},
        usable={**data, "images": images, "annotations": annotations, "categories": categories},
        images=len(data["images"]),
        annotations=len(data["annotations"]),
    )


class _Inspector:
    """Goes through the lists of a json; what later lists refer to is kept from the earlier ones."""

    def __init__(self, image_root: str, headers: bool, decode: bool, outside_images: bool, drawn: bool):
        self._drawn = drawn
        self.problems, self.notes = Problems(), Problems()
        self.filled = {SIZES_READ: 0, IDS_MADE: 0}
        self._root = image_root
        self._headers = headers
        self._decode = decode
        self._outside_images = outside_images
        self._category_ids: set[int] = set()
        self._sizes: dict[int, tuple[int, int]] = {}  # height and width of the usable images
        self._left_out: set[int] = set()  # images that the file has, but that cannot be used
        self._known: set[int] = set()  # both

    def categories(self, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The usable ones."""
        usable, names = [], set()
        for entry in entries:
            fault = category_fault(entry, self._category_ids)
            if fault is not None:
                self.problems.add(*fault)
                continue
            if entry["name"] in names:  # some tools export the project's name as a further category
                self.notes.add("categories with the name of another one", f"{entry['id']} '{entry['name']}'")
            names.add(entry["name"])
            self._category_ids.add(entry["id"])
            usable.append(entry)
        return usable

    # ------------------------------------------------------------------------------------------------ images

    def images(self, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The usable ones, with height and width."""
        named = list(self._without_repetitions(entries))
        paths = [os.path.join(self._root, entry["file_name"]) for entry in named]
        missing = set(missing_files(paths))
        outside = set() if self._outside_images else outside_names(self._root, [e["file_name"] for e in named])
        unread = missing | {os.path.join(self._root, name) for name in outside}
        usable = []
        for entry, path, size in zip(named, paths, self._read_headers(named, paths, unread), strict=True):
            if entry["file_name"] in outside:
                self._leave_out(entry, Fault(f"{OUTSIDE} '{self._root}'", entry["file_name"]))
            elif path in missing:
                self._leave_out(entry, Fault(f"images that are not in '{self._root}'", entry["file_name"]))
            elif isinstance(size, ValueError):
                self._leave_out(entry, Fault("images that cannot be read", str(size).replace(path, entry["file_name"])))
            else:
                if size is not None and size.deep:
                    self.notes.add("images of more than 8 bits, stretched between percentiles", entry["file_name"])
                usable += self._sized(entry, size and size[:2])
        return usable

    def _without_repetitions(self, entries: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Images with an id and a file name that no other one has."""
        files_of_id: dict[int, set[str]] = defaultdict(set)
        valid = []
        for entry in entries:
            fault = image_fault(entry)
            if fault is None:
                files_of_id[entry["id"]].add(entry["file_name"])
                valid.append(entry)
            else:
                self.problems.add(*fault)
                if is_int(entry.get("id")):
                    self._left_out.add(entry["id"])
        seen: set[int] = set()
        files: set[str] = set()
        for entry in valid:
            key, file_name = entry["id"], entry["file_name"]
            if key in seen:
                self.problems.add("repeated image ids", f"{key} ({file_name})")
            elif len(files_of_id[key]) > 1:
                self._left_out.add(key)
            elif file_name in files:
                self._leave_out(entry, Fault("repeated file names", f"{file_name} (id {key})"))
            else:
                files.add(file_name)
                yield entry
            seen.add(key)

    def _leave_out(self, entry: dict[str, Any], fault: Fault) -> None:
        self.problems.add(*fault)
        self._left_out.add(entry["id"])

    def _read_headers(
        self, entries: list[dict[str, Any]], paths: list[str], unread: set[str]
    ) -> Iterator[ImageHeader | ValueError | None]:
        """Per image what its file's header says, or why there is none; None where nobody looked."""
        wanted = [
            path if path not in unread and (self._headers or size_fault(entry)) else None
            for entry, path in zip(entries, paths, strict=True)
        ]
        with ThreadPoolExecutor(_THREADS) as pool:
            for batch in _batches(wanted, _BATCH):
                yield from pool.map(partial(_try_header, decode=self._decode), batch)

    def _sized(self, entry: dict[str, Any], size: tuple[int, int] | None) -> list[dict[str, Any]]:
        """The entry with a height and a width; none where it has others than its file."""
        if size_fault(entry):
            # Without a size of its own the file was looked at.
            height, width = size or (0, 0)
            fault = size_fault({**entry, "height": height, "width": width})
            if fault is not None:
                self._leave_out(entry, fault)
                return []
            entry = {**entry, "height": height, "width": width}
            self.filled[SIZES_READ] += 1
        elif size is not None and (entry["height"], entry["width"]) != size:
            declared = (entry["height"], entry["width"])
            hint = ", which its EXIF data turn" if declared == size[::-1] else ""
            self._leave_out(
                entry,
                Fault(
                    "images of another size than the json says",
                    f"{entry['file_name']}: {declared[1]}×{declared[0]}, the file has {size[1]}×{size[0]}{hint}",
                ),
            )
            return []
        self._sizes[entry["id"]] = (entry["height"], entry["width"])
        return [entry]

    # ------------------------------------------------------------------------------------------- annotations

    def annotations(self, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The usable ones, each with an id of its own."""
        self._known = self._sizes.keys() | self._left_out
        new_ids = unused_ids(entries)
        seen: dict[int, dict[str, Any]] = {}
        usable = []
        for entry in entries:
            fault = self._annotation_fault(entry)
            if fault is not None:
                self.problems.add(*fault)
                continue
            if entry["image_id"] not in self._sizes:
                self.notes.add("annotations of images that are left out", f"id {brief(entry.get('id'))}")
                continue
            fault = id_fault(entry, seen)
            if fault is not None:
                if "id" in entry and entry["id"] is not None:
                    self.problems.add(*fault)
                if is_int(entry.get("id")) and entry == seen[entry["id"]]:
                    continue
                entry = {**entry, "id": next(new_ids)}
                self.filled[IDS_MADE] += 1
            if self._drawn and "confidence" in entry:
                value = brief(entry["confidence"])
                self.notes.add(
                    "fields 'confidence' of your own, which labelling replaces", f"id {entry['id']}: {value}"
                )
            seen[entry["id"]] = entry
            usable.append(self._with_sound_mask(entry))
        return usable

    def look_for_corners(self, annotations: list[dict[str, Any]]) -> None:
        """Note a problem where all boxes would be inside of their images as corners, and many are not as they are."""
        boxes = [(a["bbox"], self._sizes[a["image_id"]]) for a in annotations if not a.get("iscrowd")]
        outside = [box for box, (h, w) in boxes if box[0] + box[2] > w + _TOLERANCE or box[1] + box[3] > h + _TOLERANCE]
        if len(boxes) < _MANY or len(outside) * 4 < len(boxes):
            return
        if all(x0 < x1 <= w + _TOLERANCE and y0 < y1 <= h + _TOLERANCE for (x0, y0, x1, y1), (h, w) in boxes):
            for box in outside:
                self.problems.add("boxes that look like x0, y0, x1, y1 (COCO's are x, y, width, height)", str(box))

    def _annotation_fault(self, entry: dict[str, Any]) -> Fault | None:
        fault = crowd_fault(entry) or reference_fault(entry, self._known, self._category_ids) or box_fault(entry)
        if fault is not None or entry.get("iscrowd") or entry["image_id"] not in self._sizes:
            return fault
        x, y, w, h = entry["bbox"]
        height, width = self._sizes[entry["image_id"]]
        if w == 0 or h == 0:
            return Fault("boxes without width or height", _place(entry))
        if w < 1 and h < 1:
            return Fault("boxes smaller than a pixel (COCO's are in pixels, not in 0..1)", _place(entry))
        if x >= width or y >= height or x + w <= 0 or y + h <= 0:
            return Fault("boxes outside of their image", f"{_place(entry)} in {width}×{height}")
        if min(x, y) < -_TOLERANCE or x + w > width + _TOLERANCE or y + h > height + _TOLERANCE:
            self.notes.add("boxes partly outside of their image", f"{_place(entry)} in {width}×{height}")
        return None

    def _with_sound_mask(self, entry: dict[str, Any]) -> dict[str, Any]:
        fault = segmentation_fault(entry.get("segmentation"), *self._sizes[entry["image_id"]])
        if fault is None:
            if not entry.get("iscrowd") and _is_rectangle(entry.get("segmentation"), entry["bbox"]):
                self.notes.add("masks that are their box, which some tools write for boxes alone", f"id {entry['id']}")
            return entry
        self.problems.add("damaged masks", f"id {entry['id']}: {fault}")
        return {key: value for key, value in entry.items() if key != "segmentation"}


def _place(entry: dict[str, Any]) -> str:
    return f"id {brief(entry.get('id'))}, image {entry['image_id']}: {entry['bbox']}"


def _is_rectangle(segmentation: Any, box: list[float]) -> bool:
    """Whether a mask is one polygon along the box, to a tenth of a pixel."""
    if not isinstance(segmentation, list) or len(segmentation) != 1 or len(segmentation[0]) not in (8, 10):
        return False
    points = {(round(x, 1), round(y, 1)) for x, y in zip(segmentation[0][::2], segmentation[0][1::2], strict=True)}
    x, y, w, h = box
    return points == {(round(a, 1), round(b, 1)) for a in (x, x + w) for b in (y, y + h)}


def _try_header(path: str | None, decode: bool) -> ImageHeader | ValueError | None:
    if path is None:
        return None
    try:
        if decode:
            read_image(path)
        return image_header(path)
    except (FileNotFoundError, ValueError) as error:
        return ValueError(str(error))


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
