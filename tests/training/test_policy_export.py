from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from prune_rl.envs.gymnasium_vector import HostEnv
from prune_rl.envs.task import resolve_task
from prune_rl.export.policy import load_policy, save_policy
from prune_rl.learners import ppo, sac
from prune_rl.learners.distributions import Categorical, Gaussian, SquashedGaussian
from prune_rl.learners.registry import learner_of
from prune_rl.learners.running_statistics import normalize
from prune_rl.learners.sac.values import Architecture
from prune_rl.learners.sac.values import policy as sac_policy
from prune_rl.pruning.importance import magnitude_importance
from prune_rl.pruning.masks import apply_masks, count, init_masks
from prune_rl.pruning.ranking import update_masks
from prune_rl.spaces import Box, Spec
from prune_rl.training.config import Config
from prune_rl.training.engines.faults import Fault, Faults, TrainingFailed
from prune_rl.training.loop import write_policies
from prune_rl.training.make_engine import make_engine
from prune_rl.training.policy_export import Trained, compact_policy, masked_policy, state_of_seed
from prune_rl.training.run_notes import tell_faults
from tests.learners.schedules import by_schedule


def spec_of(config: Any) -> Any:
    return resolve_task(config.env).spec


def actor_count(state: Any, config: Any) -> Any:
    """Neurons and weights of the actor as it is trained, kept and total."""
    groups = learner_of(config.learner).all_groups(state.params, config.learner)
    actor = groups.select(lambda group: group.name.startswith("actor/")).at("actor")
    return count(actor, state.params["actor"], {**init_masks(groups), **state.masks})


PRUNE = by_schedule(sparsity=0.8, begin=0.0, end=0.5, critic=True)
SMALL_SAC = sac.Config(
    num_envs=2,
    num_steps=64,
    utd_ratio=0.1,
    batch_size=32,
    learning_starts=128,
    learning_rate=1e-2,
    prune=PRUNE,
)
LEARNERS = {
    "CartPole-v1-ppo": ppo.Config(hidden=(16, 12), num_envs=2, num_steps=64, prune=PRUNE),
    "Pendulum-v1-ppo": ppo.Config(
        hidden=(12, 16), activation="elu", learning_rate=1e-2, num_envs=2, num_steps=64, prune=PRUNE
    ),
    "CartPole-v1-sac": dataclasses.replace(SMALL_SAC, hidden=(16, 12)),
    "Pendulum-v1-sac": dataclasses.replace(SMALL_SAC, hidden=(12, 16), activation="elu", normalize_obs=True),
}


@functools.cache
def trained(case: Any) -> Any:
    """Configuration and state of one of two seeds, after a real training, or after what one would have done."""
    env, _, algo = case.rpartition("-")
    task = resolve_task(env, "gymnasium")
    learner = dataclasses.replace(LEARNERS[case], total_timesteps=1024)
    config = Config(
        env=env, algo=algo, seeds=2, backend="gymnasium", host_resets=4, learner=learner
    ).resolved(task)
    if env == "Pendulum-v1":
        engine = make_engine(config, task)
        engine.advance(config.learner.num_updates)
        engine.close()
        return config, state_of_seed(engine.state, 1)
    module = learner_of(config.learner)
    state = module.init(jax.random.key(1), config.learner, spec_of(config))
    host = HostEnv(task, 2)
    seen = np.concatenate([host.reset(0), *(host.step([1, t % 2])[0] for t in range(60))])
    host.close()
    params = jax.tree.map(lambda x: x, state.params)
    params["actor"]["head"]["kernel"] *= 100.0
    groups = module.prunable_groups(params, config.learner)
    masks = update_masks(state.masks, magnitude_importance(groups, params), 0.8, min_width=2)
    return config, Trained(params, masks, masks, state.obs_stats.update(jnp.asarray(seen)))


@functools.cache
def observations(case: Any) -> Any:
    """What the masked policy of that seed really sees, float32[400, D]."""
    config, state = trained(case)
    policy = masked_policy(state, config, spec_of(config), 1)
    host = HostEnv(resolve_task(config.env), 4)
    seen = [host.reset(3)]
    for _ in range(99):
        seen.append(host.step(policy(seen[-1]))[0])
    host.close()
    return np.concatenate(seen)


