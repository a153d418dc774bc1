"""Methods of other packages: whatever is installed and names a module in the entry-point group ``boxsup_d2.methods``.

Importing the module registers what it holds, as importing ours does; docs/architecture.md shows how.
"""

import warnings
from importlib.metadata import entry_points

GROUP = "boxsup_d2.methods"


def load_plugins() -> None:
    """Import the modules; one that fails is left out with a warning, so that the rest still runs."""
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:
            warnings.warn(f"{GROUP}: '{entry.value}' cannot be imported ({type(error).__name__}: {error}).")
