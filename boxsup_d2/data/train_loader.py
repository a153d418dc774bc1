"""The endless loader of every training: which samples come when, and the random numbers of each.

This process says which samples make a batch; workers read and map them. The random numbers of a mapper come from the
sample's place in the order alone. A resumed training therefore sees what it would have seen unbroken, with any number
of workers, and the way to its place reads no image.
"""

import itertools
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch.utils.data
from detectron2.data import DatasetFromList
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm

from boxsup_d2.data.parcels import pack, unpack
from boxsup_d2.utils.seeding import seeded

logger = logging.getLogger(__name__)

# Samples in a row of which a mapper may make nothing.
_MOST_SKIPPED = 100


class SampleOrder(Protocol):
    """The order of the samples of one rank."""

    def batches(self, seed: int) -> Iterator[list[tuple[int, ...]]]:
        """Endless batches of this rank. For each sample the positions of what the mapper is called with: the sample's
        own, and those of others that it may use."""


class ShuffledOrder:
    """One sample after the other as a sampler says, in batches of one rank."""

    def __init__(
        self, sampler: Callable[[int], Iterable[int]], batch_size: int, groups: Sequence[int] | None = None
    ) -> None:
        """
        Args:
            sampler: from a seed to endless positions of samples.
            batch_size: samples per batch of a rank.
            groups: for each sample a number; batches hold samples of one number only. None: of any.
        """
        self._sampler = sampler
        self._batch_size = batch_size
        self._groups = groups

    def batches(self, seed: int) -> Iterator[list[tuple[int, ...]]]:
        """See :class:`SampleOrder`."""
        waiting: dict[int, list[tuple[int, ...]]] = {}
        for position in self._sampler(seed):
            group = 0 if self._groups is None else self._groups[position]
            batch = waiting.setdefault(group, [])
            batch.append((position,))
            if len(batch) == self._batch_size:
                yield waiting.pop(group)


class TrainLoader(torch.utils.data.DataLoader):
    """Endless loader of lists of mapped samples. It reads nothing before the first batch is asked for."""

    def __init__(
        self,
        samples: Sequence[Any],
        mapper: Callable[..., Any],
        order: SampleOrder,
        *,
        seed: int,
        num_workers: int = 0,
        pin_memory: bool = False,
        samples_per_epoch: int | None = None,
    ) -> None:
        """
        Args:
            samples: what the order's positions refer to.
            mapper: from a sample, and others that the order may name, to an input of the model; None: of no use,
                another sample takes its place.
            order: of the samples.
            seed: of the order and of the mapper's random numbers, the same on all ranks; not negative.
            num_workers, pin_memory: see ``DataLoader``.
            samples_per_epoch: of all ranks together, where there are epochs to count.
        """
        self.samples_per_epoch = samples_per_epoch
        self._place = _Place(order, seed)
        super().__init__(
            _MappedSamples(samples, mapper),
            batch_sampler=self._place,  # type: ignore[arg-type]  # its positions are tuples
            num_workers=num_workers,
            collate_fn=pack if num_workers else trivial_batch_collator,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # a start draws a number, which must not be the network's next one
        )

    def start_at(self, batch: int, seed: int) -> None:
        """Begin with the batch of this number, 0-based, the next time that the loader is iterated over."""
        self._place.start, self._place.seed = batch, seed

    def __iter__(self) -> Iterator[list[Any]]:  # type: ignore[override]
        # As a generator it starts no worker before the first batch: Detectron2 0.6 asks for the iterator long before.
        for batch in super().__iter__():
            yield unpack(batch) if self.num_workers else batch


class _Place:
    """Batch sampler: the order's batches from ``start`` on; each sample with the key of its random numbers."""

    def __init__(self, order: SampleOrder, seed: int) -> None:
        self.order, self.seed, self.start = order, seed, 0

    def __iter__(self) -> Iterator[list[tuple[tuple[int, ...], tuple[int, ...]]]]:
        key = (self.seed, comm.get_rank())
        batches = itertools.islice(self.order.batches(self.seed), self.start, None)
        for number, batch in enumerate(batches, self.start):
            yield [((*key, number, i), positions) for i, positions in enumerate(batch)]


class _MappedSamples(torch.utils.data.Dataset):
    def __init__(self, samples: Sequence[Any], mapper: Callable[..., Any]) -> None:
        # Serialised once: worker processes then share the memory instead of copying millions of Python objects.
        self._samples = DatasetFromList(samples, copy=False) if isinstance(samples, list) else samples
        self._mapper = mapper

    def __getitem__(self, index: tuple[tuple[int, ...], tuple[int, ...]]) -> Any:
        key, (position, *others) = index
        with seeded(*key):
            for _ in range(_MOST_SKIPPED):
                mapped = self._mapper(*(self._samples[p] for p in (position, *others)))
                if mapped is not None:
                    return mapped
                position = random.randrange(len(self._samples))
        raise ValueError(f"{type(self._mapper).__name__} made nothing of {_MOST_SKIPPED} samples in a row (None)")
