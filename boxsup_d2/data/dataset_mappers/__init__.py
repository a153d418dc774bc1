"""Data set mappers; importing this package registers all of them."""

from boxsup_d2.data.dataset_mappers.box_crop import BoxCropDatasetMapper
from boxsup_d2.data.dataset_mappers.box_prompt import BoxPromptDatasetMapper
from boxsup_d2.data.dataset_mappers.build import DATASET_MAPPER_REGISTRY, build_dataset_mapper
from boxsup_d2.data.dataset_mappers.pseudo_mask import PseudoMaskDatasetMapper

__all__ = [
    "DATASET_MAPPER_REGISTRY",
    "BoxCropDatasetMapper",
    "BoxPromptDatasetMapper",
    "PseudoMaskDatasetMapper",
    "build_dataset_mapper",
]
