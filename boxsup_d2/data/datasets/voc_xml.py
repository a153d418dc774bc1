"""Pascal VOC's annotation XML: one file, its parts and their checks. What a data set makes of them is not decided here.

Frame: VOC boxes are 1-based with inclusive ends; what is returned is 0-based with exclusive ends (x0 = xmin − 1,
x1 = xmax).
"""

from collections.abc import Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element

import defusedxml.ElementTree
import numpy as np
from defusedxml.common import DefusedXmlException


class VocObject(NamedTuple):
    """An ``<object>``.

    Attributes:
        name: of its class.
        box: x0, y0, x1, y1; 0-based, exclusive ends.
        difficult, truncated: 0 or 1.
    """

    name: str
    box: tuple[float, float, float, float]
    difficult: int
    truncated: int


def parse_voc_xml(path: str) -> Element:
    """The root of an annotation file that exists.

    Raises:
        ValueError: it is damaged.
    """
    try:
        root = defusedxml.ElementTree.parse(path).getroot()
    except (defusedxml.ElementTree.ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise ValueError(f"'{path}' is damaged or no VOC annotation ({error!r}). Unpack or copy it again.") from error
    return root


def voc_image_size(root: Element, path: str) -> tuple[int, int]:
    """Height and width as the file gives them.

    Raises:
        ValueError: it gives none; names the file.
    """
    width, height = (_number(root, f"size/{key}", path) for key in ("width", "height"))
    if min(width, height) < 1:
        raise ValueError(f"'{path}': the image size is {width:g} by {height:g}. Write the true size into <size>.")
    return int(height), int(width)


def voc_object(element: Element, path: str) -> VocObject:
    """One ``<object>``; the boxes of its parts are not its own.

    Raises:
        ValueError: its box is inverted or no box, or it has no class; names the file.
    """
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError(f"'{path}': an object without a <name>. Name its class, or remove it.")
    xmin, ymin, xmax, ymax = (_number(element, f"bndbox/{key}", path) for key in ("xmin", "ymin", "xmax", "ymax"))
    # Ends are inclusive: xmin = xmax is a box one pixel wide.
    if xmax < xmin or ymax < ymin:
        raise ValueError(
            f"'{path}': inverted box of a '{name}', xmin {xmin:g}, ymin {ymin:g}, xmax {xmax:g}, ymax {ymax:g}. "
            "Swap or remove it."
        )
    difficult, truncated = (int((element.findtext(key) or "0").strip() == "1") for key in ("difficult", "truncated"))
    return VocObject(name, (xmin - 1.0, ymin - 1.0, xmax, ymax), difficult, truncated)


def ids_of_names(stems: Sequence[str]) -> list[int]:
    """Image ids from file names: "2007_000032" is 2007000032. For names of another form, the 1-based position."""
    digits = [stem.replace("_", "") for stem in stems]
    # More than 18 digits do not fit into int64.
    if all(text.isascii() and text.isdigit() and len(text) <= 18 for text in digits):
        ids = [int(text) for text in digits]
        if len(set(ids)) == len(ids):
            return ids
    return list(range(1, len(stems) + 1))


def _number(element: Element, path_in_xml: str, path: str) -> float:
    text = element.findtext(path_in_xml)
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise ValueError(f"'{path}': <{path_in_xml}> is {text!r:.40}, not a number. Correct or remove the object.")
    return value
