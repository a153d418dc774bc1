#!/usr/bin/env python
"""Write the network of a checkpoint as the small file that ships: what predicts, in half precision.

    python tools/export_weights.py --config-file configs/zoo/boxmask.yaml output/zoo/boxmask/model_final.pth \
        boxsup_d2/model_zoo/weights/boxmask.safetensors

Several checkpoints become one network: the mean of their weights. It is better than each where all began at the same
weights and learnt from the same data, and worthless elsewhere: measure it. Prints the file's size and sha256, and
compares half with full precision on a data set where ``--check`` names one.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.modeling import build_model
from torch import Tensor

import boxsup_d2  # noqa: F401 - registers data sets and networks
from boxsup_d2.checkpoint import load_trained
from boxsup_d2.checkpoint.small import write_small
from boxsup_d2.config import load_config
from boxsup_d2.data.build import build_test_loader
from boxsup_d2.version import __version__


def mean_state(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of networks of one shape; what is no floating-point number is the first one's."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[0].items()
    }


def main() -> None:
    """Export, and compare where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--check", default="", help="registered data set to compare the masks on")
    parser.add_argument("--every", type=int, default=5, help="with --check: take every n-th image")
    parser.add_argument("checkpoints", nargs="+", metavar="checkpoint")
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    # Whatever the network began with is not needed any more.
    opts = ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", 0, "MODEL.TIMM.PRETRAINED", False]
    cfg = load_config(args.config_file, opts)
    model = build_model(cfg).eval()
    states = []
    for checkpoint in args.checkpoints:
        load_trained(model, checkpoint)
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    model.load_state_dict(mean_state(states))
    metadata = {"recipe": Path(args.config_file).name, "version": __version__, "licence": "see the model card"}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    digest = write_small(model.state_dict(), args.output, metadata)
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB, sha256 {digest}")
    if args.check:
        half = build_model(cfg).eval()
        load_trained(half, str(args.output))
        ious = []
        for index, inputs in enumerate(build_test_loader(cfg, args.check, box_prompts=True)):
            if index % args.every == 0:
                with torch.no_grad():
                    first, second = (m(inputs)[0]["instances"].pred_masks.full() for m in (model, half))
                union = (first | second).sum((1, 2))
                ious += (((first & second).sum((1, 2)) + (union == 0)) / union.clamp(min=1)).tolist()
        print(f"IoU of half with full precision, {len(ious)} masks: mean {np.mean(ious):.5f}, least {min(ious):.4f}")


if __name__ == "__main__":
    main()
