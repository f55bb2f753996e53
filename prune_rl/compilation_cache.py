"""JAX's persistent compilation cache in a folder of the user, so that a command given again compiles nothing.

Only the command `prune-rl` turns it on; importing the library changes no setting of JAX.
"""

from __future__ import annotations

import hashlib
import platform
import tempfile
from pathlib import Path
from typing import Any

import filelock
import platformdirs

MAX_BYTES = 1_000_000_000
"""Above this size of the folder, the programs that were not used for longest are removed."""
# The names of the files in JAX's cache: a program, the time of its last use, and the lock that its writers hold.
_PROGRAM, _LAST_USE, _LOCK = "-cache", "-atime", ".lockfile"
_LOCK_SECONDS = 10


def cache_folder() -> Path:
    """Where compiled programs are kept: in the user's cache folder, apart for each kind of processor.

    A program for the CPU contains instructions of the processor it was compiled on, and home folders are shared
    between machines.
    """
    return platformdirs.user_cache_path("prune_rl", appauthor=False) / "jax" / _processor()


def enable(folder: Path | None = None, max_bytes: int = MAX_BYTES) -> str:
    """Let JAX keep every program that this process compiles; call it before the first one is compiled.

    What the user has set wins: nothing is changed if JAX has a cache folder already (JAX_COMPILATION_CACHE_DIR), or its
    cache is turned off (JAX_ENABLE_COMPILATION_CACHE=false).

    Args:
        folder: by default ``cache_folder()``.
        max_bytes: bound on the size of the folder.

    Returns:
        A sentence for the user if the folder cannot be written, so that there is no cache; else "".
    """
    import jax

    config: Any = jax.config  # its attributes and methods have no types
    if config.jax_compilation_cache_dir is not None or not config.jax_enable_compilation_cache:
        return ""
    folder = cache_folder() if folder is None else folder
    try:
        # Whoever can write here can make the command run code.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        remove_incomplete(folder)
    except (OSError, filelock.Timeout) as error:
        return (
            f"compiled programs are not kept for the next run, since their folder cannot be written ({error}); "
            "name another one with JAX_COMPILATION_CACHE_DIR, or turn this off with "
            "JAX_ENABLE_COMPILATION_CACHE=false"
        )
    config.update("jax_compilation_cache_dir", str(folder))
    config.update("jax_compilation_cache_max_size", max_bytes)
    # Small programs too: a run has dozens, which together take seconds.
    config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return ""


def remove_incomplete(folder: Path) -> None:
    """Remove programs that a killed process may have written in part.

    JAX writes a program and then the time of its use. One without a time would never be replaced, and JAX, which needs
    all times to find out what to remove, would write no other.
    """
    with filelock.FileLock(folder / _LOCK, timeout=_LOCK_SECONDS):
        for program in folder.glob(f"*{_PROGRAM}"):
            if not program.with_name(program.name.removesuffix(_PROGRAM) + _LAST_USE).exists():
                program.unlink(missing_ok=True)


def _processor() -> str:
    """A name for what a program compiled here can run on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    # "flags" on x86, "Features" on ARM: the instruction sets.
    found = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    text = "\n".join([platform.machine(), *(found or [platform.processor()])])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
