"""Fixtures that every test file may use, and what keeps the tests apart from the machine they run on."""

from __future__ import annotations

import logging
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

PROJECT_ROOT = Path(__file__).resolve().parents[1]

# Read when a library is first imported, so set before any test module is: several small thread pools on two cores
# only fight each other, and worker processes inherit these values.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# Data sets are registered on import under this folder; a test that needs files makes its own (`datasets_root`).
# Never the data of the machine: a test must give the same result with and without them.
os.environ["DETECTRON2_DATASETS"] = str(PROJECT_ROOT / "tests" / "no_such_datasets")

# Shells let their background jobs ignore Ctrl-C, and so would all processes that tests start; torch ends the processes
# of a killed run by this signal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The root folder of the checkout."""
    return PROJECT_ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference numbers and real images beside the checkout; tests that need it skip without it."""
    folder = PROJECT_ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the reference files in {folder.name}/ beside the checkout, which are not here")
    return folder


@pytest.fixture
def datasets_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that `DETECTRON2_DATASETS` names for the duration of one test (child processes included)."""
    root = tmp_path / "datasets"
    root.mkdir()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    return root


@pytest.fixture(scope="session")
def in_two_processes() -> Callable[..., None]:
    """Runs a function (of the top level of a module) with its arguments in two CPU processes, GPUs or not."""
    from boxsup_d2.engine.launch import launch

    def run(function: Callable[..., None], *args: object) -> None:
        with mock.patch("torch.cuda.is_available", return_value=False):
            launch(function, 2, args=args)

    return run


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test starts from the same random state, whatever ran before it, and leaves the random state as it was."""
    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


@pytest.fixture(autouse=True)
def same_loggers() -> Iterator[None]:
    """Commands that run in this process set loggers up, which would hide messages from the tests after them."""
    loggers = [logging.getLogger(name) for name in ("boxsup_d2", "detectron2", "fvcore")]
    states = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, propagate, handlers) in zip(loggers, states, strict=True):
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers[:] = handlers


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    """One thread per process: the networks of the tests are tiny, and results do not depend on the core count."""
    import torch

    torch.set_num_threads(1)
