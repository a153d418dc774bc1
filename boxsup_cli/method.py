"""Options that choose a box-to-mask method and its weights."""

import argparse
import os
import sys
from typing import Any, NamedTuple

from boxsup_cli.arguments import Checked, Existing, Group, add_opts_argument
from boxsup_cli.errors import BadInput

#: The methods of this package, which are known before they are imported.
METHODS = ("box", "grabcut", "boxcaseg", "boxmask", "lpg", "salient-onnx", "sam")


class MethodChoice(NamedTuple):
    """What was chosen.

    Attributes:
        method: name of a method, or None: that of ``config``.
        config: a config file, or None.
        weights: a checkpoint, or None: the config's own.
        opts: config overrides, in pairs.
    """

    method: str | None
    config: str | None
    weights: str | None
    opts: tuple[Any, ...]


class _Method(Checked):
    """The name of a method."""

    def check(self, values: Any, name: str) -> tuple[Any, str]:
        if values in METHODS or "boxsup_d2" in sys.modules:  # what is imported may have brought others
            return values, ""
        import difflib
        from importlib.metadata import entry_points

        if entry_points(group="boxsup_d2.methods"):  # of other packages, whose methods their import tells
            return values, ""
        near = difflib.get_close_matches(values, METHODS, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        return values, f"There is no method '{values}'; there are {', '.join(METHODS)}.{hint}"


def add_method_arguments(group: Group) -> None:
    """Add ``--method``, ``--weights``, ``--config``, ``--fast``, ``--best`` and ``--opts``."""
    group.add_argument(
        "--method",
        action=_Method,
        metavar="NAME",
        help="one of those that 'boxsup models' lists (default: boxmask, the network that ships, or that of --config)",
    )
    group.add_argument("--weights", metavar="F", help="trained weights; default: model_final.pth beside --config")
    group.add_argument(
        "--config",
        action=Existing,
        metavar="F",
        help="a config of a network, such as those that 'boxsup train' leaves",
    )
    setting = group.add_mutually_exclusive_group()
    setting.add_argument("--fast", action="store_true", help="a faster setting of the method, for somewhat worse masks")
    setting.add_argument("--best", action="store_true", help="a slower setting, for somewhat better masks")
    add_opts_argument(group)


def chosen_method(args: argparse.Namespace) -> MethodChoice:
    """What :func:`add_method_arguments` was given.

    Raises:
        BadInput: there is no such config, or no such setting of the method.
    """
    from boxsup_d2.methods import DEFAULT_METHOD, methods

    config, weights, method = args.config, args.weights, args.method
    if method is None and config is None:
        method = DEFAULT_METHOD
    if config and not weights:
        beside = os.path.join(os.path.dirname(os.path.abspath(config)), "model_final.pth")
        weights = beside if os.path.isfile(beside) else None
    if config and not os.path.isfile(config):
        raise BadInput(f"--config: there is no file '{config}'.")
    setting: tuple[Any, ...] = ()
    for option in ("fast", "best"):
        if getattr(args, option):
            settings = {name: getattr(kind.info, option) for name, kind in methods().items()}
            setting = settings.get(method or "", ())
            if not setting:
                able = ", ".join(name for name, known in settings.items() if known)
                raise BadInput(f"--{option}: '{method or config}' has no such setting; there is one of: {able}.")
    return MethodChoice(method, config, weights, (*setting, *args.opts))
