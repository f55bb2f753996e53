"""Joining the other processes of a command: with what a cluster says, or with what the user gives."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import sys
from collections.abc import Iterator

from prune_rl.processes.group import ALONE, ProcessGroup, ProcessLost

# Seconds after which jax.distributed ends all processes if one sends no heartbeats.
HEARTBEAT_TIMEOUT = 100
# Seconds that processes wait for each other at the start, and at the end.
START_TIMEOUT = 300
END_TIMEOUT = 60


@dataclasses.dataclass(frozen=True)
class Distributed:
    """How to find the other processes. What is None, JAX asks the cluster for.

    Attributes:
        coordinator: HOST:PORT of process 0.
        num_processes: how many there are.
        process_id: number of this one.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def check(self) -> None:
        """Raise ``ValueError`` for values that cannot be."""
        if self.coordinator is not None and not self.coordinator.rpartition(":")[2].isdecimal():
            raise ValueError(f"--coordinator must be HOST:PORT, got {self.coordinator!r}")
        if self.num_processes is not None and self.num_processes < 1:
            raise ValueError(f"--num-processes must be >= 1, got {self.num_processes}")
        if self.process_id is not None and not 0 <= self.process_id < (self.num_processes or sys.maxsize):
            most = "" if self.num_processes is None else f" and below --num-processes {self.num_processes}"
            raise ValueError(f"--process-id must be >= 0{most}, got {self.process_id}")


@contextlib.contextmanager
def joined(distributed: Distributed | None) -> Iterator[ProcessGroup]:
    """The group of the processes that ``distributed`` finds, or ``ALONE``; before JAX is used for anything else.

    At the end all processes wait for each other. Where this one ends with an exception, the others are told.

    Raises:
        ValueError: no cluster says what is missing, or a process does not come.
    """
    if distributed is None:
        yield ALONE
        return
    group = _join(distributed)
    try:
        yield group
        group.gather("end", None)
    except BaseException as error:
        group.end(_reason(error))
        raise
    finally:
        group.end()
        _leave(group)


def _join(distributed: Distributed) -> ProcessGroup:
    import jax

    # There is no public name for the key-value store; orbax uses the same.
    from jax._src.distributed import global_state

    distributed.check()
    # It would take SIGTERM for itself, and only set a flag.
    jax.config.update("jax_enable_preemption_service", False)  # type: ignore[no-untyped-call]
    coordinator = distributed.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    given = (coordinator, distributed.num_processes, distributed.process_id)
    try:
        jax.distributed.initialize(
            *given,
            # With all three given, no cluster is asked: it would hide all devices but one.
            cluster_detection_method="deactivate" if None not in given else None,
            initialization_timeout=START_TIMEOUT,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=END_TIMEOUT,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"--distributed cannot join the other processes ({(str(error).splitlines() or [''])[0]}): start it by a "
            "cluster that JAX knows (Slurm, Open MPI, Kubernetes, TPU pods), or give --coordinator HOST:PORT, "
            "--num-processes N and --process-id K, the last one another in each process"
        ) from None
    index, size = int(global_state.process_id), int(global_state.num_processes or 1)
    if size == 1:
        return ALONE
    group = ProcessGroup(index, size, global_state.client)
    group.tell_names(platform.node())
    return group


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "it was interrupted"
    if isinstance(error, ProcessLost):
        return "another one ended"
    lines = str(error).splitlines()
    return lines[0].rstrip(".") if lines and lines[0] else type(error).__name__


def _leave(group: ProcessGroup) -> None:
    """Disconnect, in step with the others, unless one of them is lost."""
    import jax

    if group.lost:
        return
    with contextlib.suppress(RuntimeError):
        jax.distributed.shutdown()  # type: ignore[no-untyped-call]
