"""Registry of data set mappers, and the base class of those that make samples of their own out of dataset dicts."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.data.samplers import RandomSubsetTrainingSampler, RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from fvcore.common.registry import Registry

from boxsup_d2.data.train_loader import SampleOrder, ShuffledOrder, TrainLoader

DATASET_MAPPER_REGISTRY = Registry("DATASET_MAPPER")
DATASET_MAPPER_REGISTRY.__doc__ = """
Mappers, chosen by name in the config (``INPUT.TRAIN_MAPPER``) and called with ``(cfg, is_train)``.

The object that comes back is called with a dataset dict, which it must not change, and returns the input dict of the
model. Detectron2 asks for no more. A mapper whose training samples are not whole dataset dicts derives from
:class:`SampleMapper`.
"""


# What DATALOADER.SAMPLER_TRAIN may be.
_SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler")


class SampleMapper:
    """A mapper that says what its training samples are and how they are loaded; by default as Detectron2's.

    Subclasses override :meth:`training_samples`, and :meth:`build_train_loader` where the order of the samples is
    their own too.
    """

    #: Whether all its images have one size: then batches are not grouped by aspect ratio.
    one_size = False

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """One of :meth:`training_samples`, which must not be changed, to the input dict of the model."""
        raise NotImplementedError

    def training_samples(self, cfg: CfgNode) -> list[dict[str, Any]]:
        """What this mapper is called with, out of ``DATASETS.TRAIN``: by default whole dataset dicts."""
        return detection_samples(cfg)

    def build_train_loader(self, cfg: CfgNode, seed: int) -> Any:
        """Endless loader of lists of this rank's share of ``SOLVER.IMS_PER_BATCH`` mapped samples.

        ``seed``, the same on all ranks, decides their order.
        """
        return build_shuffled_loader(cfg, self, self.training_samples(cfg), seed, one_size=self.one_size)


def build_dataset_mapper(cfg: CfgNode, name: str, is_train: bool, **arguments: Any) -> Callable[[dict[str, Any]], Any]:
    """Build the mapper called ``name``; ``arguments`` go to its constructor, beside those from the config.

    Raises:
        KeyError: no mapper of this name is registered.
    """
    return DATASET_MAPPER_REGISTRY.get(name)(cfg, is_train, **arguments)


def detection_samples(cfg: CfgNode) -> list[dict[str, Any]]:
    """The dataset dicts of ``DATASETS.TRAIN``, filtered as the config says."""
    return get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)


def rank_batch_size(cfg: CfgNode) -> int:
    """This rank's share of ``SOLVER.IMS_PER_BATCH``.

    Raises:
        ValueError: it does not divide over the ranks.
    """
    world_size = comm.get_world_size()
    batch_size, remainder = divmod(cfg.SOLVER.IMS_PER_BATCH, world_size)
    if remainder or batch_size == 0:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH ({cfg.SOLVER.IMS_PER_BATCH}) does not divide over {world_size} processes"
        )
    return batch_size


def build_ordered_loader(
    cfg: CfgNode,
    mapper: Callable[..., Any],
    samples: list[dict[str, Any]],
    order: SampleOrder,
    seed: int,
    *,
    samples_per_epoch: int | None = None,
) -> TrainLoader:
    """The loader of samples in an order, with the config's workers; see :class:`TrainLoader`."""
    return TrainLoader(
        samples,
        mapper,
        order,
        seed=seed,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        pin_memory=cfg.MODEL.DEVICE != "cpu",
        samples_per_epoch=samples_per_epoch,
    )


def build_shuffled_loader(
    cfg: CfgNode,
    mapper: Callable[[dict[str, Any]], Any],
    samples: list[dict[str, Any]],
    seed: int,
    *,
    one_size: bool = False,
) -> TrainLoader:
    """Endless loader in the order of ``DATALOADER.SAMPLER_TRAIN``, see :meth:`SampleMapper.build_train_loader`.

    Raises:
        ValueError: the batch does not divide over the ranks, or there is no such sampler.
    """
    wide = None
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING and not one_size:
        # Detectron2 sorts what is mapped already; the dicts say the same, and nothing need be read to know the order.
        wide = [int(sample.get("width", 0) > sample.get("height", 0)) for sample in samples]
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name not in _SAMPLERS:
        raise ValueError(f"DATALOADER.SAMPLER_TRAIN is {name}: it must be one of {', '.join(_SAMPLERS)}")
    order = ShuffledOrder(partial(_sampler, cfg, samples), rank_batch_size(cfg), wide)
    return build_ordered_loader(cfg, mapper, samples, order, seed)


def _sampler(cfg: CfgNode, samples: list[dict[str, Any]], seed: int) -> Iterable[int]:
    if cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
        find = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
        # The main branch can do without the square root.
        options = {"sqrt": cfg.DATALOADER.REPEAT_SQRT} if "REPEAT_SQRT" in cfg.DATALOADER else {}
        return RepeatFactorTrainingSampler(find(samples, cfg.DATALOADER.REPEAT_THRESHOLD, **options), seed=seed)
    if cfg.DATALOADER.SAMPLER_TRAIN == "RandomSubsetTrainingSampler":
        ratio = cfg.DATALOADER.RANDOM_SUBSET_RATIO
        return RandomSubsetTrainingSampler(len(samples), ratio, seed_shuffle=seed, seed_subset=seed)
    return TrainingSampler(len(samples), seed=seed)
