"""Batches on their way from a loader's worker to the trainer.

torch opens a connection for every tensor that a worker sends. 24 samples of four tensors cost the trainer more than the
step of a small network costs on a GPU, so all tensors of one type travel as one.
"""

import io
import math
import pickle
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

# A pickle without its tensors, and by type all of them, one after the other.
Parcel = tuple[bytes, dict[torch.dtype, Tensor]]


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: defaultdict[torch.dtype, list[Tensor]] = defaultdict(list)
        self._counts: defaultdict[torch.dtype, int] = defaultdict(int)

    def persistent_id(self, obj: Any) -> tuple[torch.dtype, int, tuple[int, ...]] | None:
        if type(obj) is not Tensor or obj.requires_grad or obj.layout is not torch.strided:
            return None
        start = self._counts[obj.dtype]
        self._counts[obj.dtype] += obj.numel()
        self.tensors[obj.dtype].append(obj.flatten())
        return obj.dtype, start, tuple(obj.shape)


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: dict[torch.dtype, Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, pid: tuple[torch.dtype, int, tuple[int, ...]]) -> Tensor:
        kind, start, shape = pid
        return self._tensors[kind][start : start + math.prod(shape)].view(shape)


def pack(batch: Any) -> Parcel:
    """What a worker sends of a batch, whatever that consists of."""
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(batch)
    return file.getvalue(), {kind: torch.cat(parts) for kind, parts in packer.tensors.items()}


def unpack(parcel: Parcel) -> Any:
    """The batch of :func:`pack`; tensors of one type are parts of one memory."""
    content, tensors = parcel
    return _Unpacker(io.BytesIO(content), tensors).load()
