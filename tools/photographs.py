#!/usr/bin/env python
"""A picture for the documents: photographs that may be redistributed, their boxes, and the masks of methods.

The photographs are in scikit-image (its data/README.txt names the authors; all are free). A row per method, in the
order given; weights as ``boxsup label`` takes them.

Examples:

  python tools/photographs.py grabcut --out grabcut.jpg
  python tools/photographs.py grabcut boxcaseg=output/joint/model_final.pth --out docs/images/photographs.jpg
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

import boxsup_d2
from boxsup_d2.data.images import read_image
from boxsup_d2.report.drawing import COLORS, Canvas

#: Files of scikit-image, and boxes x0, y0, x1, y1 as a person would draw them. The last two are what the network that
#: ships is worst at: things with holes, and a thing before another one.
PHOTOGRAPHS: list[tuple[str, list[list[int]]]] = [
    ("astronaut.png", [[20, 12, 376, 512], [352, 0, 468, 302]]),
    ("coffee.png", [[74, 14, 482, 386]]),
    ("chelsea.png", [[26, 0, 372, 300]]),
    ("camera.png", [[0, 62, 322, 512]]),
    ("motorcycle_left.png", [[20, 60, 720, 480]]),
    ("coffee.png", [[323, 60, 425, 325]]),
]
_HEIGHT = 200


def draw(methods: Sequence[tuple[str, str | None]]) -> np.ndarray:
    """The picture.

    Args:
        methods: name and weights of each column.

    Returns:
        H×W×3 uint8, BGR: a row for the boxes and one per method, a photograph per column.
    """
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    models = [boxsup_d2.load(name, weights, device="cpu") for name, weights in methods]
    columns = []
    for name, boxes in PHOTOGRAPHS:
        image = read_image(str(folder / name))
        height, width = image.shape[:2]
        plain = Canvas(image, (0, 0, width, height), round(_HEIGHT * max(width / height, 1)))
        rows = [plain.copy()]
        for color, (x0, y0, x1, y1) in zip(COLORS, boxes, strict=False):
            rows[0].box((x0, y0, x1 - x0, y1 - y0), color)
        for model in models:
            rows.append(plain.copy())
            prediction = model.predict(np.ascontiguousarray(image[:, :, ::-1]), boxes)
            for color, mask in zip(COLORS, prediction.masks, strict=False):
                rows[-1].mask(mask, color)
        columns.append(np.vstack([row.pixels for row in rows]))
    return np.hstack(columns)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw and write the picture; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", metavar="METHOD[=WEIGHTS]", help="see docs/methods.md")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .jpg or .png")
    args = parser.parse_args(argv)
    pairs = [word.partition("=") for word in args.methods]
    picture = draw([(name, weights or None) for name, _, weights in pairs])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(args.out), picture, [cv2.IMWRITE_JPEG_QUALITY, 85]):
        parser.error(f"'{args.out}' cannot be written: name a .jpg or .png in a folder that may be written to")
    print(f"{args.out}: from above boxes, {', '.join(args.methods)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
