"""labelme's jsons, one beside each image, as a COCO dict, and out of one.

labelme keeps keys that it does not know, of a file and of a shape, when it saves: what a COCO json says beyond shapes
is in such a key and comes back.
"""

import json
import math
import os
from collections.abc import Sequence
from typing import Any

from boxsup_d2.data.formats.coco import read_json
from boxsup_d2.data.formats.coco_checks import is_finite, is_int
from boxsup_d2.data.formats.drawn import (
    CATEGORIES,
    KEPT,
    Shape,
    crop_to_rle,
    decode_png,
    ellipse,
    kept_fields,
    objects_of,
    to_coco,
)
from boxsup_d2.data.formats.folders import ImageFinder, by_image, header_size, output_stems, write_file
from boxsup_d2.data.formats.polygons import polygons_of
from boxsup_d2.data.formats.problems import Problems
from boxsup_d2.data.formats.rotated_boxes import TURNED, box_of_corners

# Keys of an image, and of an object, that labelme has a place for.
_OF_FILE = ("file_name", "height", "width")
_OF_SHAPE = {"flags": dict, "description": str}


def read_labelme(folder: str, files: Sequence[str], images: str, problems: Problems, notes: Problems) -> dict[str, Any]:
    """Read jsons of labelme.

    Shapes of one label and ``group_id`` are one object. Points and lines are no areas and are left out.

    Args:
        folder: of the jsons.
        files: the jsons, relative to it.
        images: folder of the images; one belongs to a json by its name, else by ``imagePath``.
        problems: gains files and shapes that cannot be used.
        notes: gains what is left out.

    Returns:
        COCO dict. ``file_name`` is relative to ``images``. ``flags`` and ``description`` of a shape are kept.
    """
    finder, found, owners = ImageFinder(images), [], set()
    for relative in files:
        try:
            data = read_json(os.path.join(folder, relative), relative)
        except (ValueError, OSError) as error:
            problems.add("damaged jsons", str(error))
            continue
        if not isinstance(data, dict) or not isinstance(data.get("shapes"), list):
            notes.add("jsons that are not labelme's: left out", relative)
            continue
        image = finder.beside(relative) or finder.named(str(data.get("imagePath", "")))
        if image is None or image in owners:
            kind = "jsons of an image that another one describes" if image else f"jsons without an image in '{images}'"
            problems.add(kind, f"{relative} ({data.get('imagePath')})")
            continue
        owners.add(image)
        size = data.get("imageHeight"), data.get("imageWidth")
        if not all(is_int(side) and side > 0 for side in size):
            size = header_size(images, image, problems) or (0, 0)
        height, width = (int(side or 0) for side in size)
        if height:
            shapes = [shape for entry in data["shapes"] for shape in _shapes(entry, (height, width), relative, notes)]
            objects = objects_of(shapes, height, width, problems, relative)
            kept = data.get(KEPT)
            kept = kept if isinstance(kept, dict) else {}
            found.append(({**kept, "file_name": image, "height": height, "width": width}, objects))
    return to_coco(found)


def _shapes(entry: Any, size: tuple[int, int], where: str, notes: Problems) -> list[Shape]:
    if not isinstance(entry, dict):
        entry = {}
    kept = entry.get(KEPT)
    fields = {key: entry[key] for key in _OF_SHAPE if entry.get(key)}
    group = entry.get("group_id")
    shape = Shape(
        str(entry.get("label") or "").strip(),
        group if isinstance(group, int | str) else None,
        fields={**(kept if isinstance(kept, dict) else {}), **fields},
    )
    points, kind = entry.get("points"), entry.get("shape_type") or "polygon"
    if not isinstance(points, list) or not all(isinstance(p, list) and len(p) == 2 for p in points):
        points = []
    flat = [value for point in points for value in point]
    if not all(map(is_finite, flat)):
        flat = []
    if kind == "polygon":
        shape.mask = [flat]
    elif kind == "rectangle" and len(flat) == 4:
        x0, x1, y0, y1 = (*sorted(flat[0::2]), *sorted(flat[1::2]))
        shape.box = [x0, y0, x1 - x0, y1 - y0]
    elif kind == "rotation" and len(flat) == 8:  # of X-AnyLabeling, which writes these files, too
        notes.add(TURNED, where)
        shape.turn(box_of_corners(flat))
    elif kind == "circle" and len(flat) == 4:
        radius = math.hypot(flat[2] - flat[0], flat[3] - flat[1])
        shape.mask = [ellipse(flat[0], flat[1], radius, radius)]
    elif kind == "mask" and len(flat) == 4 and (crop := decode_png(entry.get("mask"))) is not None:
        shape.mask = crop_to_rle(crop, round(flat[0]), round(flat[1]), *size)
    else:
        notes.add(f"shapes that are no areas, or damaged: {kind}, left out", where)
        return []
    return [shape]


def write_labelme(data: dict[str, Any], out_dir: str, image_root: str, *, tolerance: float = 0.0) -> dict[str, int]:
    """Write ``<image>.json`` per image: for every object a rectangle, and its mask as polygons in the same group.

    Polygons of masks run along the edges of the pixels and give them back, holes included; with a tolerance nearly so.
    Those that annotations have stay. Crowd regions are left out.

    Args:
        data: COCO dict whose images have sizes and whose masks fit them.
        out_dir: folder to write to, in the folders of the images.
        image_root: folder of the images, which ``imagePath`` leads to.
        tolerance: see :func:`.polygons.mask_to_polygons`.

    Returns:
        ``files``, ``objects``, ``without_mask`` (written as rectangles alone) and ``crowds`` (left out).

    Raises:
        ValueError: two images share a name but for its extension, or a mask cannot be read.
    """
    names = {category["id"]: category["name"] for category in data["categories"]}
    counts = {"files": 0, "objects": 0, "without_mask": 0, "crowds": 0}
    for (image, annotations), stem in zip(by_image(data), output_stems(data["images"]), strict=True):
        shapes = []
        for annotation in annotations:
            if annotation.get("iscrowd"):
                counts["crowds"] += 1
                continue
            polygons = polygons_of(annotation, image["height"], image["width"], tolerance)
            counts["objects"] += 1
            counts["without_mask"] += not polygons
            x, y, w, h = annotation["bbox"]
            common = {"label": names[annotation["category_id"]], "group_id": annotation["id"], "flags": {}}
            kept = kept_fields(annotation, common["label"])
            own = {key: kept.pop(key) for key, kind in _OF_SHAPE.items() if isinstance(kept.get(key), kind)}
            corners = [[x, y], [x + w, y + h]]
            shapes.append({**common, **own, "shape_type": "rectangle", "points": corners, KEPT: kept})
            for flat in polygons:
                points = [list(point) for point in zip(flat[0::2], flat[1::2], strict=True)]
                shapes.append({**common, "shape_type": "polygon", "points": points})
        path = os.path.join(out_dir, f"{stem}.json")
        picture = os.path.relpath(os.path.join(image_root, image["file_name"]), os.path.dirname(path))
        content = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": picture,
            "imageData": None,
            "imageHeight": image["height"],
            "imageWidth": image["width"],
            KEPT: {
                **{key: v for key, v in image.items() if key not in _OF_FILE},
                **({} if counts["files"] else {CATEGORIES: data["categories"]}),
            },
        }
        write_file(path, json.dumps(content, indent=1))
        counts["files"] += 1
    return counts
