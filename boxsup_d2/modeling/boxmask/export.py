"""The trained network as one small file: the averaged weights in half precision, with a hash that is checked."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import safe_open
from torch import Tensor

from boxsup_d2.modeling.boxmask.meta_arch import BoxMask


def export_weights(model: BoxMask, path: Path, metadata: Mapping[str, str]) -> str:
    """Write the network that predicts at inference as a safetensors file.

    Weights are stored as float16. The statistics of batch norms stay float32: they are few, and a variance may be
    smaller than what half precision holds.

    Args:
        model: the trained network.
        path: of the file.
        metadata: texts that the file keeps.

    Returns:
        The file's sha256, in hexadecimal.
    """
    network = model.net if model.average is None else model.average
    state: dict[str, Tensor] = {"updates": model.updates}
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        keep = not value.is_floating_point() or "running_" in name
        state[f"net.{name}"] = (value if keep else value.half()).contiguous()
    safetensors.torch.save_file(state, path, metadata=dict(metadata))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_weights(path: Path, sha256: str = "") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights and metadata of a file of :func:`export_weights`.

    Args:
        path: of the file.
        sha256: that it must have; "" checks nothing.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not the one that was exported.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights '{path}'")
    if sha256 and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ValueError(f"'{path}' is damaged, or another file (its sha256 is not {sha256[:12]}…): install it anew")
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return state, dict(file.metadata() or {})
