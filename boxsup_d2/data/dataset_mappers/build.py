"""Registry of data set mappers: the classes that turn one dataset dict into one sample."""

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from fvcore.common.registry import Registry

DATASET_MAPPER_REGISTRY = Registry("DATASET_MAPPER")
DATASET_MAPPER_REGISTRY.__doc__ = """
Mappers, chosen by name in the config (``INPUT.TRAIN_MAPPER``) and called with ``(cfg, is_train)``.

The object that comes back is called with a dataset dict, which it must not change, and returns the input dict of the
model.
"""


def build_dataset_mapper(cfg: CfgNode, name: str, is_train: bool, **arguments: Any) -> Callable[[dict[str, Any]], Any]:
    """Build the mapper called ``name``.

    Args:
        cfg: the config.
        name: of the mapper.
        is_train: whether it is for training.
        arguments: of its constructor, beside those that come from the config.

    Raises:
        KeyError: no mapper of this name is registered.
    """
    return DATASET_MAPPER_REGISTRY.get(name)(cfg, is_train, **arguments)
