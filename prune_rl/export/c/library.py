"""Exported C code compiled by the system's compiler, and called through ctypes."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prune_rl.export.artefact import Artefact
from prune_rl.export.c.actions import action_type
from prune_rl.export.c.source import CSource
from prune_rl.export.policy import Policy
from prune_rl.spaces import Discrete

FLAGS = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic")
_CTYPES = {"float": np.float32, "double": np.float64}


class NoCompiler(ValueError):
    """There is no C compiler; the message says what to install."""


def compiler() -> list[str]:
    """The command of the C compiler: the environment variable CC, or cc, gcc or clang.

    Raises:
        NoCompiler: there is none.
    """
    given = shlex.split(os.environ.get("CC", ""))
    for command in [given] if given else [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(command[0]):
            return command
    raise NoCompiler(
        f"there is no C compiler {shlex.join(given) if given else 'cc, gcc or clang'}: install one (Debian: gcc), or "
        "name one in the environment variable CC"
    )


def compile_library(sources: Sequence[CSource], folder: Path, flags: Sequence[str] = FLAGS) -> ctypes.CDLL:
    """A shared library of all ``sources``, whose names differ; the files are left in ``folder``.

    Raises:
        NoCompiler: there is no compiler.
        ValueError: it refused the code; the message is its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for each in sources:
        (folder / f"{each.name}.h").write_text(each.header, encoding="utf-8")
        (folder / f"{each.name}.c").write_text(each.source, encoding="utf-8")
    # One translation unit: a process of the compiler per policy would take longer than the compilation.
    together = folder / "library.c"
    together.write_text("".join(f'#include "{each.name}.c"\n' for each in sources), encoding="utf-8")
    library = folder / "library.so"
    command = [*compiler(), *flags, "-shared", "-fPIC", str(together), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ValueError(f"{shlex.join(command)} failed: {done.stderr.strip()}")
    return ctypes.CDLL(str(library))


class CPolicy(Artefact):
    """The actions of a policy, computed by its C code in a library that `compile_library` made."""

    def __init__(self, policy: Policy, name: str, library: ctypes.CDLL, nbytes: int | None = None) -> None:
        self.policy, self._size = policy, policy.observation_size
        self._nbytes = policy.nbytes if nbytes is None else nbytes
        kind = action_type(policy.action)
        self._act = getattr(library, f"{name}_act")
        self._act.argtypes, self._act.restype = [ctypes.c_void_p, ctypes.c_void_p], ctypes.c_int32
        self._dtype = np.dtype(_CTYPES.get(kind, kind.removesuffix("_t")))

    @property
    def nbytes(self) -> int:
        """Bytes of all constants."""
        return self._nbytes

    def __call__(self, obs: ArrayLike) -> Any:
        """See `Policy.__call__`."""
        x = self.policy.flat(obs)
        rows = np.ascontiguousarray(x.reshape(-1, self._size))
        count = 1 if isinstance(self.action, Discrete) else self.action.size
        actions = np.empty((len(rows), count), self._dtype)
        from_row, to_row = rows.strides[0], actions.strides[0]
        observation, action = rows.ctypes.data, actions.ctypes.data
        for index in range(len(rows)):
            if self._act(observation + index * from_row, action + index * to_row):
                raise ValueError(
                    f"a component of observation {index} is NaN, on which this policy cannot act"
                )
        if isinstance(self.action, Discrete):
            counted: NDArray[np.int64] = actions[:, 0].astype(np.int64).reshape(x.shape[:-1])
            return counted[()]
        return actions.astype(self.action.dtype).reshape(*x.shape[:-1], *self.action.shape)


def compiled(policy: Policy, source: CSource, nbytes: int | None = None) -> CPolicy:
    """``source``, the C code of ``policy``, compiled and ready to act; ``nbytes``: of its constants, if not float."""
    with tempfile.TemporaryDirectory(prefix="prune_rl-c-") as folder:
        # A loaded library needs its file no longer.
        return CPolicy(policy, source.name, compile_library([source], Path(folder)), nbytes)
