"""One step: train a network, label data sets, or both, and evaluate."""

import logging
from collections import OrderedDict
from collections.abc import Mapping

from detectron2.config import CfgNode
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from boxsup_d2.checkpoint import BoxSupCheckpointer, load_trained
from boxsup_d2.engine.trainer import Trainer
from boxsup_d2.labelling.driver import label_datasets
from boxsup_d2.prediction.network import write_class_names
from boxsup_d2.utils.processes import run_on_main

logger = logging.getLogger(__name__)


def run_step(cfg: CfgNode, *, resume: bool, eval_only: bool, trainer_class: type[Trainer] = Trainer) -> OrderedDict:
    """Train on ``DATASETS.TRAIN`` (unless ``eval_only``), label ``PSEUDO_MASKS.DATASETS``, evaluate ``DATASETS.TEST``.

    Args:
        cfg: the step's config.
        resume: continue from the last checkpoint in ``OUTPUT_DIR``, if there is one.
        eval_only: use ``MODEL.WEIGHTS`` (with ``resume`` the last checkpoint) as they are.
        trainer_class: a subclass builds and tests in its own way.

    Returns:
        Metrics of labelling and evaluation, on rank 0.

    Raises:
        ValueError: nothing says where the weights of a network that is not trained here come from.
        RuntimeError: not all of them are there.
    """
    if not eval_only:
        trainer = trainer_class(cfg)
        run_on_main(lambda: write_class_names(cfg), share=False)
        trainer.resume_or_load(resume=resume)
        trainer.train()
        # EvalHook leaves nothing behind where there is nothing to evaluate.
        return _joined(trainer.label_results, getattr(trainer, "_last_eval_results", {}))
    model = trainer_class.build_model(cfg)
    checkpointer = BoxSupCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
    weights = checkpointer.get_checkpoint_file() if resume and checkpointer.has_checkpoint() else cfg.MODEL.WEIGHTS
    load_trained(model, weights)
    results = _joined(label_datasets(cfg, model, weights or None), trainer_class.test(cfg, model))
    if comm.is_main_process() and cfg.TEST.EXPECTED_RESULTS:
        verify_results(cfg, results)
    return results


def _joined(labelled: Mapping[str, Mapping], evaluated: Mapping[str, Mapping]) -> OrderedDict:
    """Both metrics in one dict; a data set that is labelled and tested has both under its name."""
    results = OrderedDict((name, dict(metrics)) for name, metrics in labelled.items())
    for name, metrics in evaluated.items():
        results[name] = {**results.get(name, {}), **metrics}
    return results
