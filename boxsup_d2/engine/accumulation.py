"""Several batches for one update: Detectron2's inner trainers with accumulated gradients.

An iteration is an update, so that schedules, checkpoints and hooks need not know. Nothing outlives an iteration, so
that a checkpoint between two of them holds everything.
"""

import contextlib
import time
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from boxsup_d2.compat import after_backward


def build_inner_trainer(
    model: nn.Module, data_loader: Iterable[Any], optimizer: torch.optim.Optimizer, *, amp: bool, batches: int = 1
) -> SimpleTrainer:
    """Detectron2's trainer of one update per iteration.

    Args:
        model: returns losses; may be wrapped in DDP.
        data_loader: endless.
        optimizer: of the model.
        amp: mixed precision.
        batches: batches of the loader that make one update.

    Raises:
        ValueError: ``batches`` is not positive.
    """
    if batches < 1:
        raise ValueError(f"SOLVER.ACCUMULATE must be at least 1, not {batches}")
    if batches == 1:
        return (AMPTrainer if amp else SimpleTrainer)(model, data_loader, optimizer)
    return (AccumulatingAMPTrainer if amp else AccumulatingTrainer)(model, data_loader, optimizer, batches=batches)


class AccumulatingTrainer(SimpleTrainer):
    """One update from the mean of the gradients of several batches.

    That is the gradient of one batch with all of their samples, where the loss is a mean over samples and the network
    has no batch norm. (A loss that is a mean over pixels or RoIs is averaged batch by batch, as DDP averages it rank by
    rank.)
    """

    def __init__(self, *args: Any, batches: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batches = batches

    def run_step(self) -> None:
        """Forward and backward for each batch, then one update."""
        _run_accumulated(self, self.batches)


class AccumulatingAMPTrainer(AMPTrainer):
    """The same in mixed precision."""

    def __init__(self, *args: Any, batches: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batches = batches

    def run_step(self) -> None:
        """Forward and backward for each batch, then one update, or none if a gradient overflowed."""
        _run_accumulated(self, self.batches)


def _run_accumulated(trainer: SimpleTrainer, batches: int) -> None:
    model = trainer.model
    assert model.training, f"[{type(trainer).__name__}] model was changed to eval mode!"
    scaler = trainer.grad_scaler if isinstance(trainer, AMPTrainer) else None
    device = next(model.parameters()).device.type
    data_time = 0.0
    means: dict[str, Tensor] = {}
    trainer.optimizer.zero_grad()
    for turn in range(batches):
        start = time.perf_counter()
        data = next(trainer._data_loader_iter)
        data_time += time.perf_counter() - start
        # Ranks average their gradients once, in the last backward pass.
        waits = isinstance(model, DistributedDataParallel) and turn < batches - 1
        with model.no_sync() if waits else contextlib.nullcontext():
            # The main branch lets users choose the precision.
            with torch.autocast(device, dtype=getattr(trainer, "precision", None), enabled=scaler is not None):
                losses = model(data)
                if isinstance(losses, Tensor):
                    losses = {"total_loss": losses}
                loss = sum(losses.values()) / batches
            (loss if scaler is None else scaler.scale(loss)).backward()
        for name, value in losses.items():
            means[name] = means.get(name, 0) + value.detach() / batches
    after_backward(trainer)
    trainer._write_metrics(means, data_time)
    if scaler is None:
        trainer.optimizer.step()
    else:
        scaler.step(trainer.optimizer)
        scaler.update()
