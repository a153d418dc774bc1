"""Arguments that several subcommands share."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeAlias

from boxsup_cli.errors import BadInput

# What argparse hands out it has no public names for.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Group: TypeAlias = argparse._ArgumentGroup


class TellAndEnd(argparse.Action):
    """An option that prints something which takes long to find out, and ends the command, as ``--help`` does."""

    def __init__(self, option_strings: Sequence[str], dest: str, text: Callable[[], str], help: str) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, help=help)
        self._text = text

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        sys.stdout.write(self._text())
        parser.exit()


class Checked(argparse.Action):
    """An argument that is checked before anything is imported; :func:`run_command` tells the first mistake."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        values, mistake = self.check(values, option_string or str(self.metavar))
        setattr(namespace, self.dest, values)
        if mistake and not hasattr(namespace, "mistake"):
            namespace.mistake = mistake

    def check(self, values: Any, name: str) -> tuple[Any, str]:
        """What was given, as the command gets it, and what is wrong with it; "": nothing is."""
        raise NotImplementedError


class Existing(Checked):
    """One or more files or folders that must be there."""

    def check(self, values: Any, name: str) -> tuple[Any, str]:
        paths = [os.path.expanduser(path) for path in ([values] if isinstance(values, str) else values)]
        missing = next((path for path in paths if not os.path.exists(path)), None)
        mistake = "" if missing is None else f"{name}: there is no '{missing}'."
        return (paths[0] if isinstance(values, str) else paths), mistake


def run_command(args: argparse.Namespace) -> None:
    """Run a parsed subcommand.

    Raises:
        BadInput: an argument cannot be, such as a file that is missing; and what the subcommand raises.
    """
    if hasattr(args, "mistake"):
        raise BadInput(args.mistake)
    args.run(args)


def add_machine_arguments(group: Group) -> None:
    """Add ``--num-gpus`` and its other name, ``--workers``."""
    group.add_argument(
        "--num-gpus",
        "--workers",
        dest="num_gpus",
        type=count,
        default=1,
        metavar="N",
        help="processes that share the images: one per GPU, or on the CPU where there is none (default: 1); 0: one "
        "process on the CPU. Every process needs the memory of the network once more",
    )


def add_device_argument(group: Group) -> None:
    """Add ``--device``."""
    group.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU where there is one")


def hide_gpus(args: argparse.Namespace) -> None:
    """With ``--device cpu``: several processes use GPUs wherever they see some."""
    if args.device == "cpu" and args.num_gpus > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def add_opts_argument(group: argparse._ActionsContainer, what: str = "config keys to set, in pairs") -> None:
    """Add ``--opts``."""
    group.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help=what)


def count(text: str) -> int:
    """A whole number, 0 or more."""
    return _at_least(0, text)


def positive(text: str) -> int:
    """A whole number, 1 or more."""
    return _at_least(1, text)


def _at_least(least: int, text: str) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"must be {least} or more, not {value}")
    return value


def non_negative(text: str) -> float:
    """A number, 0 or more."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {text}")
    return value


def share(text: str) -> float:
    """A number in 0..1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, not {text}")
    return value
