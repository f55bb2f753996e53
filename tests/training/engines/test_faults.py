"""One bad value in one environment of one of three seeds costs that seed, and nothing else."""

from __future__ import annotations

import dataclasses
import functools
import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.cli import main
from prune_rl.envs.cartpole import CartPole
from prune_rl.envs.task import resolve_task
from prune_rl.envs.vector import make_vector
from prune_rl.exit_status import NO_SEED_LEFT, SEED_WITHOUT_POLICY
from prune_rl.learners import ppo, sac
from prune_rl.runs.logging import read_metrics
from prune_rl.spaces import Discrete, Spec
from prune_rl.training import engines
from prune_rl.training.engines.faults import Fault
from tests.training import broken_environments as broken
from tests.training.engines.compiled_once import sharing_programs

SEEDS = [4, 5, 6]
PPO = ppo.Config(
    hidden=(6,), num_envs=3, num_steps=16, update_epochs=1, num_minibatches=2, total_timesteps=6 * 48
)
SAC = sac.Config(
    hidden=(6,),
    num_envs=3,
    num_steps=16,
    batch_size=16,
    learning_starts=48,
    utd_ratio=0.1,
    total_timesteps=6 * 48,
)


@pytest.fixture(autouse=True)
def _healthy_again() -> Iterator[None]:
    yield
    broken.Faulty.seeded = broken.FaultyBox.seeded = None


def host_engine(name: str, config: Any) -> Any:
    task = resolve_task(f"{broken.MODULE}:{name}-v0")
    engine = engines.HostEngine(lambda: make_vector(task, config.num_envs), SEEDS, config, reset_every=4)
    return sharing_programs(engine, name, config)


def three_updates(name: str, config: Any) -> Any:
    engine = host_engine(name, config)
    metrics = [engine.advance(1) for _ in range(3)]
    engine.close()
    return engine, metrics


three_healthy_updates = functools.cache(three_updates)


def assert_same_seeds(left: Any, right: Any, kept: list[int]) -> None:
    """Bit for bit, of trees whose leaves have a leading seed axis."""
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        if a.ndim:
            np.testing.assert_array_equal(np.asarray(a)[kept], np.asarray(b)[kept])


@pytest.mark.parametrize(
    ("name", "config", "source", "value", "said"),
    [
        ("Faulty", PPO, "observation", np.nan, "NaN as component 1 of an observation"),
        ("FaultyBox", PPO, "observation", np.nan, "NaN as component 1 of an observation"),
        ("FaultyBox", PPO, "reward", -np.inf, "-inf as reward"),
        ("FaultyBox", SAC, "observation", np.inf, "inf as component 1 of an observation"),
        ("FaultyBox", SAC, "reward", 3e30, "3e+30 as reward"),
    ],
    ids=["NaN", "NaN, Box", "infinite reward", "SAC, inf", "SAC, absurd reward"],
)
def test_a_bad_value_on_the_host_freezes_its_seed_alone(
    name: str, config: Any, source: str, value: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy, before = three_healthy_updates(name, config)
    assert not healthy.faults.frozen.any()
    monkeypatch.setattr(getattr(broken, name), "seeded", broken.Faulty.seed_of(SEEDS[1], 0, 2))
    monkeypatch.setattr(broken.Faulty, "source", source)
    monkeypatch.setattr(broken.Faulty, "value", value)
    engine, after = three_updates(name, config)
    assert engine.faults.frozen.tolist() == [False, True, False]
    (fault,) = engine.faults.untold()
    # The 20th step of environment 2, when each of the three has made 19 and the first two 20.
    assert (fault.seed, fault.step, fault.environment, fault.environment_step) == (5, 60, 2, 20)
    assert f"gave seed 5 {said} at step 60 (environment 2, its step 20)" in fault.sentence("X-v0")
    assert_same_seeds(engine.state.params, healthy.state.params, [0, 2])
    for old, new in zip(before, after, strict=True):
        for metric in ("running_return", "policy_loss" if config is PPO else "critic_loss"):
            np.testing.assert_array_equal(old[metric][:, [0, 2]], new[metric][:, [0, 2]])
    losses = np.concatenate([row["policy_loss" if config is PPO else "critic_loss"] for row in after])
    assert np.isnan(losses[:, 1]).tolist() == [False, True, True]
    assert np.isfinite(losses[:, [0, 2]]).all()
    # Nothing bad got as far as the frozen seed's learner either, its replay buffer included.
    for leaf in jax.tree.leaves(engine.state):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert not np.isnan(leaf).any()


def test_environments_of_a_frozen_seed_are_not_stepped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broken.Faulty, "seeded", broken.Faulty.seed_of(SEEDS[1], 0, 2))
    engine = host_engine("Faulty", PPO)
    engine.advance(2)
    stepped: list[int] = []

    def recorded(index: int, step: Any) -> Any:
        def wrapped(action: Any) -> Any:
            stepped.append(index)
            return step(action)

        return wrapped

    for index, env in enumerate(engine._envs):
        monkeypatch.setattr(env, "step", recorded(index, env.step))
    engine.advance(3)  # beyond the reset after four updates
    engine.close()
    assert set(stepped) == {0, 2}


