"""BoxMask: any box to a mask, with the quality of the mask predicted beside it; see ``meta_arch``."""
