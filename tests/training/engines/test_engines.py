"""Both engines: seeds beside each other, compiled once, and going on from a checkpoint as if never interrupted."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.envs.cartpole import CartPole
from prune_rl.envs.gymnasium_vector import HostEnv
from prune_rl.envs.task import resolve_task
from prune_rl.learners import ppo, sac
from prune_rl.learners.registry import Metrics
from prune_rl.runs.checkpoints import Checkpoints
from prune_rl.training import engines
from prune_rl.training.engines import over_seeds as over_seeds_module
from tests.learners.schedules import by_schedule
from tests.training.engines.compiled_once import sharing_programs

CONFIG = ppo.Config(
    hidden=(8,),
    num_envs=3,
    num_steps=16,
    update_epochs=2,
    num_minibatches=2,
    learning_rate=3e-3,
    total_timesteps=6 * 3 * 16,
    prune=by_schedule(sparsity=0.5, begin=0.2, end=0.8),
)
DENSE = dataclasses.replace(CONFIG, prune=None)  # faster to compile
# An update of 16 environment steps makes 4 gradient steps; the first one only fills the buffer.
SAC = sac.Config(
    hidden=(8,),
    num_envs=2,
    num_steps=8,
    utd_ratio=0.25,
    batch_size=8,
    learning_starts=16,
    learning_rate=3e-3,
    total_timesteps=6 * 2 * 8,
    prune=by_schedule(sparsity=0.5, critic=True, begin=0.2, end=0.8),
)


def plain(tree: Any) -> Any:
    """NumPy copies, with plain integers in place of typed keys."""

    def leaf(x: Any) -> Any:
        return np.array(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)

    return jax.tree.map(leaf, tree)


def assert_identical(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, plain(a), plain(b))


def assert_close(a: Any, b: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=1e-4), plain(a), plain(b))


def of_seed(tree: Any, index: int) -> Any:
    """One seed's part of a runner or a state; what has no seed axis (the step) as it is."""
    return jax.tree.map(lambda x: x[index] if x.ndim else x, tree)


class CountedCartPole(CartPole):
    """CartPole that counts how often its step is traced."""

    traces = 0

    def step(self, env_state: Any, action: jax.Array) -> Any:
        type(self).traces += 1
        return super().step(env_state, action)


@dataclasses.dataclass(frozen=True)
class Interrupted:
    """Three seeds on the device: the state after 2 updates, saved, and after 5, with all metrics."""

    engine: engines.DeviceEngine
    checkpoints: Checkpoints
    start: Any
    middle: Any
    first: Metrics
    second: Metrics
    traces: list[int]


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interrupted]:
    checkpoints = Checkpoints(tmp_path_factory.mktemp("checkpoints"))
    engine = engines.DeviceEngine(CountedCartPole(), [0, 1, 2], CONFIG, length=2)
    start, before = plain(engine.tree), CountedCartPole.traces
    first = engine.advance(2)
    traces = [CountedCartPole.traces]
    checkpoints.save(2, engine.tree)
    middle = plain(engine.tree)
    second = engine.advance(3)  # a whole chunk and a shorter one
    traces.append(CountedCartPole.traces)
    assert before == 0
    yield Interrupted(engine, checkpoints, start, middle, first, second, traces)
    checkpoints.close()


def test_one_program_serves_every_update_and_every_length(device: Interrupted) -> None:
    assert 0 < device.traces[0] == device.traces[1]


def test_metrics_have_a_row_per_update_and_a_column_per_seed(device: Interrupted) -> None:
    for metrics, rows in ((device.first, 2), (device.second, 3)):
        assert {leaf.shape for leaf in jax.tree.leaves(metrics)} == {(rows, 3)}
        assert all(np.all(np.isfinite(metrics[name])) for name in ("policy_loss", "value_loss", "entropy"))
        assert np.all(metrics["entropy"] > 0.0), "no row is one of those that the chunk left empty"
    assert device.engine.state.step.shape == ()
    assert int(device.engine.state.step) == 5


def test_going_on_from_a_checkpoint_is_going_on(device: Interrupted) -> None:
    fresh = engines.DeviceEngine(CartPole(), [0, 1, 2], CONFIG, length=2)
    assert_identical(fresh.tree, device.start)
    found = device.checkpoints.restore(fresh.tree)
    assert found is not None
    assert_identical(found.tree, device.middle)
    fresh.tree = found.tree
    # In other portions, too: 1 + 2 where the uninterrupted run made 2 + 1.
    parts = [fresh.advance(1), fresh.advance(2)]
    assert_identical(fresh.tree, device.engine.tree)
    assert_identical(jax.tree.map(lambda *x: np.concatenate(x), *parts), device.second)


