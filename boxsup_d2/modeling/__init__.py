"""Networks: one folder a method, and the backbones, heads and losses that several share.

Importing this package imports every module and folder in it, which registers what they hold: a new folder needs no
further entry anywhere.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
