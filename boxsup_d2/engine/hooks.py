"""Hooks of :class:`boxsup_d2.engine.Trainer`."""

import logging
import os

from detectron2.config import CfgNode
from detectron2.engine import HookBase

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
