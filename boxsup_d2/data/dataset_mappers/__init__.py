"""Data set mappers; importing this package registers all of them."""

from boxsup_d2.data.dataset_mappers.box_crop import BoxCropDatasetMapper
from boxsup_d2.data.dataset_mappers.box_prompt import BoxPromptDatasetMapper
from boxsup_d2.data.dataset_mappers.build import DATASET_MAPPER_REGISTRY, SampleMapper, build_dataset_mapper
from boxsup_d2.data.dataset_mappers.class_mask import ClassMaskDatasetMapper
from boxsup_d2.data.dataset_mappers.mask_crop import MaskCropDatasetMapper
from boxsup_d2.data.dataset_mappers.pseudo_mask import PseudoMaskDatasetMapper
from boxsup_d2.data.dataset_mappers.sem_seg import SemSegDatasetMapper

__all__ = [
    "DATASET_MAPPER_REGISTRY",
    "BoxCropDatasetMapper",
    "BoxPromptDatasetMapper",
    "ClassMaskDatasetMapper",
    "MaskCropDatasetMapper",
    "PseudoMaskDatasetMapper",
    "SampleMapper",
    "SemSegDatasetMapper",
    "build_dataset_mapper",
]