@dataclasses.dataclass(frozen=True)
class Leaking:
    """On the device: shows the number that an episode started with, and NaN in step 5 where that exceeds ``limit``."""

    limit: float
    time_limit: int = 1000

    @property
    def spec(self) -> Spec:
        return Spec(observation_size=1, action=Discrete(2))

    def reset(self, key: jax.Array) -> Any:
        start = jax.random.uniform(key, (1,))
        return (start, jnp.int32(0)), start

    def step(self, env_state: Any, action: jax.Array) -> Any:
        start, steps = env_state[0], env_state[1] + 1
        obs = jnp.where((start > self.limit) & (steps == 5), jnp.nan, start)
        return (start, steps), obs, start[0] + action, jnp.bool(False), steps >= self.time_limit


@pytest.mark.parametrize("config", [PPO, SAC], ids=["ppo", "sac"])
def test_a_bad_value_on_the_device_freezes_its_seed_alone(config: Any) -> None:
    keys = engines.seed_keys(SEEDS)
    starts = np.asarray(engines.init_runner(cast(Any, Leaking(2.0)), keys, config).obs)[..., 0]
    results = []
    for limit in (2.0, float(np.sort(starts, axis=None)[-2:].mean())):
        engine = engines.DeviceEngine(cast(Any, Leaking(limit)), SEEDS, config, length=3)
        results.append((engine, engine.advance(3)))
        engine.close()
    (healthy, before), (engine, after) = results
    index, n = np.unravel_index(np.argmax(starts), starts.shape)
    others = [i for i in range(3) if i != index]
    assert not healthy.faults.frozen.any()
    assert np.flatnonzero(engine.faults.frozen).tolist() == [index]
    fault = Fault(SEEDS[index], 4 * 3 + int(n) + 1, "observation", 0, "NaN", int(n), 5)
    assert engine.faults.untold() == [fault]
    assert_same_seeds(engine.state.params, healthy.state.params, others)
    loss = "policy_loss" if config is PPO else "critic_loss"
    np.testing.assert_array_equal(before[loss][:, others], after[loss][:, others])
    assert np.isfinite(after[loss][:, others]).all()
    assert np.isnan(after[loss][:, index]).all()
    for leaf in jax.tree.leaves(engine.state):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert not np.isnan(leaf).any()


def test_a_seed_that_diverges_is_frozen_with_the_metric_that_says_so() -> None:
    engine = engines.DeviceEngine(CartPole(), SEEDS, PPO, length=4)
    params = jax.tree.map(lambda x: x.at[2].set(jnp.nan), engine.state.params)
    engine.tree = engine.tree.replace(state=dataclasses.replace(cast(Any, engine.state), params=params))
    metrics = engine.advance(2)
    engine.close()
    assert engine.faults.frozen.tolist() == [False, False, True]
    (fault,) = engine.faults.untold()
    assert (fault.seed, fault.step, fault.source) == (6, 48, "metric")
    assert "the training of seed 6 diverged at step 48" in fault.sentence("X-v0")
    assert "--learning-rate" in fault.sentence("X-v0")
    assert np.isfinite(metrics["policy_loss"][:, :2]).all()


def test_the_other_seeds_end_normally_and_the_summary_says_which_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(broken.Faulty, "seeded", broken.Faulty.seed_of(1, 0, 2))
    run = tmp_path / "run"
    command = shlex.split(
        f"train {broken.MODULE}:Faulty-v0 --seeds 3 --hidden 4 --num-envs 3 --num-steps 16 --steps 288 --no-control"
        f" --update-epochs 1 --host-resets 2 --episodes 2 --frontier 2 --selection-episodes 1 --run-dir {run}"
    )
    sentence = (
        f"{broken.MODULE}:Faulty-v0 gave seed 1 NaN as component 1 of an observation at step 60 "
        "(environment 2, its step 20)"
    )
    assert main(command) == SEED_WITHOUT_POLICY
    output = capsys.readouterr().out
    assert output.index(f"note: {sentence}") < output.index("programs compiled"), "while it trains"
    for kind in ("policy", "wide"):
        assert sorted(folder.name for folder in (run / kind).iterdir()) == ["seed_0", "seed_2"]
    assert f"**Seed 1 has no policy**: {sentence}." in (run / "summary.md").read_text(encoding="utf-8")
    assert [entry["seed"] for entry in json.loads((run / "evaluation.json").read_text())["seeds"]] == [0, 2]
    last = read_metrics(run / "metrics.jsonl")[-1]
    assert np.isnan(last["running_return"]).tolist() == [False, True, False]
    # The fault is known to the end, and to a run that goes on from a checkpoint.
    assert main(command) == SEED_WITHOUT_POLICY
    assert "steps to do" not in capsys.readouterr().out
    before = (run / "policy" / "seed_2" / "policy.safetensors").read_bytes()
    shutil.rmtree(run / "policy")
    (run / "faults.json").unlink()
    assert main(command) == SEED_WITHOUT_POLICY
    assert (run / "policy" / "seed_2" / "policy.safetensors").read_bytes() == before
    assert f"**Seed 1 has no policy**: {sentence}." in (run / "summary.md").read_text(encoding="utf-8")
    assert main(["evaluate", str(run), "--trust"]) == 0


def test_a_run_without_a_healthy_seed_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(broken.FaultyBox, "seeded", broken.Faulty.seed_of(0, 0, 1))
    command = shlex.split(
        f"train {broken.MODULE}:FaultyBox-v0 --hidden 4 --num-envs 2 --num-steps 16 --steps 1000 --no-control"
        f" --run-dir {tmp_path / 'run'}"
    )
    assert main(command) == NO_SEED_LEFT
    error = capsys.readouterr().err
    assert "gave seed 0 NaN as component 1 of an observation at step 40 (environment 1, its step 20)" in error
    assert "No seed is left to train" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "policy").exists()
