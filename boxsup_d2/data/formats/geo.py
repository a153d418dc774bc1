"""Boxes on a georeferenced raster, such as a GeoTIFF, out of GeoJSON, and their masks as GeoJSON again.

A raster is never read whole: its boxes are gathered by tiles, and the part of the raster around the boxes of a tile, a
window, becomes an image of a COCO data set. Needs rasterio, the extra ``geo``.
"""

import math
import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import cv2
import numpy as np

from boxsup_d2.data.formats.coco import read_json
from boxsup_d2.data.formats.polygons import decode_mask
from boxsup_d2.data.formats.problems import Problems, brief
from boxsup_d2.data.images import grey_levels, stretch
from boxsup_d2.masks.box_masks import tight_box
from boxsup_d2.utils.files import atomic_write
from boxsup_d2.utils.progress import track

# x0, y0, x1, y1 in pixels of the raster.
Box = tuple[float, float, float, float]

# Sides of a tile, and of the image of a window at most: what is larger is seen at a lower resolution.
_TILE, _MAX_SIDE = 2048, 8192
# What is seen around the boxes of a window, as a share of the largest one's longer side, and in pixels at least.
_MARGIN, _LEAST_MARGIN = 0.5, 32
# Pixels of the raster, evenly taken, that tell what becomes black and white.
_SAMPLE_SIDE = 1024
# GDAL's own cache, in MB; its default is a share of the machine's memory.
_CACHE = 256
# Decimal places of coordinates: a tenth of a millimetre in degrees, and in metres.
_PLACES_DEGREES, _PLACES = 9, 4
# Of an annotation's fields, those that a feature gets; and of an image's, where it lies in the raster.
_WORTH, _WINDOW = ("quality", "confidence", "confidence_exact"), "window"


class RasterBoxes(NamedTuple):
    """The boxes of a GeoJSON on a raster.

    Attributes:
        collection: the GeoJSON, a FeatureCollection.
        crs: of its coordinates, as text; "": the raster's own, whatever that is.
        boxes: by position of the feature, the box around its polygon, inside the raster.
    """

    collection: dict[str, Any]
    crs: str
    boxes: dict[int, Box]


def read_raster_boxes(path: str, raster: str, problems: Problems) -> RasterBoxes:
    """Read the polygons of a GeoJSON as boxes.

    Its coordinates are in the system that it names (``crs``); without, in WGS84 where all of them can be degrees, as
    GeoJSON's standard wants it, and else in the raster's own.

    Args:
        path: of the GeoJSON.
        raster: any raster that GDAL reads; without georeference, coordinates are pixels.
        problems: gains features that are no polygons, or lie outside of the raster.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or of another kind.
        ImportError: rasterio is not installed.
    """
    collection = read_json(path, "boxes", "Correct the path.")
    features = collection.get("features") if isinstance(collection, dict) else None
    if not isinstance(features, list) or collection.get("type") != "FeatureCollection":
        raise ValueError(f"'{path}' is no GeoJSON of boxes: it needs the type FeatureCollection and features.")
    outlines: dict[int, np.ndarray] = {}
    for position, feature in enumerate(features):
        points = _points(feature)
        if points is None:
            problems.add("features without a polygon of numbers", feature)
        else:
            outlines[position] = points
    with _opened(raster) as source:
        crs = _crs_of(collection, outlines.values(), source, path)
        placed = _in_pixels(list(outlines.values()), crs, source)
        size = np.array([source.width, source.height], dtype=float)
    boxes: dict[int, Box] = {}
    for position, own in zip(outlines, placed, strict=True):
        low, high = own.min(axis=0).clip(0, size), own.max(axis=0).clip(0, size)
        if np.isfinite(own).all() and (high > low).all():
            boxes[position] = (*low.tolist(), *high.tolist())
        else:
            problems.add("features without an area inside the raster", features[position])
    return RasterBoxes(collection, crs, boxes)


