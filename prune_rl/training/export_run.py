"""What `prune-rl export` does: a run's policies for other runtimes. Imports JAX for StableHLO alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from prune_rl.atomic_files import write_bytes
from prune_rl.envs.errors import EnvironmentCrashed
from prune_rl.envs.task import Task, resolve_task
from prune_rl.export.export_policy import ExportOptions, rendered
from prune_rl.export.hub_folder import HubCard
from prune_rl.export.metadata import metadata_of
from prune_rl.export.policy import Policy, load_policy, save_policy
from prune_rl.export.quantize import quantize
from prune_rl.runs.evaluation_file import own_policy, read_evaluation
from prune_rl.runs.json_text import read_object

To = Literal["onnx", "c", "stablehlo", "hub-folder"]
Say = Callable[[str], None]

_ABOUT = {
    "policy.json": "the policy's description",
    "policy.safetensors": "its arrays",
    "policy.onnx": "ONNX model: input `obs`, output `actions`",
    "policy.h": "C99 header",
    "policy.c": "C99 source",
    "results.json": "return of every evaluation episode",
}


@dataclasses.dataclass(frozen=True)
class ExportRequest:
    """What to write.

    Attributes:
        to: formats.
        int8: ONNX and C in 8-bit integers, too, beside float32.
        metadata: more for the files.
        output: folder; None: `export` in the run.
        episodes: that the policy plays to calibrate 8-bit integers.
        trusted: whether the module of an environment `module:Name-v0` may be imported.
    """

    to: tuple[To, ...]
    int8: bool = False
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    output: Path | None = None
    episodes: int = 10
    trusted: bool = False

    def check(self) -> None:
        """Raises ``ValueError`` for what cannot work, and for a package that is missing."""
        if not self.to:
            raise ValueError(f"--to needs at least one of {', '.join(get_args(To))}")
        if self.int8 and not {"onnx", "c"} & set(self.to):
            raise ValueError("--int8 is for --to onnx and --to c")
        if self.episodes < 1:
            raise ValueError(f"--calibration-episodes must be at least 1, got {self.episodes}")
        if "onnx" in self.to:
            from prune_rl.export.onnx_model import import_onnx

            import_onnx()


def export_run(run: Path, request: ExportRequest, say: Say) -> None:
    """Write the policies of ``run``, a run directory or the folder of a policy, in every format that is asked for.

    Raises:
        ValueError: as `ExportRequest.check`, and for an environment that is needed and cannot be made.
        PolicyFileError: there is no policy.
    """
    request.check()
    config = read_object(run / "config.json") if (run / "config.json").exists() else {}
    root = request.output or (run if run.is_dir() else run.parent) / "export"
    for name, folder in policy_folders(run).items():
        policy = load_policy(folder)
        task = _task(policy, config, request.trusted)
        extra: dict[str, Any] = {"run": run.name} if config else {}
        extra |= _step_time(task, say)
        metadata = metadata_of(policy, {**extra, **request.metadata})
        files: dict[Path, bytes] = {}
        for kind in request.to:
            if kind == "hub-folder":
                _write_hub_folder(run, name, policy, metadata, root / name / "hub", task, say)
            else:
                files |= _named(root / name, rendered(policy, kind, ExportOptions("policy", metadata)))
        if request.int8:
            files |= _int8_files(root / name, policy, metadata, request, task)
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, data)
            say(f"{path} ({len(data):,} bytes)")


def policy_folders(run: Path) -> dict[str, Path]:
    """{"": folder} of a single policy, or {"seed_K": folder} of a run of several seeds."""
    if not (run / "policy" / "policy.json").exists() and (found := sorted((run / "policy").glob("seed_*"))):
        return {path.name: path for path in found}
    return {"": run}


def _named(folder: Path, files: Mapping[str, bytes]) -> dict[Path, bytes]:
    return {folder / name: data for name, data in files.items()}


def _int8_files(
    folder: Path, policy: Policy, metadata: Mapping[str, str], request: ExportRequest, task: Task | str
) -> dict[Path, bytes]:
    from prune_rl.evaluation.artefacts import calibration

    if isinstance(task, str):
        raise ValueError(f"--int8 plays episodes to see how large activations are, and cannot: {task}")
    quantized = quantize(policy, calibration(policy, task, request.episodes))
    options = ExportOptions("policy_int8", metadata, quantized)
    files: dict[Path, bytes] = {}
    for kind in ("onnx", "c"):
        if kind in request.to:
            files |= _named(folder, rendered(policy, kind, options))
    return files


def _task(policy: Policy, config: Mapping[str, Any], trusted: bool) -> Task | str:
    """The environment of a policy, or why there is none."""
    env = config.get("env") or policy.metadata.get("env")
    if not isinstance(env, str):
        return "the policy file does not name its environment"
    if ":" in env and not trusted:
        return f"it is {env!r}, whose Python module is imported only with --trust"
    try:
        return resolve_task(env, config.get("backend", "auto"), tuple(config.get("env_kwargs", ())))
    except ValueError as error:
        return str(error)


def _step_time(task: Task | str, say: Say) -> dict[str, float]:
    if isinstance(task, str):
        say(f"note: the files do not say how long a step of the environment lasts: {task}")
        return {}
    try:
        from prune_rl.evaluation.artefacts import step_seconds

        seconds = step_seconds(task)
    except (ImportError, ValueError, EnvironmentCrashed) as error:
        say(f"note: the files do not say how long a step of the environment lasts: {error}")
        return {}
    return {} if seconds is None else {"step_seconds": seconds}


def _write_hub_folder(
    run: Path,
    name: str,
    policy: Policy,
    metadata: Mapping[str, str],
    folder: Path,
    task: Task | str,
    say: Say,
) -> None:
    save_policy(folder, policy)
    options, names = ExportOptions("policy", metadata), ["policy.json", "policy.safetensors"]
    for kind in ("onnx", "c"):
        try:
            for file, data in rendered(policy, kind, options).items():
                write_bytes(folder / file, data)
                names.append(file)
        except ImportError as error:
            say(f"note: {folder} has no ONNX model: {error}")
    returns, dense = _returns(run, name, say)
    picture = "summary.png" if (run / "summary.png").exists() else ""
    about = {file: _ABOUT[file] for file in [*names, "results.json"]}
    if picture:
        write_bytes(folder / picture, (run / picture).read_bytes())
        about[picture] = "return and kept neurons over environment steps"
    if _film(policy, folder / "replay.mp4", task, say):
        about["replay.mp4"] = "an episode"
    card = HubCard(policy, metadata, returns, dense, about, picture)
    write_bytes(folder / "README.md", card.readme().encode())
    write_bytes(folder / "results.json", card.results().encode())
    say(f"{folder}, a model card and {len(about)} files")


def _returns(run: Path, name: str, say: Say) -> tuple[Sequence[float], Sequence[float]]:
    """Of the run's own policy and of its dense control."""
    try:
        seeds = read_evaluation(run)["seeds"]
    except ValueError as error:
        say(f"note: the model card has no returns: {error}")
        return [], []
    entry = next((e for e in seeds if name in ("", f"seed_{e['seed']}")), None)
    if entry is None:
        return [], []
    own, dense = own_policy(entry), entry["policies"].get("dense")
    return (own["returns"] if own else []), (dense["returns"] if dense and dense is not own else [])


def _film(policy: Policy, path: Path, task: Task | str, say: Say) -> bool:
    if isinstance(task, str):
        say(f"note: no clip: {task}")
        return False
    try:
        from prune_rl.evaluation.artefacts import CALIBRATION_SEED
        from prune_rl.evaluation.video import write_video

        write_video(policy, task, path, seed=CALIBRATION_SEED)
    except (ImportError, ValueError, RuntimeError, OSError, EnvironmentCrashed) as error:
        say(f"note: no clip: {error}")
        return False
    return True
