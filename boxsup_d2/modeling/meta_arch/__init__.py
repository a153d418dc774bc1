"""Meta-architectures; importing this package registers all of them with Detectron2."""

from boxsup_d2.modeling.meta_arch.baselines import BoxFill, GrabCut

__all__ = ["BoxFill", "GrabCut"]
