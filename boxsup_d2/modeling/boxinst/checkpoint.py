"""AdelaiDet's published BoxInst and CondInst networks: the names of their parameters."""

from torch import Tensor

from boxsup_d2.checkpoint.formats import CheckpointFormat, State, register_checkpoint_format

_FCOS = "proposal_generator.fcos_head."
# Published names (left) and where the same parameters live in ours.
_PREFIXES = {
    "backbone.": "backbone.",
    "mask_branch.": "mask_branch.",
    "controller.": "head.controller.",
    f"{_FCOS}cls_tower.": "head.cls_subnet.",
    f"{_FCOS}bbox_tower.": "head.bbox_subnet.",
    f"{_FCOS}cls_logits.": "head.cls_score.",
    f"{_FCOS}bbox_pred.": "head.bbox_pred.",
    f"{_FCOS}ctrness.": "head.ctrness.",
    f"{_FCOS}scales.": "head.scales.",
}
# Constants, and an auxiliary loss of CondInst's.
_DROPPED = ("mask_head.", "mask_branch.seg_head.", "mask_branch.logits.", "pixel_")


def is_published_boxinst(state: State) -> bool:
    """Whether these are the parameters of an AdelaiDet network with FCOS and a controller."""
    return "controller.weight" in state and f"{_FCOS}cls_logits.weight" in state


def convert_published_boxinst(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published BoxInst or CondInst to the state dict of our ``BoxInst``.

    Raises:
        ValueError: a parameter is none of these networks'; named.
    """
    converted = {}
    for name, value in state.items():
        if name.startswith(_DROPPED):
            continue
        theirs = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
        if theirs is None:
            raise ValueError(f"parameter '{name}' is none of AdelaiDet's BoxInst or CondInst")
        converted[_PREFIXES[theirs] + name.removeprefix(theirs).removesuffix(".scale")] = value
    return converted


PUBLISHED = register_checkpoint_format(
    CheckpointFormat(
        name="AdelaiDet's BoxInst or CondInst",
        recognises=is_published_boxinst,
        convert=convert_published_boxinst,
        help="""\
Use it with configs/BoxInst/coco-R50-1x.yaml or another config of that folder; one of CondInst also needs
  MODEL.BOXINST.MASK_CHANNELS 8""",
    )
)
