"""Output in characters that its encoding has, with ASCII for those that it lacks."""

from __future__ import annotations

import codecs
import sys

# The signs that the output uses; others become a question mark.
_SIGNS = {
    "·": "x",
    "→": "->",
    "–": "-",
    "−": "-",
    "—": "-",
    "…": "...",
    "±": "+-",
    "×": "x",
    "≥": ">=",
    "≤": "<=",
    "µ": "u",
    "μ": "u",
    "‖": "||",
    "│": "|",
    "╭": "+",
    "╮": "+",
    "╰": "+",
    "╯": "+",
    "─": "-",
    "’": "'",
}
_ERRORS = "prune_rl.plain_text"


def readable(text: str, encoding: str | None) -> str:
    """``text``, in ASCII where ``encoding`` lacks one of its characters."""
    try:
        text.encode(encoding or "ascii")
    except (UnicodeError, LookupError):
        text = "".join(char if char.isascii() else _SIGNS.get(char, "?") for char in text)
    return text


def let_output_fall_back() -> None:
    """Standard output and error write ASCII for what their encoding lacks, where they would raise an error."""
    codecs.register_error(_ERRORS, _replaced)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # not of every object that stands for them
        if reconfigure is not None:
            reconfigure(errors=_ERRORS)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_SIGNS.get(char, "?") for char in error.object[error.start : error.end]), error.end