def mode(state: Any, config: Any, obs: Any) -> Any:
    """What the learner's action distribution is centred on, in JAX: logits, or the mean (before it is squashed)."""
    learner = config.learner
    params = apply_masks(
        learner_of(learner).prunable_groups(state.params, learner), state.params, state.masks
    )
    seen = normalize(state.obs_stats, obs, learner)
    discrete = config.env == "CartPole-v1"
    if config.algo == "sac":
        distribution: Categorical | Gaussian | SquashedGaussian = sac_policy(
            params["actor"], seen, Architecture(learner.activation, discrete)
        )
    else:
        distribution = ppo.actor_distribution(params, seen, learner, discrete)
    return distribution.logits if isinstance(distribution, Categorical) else distribution.mean


@pytest.fixture(params=LEARNERS)
def case(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_masked_is_compact_on_real_observations(case: Any) -> None:
    config, state = trained(case)
    masked, compact = (make(state, config, spec_of(config), 1) for make in (masked_policy, compact_policy))
    obs = observations(case)
    assert obs.std(axis=0).min() > 1e-3
    assert np.abs(masked.outputs(obs) - compact.outputs(obs)).max() <= 1e-5
    np.testing.assert_allclose(masked(obs), compact(obs), atol=1e-5)
    assert masked.widths == config.learner.hidden
    assert compact.widths == tuple(int(state.masks[f"actor/layer_{i}"].sum()) for i in (0, 1))
    assert all(2 <= small <= 4 for small in compact.widths)
    count = actor_count(state, config)
    assert (count.neurons.kept, count.neurons.total) == (compact.num_neurons, masked.num_neurons)


def test_the_policy_acts_as_the_learner_would(case: Any) -> None:
    """On observations seen in training, and on others far outside, where normalised ones are clipped."""
    config, state = trained(case)
    policy = compact_policy(state, config, spec_of(config), 1)
    rng = np.random.default_rng(0)
    scale = observations(case).std(axis=0)
    random = rng.standard_normal((400, len(scale))).astype(np.float32) * scale
    for obs in (observations(case), random, 100 * random):
        expected = np.asarray(mode(state, config, jnp.asarray(obs)))
        assert np.abs(policy.outputs(obs) - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())
        if config.env == "CartPole-v1":
            clear = np.abs(expected[:, 0] - expected[:, 1]) > 1e-4
            assert clear.mean() > 0.8  # both logits are constant where all neurons of a relu layer rest
            np.testing.assert_array_equal(policy(obs)[clear], expected.argmax(-1)[clear])
            assert [policy(row) for row in obs[:20]] == policy(obs[:20]).tolist()
        else:
            action = policy(obs)
            assert action.shape == (400, 1)
            assert action.dtype == np.float32
            acted = 2.0 * np.tanh(expected) if config.algo == "sac" else np.clip(expected, -2.0, 2.0)
            np.testing.assert_allclose(action, acted, atol=1e-5)
    statistics = state.obs_stats
    if config.learner.normalize_obs:
        assert policy.obs_mean is not None
        np.testing.assert_allclose(policy.obs_mean, statistics.mean)
        assert np.abs(np.asarray(statistics.mean)).max() > 0
    else:
        assert policy.obs_mean is None


def test_of_sac_the_mean_is_kept_and_squashed_into_the_bounds() -> None:
    """With no noise the learner takes the mean; the policy does the same, whatever the spread and the bounds are."""
    spec = Spec(3, Box((-1.0, 0.0), (3.0, 0.5), (2,)))
    config = Config(
        env="Pendulum-v1", algo="sac", learner=sac.Config(hidden=(8, 8), learning_starts=0)
    ).resolved()
    learner = config.learner
    assert isinstance(learner, sac.Config)
    state = sac.init(jax.random.key(2), learner, spec)
    params = jax.tree.map(lambda x: x, state.params)
    params["actor"]["head"]["kernel"] *= 100.0
    state = dataclasses.replace(state, networks=dataclasses.replace(state.networks, params=params))
    obs = np.random.default_rng(0).standard_normal((300, 3)).astype(np.float32)
    policy = compact_policy(state, config, spec, 0)
    assert policy.squash
    assert policy.layers[-1][0].shape == (8, 2)
    acted = np.asarray(sac.act(state, jnp.asarray(obs), jnp.zeros((300, 2)), learner))
    np.testing.assert_allclose(policy(obs), acted, atol=1e-5)
    assert np.all(acted.std(axis=0) > [0.4, 0.05])
    params["actor"]["head"]["kernel"] = params["actor"]["head"]["kernel"].at[:, 2:].set(7.0)
    other = dataclasses.replace(state, networks=dataclasses.replace(state.networks, params=params))
    np.testing.assert_array_equal(compact_policy(other, config, spec, 0)(obs), policy(obs))
    # As it is trained, the actor has the spread, too: two outputs more.
    assert actor_count(state, config).weights.kept == policy.num_weights + 2 * (8 + 1)


@pytest.mark.parametrize("algo", ["ppo", "sac"])
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_without_normalisation_the_policy_has_no_statistics(env: str, algo: str) -> None:
    learner = dataclasses.replace(
        LEARNERS[f"{env}-{algo}"], hidden=(8,), normalize_obs=False, total_timesteps=1024
    )
    config = Config(env=env, algo=algo, backend="gymnasium", learner=learner).resolved()
    state = learner_of(learner).init(jax.random.key(0), config.learner, spec_of(config))
    seen = state.obs_stats.update(jnp.full((3, spec_of(config).observation_size), 9.0))
    state = dataclasses.replace(state, obs_stats=seen)
    policy = compact_policy(state, config, spec_of(config), 0)
    assert policy.obs_mean is None
    obs = np.random.default_rng(1).standard_normal((50, spec_of(config).observation_size)).astype(np.float32)
    np.testing.assert_allclose(policy.outputs(obs), mode(state, config, jnp.asarray(obs)), atol=1e-5)


def test_saved_and_loaded_it_is_the_same(case: Any, tmp_path: Path) -> None:
    config, state = trained(case)
    policy = compact_policy(state, config, spec_of(config), 1)
    save_policy(tmp_path, policy)
    loaded = load_policy(tmp_path)
    np.testing.assert_array_equal(loaded(observations(case)), policy(observations(case)))
    assert loaded.metadata == {
        "env": config.env, "algo": config.algo, "method": "dynamic", "seed": 1, "steps": config.steps
    }  # fmt: skip


def test_the_state_of_a_seed_has_no_seed_axis(case: Any) -> None:
    config, state = trained(case)
    learner = config.learner
    alone = jax.eval_shape(lambda: learner_of(learner).init(jax.random.key(0), learner, spec_of(config)))
    for name in ("params", "masks", "obs_stats"):
        found, expected = (
            jax.tree.map(lambda x: (x.shape, x.dtype), getattr(x, name)) for x in (state, alone)
        )
        assert found == expected


@dataclasses.dataclass(frozen=True)
class OfAllSeeds(Trained):
    """A train state as `write_policies` takes it, with a leading seed axis."""

    step: jax.Array


def test_a_diverged_seed_is_named_and_leaves_no_policy(tmp_path: Path) -> None:
    config, state = trained("CartPole-v1-ppo")
    config = dataclasses.replace(config, seeds=2)
    params = jax.tree.map(lambda x: x, state.params)
    params["actor"]["head"]["bias"] = jnp.full(2, jnp.nan)
    good, bad = (vars(x) for x in (state, dataclasses.replace(state, params=params)))
    both = OfAllSeeds(**jax.tree.map(lambda *leaves: jnp.stack(leaves), good, bad), step=jnp.int32(0))
    faults = Faults([0, 1], config.learner, spec_of(config))
    write_policies(both, faults, config, spec_of(config), tmp_path)
    assert [folder.name for folder in (tmp_path / "policy").iterdir()] == ["seed_0"]
    (fault,) = faults.untold()
    assert fault.sentence(config.env).startswith("the training of seed 1 diverged: ")
    assert fault.sentence(config.env).endswith("; try a lower --learning-rate")
    faults.add(Fault(0, 1, "network", None, "NaN"))
    with pytest.raises(TrainingFailed, match="No seed is left"):
        tell_faults(faults, config, Console())
