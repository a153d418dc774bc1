"""The command ``boxsup``: the package for data of one's own, without a config to write.

A package beside :mod:`boxsup_d2` and not in it: importing that one fills Detectron2's registries, which takes seconds,
and whoever asks for help or mistypes an option should not wait for it. So one module per subcommand, each with
``add_parser`` and ``run``, imports the standard library alone; what a subcommand works with is imported when it runs,
:mod:`boxsup_cli.console` first of all.
"""

from boxsup_cli.main import main

__all__ = ["main"]
