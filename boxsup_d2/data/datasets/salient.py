"""Data sets of salient images, each with the mask of its one object."""

from functools import partial

from boxsup_d2.data.datasets.catalog import register_dataset
from boxsup_d2.data.datasets.source import DatasetSource
from boxsup_d2.data.formats.salient import load_salient
from boxsup_d2.data.paths import under_root


def register_salient(name: str, image_root: str, mask_root: str) -> None:
    """Register a set of salient images, see :func:`load_salient`; nothing is opened before it is used.

    Relative paths are looked up in ``DETECTRON2_DATASETS`` when used.
    """
    register_dataset(
        name,
        lambda: load_salient(under_root(image_root), under_root(mask_root), name),
        lazy={"image_root": partial(under_root, image_root), "mask_root": partial(under_root, mask_root)},
        # The folders are all there is: what is in them is paired by name.
        source=DatasetSource(name, lambda: [under_root(mask_root), under_root(image_root)]),
        evaluator_type="salient",
    )
