"""Where a config runs: on the GPU that it asks for, or on the CPU where there is none."""

import torch
from detectron2.config import CfgNode


def use_available_device(cfg: CfgNode, num_gpus: int | None = None) -> bool:
    """Put the config on the CPU where it cannot have the GPU that it asks for.

    Args:
        cfg: changed in place.
        num_gpus: ``--num-gpus``; 0 asks for the CPU, also where there is a GPU.

    Returns:
        whether a GPU was asked for and is missing, i.e. whether the user should be told.

    Raises:
        ValueError: there is no such kind of device.
    """
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError as error:
        raise ValueError(f"MODEL.DEVICE is '{cfg.MODEL.DEVICE}': use cpu, cuda or cuda:<number>.") from error
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        return False
    if num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
        return False
    if torch.cuda.is_available():
        return False
    cfg.MODEL.DEVICE = "cpu"
    return True
