"""The published LPG generator: the names of its parameters, and how its inputs were normalised."""

from torch import Tensor

from boxsup_d2.checkpoint.formats import CheckpointFormat, State, register_checkpoint_format

# The published networks took B, G, R in 0..255 minus these, undivided.
PIXEL_MEAN = [104.008, 116.669, 122.675]
PIXEL_STD = [1.0, 1.0, 1.0]

# Published names (left) and where the same parameters live in ours.
_PREFIXES = {
    "pre.0.": "backbone.stem.",
    "pre.1.": "backbone.down.",
    "kps.0.": "backbone.hourglass.",
    "cnvs.0.": "backbone.out.",
    "fm.0.0.conv.": "head.0.",
    "fm.0.1.": "head.2.",
}


def is_published_hourglass(state: State) -> bool:
    """Whether these are the parameters of the published LPG generator, of any round."""
    return "pre.0.conv.weight" in state and "fm.0.1.weight" in state


def convert_published_hourglass(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published LPG generator to the state dict of our ``LPG`` with ``build_hourglass_backbone``.

    Set ``INPUT.FORMAT: BGR``, ``MODEL.PIXEL_MEAN`` and ``MODEL.PIXEL_STD`` as :data:`PIXEL_MEAN` and :data:`PIXEL_STD`.
    The channels in front of the image stand in our order.

    Raises:
        ValueError: a parameter is none of the one-stack generator's; named.
    """
    converted = {}
    for name, value in state.items():
        theirs = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
        if theirs is None:
            raise ValueError(f"parameter '{name}' is none of the published LPG generator with one hourglass")
        converted[_PREFIXES[theirs] + name.removeprefix(theirs)] = value
    return converted


PUBLISHED = register_checkpoint_format(
    CheckpointFormat(
        name="published LPG generator",
        recognises=is_published_hourglass,
        convert=convert_published_hourglass,
        help=f"""\
It is a MODEL.META_ARCHITECTURE LPG on MODEL.BACKBONE.NAME build_hourglass_backbone. Its inputs were normalised thus:
  MODEL.PIXEL_MEAN "{PIXEL_MEAN}" MODEL.PIXEL_STD "{PIXEL_STD}" INPUT.FORMAT BGR""",
    )
)
