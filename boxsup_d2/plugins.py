"""Methods of other packages: whatever is installed and names a module in the entry-point group ``boxsup_d2.methods``.

Importing the module registers what it holds, as importing ours does; docs/architecture.md shows how.
"""

import warnings
from importlib.metadata import entry_points

from detectron2.config import get_cfg

from boxsup_d2.config.keys import add_boxsup_config, undone_on_error

GROUP = "boxsup_d2.methods"


def load_plugins() -> None:
    """Import the modules; one that fails is left out with a warning, with the config keys that it added."""
    for entry in entry_points(group=GROUP):
        try:
            with undone_on_error():
                entry.load()
                add_boxsup_config(get_cfg())
        except Exception as error:
            warnings.warn(f"{GROUP}: '{entry.value}' cannot be used ({type(error).__name__}: {error}).")
