"""Random numbers that depend on a place in the training and not on what the process drew before."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def seed_all(*key: int) -> None:
    """Seed Python's, NumPy's and torch's generators, GPUs' included; ``key`` is any non-negative integers."""
    torch.manual_seed(_seed_cpu(key))


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed the generators of the CPU within the block; after it they go on as if it had not been."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(_seed_cpu(key))
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _seed_cpu(key: tuple[int, ...]) -> int:
    """Seed Python's and NumPy's generators; returns the seed of torch's."""
    words = np.random.SeedSequence(key).generate_state(6, np.uint32)
    random.seed(int(words[0]))
    np.random.seed(words[1:5])
    return int(words[5])
