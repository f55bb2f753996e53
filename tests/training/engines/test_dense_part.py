"""Until neurons may go, a pruned run is its dense control to the bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.envs.cartpole import CartPole
from prune_rl.envs.gymnasium_vector import HostEnv
from prune_rl.envs.task import resolve_task
from prune_rl.learners import ppo, sac
from prune_rl.learners.mask_rules import dense_updates
from prune_rl.learners.pruning_config import Pruning
from prune_rl.runs.log_rows import joined, with_equal_names
from prune_rl.training import engines
from prune_rl.training.engines.dense_part import LEAST, num_dense_updates

UPDATES = 48
PPO = ppo.Config(
    hidden=(8,),
    num_envs=2,
    num_steps=8,
    update_epochs=2,
    num_minibatches=2,
    learning_rate=3e-3,
    total_timesteps=UPDATES * 16,
    width_exponent=0.75,
    prune=Pruning(begin=0.5, strength=1.0),
)
SAC = sac.Config(
    hidden=(8,),
    num_envs=2,
    num_steps=8,
    utd_ratio=0.25,
    batch_size=8,
    learning_starts=16,
    total_timesteps=UPDATES * 16,
    prune=Pruning(critic=True, begin=0.5, strength=1.0),
)
NUM_DENSE = 23  # half of 48 updates, less one


def device(config: Any) -> Any:
    return engines.DeviceEngine(CartPole(), [0, 1], config, 25)


def host(config: Any) -> Any:
    task = resolve_task("CartPole-v1", "gymnasium")
    return engines.HostEngine(lambda: HostEnv(task, config.num_envs), [0, 1], config, reset_every=8)


def leaves(tree: Any) -> dict[str, np.ndarray]:
    def plain(x: Any) -> np.ndarray:
        return np.array(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)

    return {jax.tree_util.keystr(path): plain(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


ENGINES = {"device": (device, PPO), "host": (host, PPO), "sac": (device, SAC)}


@pytest.fixture(scope="module", params=ENGINES)
def pruned(request: pytest.FixtureRequest) -> Iterator[Any]:
    """An engine of a pruned run, at its start: each compiles its two programs once for all tests."""
    make, config = ENGINES[request.param]
    engine = make(config)
    engine.start = jax.tree.map(jnp.copy, engine.tree)
    engine.dense = lambda: make(dataclasses.replace(config, prune=None))
    yield engine
    engine.close()


def from_start(engine: Any) -> Any:
    """As from a checkpoint before the first update, where environments are reset."""
    engine.tree = jax.tree.map(jnp.copy, engine.start)
    return engine


def test_first_part_is_the_dense_run_to_the_bit(pruned: Any) -> None:
    dense, started = pruned.dense(), leaves(pruned.start)
    rows, wanted = from_start(pruned).advance(NUM_DENSE), dense.advance(NUM_DENSE)
    mine, control = leaves(pruned.tree), leaves(dense.tree)
    assert control.keys() < mine.keys()
    for path, leaf in control.items():
        np.testing.assert_array_equal(mine[path], leaf, err_msg=path)
    for path in mine.keys() - control.keys():
        np.testing.assert_array_equal(mine[path], started[path], err_msg=path)
    for name, value in wanted.items():
        np.testing.assert_array_equal(rows[name], value, err_msg=name)
    assert all((report["width"] == 8).all() for report in rows["prune"].values())

    # From here on importance is tracked, and the proximal step acts.
    after = pruned.advance(1)
    dense.advance(1)
    assert after.keys() >= rows.keys()
    importance = jax.tree.map(np.asarray, pruned.state.importance)
    assert all((score > 0).any(-1).all() for score in importance.values())
    actors = (engine.state.params["actor"]["head"]["kernel"] for engine in (pruned, dense))
    assert np.not_equal(*actors).any()
    dense.close()


def test_goes_on_across_its_end_as_in_one_call(pruned: Any) -> None:
    rows = from_start(pruned).advance(UPDATES)
    assert {leaf.shape[:2] for leaf in jax.tree.leaves(rows)} == {(UPDATES, 2)}
    together = leaves(pruned.tree)
    from_start(pruned)
    parts = [pruned.advance(n) for n in (8, 8, 16, 16)]
    jax.tree.map(np.testing.assert_array_equal, together, leaves(pruned.tree))
    for name in ("return", "episodes", "gradient_steps"):
        np.testing.assert_array_equal(rows[name], np.concatenate([part[name] for part in parts]))
    if "distillation" in rows:
        assert (rows["distillation"][:NUM_DENSE] == 0).all()


def test_goes_on_from_a_checkpoint_within_it(pruned: Any) -> None:
    from_start(pruned).advance(8)
    saved = jax.tree.map(jnp.copy, pruned.tree)
    assert shapes(saved) == shapes(pruned.template(pruned.widths))
    pruned.advance(24)
    wanted = leaves(pruned.tree)
    pruned.tree = saved
    pruned.advance(24)
    jax.tree.map(np.testing.assert_array_equal, wanted, leaves(pruned.tree))


def shapes(tree: Any) -> list[Any]:
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


def test_its_length() -> None:
    # The first multiple of `every` from 0.5 · 48 on is 24; 1 % of 48 updates is rounded up.
    assert dense_updates(PPO) == NUM_DENSE
    assert dense_updates(dataclasses.replace(PPO, prune=Pruning(begin=0.0))) == 0
    assert dense_updates(dataclasses.replace(PPO, prune=Pruning(begin=0.5, proximal_begin=0.25))) == 12
    assert dense_updates(dataclasses.replace(PPO, prune=Pruning(proximal_begin=0.0))) == 0
    # The critic's window counts where the critic is pruned.
    early = Pruning(critic=True, begin=0.5, critic_begin=0.25)
    assert dense_updates(dataclasses.replace(PPO, prune=early)) == 11
    # SAC prunes nothing before it learns.
    late = dataclasses.replace(SAC, learning_starts=40 * 16, prune=Pruning(tolerance=None, begin=0.1))
    assert dense_updates(late) >= 39
    state = jax.eval_shape(lambda: ppo.init(jax.random.key(0), PPO, CartPole().spec))
    assert num_dense_updates(PPO, state) == NUM_DENSE
    assert num_dense_updates(dataclasses.replace(PPO, prune=None), state) == 0
    short = dataclasses.replace(PPO, total_timesteps=2 * LEAST * 16)
    assert dense_updates(short) == LEAST - 1
    assert num_dense_updates(short, state) == 0, "not worth a compilation"


@pytest.mark.parametrize("begin", [0.9, -0.1, float("nan")])
def test_refuses_a_proximal_step_after_the_first_removal(begin: float) -> None:
    with pytest.raises(ValueError, match=r"prune\.proximal_begin"):
        Pruning(proximal_begin=begin).check((8,))


def test_rows_that_lack_a_name_count_as_zero() -> None:
    with_it = {"return": np.array([1.0, 2.0], np.float32), "distillation": np.array([4.0, 8.0], np.float32)}
    without = {"return": np.array([3.0, 4.0], np.float32)}
    assert with_equal_names([without, with_it])[0]["distillation"].tolist() == [0.0, 0.0]
    assert joined([without, with_it])["distillation"].tolist() == [2.0, 4.0]
    assert joined([without, without]).keys() == {"return"}


def test_rows_of_other_lengths_are_filled_to_their_own() -> None:
    short, long = (
        {name: np.ones((n, 2), np.float32) for name in names} for n, names in ((3, "ab"), (5, "a"))
    )
    filled = with_equal_names([long, short])
    assert [row["b"].shape for row in filled] == [(5, 2), (3, 2)]
    assert filled[0]["b"].dtype == np.float32
