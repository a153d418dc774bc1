"""Box-to-mask methods without parameters."""

from boxsup_d2.modeling.baselines.config import add_grabcut_config
from boxsup_d2.modeling.baselines.meta_arch import BoxFill, GrabCut

__all__ = ["BoxFill", "GrabCut", "add_grabcut_config"]
