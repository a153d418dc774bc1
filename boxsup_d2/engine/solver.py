"""Optimizers and learning-rate schedules: Detectron2's, and those of the published recipes."""

import logging
import math
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier, get_default_optimizer_params
from detectron2.solver import build_lr_scheduler as build_detectron2_lr_scheduler
from detectron2.solver.build import maybe_add_gradient_clipping, reduce_param_groups
from detectron2.solver.lr_scheduler import WarmupParamScheduler
from fvcore.common.param_scheduler import ParamScheduler
from torch import nn

logger = logging.getLogger(__name__)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """``SOLVER.OPTIMIZER`` with Detectron2's gradient clipping, and the groups of :func:`parameter_groups`.

    Raises:
        ValueError: there is no such optimizer.
    """
    solver = cfg.SOLVER
    kinds: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
        "SGD": (torch.optim.SGD, {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}),
        "ADAM": (torch.optim.Adam, {}),
        "ADAMW": (torch.optim.AdamW, {}),
    }
    if solver.OPTIMIZER not in kinds:
        raise ValueError(f"SOLVER.OPTIMIZER must be one of {', '.join(kinds)}, not '{solver.OPTIMIZER}'")
    kind, arguments = kinds[solver.OPTIMIZER]
    return maybe_add_gradient_clipping(cfg, kind)(
        parameter_groups(cfg, model), lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY, **arguments
    )


def parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict[str, Any]]:
    """Detectron2's parameter groups, with the learning rates times the model's own :func:`lr_factors`.

    So weights and biases can differ by ``SOLVER.BIAS_LR_FACTOR`` and ``WEIGHT_DECAY_BIAS``, and a fast layer's bias
    learns faster by both factors: 1, 2, 10 and 20 times the base in the published DeepLab recipe.
    """
    groups = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    factors = lr_factors(model)
    if not factors:
        return groups
    return reduce_param_groups(
        [
            {**group, "params": [parameter], "lr": group["lr"] * factors.get(parameter, 1.0)}
            for group in groups
            for parameter in group["params"]
        ]
    )


def lr_factors(model: nn.Module) -> dict[nn.Parameter, float]:
    """Factors on the learning rates of single parameters.

    Any module of the model may have a method ``lr_factors()`` that returns ``{name: factor}`` for submodules or
    parameters of its own; factors that meet in a parameter multiply.

    Raises:
        ValueError: a name fits no parameter.
    """
    factors: dict[nn.Parameter, float] = {}
    for module in model.modules():
        method = getattr(module, "lr_factors", None)
        for name, factor in method().items() if callable(method) else ():
            found = [p for full, p in module.named_parameters() if full == name or full.startswith(f"{name}.")]
            if not found:
                raise ValueError(f"{type(module).__name__}.lr_factors() names '{name}', which has no parameters")
            for parameter in found:
                factors[parameter] = factors.get(parameter, 1.0) * factor
    return factors


class SteppedPolynomial(ParamScheduler):
    """(1 - t / T) ** power, with t rounded down to a multiple of ``interval`` iterations."""

    def __init__(self, power: float, max_iter: int, interval: int = 1) -> None:
        if interval < 1:
            raise ValueError(f"SOLVER.POLY_LR_INTERVAL must be at least 1, not {interval}")
        self._power, self._max_iter, self._interval = power, max_iter, interval

    def __call__(self, where: float) -> float:
        # Rounded first: the fraction t / T times T may fall just short of t, a whole interval early.
        iteration = round(where * self._max_iter)
        return (1 - (iteration - iteration % self._interval) / self._max_iter) ** self._power


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    """Detectron2's schedules, and ``WarmupPolyLR``: base * (1 - t / T) ** SOLVER.POLY_LR_POWER."""
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME != "WarmupPolyLR":
        return build_detectron2_lr_scheduler(cfg, optimizer)
    schedule = WarmupParamScheduler(
        SteppedPolynomial(solver.POLY_LR_POWER, solver.MAX_ITER, solver.POLY_LR_INTERVAL),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=solver.MAX_ITER)


def set_max_iter(cfg: CfgNode, data_loader: Any) -> CfgNode:
    """The config with ``SOLVER.MAX_ITER`` computed from ``SOLVER.MAX_EPOCHS``, where that is set.

    Raises:
        ValueError: the loader does not count epochs.
    """
    if cfg.SOLVER.MAX_EPOCHS <= 0:
        return cfg
    samples = getattr(data_loader, "samples_per_epoch", None)
    if samples is None:
        raise ValueError(f"SOLVER.MAX_EPOCHS is for BoxCropDatasetMapper; with {cfg.INPUT.TRAIN_MAPPER} set MAX_ITER")
    cfg = cfg.clone()
    cfg.defrost()
    per_update = cfg.SOLVER.IMS_PER_BATCH * cfg.SOLVER.ACCUMULATE
    cfg.SOLVER.MAX_ITER = math.ceil(samples * cfg.SOLVER.MAX_EPOCHS / per_update)
    cfg.freeze()
    logger.info("%g epochs of %d samples: %d iterations", cfg.SOLVER.MAX_EPOCHS, samples, cfg.SOLVER.MAX_ITER)
    return cfg