def write_windows(found: RasterBoxes, raster: str, folder: str) -> dict[str, Any]:
    """Write the windows of a raster that hold boxes as PNGs of 8 bits; those that are there already are left alone.

    Rasters of more bits are stretched as images are (:func:`boxsup_d2.data.images.stretch`), all windows alike.

    Args:
        found: see :func:`read_raster_boxes`; with a box at least.
        raster: as there.
        folder: for the PNGs, which take about as much of the disk as the part of the raster that they cover.

    Returns:
        COCO dict: an image per window, and an annotation per box, whose id is 1 + its feature's position; boxes are in
        pixels of their image. ``window`` of an image: left, top, width and height in the raster.

    Raises:
        ValueError: the raster is damaged, or its bands are no colours.
        OSError: the disk is full.
    """
    from rasterio.enums import Resampling
    from rasterio.errors import RasterioIOError
    from rasterio.windows import Window

    os.makedirs(folder, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    with _opened(raster) as source:
        bands = _color_bands(source, raster)
        levels = None
        tiles = _tiles(found.boxes)
        for number, members in enumerate(track(tiles, "windows", len(tiles), unit="window"), start=1):
            left, top, width, height = window = _window([found.boxes[m] for m in members], source.width, source.height)
            scale = max(width / _MAX_SIDE, height / _MAX_SIDE, 1.0)
            shape = max(round(height / scale), 1), max(round(width / scale), 1)
            image: dict[str, Any] = {
                "id": number,
                "file_name": f"{number:06d}.png",
                "height": shape[0],
                "width": shape[1],
            }
            images.append({**image, _WINDOW: list(window)})
            ratio = shape[1] / width, shape[0] / height
            for member in members:
                x0, y0, x1, y1 = found.boxes[member]
                box = [(x0 - left) * ratio[0], (y0 - top) * ratio[1], (x1 - x0) * ratio[0], (y1 - y0) * ratio[1]]
                annotations.append({"id": 1 + member, "image_id": number, "category_id": 1, "bbox": box, "iscrowd": 0})
            path = os.path.join(folder, image["file_name"])
            if os.path.exists(path):
                continue
            try:
                if levels is None and source.dtypes[0] != "uint8":
                    levels = _levels(source, bands)
                pixels = source.read(
                    bands, window=Window(left, top, width, height), out_shape=(len(bands), *shape),
                    resampling=Resampling.average,
                )  # fmt: skip
            except RasterioIOError as error:
                raise ValueError(f"'{raster}' cannot be read at {window} ({error}): get it again.") from error
            bgr = np.repeat(pixels, 3, axis=0) if len(bands) == 1 else pixels[::-1]
            _, png = cv2.imencode(".png", stretch(bgr.transpose(1, 2, 0), levels), [cv2.IMWRITE_PNG_COMPRESSION, 1])
            with atomic_write(path, binary=True) as file:
                file.write(png.tobytes())
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}


def mask_features(
    found: RasterBoxes, raster: str, labelled: Mapping[str, Any], min_quality: float = 0.0
) -> Iterator[dict[str, Any]]:
    """The features of a GeoJSON with masks for geometries, in their order and in its coordinates.

    Masks are polygons along the edges of the pixels, holes included. Properties are kept and gain ``quality``,
    ``confidence`` and ``confidence_exact`` of the pseudo-mask file. A feature that is no box, whose mask is empty or of
    a lower quality than ``min_quality`` keeps its geometry; the latter two gain the quality alone.

    Args:
        found, raster: see :func:`read_raster_boxes`.
        labelled: what :func:`write_windows` returned, with masks.
        min_quality: 0..1.
    """
    from rasterio.transform import Affine
    from rasterio.warp import transform_geom

    images = {image["id"]: image for image in labelled["images"]}
    by_feature = {annotation["id"] - 1: annotation for annotation in labelled["annotations"]}
    with _opened(raster) as source:
        places = _PLACES_DEGREES if found.crs and _is_geographic(found.crs) else _PLACES
        for position, feature in enumerate(found.collection["features"]):
            annotation = by_feature.get(position)
            if annotation is None:
                yield feature
                continue
            image = images[annotation["image_id"]]
            mask = decode_mask(annotation, image["height"], image["width"])
            window = tight_box(mask)
            properties = {**(feature.get("properties") or {}), "quality": annotation["quality"]}
            if window is None or annotation["quality"] < min_quality:
                yield {**feature, "properties": properties}
                continue
            x0, y0, x1, y1 = window
            left, top, width, height = image[_WINDOW]
            place = source.transform * Affine.translation(left, top)
            place = place * Affine.scale(width / image["width"], height / image["height"]) * Affine.translation(x0, y0)
            geometry = _outline(mask[y0:y1, x0:x1], place)
            if found.crs and source.crs is not None:
                geometry = transform_geom(source.crs, found.crs, geometry, precision=places)
            properties |= {key: annotation[key] for key in _WORTH}
            yield {**feature, "geometry": geometry, "properties": properties}


def _outline(mask: np.ndarray, place: Any) -> dict[str, Any]:
    """A mask (h×w bool, not empty) as Polygon or MultiPolygon; ``place``: from its pixels to coordinates."""
    from rasterio.features import shapes

    # Parts that touch at a corner are apart: a ring must not touch itself.
    parts = [part["coordinates"] for part, _ in shapes(mask.astype(np.uint8), mask, connectivity=4, transform=place)]
    if len(parts) == 1:
        return {"type": "Polygon", "coordinates": parts[0]}
    return {"type": "MultiPolygon", "coordinates": parts}


