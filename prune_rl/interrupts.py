"""Signals that end a command, as exceptions."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

# Seconds after which a signal is sent again, where what it raised was swallowed.
AGAIN = 10.0


class Terminated(KeyboardInterrupt):
    """SIGTERM, by which a scheduler asks a process to end: handled as Ctrl-C is."""


@contextlib.contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """SIGTERM raises ``Terminated`` inside, and a second one ends the process at once; SIGINT ``KeyboardInterrupt``.

    An exception that surfaces in a callback of a library, or while a module is half imported, can be swallowed there.
    So the signal is sent again for as long as this lasts.
    """
    timers: list[threading.Timer] = []

    def send_again(number: int) -> None:
        timers.append(threading.Timer(AGAIN, os.kill, (os.getpid(), number)))
        timers[-1].daemon = True
        timers[-1].start()

    def terminate(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        send_again(number)
        raise Terminated

    def interrupt(number: int, frame: FrameType | None) -> None:
        send_again(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield
        return
    handlers = {signal.SIGTERM: terminate, signal.SIGINT: interrupt}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
