"""Hooks of :class:`boxsup_d2.engine.Trainer`."""

import logging
import os

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.engine.hooks import PreciseBN

from boxsup_d2.data.train_loader import TrainLoader
from boxsup_d2.labelling.driver import label_datasets

logger = logging.getLogger(__name__)


class PseudoMaskHook(HookBase):
    """Labels ``PSEUDO_MASKS.DATASETS`` with the trained network when training has really ended.

    Detectron2 runs ``after_train`` also when training is interrupted; labels of a half-trained network would then
    pass for the real ones. All ranks label together. The metrics go to the trainer's ``label_results``.

    Args:
        cfg: full config.
    """

    def __init__(self, cfg: CfgNode):
        self._cfg = cfg

    def after_train(self) -> None:
        """Label, unless training stopped early or there is nothing to label."""
        if not self._cfg.PSEUDO_MASKS.DATASETS:
            return
        # Detectron2 counts on to max_iter after the last step succeeded, and only then.
        if self.trainer.iter < self.trainer.max_iter:
            logger.info("Training stopped at %d of %d: nothing is labelled", self.trainer.iter, self.trainer.max_iter)
            return
        final = os.path.join(self._cfg.OUTPUT_DIR, "model_final.pth")
        checkpoint = final if os.path.isfile(final) else ""
        self.trainer.label_results = label_datasets(self._cfg, self.trainer.model, checkpoint)


class RepeatedPreciseBN(PreciseBN):
    """Detectron2's, with the same samples in every update: it reads on from the last one, whose place a kill loses."""

    @classmethod
    def of(cls, hook: PreciseBN) -> "RepeatedPreciseBN":
        """With the settings of Detectron2's hook."""
        return cls(hook._period, hook._model, hook._data_loader, hook._num_iter)

    def update_stats(self) -> None:
        """Estimate the statistics from the first samples of the training."""
        if isinstance(self._data_loader, TrainLoader):
            self._data_loader.start_at(0, self.trainer.seed)
        self._data_iter = None
        super().update_stats()
