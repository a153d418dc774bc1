"""The exponential average of a network's weights (mean teacher), and networks that learn from their own.

Training keeps it (``MODEL.EMA``, :class:`boxsup_d2.engine.hooks.EMAHook`), of any meta-architecture.
"""

import copy
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def average_decay(update: int, decay: float, ramp: float = 1.0) -> float:
    """Share of the average that an update keeps: min(decay, update / (update + ramp)); the first one copies.

    Args:
        update: number of the update, from 0.
        decay: largest share, in 0..1.
        ramp: above 0. With 1 the average of the first updates is their plain mean (BoxTeacher); with 10 it is that of
            about the last tenth of them.
    """
    return min(decay, update / (update + ramp))


class WeightAverage:
    """An average of a network's parameters that follows it.

    Attributes:
        network: a network of its own, without gradients and in evaluation mode, whose weights are the average.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        decay: float,
        ramp: float = 1.0,
        average_buffers: bool = False,
        initial_share: float = 0.0,
    ) -> None:
        """
        Args:
            model: the network that is trained; may be wrapped in DDP.
            decay, ramp: see :func:`average_decay`.
            average_buffers: average floating-point buffers (the statistics of batch norms) as well; False copies them.
            initial_share: of the weights that training began with in what it leaves, see :meth:`finish`; at least 0 and
                below 1.

        Raises:
            ValueError: ``decay`` or ``initial_share`` is below 0 or not below 1, or ``ramp`` not above 0.
        """
        if not 0 <= decay < 1 or ramp <= 0:
            raise ValueError(
                f"MODEL.EMA.DECAY is {decay} and RAMP {ramp}: the first must be at least 0 and below 1, the second "
                "above 0."
            )
        if not 0 <= initial_share < 1:
            raise ValueError(f"MODEL.EMA.INITIAL_SHARE is {initial_share}: it must be at least 0 and below 1.")
        self._model = model.module if isinstance(model, DistributedDataParallel) else model
        self._decay, self._ramp, self._average_buffers = decay, ramp, average_buffers
        self._initial_share = initial_share
        self._initial: dict[str, Any] = {}
        self._mixed = 0.0  # share of the initial weights that the average holds
        self.network = copy.deepcopy(self._model).requires_grad_(False).eval()
        if isinstance(self._model, TaughtByAverage):
            self._model.set_teacher(self.network)

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> "WeightAverage | None":
        """As ``MODEL.EMA`` says; None where it is not enabled.

        Raises:
            ValueError: its values are out of range, or one needs it enabled.
        """
        ema = cfg.MODEL.EMA
        if not ema.ENABLED and ema.INITIAL_SHARE:
            raise ValueError("MODEL.EMA.INITIAL_SHARE is mixed into the average: set MODEL.EMA.ENABLED True.")
        if not ema.ENABLED:
            return None
        return cls(
            model,
            decay=ema.DECAY,
            ramp=ema.RAMP,
            average_buffers=ema.AVERAGE_BUFFERS,
            initial_share=ema.INITIAL_SHARE,
        )

    @torch.no_grad()
    def update(self, number: int) -> None:
        """Move towards the network; ``number``: of the update, from 0."""
        share = 1 - average_decay(number, self._decay, self._ramp)
        averaged = list(zip(self.network.parameters(), self._model.parameters(), strict=True))
        copied: list[tuple[torch.Tensor, torch.Tensor]] = []
        for pair in zip(self.network.buffers(), self._model.buffers(), strict=True):
            (averaged if self._average_buffers and pair[0].is_floating_point() else copied).append(pair)
        # All at once: on a GPU, a launch for each of a large network's thousand tensors takes its time.
        if averaged:
            means, values = zip(*averaged, strict=True)
            torch._foreach_lerp_(means, values, share)
        if copied:
            means, values = zip(*copied, strict=True)
            torch._foreach_copy_(means, values)

    def start(self) -> None:
        """Take the network's weights, loaded ones for instance, as the average."""
        self.network.load_state_dict(self._model.state_dict())
        if self._initial_share > 0:
            self._initial = copy.deepcopy(self.network.state_dict())

    def finish(self) -> None:
        """Mix the initial weights (and statistics of batch norms) into the average, unless they are mixed in."""
        if not self._mixed and self._initial:
            self._move_to_initial(self._initial_share)
            self._mixed = self._initial_share

    def go_on(self) -> None:
        """Take them out again, where a training that had ended is made longer."""
        if self._mixed:
            self._move_to_initial(-self._mixed / (1 - self._mixed))
            self._mixed = 0.0

    @torch.no_grad()
    def _move_to_initial(self, share: float) -> None:
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                value.lerp_(self._initial[name].to(value), share)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint, whose model is the average, lacks: the trained weights, those of the beginning (where they
        are needed), and their share in the average."""
        initial = {"initial": self._initial, "mixed": self._mixed} if self._initial else {}
        return {"trained": self._model.state_dict(), **initial}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint, after its model was loaded into the network.

        Args:
            state_dict: :meth:`state_dict` of then.

        Raises:
            ValueError: it was begun without ``initial_share``.
        """
        if self._initial_share > 0 and "initial" not in state_dict:
            raise ValueError(
                "MODEL.EMA.INITIAL_SHARE needs the weights that training began with, which this checkpoint, begun "
                "without the key, lacks. Go on without it, or begin anew."
            )
        self.start()
        self._initial, self._mixed = state_dict.get("initial", {}), state_dict.get("mixed", 0.0)
        self._model.load_state_dict(state_dict["trained"])


class TaughtByAverage(nn.Module):
    """Base of networks that learn from the average of their own weights while ``MODEL.EMA`` keeps one."""

    # In a tuple, so that it is no part of the network: its parameters are neither trained nor saved as such.
    _teachers: tuple[nn.Module, ...] = ()

    @property
    def teacher(self) -> Any:
        """The averaged network, of the same class, in evaluation mode; None where there is none."""
        return self._teachers[0] if self._teachers else None

    def set_teacher(self, teacher: nn.Module) -> None:
        """Learn from this network, which must not have a teacher."""
        self._teachers = (teacher,)
