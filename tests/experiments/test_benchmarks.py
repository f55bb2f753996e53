from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import bare_updates
from experiments.benchmarks.__main__ import MODULES, main
from experiments.benchmarks.options import SECTIONS, Options
from experiments.benchmarks.table import Row, Section, markdown, rows_of
from experiments.benchmarks.turns import Spread, Timing, speed_ratio, take_turns, time_ratio
from experiments.benchmarks.whole_run_in_one_jit import apply_network, train
from prune_rl.envs.cartpole import CartPole
from prune_rl.learners import ppo, sac


class Recorded:
    """A contender that takes the seconds it is given, and writes down when it runs."""

    def __init__(self, name: str, seconds: list[float], order: list[str]) -> None:
        self.name, self.seconds, self.order = name, list(seconds), order

    def run(self) -> Timing:
        self.order.append(self.name)
        return Timing(self.seconds.pop(0), 12.0)


def test_ratios_are_between_neighbours_in_time() -> None:
    order: list[str] = []
    contenders = {"a": Recorded("a", [1, 2, 4], order), "b": Recorded("b", [2, 8, 4], order)}
    timings = take_turns(contenders, 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert speed_ratio(timings["a"], timings["b"]) == Spread(2.0, 1.0, 4.0)
    assert time_ratio(timings["b"], timings["a"]) == Spread(2.0, 1.0, 4.0)
    fast, slow = rows_of(timings, "b", "speed")
    assert (fast.value, fast.ratio, fast.repeats) == (6.0, Spread(2.0, 1.0, 4.0), 3)
    assert slow.ratio == Spread(1.0, 1.0, 1.0)
    page = markdown([Section("k", "Title", "Text.", "steps/s", (fast, slow))], ["- machine"])
    assert "| a | 6 | 2.00 | 1.00–4.00 | 3 |" in page
    with pytest.raises(ValueError, match="at least one"):
        Spread.of([])


def test_the_sections_that_are_measured(tmp_path: Path) -> None:
    assert set(MODULES) == set(SECTIONS)
    assert "sbx" not in Options().sections()
    assert Options(sbx_python=tmp_path).sections()[-1] == "sbx"
    assert Options(only="pruning, bare").sections() == ["pruning", "bare"]
    for options, message in (
        (Options(only="bear"), "no section 'bear'; choose of bare"),
        (Options(only="rltools"), "needs --rltools-python"),
        (Options(repeats=0), "positive"),
        (Options(widths=()), "widths"),
    ):
        with pytest.raises(ValueError, match=message):
            options.sections()


@pytest.mark.parametrize("settings", [bare_updates.sac_settings, bare_updates.ppo_settings])
def test_wide_actor_with_narrow_critics(settings: Any) -> None:
    config = settings(6)
    learner = sac if isinstance(config, sac.Config) else ppo
    wide, narrow = (
        jax.eval_shape(lambda c=c: learner.init(jax.random.key(0), c, bare_updates.HOPPER))
        for c in (config, settings(3))
    )
    mixed = bare_updates.with_critics_of(wide, narrow)
    assert mixed.params == {"actor": wide.params["actor"], "critic": narrow.params["critic"]}
    wide_sizes, mixed_sizes = ([x.size for x in jax.tree.leaves(state.opt_state)] for state in (wide, mixed))
    # Adam's two moments follow the critics' kernels and biases, the actor's stay.
    assert sum(a != b for a, b in zip(wide_sizes, mixed_sizes, strict=True)) == 2 * 5
    if learner is sac:
        assert mixed.networks.target_critic == narrow.networks.target_critic


def test_the_plain_loop_learns_cartpole() -> None:
    config = ppo.Config(
        hidden=(16, 16),
        num_envs=8,
        num_steps=64,
        update_epochs=4,
        num_minibatches=4,
        learning_rate=2e-3,
        total_timesteps=60 * 512,
        prune=None,
    )
    env = CartPole()

    def play(params: Any, key: jax.Array) -> jax.Array:
        def step(carry: Any, _: Any) -> Any:
            state, obs, alive = carry
            state, obs, reward, terminated, _ = env.step(state, apply_network(params["actor"], obs).argmax())
            return (state, obs, alive & ~terminated), reward * alive

        start: Any = (*env.reset(key), jnp.bool_(True))
        return jax.lax.scan(step, start, None, 300)[1].sum()

    with jax.numpy_rank_promotion("allow"):
        params = jax.jit(lambda key: train(key, config, 60))(jax.random.key(0))
        keys = jax.random.split(jax.random.key(1), 16)
        returns = jax.jit(jax.vmap(play, in_axes=(None, 0)))(params, keys)
    assert returns.mean() > 150  # a random policy gets about 22


def timing_of(folder: Path, total: float, learning: float) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"env": "Hopper-v3", "algo": "sac"}))
    parts = {"stepping": 1, "learning": learning, "compiling": 0.5, "checkpoints": 0, "evaluation": 0.25}
    (folder / "timing.json").write_text(json.dumps({**parts, "total": total}))
    return folder


def test_the_command_writes_its_tables(tmp_path: Path) -> None:
    runs = [
        timing_of(tmp_path / name, *seconds)
        for name, seconds in {"p0": (4, 2), "d0": (10, 8), "p1": (3, 1), "d1": (10, 8)}.items()
    ]
    output = tmp_path / "new" / "folder"
    flags = {"only": "bare,runs", "repeats": 2, "seconds": 0.01, "widths": 4, "output": output}
    arguments = [str(word) for flag, value in flags.items() for word in (f"--{flag}", value)]
    main([*arguments, "--mixed", "--runs", *map(str, runs)])
    data = json.loads((output / "benchmarks.json").read_text())
    assert [section["key"] for section in data["sections"]] == ["bare-sac", "bare-ppo", "runs"]
    rows = {row["name"]: row for section in data["sections"] for row in section["rows"]}
    assert len(data["sections"][0]["rows"]) == len(data["sections"][1]["rows"]) == 1
    assert all(row["value"] > 0 for row in data["sections"][0]["rows"])
    whole = rows["Hopper-v3, SAC, pruned, total"]
    assert (whole["value"], whole["ratio"]) == (3.5, {"median": 0.35, "low": 0.3, "high": 0.4})
    assert rows["Hopper-v3, SAC, pruned, checkpoints"]["ratio"] is None
    page = (output / "benchmarks.md").read_text()
    assert "| Hopper-v3, SAC, pruned, total | 3.5 | 0.350 | 0.300–0.400 | 2 |" in page
    assert str(tmp_path) not in page
    assert (output / "whole_runs.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_timing_is_named(tmp_path: Path) -> None:
    run = timing_of(tmp_path / "run", 1, 1)
    for runs, message in (((run, run, run), "pairs"), ((run, tmp_path), r"timing\.json cannot be used")):
        with pytest.raises(SystemExit, match=message):
            main(["--only", "runs", "--output", str(tmp_path / "out"), "--runs", *map(str, runs)])


def test_a_row_is_plain_data() -> None:
    row = Row("a", 1.0, "b", None, "speed", 1)
    assert dataclasses.asdict(row)["ratio"] is None
