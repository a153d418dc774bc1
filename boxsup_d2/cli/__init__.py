"""The command ``boxsup``: what the package does, for data of one's own, without a config to write.

One module per subcommand, each with ``add_parser`` and ``run``; what a subcommand works with is imported when it runs,
and lies elsewhere: this package reads arguments, calls the engine, and tells people what happened.
"""

from boxsup_d2.cli.main import main

__all__ = ["main"]
