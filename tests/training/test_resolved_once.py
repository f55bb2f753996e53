"""What is resolved once for a run: its environment, its folder, and what `checkpoints` has no part in."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import itertools
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from prune_rl.cli import main
from prune_rl.cli.train import parse_train
from prune_rl.training.control import control_of
from prune_rl.training.frontier import CONFIRMATION, ROUNDS
from prune_rl.training.frontier_points import frontier_updates

NUM_ENVS, SEEDS, EPISODES, SELECTION = 2, 2, 3, 2
# 16 updates of 2 · 16 steps.
TINY = shlex.split(
    f"train CartPole-v1 --backend gymnasium --hidden 8 --num-envs {NUM_ENVS} --num-steps 16 --steps 512"
    f" --update-epochs 1 --num-minibatches 1 --episodes {EPISODES}"
    f" --selection-episodes {SELECTION}"
)


def run_main(folder: Any, *arguments: Any) -> Any:
    output = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(output):
        assert main(list(arguments)) == 0
    return output.getvalue()


@dataclasses.dataclass(frozen=True)
class Compared:
    """A run and its dense control, in `root`, and how many Gymnasium environments were made for both."""

    root: Path
    run: Path
    control: Path
    arguments: list[str]
    environments: int


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    arguments, root = [*TINY, "--seeds", str(SEEDS)], tmp_path_factory.mktemp("compared")
    made = []
    make = gymnasium.make

    def counted(*args: Any, **kwargs: Any) -> Any:
        made.append(args)
        return make(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gymnasium, "make", counted)
        run_main(root, *arguments)
    config = parse_train(arguments[1:])[0].resolved()
    run, control = (root / each.default_run_dir() for each in (config, control_of(config)))
    return Compared(root, run, control, arguments, len(made))


def test_one_environment_more_is_made_than_is_played(compared: Any) -> None:
    """Those of training, of the choice among all policies that were kept, of evaluation, and one to read the spaces."""
    trained = 2 * NUM_ENVS * SEEDS  # by the run and by its control
    # One episode in each round that has more candidates of a level than stay: in both of the control, which keeps more
    # policies, and in the last of the run where its neurons went slowly. Then the selection episodes, by both; and what
    # the run is about to choose plays further episodes: of each seed one after the other, until one stays good enough.
    config = parse_train(compared.arguments[1:])[0].resolved()
    rows = [json.loads(line) for line in (compared.run / "metrics.jsonl").read_text().splitlines()]
    looks = {*frontier_updates(config.learner, config.frontier), config.learner.num_updates}
    kept = [enumerate(row["widths"]["actor/layer_0"]) for row in rows if row["iteration"] in looks]
    crowded = max(collections.Counter(itertools.chain(*kept)).values()) > ROUNDS[-1][1]
    points = json.loads((compared.run / "frontier.json").read_text())["points"]
    further = collections.Counter(p["seed"] for p in points if len(p["returns"]) > SELECTION)
    chosen = len(ROUNDS) + crowded + 2 * SELECTION + max(further.values()) * CONFIRMATION * SELECTION
    measured = json.loads((compared.run / "evaluation.json").read_text())["seeds"]
    own, beside = EPISODES * SEEDS, EPISODES * sum(len(entry["policies"]) for entry in measured)
    assert compared.environments == trained + chosen + own + beside + 1


def without(path: Any, *fields: Any) -> None:
    """Rewrites config.json as a version without these fields would have written it."""
    data = json.loads((path / "config.json").read_text())
    for field in fields:
        *tables, name = field.split(".")
        table = data
        for each in tables:
            table = table[each]
        del table[name]
    (path / "config.json").write_text(json.dumps(data))


def test_fields_newer_than_a_run_neither_orphan_it_nor_retrain_its_control(
    compared: Any, tmp_path: Path
) -> None:
    shutil.copytree(compared.root / "runs", tmp_path / "runs")
    run, control = (tmp_path / "runs" / path.name for path in (compared.run, compared.control))
    without(run, "evaluation_seed", "host_resets", "learner.vf_coef", "learner.width_exponent")
    without(control, "evaluation_seed", "host_resets", "learner.vf_coef")
    # As a run that was killed before its policies were written.
    shutil.rmtree(run / "policy")
    kept = {file: file.read_bytes() for path in (run, control) for file in path.glob("c*.json")}
    trained = (control / "metrics.jsonl").stat().st_mtime_ns
    output = run_main(tmp_path, *compared.arguments)
    assert "continuing from the checkpoint at 512 steps" in output
    assert "ppo dense, 2 seeds: " not in output
    assert {file: file.read_bytes() for file in kept} == kept
    assert (control / "metrics.jsonl").stat().st_mtime_ns == trained
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {run.name, control.name}
    for name in ("policy.safetensors", "policy.json"):
        for seed in range(SEEDS):
            file = Path("policy") / f"seed_{seed}" / name
            assert (run / file).read_bytes() == (compared.run / file).read_bytes()
    for vf_coef in ("0", "4"):  # a value that is not the default is another run
        arguments = [*compared.arguments, "--vf-coef", vf_coef]
        other = parse_train(arguments[1:])[0].resolved().default_run_dir()
        assert other.name not in (run.name, control.name)


def test_checkpoints_do_not_change_the_policy(tmp_path: Path) -> None:
    flags = [*TINY, "--no-control", "--host-resets", "4"]
    for checkpoints in ("1", "3", "12"):
        run_main(tmp_path, *flags, "--checkpoints", checkpoints, "--run-dir", checkpoints)
    few, some, many = (tmp_path / checkpoints for checkpoints in ("1", "3", "12"))
    for kind in ("policy", "wide"):
        assert len({(run / kind / "policy.safetensors").read_bytes() for run in (few, some, many)}) == 1
    steps = [
        [path.name[-2:] for path in sorted((run / "checkpoints").iterdir())] for run in (few, some, many)
    ]
    assert steps == [["16"], ["08", "16"], ["12", "16"]]  # of those at resets, the last two are kept
    # It is no other run, either: the folder goes on with another number.
    shutil.rmtree(few / "policy")
    assert "continuing from the checkpoint at 512 steps" in run_main(
        tmp_path, *flags, "--checkpoints", "5", "--run-dir", "1"
    )
    names = {
        parse_train([*flags[1:], "--checkpoints", n])[0].resolved().default_run_dir() for n in ("1", "12")
    }
    assert len(names) == 1
    run_main(tmp_path, *TINY, "--no-control", "--host-resets", "8", "--run-dir", "resets")
    assert (tmp_path / "resets" / "policy" / "policy.safetensors").read_bytes() != (
        many / "policy" / "policy.safetensors"
    ).read_bytes(), "resets are part of the method"
