"""The trainer: Detectron2's, with our loaders, evaluators, schedules and labelling."""

import logging
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, DefaultTrainer, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from timm.layers import convert_sync_batchnorm
from torch import nn

from boxsup_d2.checkpoint import BoxSupCheckpointer
from boxsup_d2.crf.refine import CRFRefinedModel
from boxsup_d2.data import build_test_loader, build_train_loader
from boxsup_d2.data.train_loader import TrainLoader
from boxsup_d2.engine.accumulation import build_inner_trainer
from boxsup_d2.engine.hooks import EMAHook, InterruptHook, PseudoMaskHook, RepeatedPreciseBN, ctrl_c_spared
from boxsup_d2.engine.solver import build_lr_scheduler, build_optimizer, set_max_iter
from boxsup_d2.evaluation import build_evaluator
from boxsup_d2.labelling.driver import broadcast_buffers
from boxsup_d2.modeling.average import WeightAverage
from boxsup_d2.modeling.build import explain_build_errors
from boxsup_d2.modeling.deeplab import SemanticSegmenterWithTTA
from boxsup_d2.utils.seeding import seed_all

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """``DefaultTrainer`` that trains on any device, resumes wholly, and labels data sets when it is done.

    What differs: several CPU processes (Detectron2 wraps the model for GPUs only); the optimizer's state in
    checkpoints (0.6 leaves it out); checkpoints that survive a kill while they are written; one evaluation per entry
    of ``TEST.TASKS``; ``PseudoMaskHook``.

    A resumed training does what it would have done unbroken: same samples, same random numbers, on a CPU the same
    weights bit for bit. It needs as many ranks as before and as large batches.

    Attributes:
        average: of the weights, where ``MODEL.EMA`` is enabled.
        seed: ``SEED``, or what was drawn instead of a negative one, the same on all ranks and in checkpoints.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer's constructor builds a GPU-only DDP model and its own checkpointer, so it is passed over.
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        if not any(p.requires_grad for p in model.parameters()):
            raise ValueError(f"{cfg.MODEL.META_ARCHITECTURE} has no parameters to train: run it with --eval-only")
        optimizer = self.build_optimizer(cfg, model)
        self.seed = comm.shared_random_seed() if cfg.SEED < 0 else cfg.SEED
        seeded_cfg = cfg.clone()
        seeded_cfg.defrost()
        seeded_cfg.SEED = self.seed
        data_loader = self.build_train_loader(seeded_cfg)
        cfg = set_max_iter(cfg, data_loader)
        device = next(model.parameters()).device
        on_gpu = device.type == "cuda"
        model = create_ddp_model(model, broadcast_buffers=False, device_ids=[device] if on_gpu else None)
        use_amp = cfg.SOLVER.AMP.ENABLED and on_gpu
        with ctrl_c_spared():
            self._trainer = build_inner_trainer(
                model, data_loader, optimizer, amp=use_amp, batches=cfg.SOLVER.ACCUMULATE
            )
        self.average = WeightAverage.from_config(cfg, model)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = BoxSupCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.checkpointer.average = None if self.average is None else self.average.network
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.label_results: dict[str, Any] = {}
        self.register_hooks(self.build_hooks())

    @property
    def kept_model(self) -> nn.Module:
        """The network that training leaves: the average of the weights, where there is one."""
        return self.model if self.average is None else self.average.network

    def state_dict(self) -> dict[str, Any]:
        """Iteration, seed, hooks (with the schedule), and the inner trainer's state with the optimizer's."""
        return {**TrainerBase.state_dict(self), "seed": self.seed, "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        TrainerBase.load_state_dict(self, state_dict)
        inner = state_dict["_trainer"]
        if isinstance(self._trainer, AMPTrainer):
            # A run begun on a CPU has no loss scale to continue with.
            inner = {"grad_scaler": self._trainer.grad_scaler.state_dict(), **inner}
        self._trainer.load_state_dict(inner)
        if self.cfg.SEED < 0:
            self.seed = state_dict.get("seed", self.seed)  # checkpoints of before have none

    def run_step(self) -> None:
        """One update. What the network draws at random (dropout, proposals) depends on iteration and rank alone."""
        seed_all(self.seed, comm.get_rank(), self.iter)
        super().run_step()

    def after_train(self) -> None:
        """End the hooks; after an error only those that need no other rank.

        Detectron2 comes here after an exception as well, which the other ranks may not have met: one rank alone in an
        evaluation would wait for them until the time-out, and hide the error so long.
        """
        if self.iter >= self.max_iter:
            super().after_train()
            return
        self.storage.iter = self.iter
        for hook in self._hooks:
            if not isinstance(hook, (hooks.EvalHook, PseudoMaskHook)):
                hook.after_train()

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last checkpoint in ``OUTPUT_DIR`` if asked and there is one; else load ``MODEL.WEIGHTS``."""
        super().resume_or_load(resume)
        if self.start_iter >= self.max_iter:
            # Killed after the last periodic checkpoint and before the final one, which no further step would write.
            self.iter = self.max_iter - 1
            if self.average is not None:
                self.average.finish()
            self.checkpointer.save("model_final", iteration=self.iter)
        elif self.start_iter > 0 and isinstance(self.data_loader, TrainLoader):
            self.data_loader.start_at(self.start_iter * self.cfg.SOLVER.ACCUMULATE, self.seed)
        elif self.start_iter > 0:
            logger.warning(
                "%s cannot be told where to begin: training goes on with other samples than without the break",
                type(self.data_loader).__name__,
            )

    def build_hooks(self) -> list[hooks.HookBase]:
        if self.average is not None and self.cfg.TEST.PRECISE_BN.ENABLED:
            raise ValueError(
                "TEST.PRECISE_BN estimates the statistics of the trained weights, but MODEL.EMA keeps their average: "
                "disable one of them."
            )
        built = [
            RepeatedPreciseBN.of(hook) if isinstance(hook, hooks.PreciseBN) else hook for hook in super().build_hooks()
        ]
        if self.average is not None:
            evaluates = next(i for i, hook in enumerate(built) if isinstance(hook, hooks.EvalHook))
            built[evaluates] = hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self._test_average)
            built.insert(0, EMAHook(self.average))
        at = self.first_hook_at_the_end(built)
        built[at:at] = [InterruptHook(), PseudoMaskHook(self.cfg)]
        return built

    def _test_average(self) -> OrderedDict:
        logger.info("What is evaluated is the average of the weights (MODEL.EMA)")
        self._last_eval_results = self.test(self.cfg, self.kept_model)
        return self._last_eval_results

    @staticmethod
    def first_hook_at_the_end(built: Sequence[hooks.HookBase | None]) -> int:
        """Where the hooks begin that label and evaluate a network when its training has ended."""
        # By type, not by index: ranks other than 0 have no checkpointer and no writer.
        return next(i for i, hook in enumerate(built) if isinstance(hook, (hooks.EvalHook, PseudoMaskHook)))

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        with explain_build_errors(cfg):
            model = super().build_model(cfg)
        if cfg.MODEL.SYNC_BN and comm.get_world_size() > 1 and cfg.MODEL.DEVICE != "cpu":
            model = convert_sync_batchnorm(model)
        # Convolutions of narrow networks run 1.4 to 1.6 times as fast in this layout; inputs follow the weights.
        return model.to(memory_format=torch.channels_last)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        with explain_build_errors(cfg, only_names=True):  # of mappers
            return build_train_loader(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Loader of a data set for the first of ``TEST.TASKS``."""
        # All but detectors see images in their original frame, with box prompts.
        return build_test_loader(cfg, dataset_name, box_prompts=cfg.TEST.TASKS[0] != "instances")

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        """Evaluator of a data set for the first of ``TEST.TASKS``."""
        return build_evaluator(cfg, dataset_name, cfg.TEST.TASKS[0], output_folder)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Sequence[DatasetEvaluator] | None = None) -> OrderedDict:
        """Evaluate on every data set of ``DATASETS.TEST``, for every task of ``TEST.TASKS``.

        Args:
            cfg: full config. The builders get it once per task, with this one alone in ``TEST.TASKS``.
            model: to evaluate.
            evaluators: one per data set, instead of :meth:`build_evaluator`'s; there must be one task then.

        Returns:
            The metrics by task and name, e.g. ``results["box_to_mask"]["mIoU*"]``; with several data sets, by data
            set first.
        """
        given: dict[str, DatasetEvaluator] = {}
        if evaluators is not None:
            if len(evaluators) != len(cfg.DATASETS.TEST) or len(cfg.TEST.TASKS) != 1:
                raise ValueError(
                    f"{len(evaluators)} evaluators for {len(cfg.DATASETS.TEST)} data sets and {len(cfg.TEST.TASKS)} "
                    "tasks: give one per data set, and set one task in TEST.TASKS."
                )
            given = dict(zip(cfg.DATASETS.TEST, evaluators, strict=True))
        broadcast_buffers(model)
        by_dataset: OrderedDict[str, OrderedDict] = OrderedDict()
        for name in cfg.DATASETS.TEST:
            results = by_dataset.setdefault(name, OrderedDict())
            for task in cfg.TEST.TASKS:
                task_cfg = cfg.clone()
                task_cfg.defrost()
                task_cfg.TEST.TASKS = (task,)
                task_cfg.freeze()
                loader = cls.build_test_loader(task_cfg, name)
                evaluator = given.get(name) or cls.build_evaluator(task_cfg, name)
                found = inference_on_dataset(_tested_model(cfg, model, task), loader, evaluator)
                if comm.is_main_process():
                    logger.info("%s on %s:", task, name)
                    print_csv_format(found)
                    results.update(found)
        return next(iter(by_dataset.values())) if len(by_dataset) == 1 else by_dataset


def _tested_model(cfg: CfgNode, model: nn.Module, task: str) -> nn.Module:
    """The model with what the config puts around it when it is tested on a task."""
    if task in ("box_to_mask", "box_to_sem_seg") and cfg.PSEUDO_MASKS.CRF:
        # Refined like the labels would be, so that the metric speaks of what gets written.
        return CRFRefinedModel(model, workers=cfg.PSEUDO_MASKS.CRF_WORKERS)
    if task == "sem_seg" and (tuple(cfg.TEST.SEM_SEG_SCALES) != (1.0,) or cfg.TEST.SEM_SEG_FLIP):
        return SemanticSegmenterWithTTA(model, cfg.TEST.SEM_SEG_SCALES, cfg.TEST.SEM_SEG_FLIP)
    return model
