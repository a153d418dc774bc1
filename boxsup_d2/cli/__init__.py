"""The command ``boxsup``: the package for data of one's own, without a config to write.

One module per subcommand, each with ``add_parser`` and ``run``; what a subcommand works with lies elsewhere, and is
imported when it runs.
"""

from boxsup_d2.cli.main import main

__all__ = ["main"]
