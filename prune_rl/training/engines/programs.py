"""Compiled programs for arrays of several widths, the next ones compiled in a thread while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from prune_rl.training.engines.array_widths import Widths

Compiled = TypeVar("Compiled")


class Programs(Generic[Compiled]):
    """What ``compile(widths, dense)`` returned; each is compiled once.

    Args:
        compile: lowers and compiles for arrays of these widths, {group name: neurons}, where ``dense`` for the part of
            a pruned run in which it trains as its dense control; it may run in another thread, and must not read what
            training changes.
    """

    def __init__(self, compile: Callable[[Widths, bool], Compiled]) -> None:
        self._compile = compile
        self._futures: dict[Key, Future[Compiled]] = {}
        # One thread: the programs come in the order in which they are needed.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compile-ahead")

    def get(self, widths: Widths, dense: bool) -> Compiled:
        """These programs, compiled now if they were not compiled ahead; waits for them."""
        key = _key(widths, dense)
        future = self._futures.get(key)
        if future is None:
            # In this thread: the other one may be busy with a program that is needed later.
            future = self._futures[key] = Future()
            try:
                future.set_result(self._compile(widths, dense))
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def ahead(self, widths: Widths, dense: bool) -> None:
        """Compile these programs in the thread, unless they are compiled already."""
        key = _key(widths, dense)
        if key not in self._futures:
            self._futures[key] = self._thread.submit(self._compile, dict(widths), dense)

    def close(self) -> None:
        """Nothing is compiled ahead any more."""
        self._thread.shutdown(wait=False, cancel_futures=True)


Key = tuple[tuple[tuple[str, int], ...], bool]


def _key(widths: Widths, dense: bool) -> Key:
    return tuple(sorted(widths.items())), dense
