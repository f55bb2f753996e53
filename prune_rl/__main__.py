"""The program `prune-rl`: the command line, whose imports take seconds, and what a signal says during them."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from types import FrameType

INTERRUPTED = "\ninterrupted; the same command continues from the last checkpoint"


def main() -> int:
    """Run the command line; returns its exit status. Outside of its work, Ctrl-C and SIGTERM end at once."""

    def leave(number: int, frame: FrameType | None) -> None:
        del frame
        # An exception could surface anywhere inside of a half-made import, and there is nothing to clean up yet.
        os.write(1, f"{INTERRUPTED}\n".encode())
        os._exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        from prune_rl import cli

        status = cli.main()  # which handles them in its own way
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        # Threads of libraries that were left in the middle of their work, such as a checkpoint, find the interpreter
        # ending and would print that.
        logging.disable()
        threading.excepthook = lambda left: None
    return status


if __name__ == "__main__":
    sys.exit(main())
