"""Where the command ``boxsup`` begins, in the processes that it starts, too.

There importing :mod:`boxsup_d2` takes seconds, in which Ctrl-C would end in a traceback from anywhere within torch.
Only programs import this module: it changes what Ctrl-C does.
"""

import gc
import os
import signal
import sys
from types import FrameType


def _end(number: int, frame: FrameType | None) -> None:
    del number, frame
    os._exit(130)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)


def main() -> int:
    """Run the command line of this process; returns the exit code."""
    from boxsup_cli.main import main as run

    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return run()
    finally:
        # On its way out the interpreter would search hundreds of thousands of objects of torch's modules for garbage,
        # several times, which takes half as long as importing them did. The system takes back all memory anyway. Not
        # after a training, which imports triton: that complains of what it is not given back.
        if "triton" not in sys.modules:
            gc.freeze()


if __name__ == "__main__":
    raise SystemExit(main())
