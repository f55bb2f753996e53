"""Settings and fixtures of every test.

The settings are environment variables, set before JAX is imported, so that the processes that tests start (a killed
and resumed run, the command line) have them too.
"""

from __future__ import annotations

import atexit
import functools
import gc
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, Generic, ParamSpec, TypeVar

import hypothesis
import pytest

if "jax" in sys.modules:
    raise pytest.UsageError("JAX was imported before tests/conftest.py could set it up: find the plugin")

DEVICES = "--xla_force_host_platform_device_count"
if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=2".strip()
# Most programs of the tests run a few times. Compiled with these options they take a sixth of the time to compile; a
# test that trains longer, or compares the last bits of two programs, compiles with `tests.compilation.optimized_jit`.
QUICK_FLAGS = " ".join(
    (
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_disable_hlo_passes=hlo-verifier",  # checks XLA's own passes, a seventh of the time
    )
)
if QUICK_FLAGS not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += f" {QUICK_FLAGS}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# "strict" would be better, but optax.adam's own bias correction, decay ** count, is float ** int32 and fails under it.
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "standard"
# NaN scores and NaN policy files are among the tested inputs.
os.environ["JAX_DEBUG_NANS"] = "false"
# One compilation cache for all processes of one session: a program that several modules, workers or started processes
# compile is compiled once. The session removes it, since no result may depend on what an earlier run left on disk.
if "PYTEST_XDIST_WORKER" not in os.environ:
    compilation_cache = tempfile.TemporaryDirectory(prefix="jax-cache-", ignore_cleanup_errors=True)
    atexit.register(compilation_cache.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compilation_cache.name
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "true"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["SDL_VIDEODRIVER"] = "dummy"
os.environ["PYGAME_HIDE_SUPPORT_PROMPT"] = "1"

# Compilation makes the first example of a test slow; derandomised, so that CI fails only for a change.
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Tracing and lowering make many objects that live long. With the default, 700, collections took a seventh of the time.
gc.set_threshold(100_000, 50, 100)

P = ParamSpec("P")
R = TypeVar("R")


class CountTraces(Generic[P, R]):
    """A function that counts how often its Python body runs: under `jax.jit`, how often it is traced.

    Attributes:
        traces: the number of times so far.
    """

    def __init__(self, fn: Callable[P, R]) -> None:
        functools.update_wrapper(self, fn)
        self.fn = fn
        self.traces = 0

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        self.traces += 1
        return self.fn(*args, **kwargs)


# A compiled program takes about 1 MB. JAX keeps those of local functions, too, and a worker would grow to 4 GB.
MOST_PROGRAMS = 300
compiled_programs = 0


def count_program(event: str, duration_secs: float, **metadata: str | int) -> None:
    global compiled_programs
    compiled_programs += event == "/jax/core/compile/backend_compile_duration"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Folders with slow tests come first.

    A worker of xdist's worksteal takes tests from the end of the other's queue. The slow tests at the beginning stay
    together, so that only one worker makes the training runs that they share.
    """
    slow = {item.path.parent for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path.parent not in slow)


def pytest_collection_finish() -> None:
    import jax.monitoring

    # What was imported so far stays: no collection looks at it again.
    gc.collect()
    gc.freeze()
    jax.monitoring.register_event_duration_secs_listener(count_program)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Frees the compiled programs when there are many: modules share those of small operations."""
    global compiled_programs
    yield
    if compiled_programs >= MOST_PROGRAMS:
        import jax

        jax.clear_caches()
        gc.collect()
        compiled_programs = 0


@pytest.fixture
def count_traces() -> Callable[[Callable[P, R]], CountTraces[P, R]]:
    """`counted = count_traces(fn); step = jax.jit(counted); …; assert counted.traces == 1`."""
    return CountTraces


@pytest.fixture
def assert_traces() -> Iterator[Callable[..., CountTraces[Any, Any]]]:
    """`step = jax.jit(assert_traces(fn, 1))`: fails at the end of the test unless fn was traced just that often."""
    expected: list[tuple[CountTraces[Any, Any], int]] = []

    def wrap(fn: Callable[..., Any], traces: int = 1) -> CountTraces[Any, Any]:
        counted = CountTraces(fn)
        expected.append((counted, traces))
        return counted

    yield wrap
    for counted, traces in expected:
        name = getattr(counted.fn, "__qualname__", repr(counted.fn))
        assert counted.traces == traces, f"{name} was traced {counted.traces} times, not {traces}"
