"""Batches on their way from a loader's worker to the trainer.

torch opens a connection for every tensor that a worker sends, and the trainer waits for each. So all tensors of a batch
of one type travel as one.
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
# Type, first element and shape of a tensor in a parcel.
_Place = tuple[torch.dtype, int, tuple[int, ...]]
# Elements that each begins at a multiple of: views of other types want an aligned memory.
_ALIGNMENT = 16


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.parts: defaultdict[torch.dtype, list[Tensor]] = defaultdict(list)
        self._counts: defaultdict[torch.dtype, int] = defaultdict(int)
        # By identity, with the tensor, so that no other one gets its number.
        self._seen: dict[int, tuple[_Place, Tensor]] = {}

    def persistent_id(self, obj: Any) -> _Place | None:
        if type(obj) is not Tensor or obj.requires_grad or obj.layout is not torch.strided:
            return None
        if id(obj) not in self._seen:
            self._seen[id(obj)] = (obj.dtype, self._counts[obj.dtype], tuple(obj.shape)), obj
            padding = -obj.numel() % _ALIGNMENT
            self._counts[obj.dtype] += obj.numel() + padding
            self.parts[obj.dtype] += [obj.flatten(), obj.new_zeros(padding)]
        return self._seen[id(obj)][0]


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: dict[torch.dtype, Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, pid: _Place) -> Tensor:
        kind, start, shape = pid
        return self._tensors[kind][start : start + math.prod(shape)].view(shape)


def pack(batch: Any) -> Parcel:
    """What a worker sends of a batch, whatever that consists of."""
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(batch)
    return file.getvalue(), {kind: torch.cat(parts) for kind, parts in packer.parts.items()}


def unpack(parcel: Parcel) -> Any:
    """The batch of :func:`pack`.

    Its tensors are contiguous, and parts of one memory for each type: who keeps one keeps the memory of all.
    """
    content, tensors = parcel
    return _Unpacker(io.BytesIO(content), tensors).load()
