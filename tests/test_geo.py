"""Boxes on georeferenced rasters: GeoJSON in, window by window, GeoJSON out."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from boxsup_cli import main
from boxsup_d2.data.formats import geo
from boxsup_d2.data.formats.problems import Problems
from boxsup_d2.data.formats.pseudo_masks import read_provenance
from boxsup_d2.masks.rle import encode_window

rasterio = pytest.importorskip("rasterio", reason="rasterio, the extra geo, is optional")
warp = pytest.importorskip("rasterio.warp")

UTM = "EPSG:32633"
PLACE = rasterio.transform.from_origin(500_000, 5_400_000, 0.5, 0.5)
# x0, y0, x1, y1 in pixels; the third is in a tile of its own, the fourth larger than a tile.
BOXES = [[40, 30, 90, 70], [95, 20, 120, 60], [500, 400, 540, 480], [150, 100, 480, 390]]


def write_raster(path: Path, pixels: np.ndarray, **options: Any) -> np.ndarray:
    """H×W×C as a GeoTIFF."""
    height, width, bands = pixels.shape
    kind = {"driver": "GTiff", "height": height, "width": width, "count": bands, "dtype": pixels.dtype}
    with rasterio.open(path, "w", **kind, **options) as file:
        file.write(pixels.transpose(2, 0, 1))
    return pixels


def polygon(box: list[float], place: Any = PLACE, crs: str = "OGC:CRS84") -> dict[str, Any]:
    x0, y0, x1, y1 = box
    ring = [place * corner for corner in ((x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0))]
    return warp.transform_geom(UTM, crs, {"type": "Polygon", "coordinates": [ring]})


def write_boxes(path: Path, geometries: list[Any], **fields: Any) -> Path:
    features = [
        {"type": "Feature", "id": f"f{number}", "properties": {"tree": number}, "geometry": geometry}
        for number, geometry in enumerate(geometries)
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", **fields, "features": features}))
    return path


def bounds(geometry: dict[str, Any], crs: str = "OGC:CRS84", place: Any = PLACE) -> list[float]:
    """x0, y0, x1, y1 in pixels."""
    rings = warp.transform_geom(crs, UTM, geometry)["coordinates"]
    points = np.array([~place * point for point in rings[0]])
    return [*points.min(axis=0), *points.max(axis=0)]


def test_boxes_of_a_geotiff_become_masks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geo, "_TILE", 300)
    pixels = np.random.default_rng(0).integers(0, 256, (500, 600, 4), dtype=np.uint8)
    write_raster(tmp_path / "ortho.tif", pixels, crs=UTM, transform=PLACE)
    geometries = [polygon(box) for box in BOXES]
    geometries[1] = {"type": "MultiPolygon", "coordinates": [geometries[1]["coordinates"]]}
    nowhere = {"type": "Polygon", "coordinates": [[[15, 90.0], [-75, 0], [105, 0]]]}
    geometries += [polygon([-90, -50, -10, -5]), {"type": "Point", "coordinates": [15, 48]}, nowhere]
    source = write_boxes(tmp_path / "boxes.geojson", geometries, name="trees")
    command = ["label", "--geojson", str(source), "--images", str(tmp_path / "ortho.tif"), "--method", "box"]
    command += ["--out", str(tmp_path / "masks.geojson"), "--num-gpus", "0", "--opts", "DATALOADER.NUM_WORKERS", "0"]
    assert main(command) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "3 mistake(s)" in error
    assert "without a polygon" in error
    assert main([*command, "--png", str(tmp_path / "png")]) == 2
    assert "leave --png out" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.work"))

    command.insert(1, "--keep-going")
    assert main(command) == 0
    assert "4 masks on 3 images" in capsys.readouterr().out
    found = json.loads((tmp_path / "masks.geojson").read_text())
    assert found["name"] == "trees"
    assert [feature["id"] for feature in found["features"]] == [f"f{number}" for number in range(7)]
    assert found["features"][4:] == json.loads(source.read_text())["features"][4:], "what is no box stays as it was"
    for feature, box in zip(found["features"], BOXES, strict=False):
        assert feature["properties"]["tree"] == int(feature["id"][1:])
        assert feature["properties"]["quality"] == pytest.approx(0.55)
        assert feature["properties"]["confidence_exact"] > 0.9
        # A corner may lie a rounding error before its pixel's edge, which then counts as touched.
        assert bounds(feature["geometry"]) == pytest.approx(box, abs=1.001)
    assert read_provenance(str(tmp_path / "masks.geojson"))["method"] == "BoxFill"
    assert not list(tmp_path.glob("*.work"))
    assert main(command) == 0
    assert "is done" in capsys.readouterr().out
    assert main([*command[:1], "--force", "--min-quality", "0.6", *command[1:]]) == 0
    assert "0 masks on 3 images, 4 boxes left without one" in capsys.readouterr().out


def test_windows_are_what_the_raster_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16 bits, without georeference: coordinates are pixels, and all windows are stretched alike."""
    monkeypatch.setattr(geo, "_TILE", 100)
    monkeypatch.setattr(geo, "_MAX_SIDE", 330)
    ramp = np.linspace(1000, 5000, 600).astype(np.uint16)[None, :, None].repeat(500, axis=0)
    write_raster(tmp_path / "deep.tif", ramp)
    boxes = [[10, 10, 30, 40], [550, 450, 590, 490], [100, 100, 400, 300]]
    rings = [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]] for x0, y0, x1, y1 in boxes]
    path = write_boxes(tmp_path / "boxes.geojson", [{"type": "Polygon", "coordinates": [ring]} for ring in rings])
    raster = str(tmp_path / "deep.tif")
    found = geo.read_raster_boxes(str(path), raster, Problems())
    assert (found.crs, list(found.boxes.values())) == ("", [tuple(box) for box in boxes])
    data = geo.write_windows(found, raster, str(tmp_path / "windows"))
    assert len(data["images"]) == 3
    for annotation, box in zip(sorted(data["annotations"], key=lambda a: a["id"]), boxes, strict=True):
        image = next(image for image in data["images"] if image["id"] == annotation["image_id"])
        left, top, width, height = image["window"]
        scale = width / image["width"]
        assert (scale > 1) == (width > 330)
        x, y, w, h = annotation["bbox"]
        ratio = height / image["height"]
        assert [left + x * scale, top + y * ratio, w * scale, h * ratio] == pytest.approx(
            [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        )
        grey = cv2.imread(str(tmp_path / "windows" / image["file_name"]))[0, :, 0]
        columns = left + (np.arange(image["width"]) + 0.5) * scale
        assert np.abs(grey - (columns / 600 * 257 - 1).clip(0, 255)).max() < 3

    # A mask with a hole in two parts comes back in its place.
    mask = np.zeros((image["height"], image["width"]), bool)
    mask[20:60, 30:90], mask[30:40, 40:60], mask[100:110, 100:120] = True, False, True
    rle = encode_window(mask.T, 0, 0, *mask.shape)
    worth = {"quality": 0.75, "confidence": 0.5, "confidence_exact": 0.25}
    third = max(data["annotations"], key=lambda a: a["id"])
    labelled = {**data, "annotations": [{**third, **worth, "segmentation": rle}]}
    *others, feature = geo.mask_features(found, raster, labelled)
    assert others == found.collection["features"][:2]
    assert feature["properties"] == {"tree": 2, **worth}
    assert [len(rings) for rings in feature["geometry"]["coordinates"]] == [2, 1]
    corner = min(point for ring in feature["geometry"]["coordinates"][0] for point in ring)
    assert corner == pytest.approx((left + 30 * scale, top + 20 * ratio))
    (kept,) = [f for f in geo.mask_features(found, raster, labelled, min_quality=0.8) if "quality" in f["properties"]]
    assert kept["geometry"] == found.collection["features"][2]["geometry"]
    assert "confidence" not in kept["properties"]


def test_coordinate_systems_are_those_that_are_named(tmp_path: Path) -> None:
    write_raster(tmp_path / "ortho.tif", np.zeros((50, 60, 3), np.uint8), crs=UTM, transform=PLACE)
    raster, box = str(tmp_path / "ortho.tif"), [10, 5, 30, 40]

    def read(system: str, **fields: Any) -> Any:
        path = write_boxes(tmp_path / "boxes.geojson", [polygon(box, crs=system)], **fields)
        return geo.read_raster_boxes(str(path), raster, Problems())

    for system, fields in (
        ("OGC:CRS84", {}),
        (UTM, {}),
        ("EPSG:3857", {"crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}}}),
    ):
        assert read(system, **fields).boxes[0] == pytest.approx(box, abs=0.01), system
    with pytest.raises(ValueError, match=r"not known: .*EPSG:nine"):
        read(UTM, crs={"type": "name", "properties": {"name": "EPSG:nine"}})
    (tmp_path / "boxes.geojson").write_text('{"type": "Feature"}')
    with pytest.raises(ValueError, match="needs the type FeatureCollection"):
        geo.read_raster_boxes(str(tmp_path / "boxes.geojson"), raster, Problems())
    write_boxes(tmp_path / "boxes.geojson", [])
    with pytest.raises(ValueError, match="cannot be read as a raster"):
        geo.read_raster_boxes(str(tmp_path / "boxes.geojson"), str(tmp_path / "boxes.geojson"), Problems())
