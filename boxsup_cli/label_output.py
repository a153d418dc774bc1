"""From the file that labelling wrote to the output: the user's json with masks, and other formats."""

import os
from typing import Any

from boxsup_cli.errors import BadInput
from boxsup_cli.exports import EXPORTS, targets, write
from boxsup_cli.sources import Source
from boxsup_d2.data.formats.coco import read_json
from boxsup_d2.data.formats.pseudo_masks import PROVENANCE_KEY, read_provenance, read_pseudo_masks, write_pseudo_masks
from boxsup_d2.masks.confidence import DOUBTFUL_QUALITY
from boxsup_d2.masks.rle import has_mask
from boxsup_d2.utils.files import atomic_write, seen_from, strict_json

# Keys of an annotation that labelling sets; an id is made where there is none, or one twice.
_LABELLED = ("id", "segmentation", "area", "confidence", "confidence_exact", "quality")
# Those of them that a box without a mask has not.
_OF_MASKS = ("segmentation", "confidence", "confidence_exact")
# Keys of an image that are read from its file where the json has none.
_FILLED = ("height", "width")
# Keys that this module adds to the provenance: the request, the other formats that were written, and their --simplify.
_REQUEST, _EXPORTS, _SIMPLIFY = "request", "exports", "simplify"
# What users call parts of a request.
_IN_WORDS = {
    "source_sha256": "boxes",
    "config_sha256": "settings",
    "weights_sha256": "weights",
    "overwrite": "--overwrite-masks",
    "polygons": "--polygons",
    "simplify": "--simplify",
    "min_quality": "--min-quality",
}


def is_done(out: str, request: dict[str, Any], *, force: bool) -> bool:
    """Whether the same request has written the output already.

    Raises:
        BadInput: another file is there, and not ``force``.
    """
    if not os.path.exists(out):
        return False
    provenance = read_provenance(out)
    if provenance is not None and provenance.get(_REQUEST) == request:
        return True
    if force:
        return False
    if provenance is None:
        what = "was not written by this command"
    else:
        former = provenance.get(_REQUEST) or provenance
        keys = {*request, *(former if _REQUEST in provenance else ())}
        differs = sorted(key for key in keys if former.get(key) != request.get(key))
        words = ", ".join(_IN_WORDS.get(key, key) for key in differs)
        what = f"was written by {former.get('method')} on {provenance.get('date')} (other {words})"
    raise BadInput(f"'{out}' {what}: replace it with --force, or name another --out.")


