"""``python -m boxsup_d2``: the command line, see :mod:`boxsup_cli`."""

import sys

from boxsup_cli import main

if __name__ == "__main__":
    sys.exit(main())
