"""Configs and weights that ship with the package, by name, in the manner of ``detectron2.model_zoo``."""

from boxsup_d2.model_zoo.model_zoo import config_names, get, get_config, get_config_file

__all__ = ["config_names", "get", "get_config", "get_config_file"]