def _points(feature: Any) -> np.ndarray | None:
    """N×2 points of a feature's polygons, N at least 3; None where it has none."""
    geometry = feature.get("geometry") if isinstance(feature, dict) else None
    if not isinstance(geometry, dict) or not isinstance(feature.get("properties") or {}, dict):
        return None
    rings: Any = geometry.get("coordinates")
    try:
        if geometry.get("type") == "MultiPolygon":
            rings = [ring for polygon in rings for ring in polygon]
        elif geometry.get("type") != "Polygon":
            return None
        # A third number is the height.
        points = np.array([point[:2] for ring in rings for point in ring], dtype=float)
    except (TypeError, ValueError, KeyError):
        return None
    return points if points.ndim == 2 and len(points) >= 3 and points.shape[1] == 2 else None


def _crs_of(collection: Mapping[str, Any], outlines: Iterable[np.ndarray], source: Any, path: str) -> str:
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    named = collection.get("crs")
    if named is not None:
        try:
            crs = CRS.from_user_input(named["properties"]["name"])
        except (CRSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"'{path}' names a coordinate system that is not known: {brief(named)}.") from error
        if source.crs is None:
            raise ValueError(f"'{path}' is in {crs.to_string()}, but the raster says nothing of its own coordinates.")
        return crs.to_wkt()
    degrees = all((np.abs(points) <= (180, 90)).all() for points in outlines)
    return "OGC:CRS84" if source.crs is not None and degrees else ""


def _is_geographic(crs: str) -> bool:
    from rasterio.crs import CRS

    return bool(CRS.from_user_input(crs).is_geographic)


def _in_pixels(outlines: Sequence[np.ndarray], crs: str, source: Any) -> list[np.ndarray]:
    """Coordinates (N×2 each) as columns and rows of the raster; not finite where they cannot be."""
    from rasterio.warp import transform

    if not outlines:
        return []
    x, y = np.concatenate(outlines).T
    if crs:
        try:
            x, y = (np.array(values) for values in transform(crs, source.crs, x.tolist(), y.tolist())[:2])
        except Exception:  # PROJ's, which have no public name: one point that is nowhere in the raster's system
            if len(outlines) > 1:
                return [placed for points in outlines for placed in _in_pixels([points], crs, source)]
            x, y = np.full((2, len(outlines[0])), np.nan)
    inverse = ~source.transform
    placed = np.stack([inverse.a * x + inverse.b * y + inverse.c, inverse.d * x + inverse.e * y + inverse.f], axis=1)
    return np.split(placed, np.cumsum([len(points) for points in outlines])[:-1])


def _tiles(boxes: Mapping[int, Box]) -> list[list[int]]:
    """Boxes that share a window, by their positions: those whose middle is in one tile, and larger ones each alone."""
    groups: dict[tuple[float, ...], list[int]] = defaultdict(list)
    for position, (x0, y0, x1, y1) in boxes.items():
        large = max(x1 - x0, y1 - y0) > _TILE
        groups[(position,) if large else ((y0 + y1) // (2 * _TILE), (x0 + x1) // (2 * _TILE))].append(position)
    return [groups[key] for key in sorted(groups)]


def _window(boxes: Sequence[Box], width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, width and height of what is seen of these boxes."""
    margin = max(_MARGIN * max(max(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes), _LEAST_MARGIN)
    left, top = (max(math.floor(min(box[axis] for box in boxes) - margin), 0) for axis in (0, 1))
    right = min(math.ceil(max(box[2] for box in boxes) + margin), width)
    bottom = min(math.ceil(max(box[3] for box in boxes) + margin), height)
    return left, top, right - left, bottom - top


def _color_bands(source: Any, raster: str) -> list[int]:
    """Numbers of the bands that are red, green and blue, or of the only one."""
    from rasterio.enums import ColorInterp

    meaning = list(source.colorinterp)
    if ColorInterp.palette in meaning:
        raise ValueError(f"'{raster}' has a palette: write its colours out (gdal_translate -expand rgb).")
    colors = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    if all(color in meaning for color in colors):
        return [meaning.index(color) + 1 for color in colors]
    return [1, 2, 3] if source.count >= 3 else [1]


def _levels(source: Any, bands: Sequence[int]) -> tuple[float, float] | None:
    shape = [min(side, _SAMPLE_SIDE) for side in (source.height, source.width)]
    return grey_levels(source.read(bands, out_shape=(len(bands), *shape), masked=True).compressed())


@contextmanager
def _opened(raster: str) -> Iterator[Any]:
    """A raster, opened.

    Raises:
        ValueError: it is none.
        ImportError: rasterio is not installed.
    """
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
    except ImportError as error:
        raise ImportError(
            "GeoJSON and rasters need rasterio, which is not installed: pip install 'boxsup_d2[geo]'."
        ) from error
    with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=_CACHE):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            source = rasterio.open(raster)
        except RasterioIOError as error:
            raise ValueError(f"'{raster}' cannot be read as a raster ({error}): get it again.") from error
        with source:
            yield source
