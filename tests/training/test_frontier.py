"""The policies that a run keeps while it narrows, and the choice among them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prune_rl.atomic_files import write_json
from prune_rl.cli import main
from prune_rl.envs.task import resolve_task
from prune_rl.evaluation.evaluate import evaluate_policy
from prune_rl.export.policy import load_policy
from prune_rl.learners import ppo
from prune_rl.learners.mask_rules import mask_schedules
from prune_rl.reporting.compare_frontiers import compare_frontiers
from prune_rl.reporting.frontier_choice import Wish, best_of, choose, choose_within
from prune_rl.reporting.frontier_plot import draw_frontier
from prune_rl.runs.frontier import FrontierFolder, is_chosen, kept_of, read_frontier
from prune_rl.training.config import Config
from prune_rl.training.frontier import CONFIRMATION, ROUNDS, SELECTION, choose_policies, measure_frontier
from prune_rl.training.frontier_points import LOOKS, NEWEST, frontier_level, frontier_updates
from prune_rl.training.run_config import read_config
from tests.learners.schedules import by_schedule

WORDS = (
    "train CartPole-v1 --hidden 16 16 --num-envs 4 --num-steps 16 --steps 6400 --episodes 4 --selection-episodes 3 "
    "--skip --prune.tolerance None --prune.sparsity 1 --prune.begin 0 --prune.end 0.8 --no-control --run-dir run"
)


def run_main(folder: Path, *words: Any, status: int = 0) -> str:
    output = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        assert main([str(word) for word in words]) == status, output.getvalue()
    return output.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frontier")
    run_main(folder, *shlex.split(WORDS), "--seeds", 2, "--seed", 5)
    run_main(folder, "choose", "run", "--tolerance", 0.5)
    return folder / "run"


def copy_with_tolerance(run: Path, folder: Path) -> tuple[Path, Config]:
    """A copy of the run in the folder, and its configuration with a tolerance of 0.5."""
    shutil.copytree(run, path := folder / "run")
    config = read_config(path)
    assert config.learner.prune is not None
    prune = dataclasses.replace(config.learner.prune, tolerance=0.5)
    return path, dataclasses.replace(config, learner=dataclasses.replace(config.learner, prune=prune))


def point(neurons: int, *returns: float, step: int = 0, weights: int = 0) -> dict[str, Any]:
    weights = weights or 10 * neurons
    return {
        "seed": 0, "step": step, "averaged": 1, "widths": [neurons], "neurons": neurons, "weights": weights,
        "bytes": 4 * weights, "returns": list(returns),
    }  # fmt: skip


POINTS = [
    point(64, 100.0, 104.0),
    point(16, 99.0, 101.0),
    point(8, 90.0, 92.0),
    point(4, 96.0, 96.0),
    point(0, 20.0),
]


@pytest.mark.parametrize(
    ("wish", "dense", "neurons"),
    [
        (Wish(tolerance=0.02), None, 16),  # the best returns 102
        (Wish(tolerance=0.02), [98.0, 97.0], 4),
        (Wish(tolerance=0.0), None, 64),
        (Wish(tolerance=1.0), None, 0),
        (Wish(neurons=20), None, 16),
        (Wish(neurons=8), None, 4),  # the better one, not the larger
        (Wish(neurons=0), None, 0),
        (Wish(bytes=4 * 160), None, 16),
        (Wish(least_return=90.0), None, 4),
        (Wish(least_return=99.5), None, 16),
    ],
    ids=str,
)
def test_what_a_wish_chooses(wish: Wish, dense: list[float] | None, neurons: int) -> None:
    assert choose(POINTS, dense, wish)["neurons"] == neurons


def test_of_equal_sizes_the_better_is_chosen_and_returns_may_be_negative() -> None:
    points = [point(8, -10.0, step=1), point(8, -5.0, step=2), point(8, -5.0, step=3), point(2, -5.9, step=4)]
    assert choose(points, None, Wish(tolerance=0.1))["step"] == 3
    assert choose(points, None, Wish(tolerance=0.2))["step"] == 4
    assert choose(points[:3], None, Wish(neurons=8))["step"] == 3


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (Wish(least_return=200.0), "no policy of the frontier returns 200.0 or more, the best 102.0"),
        (Wish(bytes=-1), "no policy of the frontier has -1 bytes or less, the smallest has 0"),
        (Wish(neurons=3), "no policy of the frontier has 3 neurons or less, the smallest has 4"),
    ],
    ids=str,
)
def test_a_wish_that_cannot_be_met_says_how_near_it_comes(wish: Wish, words: str) -> None:
    points = POINTS[:4] if wish.neurons is not None else POINTS
    with pytest.raises(ValueError, match=words):
        choose(points, None, wish)
    with pytest.raises(ValueError, match="kept no policies"):
        choose([], None, wish)


def test_a_run_looks_just_before_mask_updates_and_on_to_the_end() -> None:
    prune = by_schedule(sparsity=1.0, min_width=0, begin=0.15, end=0.55, every=4)
    config = ppo.Config(total_timesteps=1_000_000, num_envs=16, num_steps=128, skip=True, prune=prune)
    schedule = mask_schedules(config)["actor"]
    updates = frontier_updates(config, 20)
    assert 40 <= len(updates) <= 150
    assert all((update + 1 - schedule.first) % schedule.every == 0 for update in updates)
    assert updates[0] > schedule.first
    assert updates[-1] > 0.97 * config.num_updates
    long = dataclasses.replace(config, total_timesteps=10_000_000)
    assert 75 <= len(frontier_updates(long, 20)) <= 150
    assert frontier_updates(config, 0) == []


def test_a_dense_run_keeps_as_many_candidates_as_a_level_has() -> None:
    config = ppo.Config(total_timesteps=1_000_000, num_envs=16, num_steps=128, prune=None)
    updates = frontier_updates(config, 20)
    assert len(updates) == NEWEST - 1, "the last one is that of the end"
    assert updates[0] >= config.num_updates - NEWEST * math.ceil(config.num_updates / LOOKS)
    assert updates[-1] < config.num_updates


def test_levels_are_steps_of_equal_ratio_and_single_neurons_at_the_end() -> None:
    levels = [frontier_level(neurons, 512, 20) for neurons in range(512, -1, -1)]
    assert levels[0] == 0
    assert len(set(levels[1:])) == 13 + 12  # 12 to 0 neurons, and 12 levels of 512 to 13
    wide = levels[1:-13]
    assert wide == sorted(wide)
    assert wide[0] == 1
    assert [frontier_level(neurons, 512, 20) for neurons in (12, 1, 0)] == [-13, -2, -1]


def test_a_run_keeps_policies_and_measures_them_on_episodes_of_their_own(run: Path) -> None:
    data = read_frontier(run)
    folder = FrontierFolder(run)
    assert (data["episodes"], data["seed"]) == (3, SELECTION + 1_000_000)
    left = {key for seed in (5, 6) for key in folder.kept(seed)}
    assert {kept_of(p) for p in data["points"]} == left, "what was not the best of its level is gone"
    assert folder.steps()[-1] == 6400
    assert len(folder.steps()) > 5
    for p in data["points"][:3]:
        policy = load_policy(folder.policy(kept_of(p)))
        assert (list(policy.widths), policy.num_neurons) == (p["widths"], p["neurons"])
        assert policy.metadata["steps"] == p["step"]
        played = evaluate_policy(policy, "CartPole-v1", episodes=3, seed=data["seed"])
        assert played.returns.tolist() == p["returns"][:3]
    for seed in (5, 6):
        neurons = [p["neurons"] for p in data["points"] if p["seed"] == seed]
        assert neurons == sorted(neurons, reverse=True)
        assert neurons[-1] == 0
        levels = [frontier_level(count, 32, 20) for count in neurons]
        assert len(set(levels)) > 10
        assert max(levels.count(level) for level in levels) == ROUNDS[-1][1]
    assert draw_frontier(data)[:4] == b"\x89PNG"
    assert "## The frontier" in (run / "summary.md").read_text()


def test_with_a_tolerance_the_chosen_policy_and_the_best_play_further_episodes(
    run: Path, tmp_path: Path
) -> None:
    path, config = copy_with_tolerance(run, tmp_path)
    measure_frontier(config, resolve_task("CartPole-v1"), path, None, Console(quiet=True))
    before, data = read_frontier(run), read_frontier(path)
    further, whole = SELECTION + 1_000_000 - len(ROUNDS) - 1, (1 + CONFIRMATION) * 3
    for seed in (5, 6):
        points = [p for p in data["points"] if p["seed"] == seed]
        chosen = choose(points, None, Wish(tolerance=0.5))
        assert len(chosen["returns"]) == len(best_of(points)["returns"]) == whole
        assert {len(p["returns"]) for p in points} == {3, whole}
        policy = load_policy(FrontierFolder(path).policy(kept_of(chosen)))
        played = evaluate_policy(policy, "CartPole-v1", episodes=whole - 3, seed=further)
        assert played.returns.tolist() == chosen["returns"][3:]
    for point, measured in zip(before["points"], data["points"], strict=True):
        assert measured == {**point, "returns": point["returns"] + measured["returns"][3:]}
    measure_frontier(config, resolve_task("CartPole-v1"), path, None, Console(quiet=True))
    assert data == read_frontier(path), "nothing is played again"


def test_a_dense_run_is_chosen_in_other_episodes(tmp_path: Path) -> None:
    words = "train CartPole-v1 --hidden 4 --num-envs 4 --num-steps 16 --steps 1280 --episodes 1 --selection-episodes 2"
    run_main(tmp_path, *shlex.split(words), "--prune.tolerance", 0.9, "--run-dir", "run")
    run, dense = (read_frontier(path.parent) for path in sorted(tmp_path.rglob("frontier.json"))[::-1])
    assert run["seed"] - dense["seed"] > len(ROUNDS) + 1
    assert len(run["dense"]["0"]) == (1 + CONFIRMATION) * 2


@pytest.mark.parametrize(
    ("dense", "tolerance", "neurons", "kept"),
    [
        ([98.0, 97.0], 0.02, 4, True),
        ([200.0, 200.0], 0.02, 16, False),
        ([200.0, 200.0], 0.1, 4, False),
        (None, 0.02, 16, True),
    ],
)
def test_where_none_keeps_the_tolerance_the_smallest_that_keeps_it_of_the_best_is_chosen(
    dense: list[float] | None, tolerance: float, neurons: int, kept: bool
) -> None:
    chosen, missed = choose_within(POINTS, dense, tolerance)
    assert chosen["neurons"] == neurons
    assert (missed is None) == kept
    if missed is not None:
        assert f"returns {200.0 * (1.0 - tolerance):.1f} or more, the best" in missed
    with pytest.raises(ValueError, match="kept no policies"):
        choose_within([], dense, tolerance)


def test_a_run_that_does_not_keep_the_tolerance_says_so_and_plays_the_choice_and_the_best(
    run: Path, tmp_path: Path
) -> None:
    path, config = copy_with_tolerance(run, tmp_path)
    data = read_frontier(path)
    out_of_reach = [10.0 * max(max(p["returns"]) for p in data["points"])] * 3
    write_json(path / "frontier.json", {**data, "dense": {"5": out_of_reach, "6": out_of_reach}})
    measure_frontier(config, resolve_task("CartPole-v1"), path, None, Console(quiet=True))
    choose_policies(config, path, Wish(tolerance=0.5), Console(file=(output := io.StringIO()), width=400))
    assert "seed 5 does not keep the tolerance" in output.getvalue()
    for seed in (5, 6):
        points = [p for p in read_frontier(path)["points"] if p["seed"] == seed]
        chosen, missed = choose_within(points, out_of_reach, 0.5)
        assert missed
        assert len(chosen["returns"]) == len(best_of(points)["returns"]) == (1 + CONFIRMATION) * 3
        assert load_policy(path / "policy" / f"seed_{seed}").metadata["steps"] == chosen["step"]


def test_a_policy_is_compared_in_the_episodes_that_it_has_played() -> None:
    dense = [100.0] * 3 + [50.0] * 9
    lucky = {**POINTS[0], "neurons": 2, "returns": [100.0] * 3 + [40.0] * 9}
    short = {**POINTS[0], "neurons": 8, "returns": [99.0] * 3}
    steady = {**POINTS[0], "neurons": 4, "returns": [97.0] * 3 + [52.0] * 9}
    assert choose([lucky, short, steady], dense, Wish(tolerance=0.02)) is steady
    assert choose([lucky, short], dense, Wish(tolerance=0.02)) is short
    assert choose([{**lucky, "returns": [100.0] * 3}, short], dense, Wish(tolerance=0.02))["neurons"] == 2


@pytest.mark.parametrize(("doubtful", "neurons"), [(0, 8), (3, 8), (4, 4)])
def test_one_that_misses_by_a_standard_error_is_in_doubt_until_it_has_played(
    doubtful: int, neurons: int
) -> None:
    dense = [100.0, 90.0, 110.0, 100.0]
    # Differences of −8, 2, −4, −2: mean −3, standard error 2.08; −2 is within the tolerance. Then a mean of −4.5.
    unlucky, worse = point(4, 92.0, 92.0, 106.0, 98.0), point(2, 91.0, 90.0, 105.0, 96.0)
    points = [worse, unlucky, point(8, *dense)]
    assert choose_within(points, dense, 0.02, doubtful)[0]["neurons"] == neurons
    missed = choose_within(points[:2], dense, 0.02, doubtful)[1]
    assert (missed is None) == (doubtful == 4)


def test_the_best_is_not_the_one_that_further_episodes_show_to_have_been_lucky() -> None:
    lucky = {**POINTS[0], "neurons": 2, "returns": [100.0] * 3 + [40.0] * 9}
    others = [{**POINTS[0], "neurons": neurons, "returns": [90.0 + neurons] * 3} for neurons in (4, 8)]
    assert best_of([lucky, *others]) is others[1]
    chosen, missed = choose_within([lucky, *others], [200.0] * 12, 0.05)
    assert missed
    assert chosen is others[0], "within 5 % of the best, as far as their episodes tell"


def test_the_tolerance_chooses_for_each_seed(run: Path) -> None:
    data = read_frontier(run)
    evaluation = json.loads((run / "evaluation.json").read_text())
    for entry in evaluation["seeds"]:
        seed = entry["seed"]
        points = [p for p in data["points"] if p["seed"] == seed]
        expected = choose(points, None, Wish(tolerance=0.5))
        assert is_chosen(data, expected)
        policy = load_policy(run / "policy" / f"seed_{seed}")
        assert policy.metadata["steps"] == expected["step"]
        assert entry["policies"]["compact"]["widths"] == expected["widths"] == list(policy.widths)
        assert entry["policies"]["compact"]["neurons"] == {"kept": expected["neurons"], "total": 32}
        # The masked network is the one at the end, which another policy is not the same function as.
        assert ("masked" in entry["policies"]) == (expected["step"] == 6400 and expected["averaged"] == 1)


def test_another_policy_can_be_chosen(run: Path) -> None:
    text = run_main(run.parent, "choose", "run", "--neurons", 6)
    for seed in (5, 6):
        policy = load_policy(run / "policy" / f"seed_{seed}")
        assert policy.num_neurons <= 6
        assert f"seed {seed}: chosen {policy.num_neurons} neurons" in text
    before = (run / "policy" / "seed_5" / "policy.json").read_bytes()
    text = run_main(run.parent, "choose", "run", "--return", 1e6, status=2)
    assert "seed 5: no policy of the frontier returns 1000000.0 or more" in text
    assert (run / "policy" / "seed_5" / "policy.json").read_bytes() == before
    for words, message in (
        ([], "give one condition to choose by"),
        (["--neurons", 3, "--bytes", 5], "give one condition to choose by"),
    ):
        assert message in run_main(run.parent, "choose", "run", *words, status=2)
    assert "is not a run directory" in run_main(run.parent, "choose", "nowhere", "--neurons", 3, status=2)
    assert run_main(run.parent, "choose", "run", "--tolerance", 0.5)


def test_without_tolerance_the_last_policy_is_the_runs_and_without_frontier_none_is_kept(
    tmp_path: Path,
) -> None:
    short = WORDS.replace("6400", "1280")
    run_main(tmp_path, *shlex.split(short), "--frontier", 0)
    assert load_policy(tmp_path / "run").metadata["steps"] == 1280
    assert not (tmp_path / "run" / "frontier").exists()
    assert not (tmp_path / "run" / "frontier.json").exists()
    text = run_main(tmp_path, "choose", "run", "--neurons", 3, status=2)
    assert "frontier.json is missing" in text


def test_damaged_frontier_files_are_refused_and_measured_anew(run: Path, tmp_path: Path) -> None:
    for content in ("", "{}", '{"points": [{"seed": 1}], "dense": {}, "chosen": {}}', "[1]"):
        (tmp_path / "frontier.json").write_text(content)
        with pytest.raises(ValueError, match=r"frontier\.json"):
            read_frontier(tmp_path)


def test_frontiers_of_several_runs_are_drawn_together(run: Path, tmp_path: Path) -> None:
    short = shlex.split(
        "train CartPole-v1 --hidden 16 16 --num-envs 4 --num-steps 16 --steps 128 --episodes 4 --no-control"
    )
    for method in ("linear", "dense"):
        run_main(tmp_path, *short, "--method", method, "--run-dir", method)
    picture = tmp_path / "picture.png"
    run_main(tmp_path, "report", run, "linear", "dense", "--picture", picture)
    assert picture.read_bytes()[:4] == b"\x89PNG"
    several = compare_frontiers([run, tmp_path / "linear", tmp_path / "dense"])
    assert several == picture.read_bytes()
    assert several != compare_frontiers([run]) != draw_frontier(read_frontier(run))
    with pytest.raises(ValueError, match="no run has a policy to show"):
        compare_frontiers([tmp_path / "dense"])
    with pytest.raises(ValueError, match="one picture shows one environment, got no run"):
        compare_frontiers([])
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    (tmp_path / "dense" / "config.json").write_text(json.dumps({**config, "env": "Acrobot-v1"}))
    with pytest.raises(ValueError, match="one picture shows one environment, got CartPole-v1, Acrobot-v1"):
        compare_frontiers([run, tmp_path / "dense"])


def test_the_command_given_again_replaces_the_time_of_the_evaluation(run: Path) -> None:
    file = run / "timing.json"
    before = json.loads(file.read_text())
    training = before["total"] - before["evaluation"]
    file.write_text(json.dumps(before | {"evaluation": 1e6, "total": training + 1e6}))
    run_main(run.parent, *shlex.split(WORDS), "--seeds", 2, "--seed", 5)
    after = json.loads(file.read_text())
    assert 0 < after["evaluation"] < 1e6
    assert after["total"] - after["evaluation"] == pytest.approx(training, abs=2e-3)
