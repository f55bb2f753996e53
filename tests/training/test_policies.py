from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.envs.host import HostEnv
from prune_rl.export.policy import load_policy, save_policy
from prune_rl.learners import ppo
from prune_rl.learners.config import Pruning
from prune_rl.pruning.importance import magnitude_importance
from prune_rl.pruning.masks import apply_masks
from prune_rl.pruning.thresholds import update_masks
from prune_rl.training.config import Config
from prune_rl.training.loop import make_engine, write_policies
from prune_rl.training.policies import actor_count, compact_policy, masked_policy, state_of_seed

PRUNE = Pruning(sparsity=0.8, begin=0.0, end=0.5, critic=True)
LEARNERS = {
    "CartPole-v1": ppo.Config(hidden=(16, 12), num_envs=2, num_steps=64, prune=PRUNE),
    "Pendulum-v1": ppo.Config(
        hidden=(12, 16), activation="elu", learning_rate=1e-2, num_envs=2, num_steps=64, prune=PRUNE
    ),
}


@functools.cache
def trained(env):
    """Configuration and state of one of two seeds, after a real training, or after what one would have done."""
    config = Config(env=env, seeds=2, steps=1024, backend="gymnasium", checkpoints=4, learner=LEARNERS[env])
    config = config.resolved()
    if env == "Pendulum-v1":
        engine = make_engine(config)
        engine.advance(config.learner.total_updates)
        engine.close()
        return config, state_of_seed(engine.state, 1)
    state = ppo.init(jax.random.key(1), config.learner, config.spec())
    host = HostEnv(env, 2)
    seen = np.concatenate([host.reset(0), *(host.step([1, t % 2])[0] for t in range(60))])
    host.close()
    params = jax.tree.map(lambda x: x, state.params)
    params["actor"]["head"]["kernel"] *= 100.0
    groups = ppo.prunable_groups(params, config.learner)
    masks = update_masks(state.masks, magnitude_importance(groups, params), 0.8, min_width=2)
    return config, state.replace(
        params=params, masks=masks, obs_stats=state.obs_stats.update(jnp.asarray(seen))
    )


@functools.cache
def observations(env):
    """What the masked policy of that seed really sees, float32[400, D]."""
    config, state = trained(env)
    policy = masked_policy(state, config, config.spec(), 1)
    host = HostEnv(env, 4)
    seen = [host.reset(3)]
    for _ in range(99):
        seen.append(host.step(policy(seen[-1]))[0])
    host.close()
    return np.concatenate(seen)


def mode(state, config, obs):
    """What the learner's action distribution is centred on, in JAX: logits, or the mean."""
    learner = config.method_learner()
    params = apply_masks(ppo.prunable_groups(state.params, learner), state.params, state.masks)
    distribution = ppo.distribution(params, ppo.normalize(state, obs, learner), learner)
    logits = getattr(distribution, "logits", None)
    return distribution.mean if logits is None else logits


@pytest.fixture(params=LEARNERS)
def env(request):
    return request.param


def test_masked_is_compact_on_real_observations(env):
    config, state = trained(env)
    masked, compact = (make(state, config, config.spec(), 1) for make in (masked_policy, compact_policy))
    obs = observations(env)
    assert obs.std(axis=0).min() > 1e-3
    assert np.abs(masked.outputs(obs) - compact.outputs(obs)).max() <= 1e-5
    np.testing.assert_allclose(masked(obs), compact(obs), atol=1e-5)
    assert masked.widths == config.learner.hidden
    assert compact.widths == tuple(int(state.masks[f"actor/layer_{i}"].sum()) for i in (0, 1))
    assert all(2 <= small <= 4 for small in compact.widths)
    count = actor_count(state, config)
    assert (count.neurons.kept, count.neurons.total) == (compact.num_neurons, masked.num_neurons)


def test_the_policy_acts_as_the_learner_would(env):
    """On observations seen in training, and on others far outside, where normalised ones are clipped."""
    config, state = trained(env)
    policy = compact_policy(state, config, config.spec(), 1)
    rng = np.random.default_rng(0)
    scale = observations(env).std(axis=0)
    random = rng.standard_normal((400, len(scale))).astype(np.float32) * scale
    for obs in (observations(env), random, 100 * random):
        expected = np.asarray(mode(state, config, jnp.asarray(obs)))
        assert np.abs(policy.outputs(obs) - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())
        if env == "CartPole-v1":
            clear = np.abs(expected[:, 0] - expected[:, 1]) > 1e-4
            assert clear.mean() > 0.9
            np.testing.assert_array_equal(policy(obs)[clear], expected.argmax(-1)[clear])
            assert [policy(row) for row in obs[:20]] == policy(obs[:20]).tolist()
        else:
            action = policy(obs)
            assert action.shape == (400, 1)
            assert action.dtype == np.float32
            np.testing.assert_allclose(action, np.clip(expected, -2.0, 2.0), atol=1e-5)
    statistics = state.obs_stats
    np.testing.assert_allclose(policy.obs_mean, statistics.mean)
    assert np.abs(np.asarray(statistics.mean)).max() > 0


def test_without_normalisation_the_policy_has_no_statistics(env):
    config = Config(
        env=env, backend="gymnasium", learner=ppo.Config(hidden=(8,), normalize_obs=False, prune=PRUNE)
    ).resolved()
    state = ppo.init(jax.random.key(0), config.learner, config.spec())
    state = state.replace(
        obs_stats=state.obs_stats.update(jnp.full((3, config.spec().observation_size), 9.0))
    )
    policy = compact_policy(state, config, config.spec(), 0)
    assert policy.obs_mean is None
    obs = np.random.default_rng(1).standard_normal((50, config.spec().observation_size)).astype(np.float32)
    np.testing.assert_allclose(policy.outputs(obs), mode(state, config, jnp.asarray(obs)), atol=1e-5)


def test_saved_and_loaded_it_is_the_same(env, tmp_path):
    config, state = trained(env)
    policy = compact_policy(state, config, config.spec(), 1)
    save_policy(tmp_path, policy)
    loaded = load_policy(tmp_path)
    np.testing.assert_array_equal(loaded(observations(env)), policy(observations(env)))
    assert loaded.metadata == {
        "env": env, "algo": "ppo", "method": "dynamic", "seed": 1, "steps": config.steps
    }  # fmt: skip


def test_the_state_of_a_seed_has_no_seed_axis(env):
    config, state = trained(env)
    alone = jax.eval_shape(lambda: ppo.init(jax.random.key(0), config.learner, config.spec()))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), alone
    )


def test_a_diverged_seed_is_named_and_leaves_no_policy(tmp_path):
    config, state = trained("CartPole-v1")
    params = jax.tree.map(lambda x: x, state.params)
    params["actor"]["head"]["bias"] = jnp.full(2, jnp.nan)
    bad = state.replace(params=params)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), state, bad).replace(step=state.step)
    with pytest.raises(ValueError, match=r"the training of seed 1 diverged .*: try a lower --learning-rate"):
        write_policies(both, config, tmp_path)
    assert not (tmp_path / "policy").exists()
