"""What the command says of an error."""

from __future__ import annotations

import errno

from rich.console import Console
from rich.markup import escape


def print_error(error: Exception) -> None:
    """One line on the error stream."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]error:[/] {escape(_sentence(error))}")


def _sentence(error: Exception) -> str:
    """What is said of an error that ends a command."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = f" for {error.filename}" if error.filename else ""
        return (
            f"no space is left on the disk{what}: free some, then give the same command again, which continues from "
            "the last checkpoint"
        )
    return str(error)
