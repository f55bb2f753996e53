"""Whether the other processes of a group live: signs of life in the key-value store, and why one ended."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from jax.errors import JaxRuntimeError

from prune_rl.exit_status import OTHER_PROCESS_ENDED

# Seconds between two signs of life, and without one after which a process counts as lost, unless PRUNE_RL_LOST_AFTER
# says otherwise. jax.distributed ends the others by itself, with a stack trace, after `join.HEARTBEAT_TIMEOUT`.
ALIVE_EVERY = 2.0
LOST_AFTER = 30.0
# Seconds that the main thread has to end in order. It may wait for the lost process where only orbax knows.
GRACE = 10.0

AGAIN = "The same command on all hosts goes on from the last checkpoint"


@dataclasses.dataclass(frozen=True)
class Loss:
    """Another process is gone: a sentence about it, and whether it gave no reason, as one that was killed."""

    sentence: str
    silent: bool


class Watch:
    """A thread that gives signs of life, and looks for those of the others.

    Where another process is gone and this one has not ended ``GRACE`` seconds later, the thread ends it with status
    ``OTHER_PROCESS_ENDED``.

    Args:
        client: of ``jax.distributed``.
        index: of this process.
        name: what to call a process in sentences.

    Attributes:
        loss: of the first process that was found to be gone; None while there is none.
    """

    def __init__(self, client: Any, index: int, name: Callable[[int], str]) -> None:
        self.loss: Loss | None = None
        self._client, self._index, self._name = client, index, name
        self._patience = float(os.environ.get("PRUNE_RL_LOST_AFTER") or LOST_AFTER)
        self._signs: dict[str, tuple[str, float]] = {}  # by process: the last sign, and when it came
        self._stopped = threading.Event()
        self._give_sign(0)
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def stop(self, why: str | None) -> None:
        """Give no more signs; the others are told ``why`` this process ends, if it is early."""
        self._stopped.set()
        if why is not None:
            with contextlib.suppress(JaxRuntimeError):
                self._client.key_value_set(f"prune_rl/ended/{self._index}", why)

    def _run(self) -> None:
        count, since = 1, time.monotonic()
        while not self._stopped.wait(ALIVE_EVERY):
            try:
                self._give_sign(count)
                self.loss = self.loss or self._look()
            except JaxRuntimeError as error:
                self.loss = self.loss or no_answer(self._name(0), error)
            count += 1
            if self.loss is None:
                since = time.monotonic()
            elif time.monotonic() - since > GRACE:
                sys.stderr.write(f"error: {self.loss.sentence}\n")
                leave_at_once()

    def _give_sign(self, count: int) -> None:
        self._client.key_value_set(f"prune_rl/alive/{self._index}", str(count), allow_overwrite=True)

    def _look(self) -> Loss | None:
        for key, why in self._texts("prune_rl/ended"):
            return Loss(f"{self._name(int(key))} ended: {why}. {AGAIN}", silent=False)
        now = time.monotonic()
        for key, sign in self._texts("prune_rl/alive"):
            if key not in self._signs or self._signs[key][0] != sign:
                self._signs[key] = (sign, now)
            elif now - self._signs[key][1] > self._patience:
                sentence = f"{self._name(int(key))} gave no sign of life for {self._patience:.0f} s"
                return Loss(f"{sentence}. {AGAIN}", silent=True)
        return None

    def _texts(self, folder: str) -> list[tuple[str, str]]:
        """(process, text) of the keys in a folder of the store."""
        return [(key.rpartition("/")[2], text) for key, text in self._client.key_value_dir_get(folder)]


def no_answer(name: str, error: Exception) -> Loss:
    """The store, in the process ``name``, does not answer."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return Loss(f"{name} does not answer ({reason}). {AGAIN}", silent=True)


def leave_at_once() -> NoReturn:
    """End this process where another one is lost: jax.distributed would wait for it, and then abort."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(OTHER_PROCESS_ENDED)
