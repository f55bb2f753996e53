"""The file that describes a grid: which runs, with which options, and where they run. Reading it imports no JAX."""

from __future__ import annotations

import dataclasses
import itertools
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from cattrs.errors import BaseValidationError

from prune_rl.runs.strict_tables import first_error, strict_converter

EngineName = Literal["local", "slurm", "ray"]
# Options of `prune-rl train` that the grid sets, or that make something else than one run.
NOT_OPTIONS = {
    **dict.fromkeys(("env", "algo", "method", "seed", "seeds"), "it is an axis of [grid]"),
    **dict.fromkeys(("run_dir", "wait"), "the grid chooses it"),
    **dict.fromkeys(("sweep", "extend"), "a job of a grid is a single run from its start"),
}
# Keys that take one value or several.
_LISTS = ("env", "algo", "method", "seed")


@dataclasses.dataclass(frozen=True)
class Axes:
    """The table [grid]: jobs are made for all combinations.

    Attributes:
        env, algo, method: as in `prune-rl train`.
        seed: the first seed of a job; each is a job of its own.
        seeds: how many seeds each job trains in one program.
    """

    env: tuple[str, ...]
    algo: tuple[str, ...] = ("ppo",)
    method: tuple[str, ...] = ("dynamic", "dense")
    seed: tuple[int, ...] = (0,)
    seeds: int = 1


@dataclasses.dataclass(frozen=True)
class Override:
    """A table [[override]]: options for the jobs that match what it names, over those of [options]."""

    options: dict[str, Any]
    env: tuple[str, ...] = ()
    algo: tuple[str, ...] = ()
    method: tuple[str, ...] = ()

    def matches(self, env: str, algo: str, method: str) -> bool:
        """Whether it is for such jobs; what it does not name matches all."""
        pairs = ((self.env, env), (self.algo, algo), (self.method, method))
        return all(not wanted or value in wanted for wanted, value in pairs)


