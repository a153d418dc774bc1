#!/usr/bin/env python
"""Write the toy scenes: a small VOC 2012 and a small DUTS, made of shapes over photographs in scikit-image.

They are for trying things out; no number on them says anything about real images. See docs/toy.md. Needs
``pip install scikit-image``, downloads nothing.
"""

import argparse
import sys
from pathlib import Path

from boxsup_d2.toy.scenes import write_toy_datasets


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder to write to, then for DETECTRON2_DATASETS")
    parser.add_argument("--num-train", type=int, default=240, help="images of train_aug; a quarter has masks (train)")
    parser.add_argument("--num-salient", type=int, default=400, help="images of DUTS")
    parser.add_argument("--num-val", type=int, default=60, help="images of val, with masks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=176, help="longest image side in pixels")
    args = parser.parse_args()
    try:
        write_toy_datasets(**vars(args))
    except (OSError, RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"Toy scenes are in {args.root}; use them with: export DETECTRON2_DATASETS={args.root.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
