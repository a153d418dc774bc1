"""Hooks of :class:`boxsup_d2.engine.Trainer`."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.engine.hooks import PreciseBN
from detectron2.utils import comm

from boxsup_d2.data.train_loader import TrainLoader
from boxsup_d2.labelling.driver import label_datasets
from boxsup_d2.modeling.average import WeightAverage
from boxsup_d2.utils.progress import ProgressBar

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
        self.trainer.label_results = label_datasets(self._cfg, self.trainer.kept_model, checkpoint)


class EMAHook(HookBase):
    """Keeps the average of the weights (``MODEL.EMA``): after every step it moves towards the network, and after the
    last one back to what training began with, as far as ``INITIAL_SHARE`` says.

    It stands before the hooks that save and evaluate.

    The state of the network that is trained is the hook's, since the model of a checkpoint is the average.

    Args:
        average: of the trainer's model.
    """

    def __init__(self, average: WeightAverage) -> None:
        self._average = average
        self._resumed = False

    def before_train(self) -> None:
        """Begin with the weights that were loaded, or go on with the average of a checkpoint."""
        logger.info("MODEL.EMA: the average of the weights is what is evaluated, labels, and is saved as the model")
        if not self._resumed:
            self._average.start()
        elif self.trainer.start_iter < self.trainer.max_iter:
            self._average.go_on()

    def after_step(self) -> None:
        """Update; at the end mix."""
        self._average.update(self.trainer.iter)
        if self.trainer.iter == self.trainer.max_iter - 1:
            self._average.finish()

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`boxsup_d2.modeling.average.WeightAverage.state_dict`."""
        return self._average.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint, whose model was loaded before."""
        self._average.load_state_dict(state_dict)
        self._resumed = True


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


class InterruptHook(HookBase):
    """On Ctrl-C, ends the training after the iteration under way, with a checkpoint; on a second one, at once.

    It stands behind the schedule's hook, so that the checkpoint goes on with the next iteration.
    """

    _asked = False
    _saved = False
    _hurry = False
    _former: Any = None

    def before_train(self) -> None:
        """Take Ctrl-C over; a thread beside the main one gets none."""
        if threading.current_thread() is threading.main_thread():
            self._former = signal.signal(signal.SIGINT, self._ask)
        with ctrl_c_spared():  # Detectron2's main branch starts the loader's processes where it is first used
            getattr(self.trainer._trainer, "_data_loader_iter", None)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            self._hurry = True
            raise KeyboardInterrupt
        self._asked = True

    def after_step(self) -> None:
        """End here, if asked to.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        if self._asked:
            self._save(self.trainer.iter)
            raise KeyboardInterrupt

    def after_train(self) -> None:
        """Give Ctrl-C back. Where another rank ended first, the iteration that failed for it does not count.

        Raises:
            KeyboardInterrupt: it was pressed when all was done but what follows the training.
        """
        if self._former is not None:
            signal.signal(signal.SIGINT, self._former)
            self._former = None
        if self._asked and self.trainer.iter >= self.trainer.max_iter:
            raise KeyboardInterrupt
        if self._asked and not self._hurry:
            self._save(self.trainer.iter - 1)

    def _save(self, iteration: int) -> None:
        if self._saved or iteration < self.trainer.start_iter or not comm.is_main_process():
            return
        self._saved = True
        self.trainer.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        logger.warning(
            "Interrupted after %d of %d iterations, with a checkpoint: the same command goes on, of a single step with "
            "--resume",
            iteration + 1,
            self.trainer.max_iter,
        )


@contextlib.contextmanager
def ctrl_c_spared() -> Iterator[None]:
    """Processes that are forked inside get no Ctrl-C: loaders end with the training, which still needs them."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


class ProgressBarHook(HookBase):
    """Shows how many iterations are done, the loss and the time left.

    Args:
        description: what is trained.
    """

    def __init__(self, description: str) -> None:
        self._description = description
        self._bar: ProgressBar | None = None

    def before_train(self) -> None:
        """Open the bar."""
        total, done = self.trainer.max_iter, self.trainer.start_iter
        self._bar = ProgressBar(f"train {self._description}", total, done=done, unit="iteration")

    def after_step(self) -> None:
        """Count."""
        if self._bar is not None:
            losses = self.trainer.storage.histories().get("total_loss")
            loss = f", loss {losses.median(20):.3g}" if losses is not None else ""
            self._bar.update(1, f"train {self._description}{loss}")

    def after_train(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
