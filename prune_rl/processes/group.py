"""The processes that train one run together, and messages between them.

Messages go through the key-value store of ``jax.distributed``'s coordination service, in process 0. Seeds exchange
nothing while they train, so no compiled program spans two processes, and no device takes part in a message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from flax import serialization
from jax.errors import JaxRuntimeError

from prune_rl.processes.watch import Loss, Watch, no_answer

T = TypeVar("T")

# Between two looks at what the watch found.
_POLL_MS = 1000


class ProcessLost(RuntimeError):
    """Another process of the group has ended or does not answer; the message says which.

    Attributes:
        silent: whether it gave no reason, as a killed one.
    """

    def __init__(self, loss: Loss) -> None:
        super().__init__(loss.sentence)
        self.silent = loss.silent


class FirstProcessError(ValueError):
    """What process 0 was doing for all failed, and its message there; raised in the others."""


class ProcessGroup:
    """The processes that train one run together; alone, a group of one, which exchanges nothing.

    All processes call the methods in the same order.

    Attributes:
        index: of this process, from 0.
        size: how many processes there are.
        lost: whether another one is gone without a word, so that nobody should wait for it.
    """

    def __init__(self, index: int = 0, size: int = 1, client: Any = None) -> None:
        """``client``: of ``jax.distributed``, not for a group of one."""
        self.index, self.size = index, size
        self.lost = False
        self._client = client
        self._names: list[str] = []
        self._count = 0
        self._watch = None if size == 1 else Watch(client, index, self._name)

    @property
    def is_first(self) -> bool:
        """Whether this process writes the logs, evaluates, and prints."""
        return self.index == 0

    def tell_names(self, name: str) -> None:
        """Let sentences about this process say ``name``, that of its host; all processes call it at the start."""
        self._names = self.gather("names", name)

    def gather(self, what: str, value: Any) -> list[Any]:
        """The values of all processes, in order; returns when all have come here.

        Args:
            what: a name for it, the same in all processes.
            value: a tree of dicts, lists, NumPy arrays, numbers, texts and None.

        Raises:
            ProcessLost: a process has ended.
        """
        if self.size == 1:
            return [value]
        self._count += 1
        own = serialization.msgpack_serialize({"what": what, "value": value})
        try:
            self._client.key_value_set_bytes(self._key(self._count, self.index), own)
            read = [self._read(self._count, index) for index in range(self.size)]
            if self._count > 1:
                # Whoever has sent this message has read the one before.
                self._client.key_value_delete(self._key(self._count - 1, self.index))
        except JaxRuntimeError as error:
            raise self._lost(no_answer(self._name(0), error)) from None
        for index, message in enumerate(read):
            if message["what"] != what:
                raise RuntimeError(f"{self._name(index)} is at {message['what']!r}, this one at {what!r}")
        return [message["value"] for message in read]

    def from_first(self, what: str, do: Callable[[], T]) -> T:
        """What ``do`` returns in process 0, the only one that calls it: a tree as in ``gather``.

        Raises:
            FirstProcessError: in the others, where it raised ``ValueError`` or ``OSError``.
            ProcessLost: as ``gather``.
        """
        if self.size == 1:
            return do()
        message: dict[str, Any] = {}
        failed: Exception | None = None
        if self.is_first:
            try:
                message["value"] = do()
            except (ValueError, OSError) as error:
                failed, message["error"] = error, str(error)
        found = self.gather(what, message)[0]
        if failed is not None:
            raise failed
        if "error" in found:
            raise FirstProcessError(found["error"])
        value: T = found["value"]
        return value

    def largest(self, what: str, numbers: Mapping[str, int]) -> dict[str, int]:
        """Of each number the largest that a process has; all have the same names."""
        each = self.gather(what, dict(numbers))
        return {name: max(other[name] for other in each) for name in numbers}

    def share(self, number: int, what: str) -> range:
        """The part of ``range(number)`` that this process owns: equally many in all.

        Raises:
            ValueError: ``number`` is no multiple of the processes; ``what`` names what there are so many of.
        """
        if number % self.size:
            raise ValueError(
                f"{number} {what} cannot be shared equally by {self.size} processes: give a multiple of {self.size}"
            )
        each = number // self.size
        return range(self.index * each, (self.index + 1) * each)

    def end(self, why: str | None = None) -> None:
        """Stop; the others are told ``why`` where this process ends before the run does."""
        if self._watch is not None:
            self._watch.stop(None if self.lost else why)
            self._watch = None

    def _read(self, count: int, index: int) -> Any:
        """The message number ``count`` of a process; waits for it as long as all live."""
        assert self._watch is not None
        while True:
            try:
                data = self._client.blocking_key_value_get_bytes(self._key(count, index), _POLL_MS)
                return serialization.msgpack_restore(data)
            except JaxRuntimeError as error:
                if not str(error).startswith("DEADLINE_EXCEEDED"):
                    raise
            if self._watch.loss is not None:
                raise self._lost(self._watch.loss)

    def _lost(self, loss: Loss) -> ProcessLost:
        self.lost = loss.silent
        return ProcessLost(loss)

    def _key(self, count: int, index: int) -> str:
        return f"prune_rl/messages/{count}/{index}"

    def _name(self, index: int) -> str:
        where = f" ({self._names[index]})" if self._names else ""
        return f"process {index} of {self.size}{where}"


ALONE = ProcessGroup()
