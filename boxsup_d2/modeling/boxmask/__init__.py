"""BoxMask: any box to a mask, with the quality of the mask predicted beside it."""

from boxsup_d2.modeling.boxmask.config import add_boxmask_config
from boxsup_d2.modeling.boxmask.meta_arch import BoxMask

__all__ = ["BoxMask", "add_boxmask_config"]
