"""BoxInst (CVPR 2021): instance segmentation learned from boxes alone; with masks the same network is CondInst."""

from boxsup_d2.modeling.boxinst.box_teacher import BoxTeacher
from boxsup_d2.modeling.boxinst.checkpoint import PUBLISHED
from boxsup_d2.modeling.boxinst.config import add_boxinst_config
from boxsup_d2.modeling.boxinst.meta_arch import BoxInst

__all__ = ["PUBLISHED", "BoxInst", "BoxTeacher", "add_boxinst_config"]
