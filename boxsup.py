"""The command ``boxsup``. It stands beside the package so that Ctrl-C is quiet also while the package is imported.

That takes seconds, in every process of a run, and would else end in a traceback from anywhere within torch.
"""

import os
import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))


def main() -> int:
    """Run the command line of this process; returns the exit code."""
    from boxsup_d2.cli import main as run
    from boxsup_d2.utils.processes import hear_interrupts

    hear_interrupts()
    return run()


if __name__ == "__main__":
    raise SystemExit(main())
