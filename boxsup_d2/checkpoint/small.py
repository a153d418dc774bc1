"""Trained weights as one small file that ships: half precision, safetensors, with a hash to check it by."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor


def write_small(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> str:
    """Write parameters and buffers as a safetensors file.

    Floating-point weights are stored as float16. The statistics of batch norms stay float32: they are few, and a
    variance may be smaller than what half precision holds. Their counters are left out.

    Args:
        state: by name, of any device.
        path: of the file.
        metadata: texts that the file keeps.

    Returns:
        The file's sha256, in hexadecimal.
    """
    small: dict[str, Tensor] = {}
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            keep = not value.is_floating_point() or "running_" in name
            small[name] = (value if keep else value.half()).cpu().contiguous()
    # Not by save_file, whose files nobody else may read.
    content = safetensors.torch.save(small, metadata=dict(metadata))
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()
