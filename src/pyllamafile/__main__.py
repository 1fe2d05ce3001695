"""What the command `pyllamafile` starts, and ``python -m pyllamafile``.

To import the command line takes a tenth of a second and more, in which Ctrl-C would show where in
Python's innards it struck. Nothing is open and nothing begun at that time, so the process may just
end.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import NoReturn

NOT_ON_WINDOWS = (
    "error: pyllamafile makes files on Linux, macOS and the BSDs; on Windows, install and start it "
    "in WSL (wsl --install). The files themselves run on Windows without it."
)


def main() -> NoReturn:
    """Run a command and exit, as `pyllamafile.cli.main` does, interruptible from the beginning."""
    if os.name == "nt":
        sys.exit(NOT_ON_WINDOWS)
    gc.set_threshold(50_000)  # or Python looks for garbage forty times while it imports
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # not when the signal is ignored, as by nohup's kin
        signal.signal(signal.SIGINT, _end)
    from pyllamafile.cli import main as run

    signal.signal(signal.SIGINT, before)
    run()


def _end(*_: object) -> NoReturn:
    os.write(2, b"\ninterrupted\n")  # below the terminal's ^C
    os._exit(130)


if __name__ == "__main__":
    main()
