"""The published BoxCaseg network: the names of its parameters, and how its inputs were normalised."""

from torch import Tensor

from boxsup_d2.checkpoint.formats import CheckpointFormat, State, register_checkpoint_format

# The published network took RGB in 0..1 minus these / 255; in 0..255, as Detectron2 has it, that is a std of 255.
PIXEL_MEAN = [102.9801, 115.9465, 122.7717]
PIXEL_STD = [255.0, 255.0, 255.0]

# Published BoxCaseg names (left) and where the same parameters live in ours; all others are backbone parameters.
_PREFIXES = {
    "last_layer.": "box_head.",
    "fcn.": "salient_head.fcn.",
    "transfer1.": "salient_head.transfer1.",
    "transfer2.": "salient_head.transfer2.",
    "transfer_bn.": "salient_head.transfer_bn.",
}


def is_published_boxcaseg(state: State) -> bool:
    """Whether these are the parameters of the published BoxCaseg network (with or without its ``model.`` prefix)."""
    return any(name.removeprefix("model.").startswith("last_layer.") for name in state) and any(
        name.removeprefix("model.").startswith("transfer_bn.") for name in state
    )


def convert_published_boxcaseg(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published BoxCaseg state dict to that of our ``BoxCaseg`` with an HRNet of ``build_timm_backbone``.

    Set ``INPUT.FORMAT: RGB``, ``MODEL.PIXEL_MEAN`` and ``MODEL.PIXEL_STD`` as :data:`PIXEL_MEAN` and :data:`PIXEL_STD`.
    """
    converted = {}
    for name, value in state.items():
        bare = name.removeprefix("model.")
        for theirs, ours in _PREFIXES.items():
            if bare.startswith(theirs):
                converted[ours + bare.removeprefix(theirs)] = value
                break
        else:
            converted["backbone.net." + bare] = value
    return converted


PUBLISHED = register_checkpoint_format(
    CheckpointFormat(
        name="published BoxCaseg",
        recognises=is_published_boxcaseg,
        convert=convert_published_boxcaseg,
        help=f"""\
Its inputs were normalised in its own way. Use it with
  MODEL.PIXEL_MEAN "{PIXEL_MEAN}" MODEL.PIXEL_STD "{PIXEL_STD}" INPUT.FORMAT RGB""",
    )
)
