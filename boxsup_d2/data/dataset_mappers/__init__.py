"""Data set mappers; importing this package registers all of them."""

from boxsup_d2.data.dataset_mappers.box_prompt import BoxPromptDatasetMapper
from boxsup_d2.data.dataset_mappers.build import DATASET_MAPPER_REGISTRY, build_dataset_mapper

__all__ = ["DATASET_MAPPER_REGISTRY", "BoxPromptDatasetMapper", "build_dataset_mapper"]
