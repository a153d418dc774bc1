"""Box-supervised segmentation for Detectron2.

Importing the package registers its data sets, mappers, backbones, meta-architectures and heads with Detectron2, so
that configs can name them. No file is opened and no network is built.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("boxsup_d2")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

# Imported for what they register; the version stands above because some of them write it into files.
from boxsup_d2.config import add_boxsup_config
from boxsup_d2.data import dataset_mappers, datasets
from boxsup_d2.modeling import backbone, meta_arch, roi_heads, sem_seg_heads

__all__ = [
    "__version__",
    "add_boxsup_config",
    "backbone",
    "dataset_mappers",
    "datasets",
    "meta_arch",
    "roi_heads",
    "sem_seg_heads",
]
