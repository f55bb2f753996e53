"""Signals that end a command, as exceptions."""

from __future__ import annotations

import _thread
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

# Seconds after which a signal is sent again, where what it raised was swallowed.
AGAIN = 10.0
# The same where Python reports that it was swallowed: not at once, since that code is still running.
AGAIN_WHEN_REPORTED = 0.05


class Terminated(KeyboardInterrupt):
    """SIGTERM, by which a scheduler asks a process to end: handled as Ctrl-C is."""


@contextlib.contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """SIGTERM raises ``Terminated`` inside, and a second one ends the process at once; SIGINT ``KeyboardInterrupt``.

    An exception that surfaces in a callback of a library, a finalizer, or while a module is half imported, can be
    swallowed there. So it is raised again for as long as this lasts, soon where Python reports it as unraisable. From
    then on to the end of the process, errors in finalizers are not printed: objects were left half made.
    """
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield
        return
    timers: list[threading.Timer] = []
    terminated = interrupted = ended = False

    def send_again(seconds: float) -> None:
        timers.append(threading.Timer(seconds, _interrupt_main_thread))
        timers[-1].daemon = True
        timers[-1].start()

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal terminated, interrupted
        terminated = interrupted = True
        signal.signal(number, signal.SIG_DFL)
        send_again(AGAIN)
        raise Terminated

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        send_again(AGAIN)
        raise Terminated if terminated else KeyboardInterrupt

    def unraisable_hook(unraisable: Any) -> None:
        if not interrupted:
            hook_before(unraisable)
        elif not ended and issubclass(unraisable.exc_type, KeyboardInterrupt):
            send_again(AGAIN_WHEN_REPORTED)

    hook_before = sys.unraisablehook
    handlers = {signal.SIGTERM: terminate, signal.SIGINT: interrupt}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    sys.unraisablehook = unraisable_hook
    try:
        yield
    finally:
        ended = True
        for timer in timers:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
        if (
            sys.unraisablehook is unraisable_hook and not interrupted
        ):  # otherwise somebody's hook calls this one
            sys.unraisablehook = hook_before


def interrupt_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """The interrupt that ``error`` is, or that it was raised from, or while it was handled; None if there is none.

    A compiled module that is interrupted while it is imported raises ``ImportError`` instead.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def _interrupt_main_thread() -> None:
    """SIGINT to the main thread, so that it leaves a system call too; where there is no such call, a simulated one."""
    if hasattr(signal, "pthread_kill"):
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)
    else:
        _thread.interrupt_main()
