"""What orbax and tensorstore say of checkpoints that cannot be written or read: one sentence, or nothing."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any


def reason(error: Exception) -> str:
    """Its type and the first line of what it says."""
    lines = str(error).strip().splitlines() or [""]
    text = lines[0] if len(lines[0]) <= 160 else lines[0][:160] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def as_os_error(error: Exception, step: int, path: Path) -> OSError:
    """One sentence instead of what orbax and tensorstore say when they cannot write."""
    text = str(error)
    for code in (errno.ENOSPC, errno.EDQUOT):
        if os.strerror(code) in text or getattr(error, "errno", None) == code:
            return OSError(code, os.strerror(code), str(path))
    why = next((os.strerror(code) for code in errno.errorcode if os.strerror(code) in text), reason(error))
    return OSError(f"checkpoint {step} cannot be written to {path} ({why}); earlier ones are untouched")


def silence_late_writes() -> None:
    """Drops what tensorstore's threads print when files of a failed write end after orbax closed its event loop."""
    global _silenced
    if _silenced:
        return
    _silenced = True
    print_error, print_unraisable = sys.excepthook, sys.unraisablehook

    def is_late(error: object) -> bool:
        return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"

    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not is_late(error):
            print_error(kind, error, trace)

    def unraisablehook(unraisable: Any) -> None:
        if not is_late(unraisable.exc_value):
            print_unraisable(unraisable)

    sys.excepthook, sys.unraisablehook = excepthook, unraisablehook


_silenced = False


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the absl logger, on which orbax reports its progress and every damaged file; `notes` reports those."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
