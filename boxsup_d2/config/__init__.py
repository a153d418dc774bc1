"""Config keys, and configs out of files and overrides."""

from boxsup_d2.config.device import use_available_device
from boxsup_d2.config.files import load_config, merge_overrides
from boxsup_d2.config.keys import add_boxsup_config, register_config

__all__ = ["add_boxsup_config", "load_config", "merge_overrides", "register_config", "use_available_device"]
