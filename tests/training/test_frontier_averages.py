"""Means of policies with the same neurons as candidates of a frontier."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from prune_rl.atomic_files import write_json
from prune_rl.envs.task import resolve_task
from prune_rl.export.policy import Policy, load_policy
from prune_rl.export.policy_average import average_policies
from prune_rl.reporting.frontier_choice import Wish
from prune_rl.runs.evaluation_file import read_evaluation
from prune_rl.runs.frontier import FrontierFolder, Kept, is_chosen, kept_of, read_frontier
from prune_rl.runs.mask_history import MaskHistory
from prune_rl.spaces import Discrete
from prune_rl.training.config import Config
from prune_rl.training.frontier import choose_policies, measure_frontier
from prune_rl.training.frontier_averages import LEAST_AVERAGED, MOST_AVERAGED, averages
from prune_rl.training.run_config import read_config
from prune_rl.training.run_evaluation import evaluate_run
from prune_rl.training.trust import Trust
from tests.training.test_frontier import WORDS, run_main

QUIET = Console(quiet=True)


def linear(kernel: np.ndarray, seed: int, step: int) -> Policy:
    """A policy of CartPole-v1 without hidden neurons; float[4] makes "push to the right"."""
    weights = np.stack([np.zeros(4), kernel], axis=1).astype(np.float32)
    metadata = {"env": "CartPole-v1", "seed": seed, "steps": step}
    return Policy(((weights, np.zeros(2, np.float32)),), "tanh", Discrete(2), metadata=metadata)


def masks(*kept: int) -> dict[str, np.ndarray]:
    """Of one layer of 8 neurons for two seeds, the second of which keeps all; and of a critic that changes."""
    mask = np.zeros((2, 8), bool)
    mask[0, list(kept)] = mask[1] = True
    return {"actor/layer_0": mask, "critic/layer_0": ~mask}


def test_policies_are_averaged_that_have_the_same_seed_and_neurons(tmp_path: Path) -> None:
    history, rng = MaskHistory(tmp_path / "masks"), np.random.default_rng(0)
    # As many neurons from 300 on as before, but other ones; then those of before.
    for step, kept in ((0, (0, 1, 2)), (100, (0, 1)), (300, (0, 2)), (400, (0, 1)), (600, (1,))):
        history.write(step, masks(*kept))
    steps = [110, 180, 310, 320, 330, 340, 420, 430, 610, 620, 630]
    config = Config(env="CartPole-v1", seed=5, seeds=2)
    policies = {Kept(seed, step): linear(rng.normal(size=4), seed, step) for seed in (5, 6) for step in steps}
    found = averages(config, tmp_path, policies)
    members = {
        Kept(5, 430, True): [110, 180, 420, 430],
        Kept(5, 340, True): [310, 320, 330, 340],
        Kept(6, 630, True): steps[-MOST_AVERAGED:],
    }
    assert found.keys() == members.keys()
    assert len(members[Kept(5, 430, True)]) == LEAST_AVERAGED
    assert len(members[Kept(6, 630, True)]) == MOST_AVERAGED < len(steps)
    for key, each in members.items():
        wanted = average_policies([policies[Kept(key.seed, step)] for step in each])
        assert found[key].metadata == wanted.metadata == {
            "env": "CartPole-v1", "seed": key.seed, "steps": key.step, "averaged": len(each),
        }  # fmt: skip
        np.testing.assert_array_equal(found[key].layers[0][0], wanted.layers[0][0])


def test_a_policy_whose_neurons_are_not_known_is_in_no_mean(tmp_path: Path) -> None:
    history = MaskHistory(tmp_path / "masks")
    history.write(100, masks(0))
    history.write(200, masks(0, 1))
    next((tmp_path / "masks").glob("*200.npz")).write_bytes(b"damaged")
    config = Config(env="CartPole-v1", seed=5)
    steps = [50, 110, 120, 130, 140, 210, 220]
    policies = {Kept(5, step): linear(np.full(4, step), 5, step) for step in steps}
    found = averages(config, tmp_path, policies)
    assert found.keys() == {Kept(5, 140, True)}
    assert found[Kept(5, 140, True)].metadata["averaged"] == 4
    assert averages(config, tmp_path / "without_masks", policies) == {}
    dense = dataclasses.replace(config, learner=dataclasses.replace(config.learner, prune=None))
    assert averages(dense, tmp_path / "without_masks", policies).keys() == {Kept(5, 220, True)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("averages")
    run_main(folder, *WORDS.replace("6400", "1280").split(), "--seed", 5)
    return folder / "run"


def noisy_run(run: Path, folder: Path) -> tuple[Path, Config]:
    """A copy of the run that kept linear policies which fall at once, but whose mean balances the pole."""
    shutil.copytree(run, path := folder / "run")
    for name in ("frontier", "masks"):
        shutil.rmtree(path / name)
    (path / "frontier.json").unlink()
    MaskHistory(path / "masks").write(0, {"actor/layer_0": np.zeros((1, 16), bool)})
    good, wrong = np.array([0.1, 0.3, 3.0, 1.0]), np.array([0.0, 0.0, 30.0, -30.0])
    for number, sign in enumerate((1, -1, 1, -1, 1, -1)):
        step = 1280 - 64 * (5 - number)
        FrontierFolder(path).save(Kept(5, step), linear(good + sign * wrong, 5, step))
    config = read_config(path)
    assert config.learner.prune is not None
    prune = dataclasses.replace(config.learner.prune, tolerance=0.1)
    return path, dataclasses.replace(config, learner=dataclasses.replace(config.learner, prune=prune))


def test_the_mean_is_measured_saved_chosen_and_evaluated_as_a_policy_of_its_own(
    run: Path, tmp_path: Path
) -> None:
    path, config = noisy_run(run, tmp_path)
    task = resolve_task("CartPole-v1")
    measure_frontier(config, task, path, None, QUIET)
    data = read_frontier(path)
    mean, single = sorted(data["points"], key=lambda p: -p["averaged"])
    assert (mean["averaged"], single["averaged"]) == (6, 1)
    assert kept_of(mean) == Kept(5, 1280, True)
    assert set(mean["returns"]) == {500.0}
    assert max(single["returns"]) < 250.0
    assert FrontierFolder(path).kept(5) == sorted(map(kept_of, data["points"]))

    choose_policies(config, path, Wish(tolerance=0.1), QUIET)
    data = read_frontier(path)
    assert [is_chosen(data, p) for p in (mean, single)] == [True, False]
    policy = load_policy(path / "policy")
    assert (policy.metadata["steps"], policy.metadata["averaged"]) == (1280, 6)
    evaluate_run(path, None, None, True, None, QUIET, Trust())
    (entry,) = read_evaluation(path)["seeds"]
    assert set(entry["policies"]["compact"]["returns"]) == {500.0}
    assert "masked" not in entry["policies"], "it is not the function of the masked network"
    assert (
        "1 of 1 are the mean of kept policies with the same neurons (6 each)"
        in (path / "summary.md").read_text()
    )

    measure_frontier(config, task, path, None, QUIET)
    assert read_frontier(path) == data, "nothing is played again"


def test_an_interrupted_measurement_is_done_again_to_the_bit(run: Path, tmp_path: Path) -> None:
    whole, config = noisy_run(run, tmp_path / "whole")
    again, _ = noisy_run(run, tmp_path / "again")
    measure_frontier(config, resolve_task("CartPole-v1"), whole, None, QUIET)
    # The mean was saved, frontier.json was not written yet, and nothing removed.
    key = Kept(5, 1280, True)
    shutil.copytree(FrontierFolder(whole).policy(key), FrontierFolder(again).policy(key))
    measure_frontier(config, resolve_task("CartPole-v1"), again, None, QUIET)
    files = [
        {
            file.relative_to(path): file.read_bytes()
            for file in (path / "frontier").rglob("*")
            if file.is_file()
        }
        for path in (whole, again)
    ]
    assert files[0] == files[1]
    assert read_frontier(whole) == read_frontier(again)


def test_a_frontier_of_before_has_no_means(run: Path, tmp_path: Path) -> None:
    data = read_frontier(run)
    singles = [p for p in data["points"] if p["averaged"] == 1]
    old = [{key: value for key, value in p.items() if key != "averaged"} for p in singles]
    write_json(tmp_path / "frontier.json", {**data, "points": old, "chosen": {"5": old[-1]["step"]}})
    read = read_frontier(tmp_path)
    assert all(p["averaged"] == 1 for p in read["points"])
    assert [p for p in read["points"] if is_chosen(read, p)] == [read["points"][-1]]
