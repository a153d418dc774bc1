"""The page of a report: the data of its template and its script, and filling it in.

Names of files, classes and sets are the user's and may hold anything: the template escapes them, and the script reads
them from a json in which ``<`` is escaped.
"""

import math
import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2

from boxsup_d2.data.formats.problems import Problems
from boxsup_d2.evaluation.metrics import IOU_THRESHOLDS
from boxsup_d2.report.drawing import label_colors
from boxsup_d2.report.mask_sets import Collection
from boxsup_d2.report.render import Measured, Rendered
from boxsup_d2.report.statistics import (
    SUSPICIONS,
    Histogram,
    Measure,
    class_rows,
    histogram,
    present_measures,
    summary_rows,
    suspicions,
)
from boxsup_d2.version import __version__

# In the order of the table; other keys follow.
_PROVENANCE_KEYS = (
    "source_dataset", "method", "config_name", "config_sha256", "checkpoint", "checkpoint_sha256", "step", "date",
    "code_version",
)  # fmt: skip
# What the command line needs to continue.
_HIDDEN_KEYS = ("request", "exports")
# The folders of an absolute path; not those of a URL.
_FOLDERS = re.compile(r"""(?<![\w.~:/])~?/(?:[^/'",\n]+/)*(?=[^/\s])""")


def page_content(collection: Collection, scenes: Sequence[Rendered], title: str, folder: str) -> dict[str, Any]:
    """Values of the template's variables.

    Args:
        collection: the images and masks of the report.
        scenes: what was measured on its images, in their order.
        title: of the page.
        folder: name of the folder of pictures beside the page; "" where they are in the page.
    """
    rows = [row for scene in scenes for row in scene.measured]
    objects = [obj for scene in collection.scenes for obj in scene.objects]
    labels = [obj.class_index for obj in objects]
    measures = present_measures(rows, collection.semantic)
    sizes = [math.sqrt(max(obj.box[2], 0)) * math.sqrt(max(obj.box[3], 0)) for obj in objects]
    summary = summary_rows(rows, labels or [0] * len(rows), len(collection.classes))
    return {
        "title": title,
        "version": __version__,
        "sets": [each.name for each in collection.sets],
        "semantic": collection.semantic,
        "has_truth": collection.has_truth,
        "images": len(collection.scenes),
        "total_images": collection.total,
        "objects": len(objects),
        "unmatched": collection.unmatched,
        "problems": _problems(collection, scenes),
        "measures": measures,
        "thresholds": IOU_THRESHOLDS,
        "summary": summary,
        "has_quality": any(measure.key == "quality" for measure in measures),
        "partly_compared": any(row["compared"] < row["objects"] for row in summary),
        "classes": [] if collection.semantic else class_rows(rows, labels, collection.classes),
        "histograms": _histograms(measures, rows, sizes, len(collection.sets)),
        "provenance": _provenance_table(collection.provenance),
        "data": _script_data(collection, scenes, measures, rows, sizes, folder),
    }


def render_page(content: Mapping[str, Any], pictures: Mapping[str, str]) -> Iterator[str]:
    """The page, in pieces.

    Args:
        content: from :func:`page_content`.
        pictures: JPEGs as base64 by name; empty where they are in a folder.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("boxsup_d2.report", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.filters["fraction"] = lambda value: "–" if math.isnan(value) else f"{value:.3f}"
    environment.filters["percent"] = lambda value: "–" if math.isnan(value) else f"{100 * value:.1f}"
    assets = {name: _asset(environment, f"report.{name}") for name in ("css", "js")}
    template = environment.get_template("report.html.jinja")
    yield from template.generate(**content, **assets, pictures=pictures)


def _asset(environment: jinja2.Environment, name: str) -> str:
    # Not included by the template, which would interpret the braces of CSS and JavaScript.
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _problems(collection: Collection, scenes: Sequence[Rendered]) -> list[str]:
    problems = Problems()
    for scene in scenes:
        for kind, example in scene.problems:
            problems.add(kind, example)
    what = "images" if collection.semantic else "objects"
    missing = [
        f"{number} {what} of '{each.name}' have no partner in '{collection.sets[0].name}' and are not shown"
        for each, number in zip(collection.sets, collection.unmatched, strict=True)
        if number
    ]
    return [_without_folders(text) for text in (str(collection.problems), str(problems), *missing) if text]


def _histograms(
    measures: Sequence[Measure], rows: Sequence[Sequence[Measured]], sizes: Sequence[float], sets: int
) -> list[Histogram]:
    found = []
    for measure in measures:
        if measure.per_set:
            found.append(histogram(measure, [[getattr(row[n], measure.key) for row in rows] for n in range(sets)]))
        else:
            found.append(histogram(measure, [sizes]))
    return found


def _provenance_table(provenance: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Rows of key and the value of each set; empty where no file has a provenance."""
    keys = dict.fromkeys(key for each in provenance for key in each if key not in _HIDDEN_KEYS)
    ordered = [key for key in _PROVENANCE_KEYS if key in keys] + [key for key in keys if key not in _PROVENANCE_KEYS]
    rows = [(key.replace("_", " "), [_text(each.get(key, "")) for each in provenance]) for key in ordered]
    return [(key, values) for key, values in rows if any(values)]


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {_text(each)}" for key, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else _without_folders(str(value))


def _without_folders(text: str) -> str:
    """A text in which paths from the root, or from somebody's home, are their last part: pages are sent to others."""
    return _FOLDERS.sub("", text)


def _script_data(
    collection: Collection,
    scenes: Sequence[Rendered],
    measures: Sequence[Measure],
    rows: Sequence[Sequence[Measured]],
    sizes: Sequence[float],
    folder: str,
) -> dict[str, Any]:
    """What the script sorts, filters and shows. By columns, which take less space than a dict per object."""
    images = [number for number, scene in enumerate(scenes) for _ in scene.measured]
    objects = [obj for scene in collection.scenes for obj in scene.objects]
    values: dict[str, list[Any]] = {
        measure.key: [[_rounded(getattr(row[n], measure.key)) for row in rows] for n in range(len(collection.sets))]
        for measure in measures
        if measure.per_set
    }
    if not collection.semantic:
        values["size"] = [round(size, 1) for size in sizes]
    return {
        "sets": [each.name for each in collection.sets],
        "truth": collection.has_truth,
        "semantic": collection.semantic,
        "classes": collection.classes,
        "colors": label_colors(len(collection.classes)) if collection.semantic else [],
        "measures": [{"key": m.key, "label": m.label, "perSet": m.per_set} for m in measures],
        "files": [_without_folders(scene.file_name) for scene in collection.scenes],
        "image": images,
        "labels": [scene.classes for scene in scenes] if collection.semantic else [obj.class_index for obj in objects],
        "ids": [str(obj.annotation_id) for obj in objects],
        "boxes": [[round(v, 1) for v in obj.box] for obj in objects],
        "suspicions": [] if collection.semantic else list(SUSPICIONS),
        # Of each object the numbers of those that a set's mask is under.
        "suspect": [sorted({n for one in row for n, is_so in enumerate(suspicions(one)) if is_so}) for row in rows],
        "areas": [[row[n].area for row in rows] for n in range(len(collection.sets))],
        "values": values,
        # Quoted, since the name may have '#' or '%'.
        "folder": urllib.parse.quote(folder),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
