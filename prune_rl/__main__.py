"""The program `prune-rl`: the command line, whose imports take seconds, and what a signal says during them."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

INTERRUPTED = "\ninterrupted; the same command continues from the last checkpoint"


def main() -> int:
    """Run the command line; returns its exit status. Until it has been imported, Ctrl-C and SIGTERM end at once."""

    def leave(number: int, frame: FrameType | None) -> None:
        del frame
        # An exception could surface anywhere inside of a half-made import, and there is nothing to clean up yet.
        os.write(1, f"{INTERRUPTED}\n".encode())
        os._exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    from prune_rl import cli

    for number, handler in before.items():
        signal.signal(number, handler)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
