"""The dense control that goes on from a pruned run is the one that is trained from the start."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from prune_rl.cli import main
from prune_rl.training.control_start import FOLDER, last_shared_checkpoint

ARGUMENTS = shlex.split(
    "CartPole-v1 --backend gymnasium --preset /dev/null --hidden 8 --num-envs 2 --num-steps 16 --update-epochs 1 "
    "--num-minibatches 1 --steps 1280 --host-resets 8 --checkpoints 8 --episodes 2 --selection-episodes 2 --seeds 2"
)
SHARED = 30 * 32  # of 40 updates the first 33 are shared, and every fifth is a checkpoint


@pytest.fixture
def quick_compilation() -> Iterator[None]:
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def log(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "wall_time"} for row in rows]


def policies(run: Path) -> dict[str, bytes]:
    return {str(file.relative_to(run)): file.read_bytes() for file in run.glob("policy/*/policy.*")}


def dense_run(folder: Path) -> Path:
    (run,) = folder.glob("runs/*dense*")
    return run


@pytest.mark.slow
def test_the_control_that_starts_late_is_the_one_from_the_start(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    quick_compilation: None,
) -> None:
    sentence = f"the dense control goes on from {SHARED:,} steps of runs/"
    for name, arguments in (("late", []), ("start", ["--method", "dense"])):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert main(["train", *ARGUMENTS, *arguments]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert (sentence in said) == (name == "late")
    late, start = dense_run(tmp_path / "late"), dense_run(tmp_path / "start")
    assert policies(late) == policies(start)
    assert len(policies(late)) == 4
    assert log(late) == log(start)
    (run,) = (tmp_path / "late").glob("runs/*dynamic*")
    assert log(run)[0].keys() > log(late)[0].keys()
    assert not (run / FOLDER).exists()

    # Where the run keeps nothing that can be read, the control is trained from the start.
    monkeypatch.chdir(tmp_path / "late")
    (run / FOLDER).mkdir()
    shutil.rmtree(late)
    assert main(["train", *ARGUMENTS]) == 0
    assert sentence not in " ".join(capsys.readouterr().out.split())
    assert policies(dense_run(tmp_path / "late")) == policies(start)


@pytest.mark.parametrize(("num_dense", "every", "last"), [(27, 5, 25), (25, 5, 25), (4, 5, 0), (0, 5, 0)])
def test_the_last_checkpoint_that_both_share(num_dense: int, every: int, last: int) -> None:
    assert last_shared_checkpoint(num_dense, every) == last
