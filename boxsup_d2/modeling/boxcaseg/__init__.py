"""BoxCaseg (CVPR 2021): a class-agnostic network from boxes to masks, taught by boxes and by salient images."""

from boxsup_d2.modeling.boxcaseg.config import add_boxcaseg_config
from boxsup_d2.modeling.boxcaseg.meta_arch import BoxCaseg

__all__ = ["BoxCaseg", "add_boxcaseg_config"]