@dataclasses.dataclass(frozen=True)
class SlurmOptions:
    """The table [engine.slurm].

    Attributes:
        partition, account, qos, constraint: as in `sbatch`.
        time_limit: minutes for each job; one that reaches it goes on in a job of its own.
        requeues: how often.
        setup: shell commands before each job, such as "module load cuda".
        parameters: further options of `sbatch`.
        cluster: "local" starts the same jobs on this machine through submitit, without Slurm.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time_limit: int = 240
    requeues: int = 3
    setup: tuple[str, ...] = ()
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    cluster: Literal["slurm", "local"] = "slurm"


@dataclasses.dataclass(frozen=True)
class RayOptions:
    """The table [engine.ray].

    Attributes:
        address: a running cluster, such as "auto" or "ray://HOST:10001"; without it, one is started on this machine.
    """

    address: str | None = None


@dataclasses.dataclass(frozen=True)
class EngineOptions:
    """The table [engine].

    Attributes:
        kind: which engine; `--engine` overrides it.
        max_jobs: jobs at a time; by default as many as fit.
        cpus_per_job: cores that a job counts as. It may use more where others leave them.
        gpus_per_job: GPUs of a job; by default one where there are any.
        memory_per_job: GB that a job counts as.
        slurm, ray: options of one engine.
    """

    kind: EngineName = "local"
    max_jobs: int | None = None
    cpus_per_job: int = 2
    gpus_per_job: int | None = None
    memory_per_job: float = 2.0
    slurm: SlurmOptions = SlurmOptions()
    ray: RayOptions = RayOptions()


@dataclasses.dataclass(frozen=True)
class Spec:
    """A grid.

    Attributes:
        grid, options, override, engine: the tables of the file.
        output: the grid's folder, relative to the working directory; by default runs/ and the name of the file.
    """

    grid: Axes
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    override: tuple[Override, ...] = ()
    engine: EngineOptions = EngineOptions()
    output: str | None = None

    @property
    def cells(self) -> list[tuple[str, str, str]]:
        """All combinations of environment, learner and method, in the order of the file."""
        return list(itertools.product(self.grid.env, self.grid.algo, self.grid.method))

    def options_of(self, env: str, algo: str, method: str) -> dict[str, Any]:
        """The options of such jobs, flat: {"prune.tolerance": 0.05, …}."""
        options = _flat(self.options)
        for override in self.override:
            if override.matches(env, algo, method):
                options |= _flat(override.options)
        return options


def read_spec(path: Path) -> Spec:
    """The grid that the TOML file describes.

    Raises:
        ValueError: the file cannot be read or is no TOML; a key is unknown, a value has another type or is not allowed.
            The message names the file, the key, and what is allowed.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        spec: Spec = strict_converter().structure(_with_lists(data), Spec)
        _check(spec)
    except FileNotFoundError:
        raise ValueError(f"there is no file {str(path)!r}: give the TOML file of a grid") from None
    except RecursionError:
        raise ValueError(f"{path}: it is nested too deeply") from None
    except BaseValidationError as error:
        raise ValueError(f"{path}: {first_error(error)}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return spec


def folder_of(path: Path, spec: Spec, output: Path | None = None) -> Path:
    """The folder of the grid in the file ``path``; ``output`` is the one that the command line names."""
    return output or Path(spec.output or Path("runs") / path.stem)


def _with_lists(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data with a list wherever one value stands for a list of one."""

    def widened(table: Any) -> Any:
        if not isinstance(table, dict):
            return table
        return {
            key: [value] if key in _LISTS and not isinstance(value, list) else value
            for key, value in table.items()
        }

    result = dict(data)
    if "grid" in result:
        result["grid"] = widened(result["grid"])
    if isinstance(result.get("override"), list):
        result["override"] = [widened(table) for table in result["override"]]
    return result


def _check(spec: Spec) -> None:
    """Raise ``ValueError`` for what has the right type and still cannot work."""
    for name in _LISTS:
        values = getattr(spec.grid, name)
        if not values:
            raise ValueError(f"grid.{name} is an empty list: give at least one value")
        if len(set(values)) < len(values):
            double = next(value for value in values if values.count(value) > 1)
            raise ValueError(f"grid.{name} has {double!r} twice: name each value once")
    seeds = sorted(spec.grid.seed)
    for first, second in itertools.pairwise(seeds):
        if second < first + spec.grid.seeds:
            raise ValueError(
                f"grid.seed has {first} and {second}, and with grid.seeds = {spec.grid.seeds} seed {second} would be "
                f"trained twice: leave {spec.grid.seeds} between two values, or make seeds smaller"
            )
    engine = spec.engine
    for key, number, least in (
        ("grid.seeds", spec.grid.seeds, 1),
        ("engine.max_jobs", engine.max_jobs, 1),
        ("engine.cpus_per_job", engine.cpus_per_job, 1),
        ("engine.gpus_per_job", engine.gpus_per_job, 0),
        ("engine.slurm.time_limit", engine.slurm.time_limit, 1),
        ("engine.slurm.requeues", engine.slurm.requeues, 0),
    ):
        if number is not None and number < least:
            raise ValueError(f"{key} must be >= {least}, got {number}")
    if not engine.memory_per_job > 0:
        raise ValueError(f"engine.memory_per_job must be > 0, got {engine.memory_per_job}")
    for number, override in enumerate(spec.override, 1):
        for name in ("env", "algo", "method"):
            unknown = set(getattr(override, name)) - set(getattr(spec.grid, name))
            if unknown:
                raise ValueError(
                    f"override {number} is for {name} {min(unknown)!r}, which grid.{name} does not have: choose of "
                    f"{', '.join(getattr(spec.grid, name))}"
                )
    for where, options in (
        ("options", spec.options),
        *((f"override {number}", override.options) for number, override in enumerate(spec.override, 1)),
    ):
        for name in options:
            reason = NOT_OPTIONS.get(name.replace("-", "_"))
            if reason:
                raise ValueError(f"{where} has {name!r}, which is no option of a job: {reason}")


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in options.items():
        name = f"{prefix}{key}".replace("_", "-")
        result |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return result