def finish(
    result: str,
    out: str,
    source: Source,
    request: dict[str, Any],
    exports: dict[str, str],
    *,
    polygons: bool,
    simplify: float = 0.0,
    min_quality: float | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write all outputs; the json last, so that it exists only when all is done.

    Args:
        result: file that labelling wrote.
        out: json to write.
        source: the user's boxes.
        request: see :func:`boxsup_cli.label_job.request_of`.
        exports: other formats → folders.
        polygons: polygons instead of RLE.
        simplify: how far, in pixels, polygons of any format may pass the edges of masks.
        min_quality: boxes whose new mask has a lower quality are left without a mask; None: none is.
        overwrite: boxes that had a mask have a new one.

    Returns:
        The summary of the labelling; with ``min_quality`` it counts those boxes as ``left_as_boxes``, and no longer as
        ``doubtful``.
    """
    labelled = read_pseudo_masks(result)
    provenance = labelled["info"][PROVENANCE_KEY]
    provenance = {
        **provenance,
        "source_json": os.path.basename(source.path),
        "image_root": seen_from(out, source.image_root),
        "checkpoint": seen_from(out, provenance["checkpoint"]),
        _REQUEST: request,
        _EXPORTS: {name: seen_from(out, folder) for name, folder in exports.items()},
        _SIMPLIFY: _simplified(exports, simplify),
    }
    if min_quality is not None:
        left = _leave_as_boxes(labelled, source, min_quality, overwrite=overwrite)
        provenance["summary"] = summary_without(provenance["summary"], left, min_quality)
    if polygons:  # the usable part only: other entries may lack sizes or images
        from boxsup_d2.data.formats.polygons import to_polygons

        labelled = to_polygons(labelled, simplify)
    _export(labelled, exports, source.image_root, simplify)
    final = {
        **source.data,
        "images": _merged(source.data["images"], source.usable["images"], labelled["images"], _FILLED),
        "annotations": _merged(
            source.data["annotations"], source.usable["annotations"], labelled["annotations"], _LABELLED
        ),
    }
    write_pseudo_masks(out, final, provenance)
    return provenance["summary"]


def summary_without(summary: dict[str, Any], left: int, min_quality: float) -> dict[str, Any]:
    """The summary of a labelling of which so many masks, those of a lower quality, are left as boxes."""
    doubtful = 0 if min_quality >= DOUBTFUL_QUALITY else summary.get("doubtful", left) - left
    return {**summary, "doubtful": doubtful, "left_as_boxes": left}


def _leave_as_boxes(labelled: dict[str, Any], source: Source, min_quality: float, *, overwrite: bool) -> int:
    """Take new masks of a lower quality away; returns how many.

    Such an annotation keeps its box and, to say why, the quality: the confidences are of a mask that it has not.
    """
    left, annotations = 0, []
    for before, after in zip(source.usable["annotations"], labelled["annotations"], strict=True):
        new = not after.get("iscrowd") and (overwrite or not has_mask(before.get("segmentation")))
        if new and after.get("quality", after.get("confidence", 0.0)) < min_quality:
            left += 1
            after = {key: value for key, value in after.items() if key not in _OF_MASKS}
            after["area"] = after["bbox"][2] * after["bbox"][3]
        annotations.append(after)
    labelled["annotations"] = annotations
    return left


def missing_exports(out: str, exports: dict[str, str], simplify: float) -> dict[str, str]:
    """Those other formats (format → folder) that were not written, as simple, with a finished output."""
    provenance = read_provenance(out) or {}
    done, simplified, asked = _done_exports(provenance, out), provenance.get(_SIMPLIFY), _simplified(exports, simplify)
    simplified = simplified if isinstance(simplified, dict) else {}
    return {
        name: folder
        for name, folder in exports.items()
        if done.get(name) != os.path.realpath(folder)
        or not os.path.isdir(folder)
        or simplified.get(name) != asked.get(name)
    }


def _simplified(exports: dict[str, str], simplify: float) -> dict[str, float]:
    """How simple the polygons of formats are."""
    return {name: simplify for name in exports if EXPORTS[name].polygons and simplify}


def export(out: str, image_root: str, exports: dict[str, str], *, simplify: float = 0.0, outside_images: bool) -> None:
    """Write a finished output in other formats.

    Args:
        out: the json.
        image_root: folder of its images.
        exports: formats → folders.
        simplify: see :func:`finish`.
        outside_images: see :func:`boxsup_d2.data.formats.inspection.inspect_coco`.
    """
    from boxsup_d2.data.formats.inspection import inspect_coco

    data = read_pseudo_masks(out)
    # With --keep-going the json holds entries that no format has room for, as it did before.
    _export(
        inspect_coco(data, image_root, path=out, outside_images=outside_images).usable, exports, image_root, simplify
    )
    provenance = data["info"][PROVENANCE_KEY]
    former = provenance.get(_SIMPLIFY)
    simplified = {
        **{name: value for name, value in (former if isinstance(former, dict) else {}).items() if name not in exports},
        **_simplified(exports, simplify),
    }
    done = {name: seen_from(out, folder) for name, folder in {**_done_exports(provenance, out), **exports}.items()}
    write_pseudo_masks(out, data, {**provenance, _EXPORTS: done, _SIMPLIFY: simplified})


def _done_exports(provenance: dict[str, Any], out: str) -> dict[str, str]:
    """Format → folder, absolute, links followed, as an output says, which somebody may have edited."""
    done = provenance.get(_EXPORTS)
    if not isinstance(done, dict):
        return {}
    return {name: os.path.realpath(os.path.join(os.path.dirname(out), str(folder))) for name, folder in done.items()}


def claim_folders(exports: dict[str, str], source_path: str, work: str, *, force: bool) -> None:
    """Check that other formats replace no file of the user, and note in ``work`` that their folders are ours.

    Args:
        exports: formats → folders that are about to be written.
        source_path: of the boxes or images.
        work: folder of the work under way.
        force: replace what is there.

    Raises:
        BadInput: files of these names are there, and not ``force``; or they are the source itself.
    """
    record = os.path.join(work, "exports.json")
    begun: dict[str, str] = {}
    if os.path.isfile(record):
        fix = "Delete it, if no other command is at work."
        begun = read_json(record, "exports", damaged=fix)
        if not isinstance(begun, dict):
            raise ValueError(f"'{record}' is damaged: it holds no names and folders. {fix}")
    for name, folder in exports.items():
        present = [path for path in targets(name, folder) if os.path.exists(path)]
        if any(os.path.samefile(path, source_path) for path in present):
            raise BadInput(f"--{name} '{folder}' would write over '{source_path}': name another folder.")
        if present and begun.get(name) != folder and not force:
            raise BadInput(f"--{name}: '{present[0]}' is there already: name another folder, or replace it by --force.")
    if exports:
        with atomic_write(record) as file:
            file.write(strict_json({**begun, **exports}))


def _export(data: dict[str, Any], exports: dict[str, str], image_root: str, simplify: float) -> None:
    from boxsup_cli.console import tell

    for name, folder in exports.items():
        tell(f"writing --{name} '{folder}'")
        left = write(name, data, folder, image_root, simplify)
        if left:
            tell(f"--{name} leaves out {', '.join(left)}")


def _merged(
    entries: list[dict[str, Any]], usable: list[dict[str, Any]], results: list[dict[str, Any]], keys: tuple[str, ...]
) -> list[dict[str, Any]]:
    """The user's entries; those that were usable with their results, the others unchanged.

    Args:
        entries: images or annotations, in the user's order.
        usable: some of them, in the same order; ``keys`` may differ.
        results: one for each usable entry.
        keys: taken from the results.
    """
    merged, position = [], 0
    for entry in entries:
        if position < len(usable) and _same(entry, usable[position], keys):
            result = results[position]
            entry = {key: value for key, value in entry.items() if key not in keys or key in result}
            entry |= {key: result[key] for key in keys if key in result}
            position += 1
        merged.append(entry)
    if position < len(usable):
        raise RuntimeError(f"{len(usable) - position} labelled entries are not among the source's: {usable[position]}")
    return merged


def _same(entry: dict[str, Any], usable: dict[str, Any], keys: tuple[str, ...]) -> bool:
    """Whether ``usable`` is this entry after the inspection."""
    # The inspection copies entries, not their values; and NaN is not equal to itself.
    return entry is usable or all(
        entry.get(key) is value or entry.get(key) == value for key, value in usable.items() if key not in keys
    )