def test_a_seed_alone_is_the_same_as_among_others(device: Interrupted) -> None:
    alone = engines.DeviceEngine(CartPole(), [1], CONFIG, length=2)
    assert_close(of_seed(alone.tree, 0), of_seed(device.start, 1))
    metrics = alone.advance(2)
    assert_close(of_seed(alone.tree, 0), of_seed(device.middle, 1))
    assert_close(jax.tree.map(lambda x: x[:, 0], metrics), jax.tree.map(lambda x: x[:, 1], device.first))


def test_seeds_in_turn_have_the_bits_of_each_alone(
    device: Interrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(over_seeds_module, "IN_TURN_FROM", 0)
    (one,) = jax.local_devices()[:1]
    engine = engines.DeviceEngine(CartPole(), [0, 1, 2], CONFIG, length=2, devices=[one])
    metrics = engine.advance(5)
    assert_close(plain(engine.tree), plain(device.engine.tree))
    for index in range(3):
        alone = sharing_programs(
            engines.DeviceEngine(CartPole(), [index], CONFIG, length=2, devices=[one]), "alone, in turn"
        )
        expected = alone.advance(5)
        assert_identical(of_seed(plain(engine.tree), index), of_seed(plain(alone.tree), 0))
        mine = jax.tree.map(lambda x, i=index: x[:, i], metrics)
        assert_identical(mine, jax.tree.map(lambda x: x[:, 0], expected))


@pytest.mark.parametrize("turns", [False, True])
def test_over_seeds_takes_every_axis_and_what_all_share(turns: bool) -> None:
    def fn(x: jax.Array, tree: Any, n: jax.Array) -> Any:
        return {"sum": x.sum() + n, "next": n + 1, "rows": x[None] + tree["y"], "none": tree["none"]}, x

    x, y = jnp.arange(6.0).reshape(3, 2), jnp.arange(12.0).reshape(2, 3, 2)
    mapped = over_seeds_module.over_seeds(
        fn,
        3,
        in_axes=(0, {"y": 1, "none": 0}, None),
        out_axes=({"sum": 0, "next": None, "rows": 1, "none": 0}, 0),
        turns=turns,
    )
    made, same = jax.jit(mapped)(x, {"y": y, "none": None}, jnp.int32(4))
    assert made["none"] is None
    np.testing.assert_array_equal(made["sum"], x.sum(1) + 4)
    np.testing.assert_array_equal(made["next"], 5)
    np.testing.assert_array_equal(made["rows"], x[None] + y)
    np.testing.assert_array_equal(same, x)


def test_seeds_go_in_turn_on_a_cpu_where_their_params_are_large_and_nothing_else_is() -> None:
    def arrays(size: int) -> Any:
        return jax.ShapeDtypeStruct((4, size), jnp.float32)

    few, many = over_seeds_module.IN_TURN_FROM // 16 - 1, over_seeds_module.IN_TURN_FROM // 16
    assert not over_seeds_module.in_turn([arrays(few)] * 3, arrays(few))
    assert over_seeds_module.in_turn([arrays(many)] * 3, arrays(many))
    assert not over_seeds_module.in_turn([arrays(many), arrays(40 * many)], arrays(many))


def test_seeds_differ(device: Interrupted) -> None:
    for tree in (device.start, device.middle):
        for leaf in (tree.state.params["actor"]["layer_0"]["kernel"], tree.obs, tree.key, tree.state.key):
            assert len(np.unique(leaf.reshape(3, -1), axis=0)) == 3


def test_widths_fall_in_every_seed(device: Interrupted) -> None:
    first, second = (metrics["prune"]["actor/layer_0"]["width"] for metrics in (device.first, device.second))
    widths = np.concatenate([first, second])
    assert np.all(np.diff(widths, axis=0) <= 0)
    np.testing.assert_array_equal(widths[[0, -1]], [[8] * 3, [4] * 3])


@pytest.mark.slow
def test_sac_on_the_device_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    """The replay buffer is a part of it. The same engine serves again: what it could remember is compiled code only."""
    engine = engines.DeviceEngine(CartPole(), [0, 1], SAC, length=2)
    checkpoints = Checkpoints(tmp_path)
    first = engine.advance(3)
    checkpoints.save(3, engine.tree)
    second = engine.advance(3)
    end = plain(engine.tree)
    found = checkpoints.restore(engine.tree)
    checkpoints.close()
    assert found is not None
    engine.tree = found.tree
    assert_identical(engine.advance(3), second)
    assert_identical(engine.tree, end)
    assert {leaf.shape for leaf in jax.tree.leaves(second)} == {(3, 2)}
    # Warm-up has no losses, and what comes after it has.
    assert not np.any(first["gradient_steps"][0])
    assert not np.any(first["critic_loss"][0])
    for metrics in (jax.tree.map(lambda x: x[1:], first), second):
        assert all(np.all(np.isfinite(metrics[name])) for name in ("critic_loss", "actor_loss", "alpha"))
    widths = second["prune"]["actor/layer_0"]["width"]
    assert widths[-1].tolist() == second["prune"]["critic/layer_0"]["width"][-1].tolist() == [4, 4]
    for leaf in (end.state.params["actor"]["layer_0"]["kernel"], end.state.replay.experience.obs):
        assert not np.array_equal(leaf[0], leaf[1]), "both seeds trained, each on its own"


class RecordedEnv(HostEnv):
    """CartPole-v1 in Gymnasium, with the seeds of its resets and the ends of its episodes."""

    def __init__(self) -> None:
        super().__init__(resolve_task("CartPole-v1"), CONFIG.num_envs)
        self.seeds: list[int] = []
        self.ends: list[int] = []
        self.closed = False

    def reset(self, seed: int) -> Any:
        self.seeds.append(seed)
        return super().reset(seed)

    def step(self, action: Any) -> Any:
        result = super().step(action)
        self.ends.append(int(np.sum(result[2] | result[3])))
        return result

    def close(self) -> None:
        self.closed = True
        super().close()


MakeHost = Callable[[int], tuple[engines.HostEngine, list[RecordedEnv]]]


@pytest.fixture
def make_host() -> Iterator[MakeHost]:
    """`engine, its environments = make_host(reset_every)`, for the seeds 0 and 1."""
    made: list[engines.HostEngine] = []

    def make(reset_every: int) -> tuple[engines.HostEngine, list[RecordedEnv]]:
        envs: list[RecordedEnv] = []

        def new() -> RecordedEnv:
            envs.append(RecordedEnv())
            return envs[-1]

        made.append(sharing_programs(engines.HostEngine(new, [0, 1], DENSE, reset_every), "host", DENSE))
        return made[-1], envs

    yield make
    for engine in made:
        engine.close()
    assert all(env.closed for engine in made for env in engine._envs)  # type: ignore[attr-defined]


def test_a_host_run_goes_on_from_the_checkpoint_at_a_reset(make_host: MakeHost, tmp_path: Path) -> None:
    engine, envs = make_host(2)
    checkpoints = Checkpoints(tmp_path)
    first = engine.advance(2)
    # A cut is no end of an episode: only those that fell over count, and of those under way nothing is left.
    for s, env in enumerate(envs):
        assert first["episodes"][:, s].tolist() == [sum(env.ends[:16]), sum(env.ends[16:])]
    assert not np.any(cast(ppo.State, engine.state).returns.under_way)
    checkpoints.save(2, engine.tree)
    second = engine.advance(2)
    assert not np.any(cast(ppo.State, engine.state).returns.under_way)
    third = engine.advance(1)
    assert np.any(cast(ppo.State, engine.state).returns.under_way), "no cut here"
    assert [len(env.seeds) for env in envs] == [3, 3], "before updates 0, 2 and 4"
    assert len({seed for env in envs for seed in env.seeds}) == 6

    fresh, fresh_envs = make_host(2)
    found = checkpoints.restore(fresh.tree)
    checkpoints.close()
    assert found is not None
    fresh.tree = found.tree
    resumed = fresh.advance(3)
    assert [env.seeds for env in fresh_envs] == [env.seeds[1:] for env in envs]
    assert_identical(fresh.tree, engine.tree)
    assert_identical(resumed, jax.tree.map(lambda *x: np.concatenate(x), second, third))
    assert {leaf.shape for leaf in jax.tree.leaves(resumed)} == {(3, 2)}
    assert int(fresh.state.step) == 5
    # Both seeds trained, each on its own.
    for leaf in jax.tree.leaves(plain(fresh.state.params)):
        assert not np.array_equal(leaf[0], leaf[1])


class RecordedPendulum(HostEnv):
    """Two of them, with every transition."""

    def __init__(self) -> None:
        super().__init__(resolve_task("Pendulum-v1"), SAC.num_envs)
        self.seen: list[tuple[np.ndarray[Any, Any], ...]] = []
        self.obs: Any = None

    def reset(self, seed: int) -> Any:
        self.obs = super().reset(seed)
        return self.obs

    def step(self, action: Any) -> Any:
        obs, *rest, next_obs = super().step(action)
        self.seen.append((self.obs, np.asarray(action), rest[0], next_obs))
        self.obs = obs
        return obs, *rest, next_obs


@pytest.mark.parametrize("seeds", [[0, 1], [1]], ids=["two seeds", "one seed"])
def test_with_overlap_the_state_of_before_an_update_acts_after_it(seeds: list[int], tmp_path: Path) -> None:
    config = dataclasses.replace(SAC, overlap=True, learning_starts=0)

    def new() -> tuple[engines.HostEngine, list[RecordedPendulum]]:
        envs: list[RecordedPendulum] = []

        def make() -> RecordedPendulum:
            envs.append(RecordedPendulum())
            return envs[-1]

        engine = engines.HostEngine(make, seeds, config, reset_every=3)
        return sharing_programs(engine, "overlap", len(seeds)), envs

    engine, envs = new()
    act = jax.jit(jax.vmap(functools.partial(sac.act, config=config), in_axes=(sac.VMAP_AXES, 0, 0)))
    states, key, noises = [plain_state(engine.state)], engine.tree.key, []
    checkpoints = Checkpoints(tmp_path)
    for update in range(6):
        key, noise = engine._draw(key)
        noises.append(noise)
        engine.advance(1)
        states.append(plain_state(engine.state))
        if update == 2:
            checkpoints.save(3, engine.tree)
    # Updates 0 and 3 follow a reset; the others act with the state of one update before.
    for update, acting in enumerate([0, 0, 1, 3, 3, 4]):
        for t in range(config.num_steps):
            obs, action = (
                np.stack([env.seen[update * config.num_steps + t][i] for env in envs]) for i in range(2)
            )
            expected = act(states[acting], obs, noises[update][:, t])
            np.testing.assert_allclose(action, expected, rtol=1e-5, atol=1e-6)
            if acting != update:
                newer = act(states[update], obs, noises[update][:, t])
                assert np.max(np.abs(newer - action)) > 1e-4
    again, _ = new()
    found = checkpoints.restore(again.tree)
    checkpoints.close()
    assert found is not None
    again.tree = found.tree
    again.advance(3)
    assert_identical(again.tree, engine.tree)
    again.close()
    engine.close()


def plain_state(state: Any) -> Any:
    """A copy that outlives the state, which an update is given."""
    return jax.tree.map(jnp.copy, state)


@pytest.mark.parametrize("seeds", [[0, 1], [1]], ids=["two seeds", "one seed"])
def test_sac_keeps_what_the_host_environments_did(seeds: list[int]) -> None:
    envs: list[RecordedPendulum] = []

    def new() -> RecordedPendulum:
        envs.append(RecordedPendulum())
        return envs[-1]

    config = dataclasses.replace(SAC, prune=None)
    engine = engines.HostEngine(new, seeds, config, reset_every=2)
    metrics = engine.advance(3)
    engine.close()
    assert {leaf.shape for leaf in jax.tree.leaves(metrics)} == {(3, len(seeds))}
    # The first update is warm-up, without a gradient step.
    assert np.all((metrics["gradient_steps"] > 0) == [[False], [True], [True]])
    assert np.all((metrics["critic_loss"] > 0) == [[False], [True], [True]])
    kept = plain(engine.state.replay.experience)  # type: ignore[attr-defined]
    for s, env in enumerate(envs):
        obs, action, reward, next_obs = (np.stack(x).reshape(48, -1) for x in zip(*env.seen, strict=True))
        np.testing.assert_array_equal(kept.obs[s, 0, :48], obs)
        np.testing.assert_array_equal(kept.next_obs[s, 0, :48], next_obs)
        np.testing.assert_array_equal(kept.reward[s, 0, :48], reward[:, 0])
        # As the critics see them: in [−1, 1], where the environment's bounds are ±2.
        np.testing.assert_allclose(kept.action[s, 0, :48], action / 2.0, atol=1e-6)
        assert np.abs(action).max() <= 2.0
        assert not np.any(kept.terminated[s])


def test_derived_seeds_are_their_own() -> None:
    seeds = [engines.derived_seed(seed, update) for seed in range(30) for update in range(30)]
    assert len(set(seeds)) == 900
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert engines.derived_seed(3, 4) == engines.derived_seed(3, 4)
