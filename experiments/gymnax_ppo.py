"""PPO in the manner of purejaxrl on Gymnax' CartPole-v1, three seeds under ``jax.vmap``, whose actor is pruned.

    python3 -m venv .venv-gymnax
    .venv-gymnax/bin/python -m pip install -e . gymnax==1.0.1 six jax==0.10.2 flax==0.12.8
    .venv-gymnax/bin/python -m experiments.gymnax_ppo

Network, hyperparameters and loss are those of purejaxrl's ``ppo.py`` (Lu et al. 2022, Discovered policy optimisation,
NeurIPS; https://github.com/luchris429/purejaxrl): a Flax module for actor and critic, a train state, and one jitted
function from the random key to the trained parameters. The lines marked "prune" are those that pruning adds. Groups are
those of the actor alone, since a critic that is pruned as hard as the actor costs return.

Gymnax asks for an older Gymnasium than the lock file has, so it gets an environment of its own.
"""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any, NamedTuple

import flax.linen as nn
import gymnax
import jax
import jax.numpy as jnp
import optax
import tyro
from flax.linen.initializers import orthogonal
from flax.training import train_state

import prune_rl  # prune

ENV, ENV_PARAMS = gymnax.make("CartPole-v1")


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters, those of purejaxrl; ``sparsity`` is the share of each hidden layer of the actor that goes."""

    total_timesteps: int = 500_000
    num_envs: int = 4
    num_steps: int = 128
    update_epochs: int = 4
    num_minibatches: int = 4
    learning_rate: float = 2.5e-4
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_eps: float = 0.2
    ent_coef: float = 0.01
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    sparsity: float = 0.9
    critic: bool = False
    seed: int = 0
    seeds: int = 3
    episodes: int = 50

    @property
    def num_updates(self) -> int:
        """Rollouts."""
        return self.total_timesteps // (self.num_envs * self.num_steps)

    @property
    def gradient_steps(self) -> int:
        """Calls of the optimiser."""
        return self.num_updates * self.update_epochs * self.num_minibatches


class ActorCritic(nn.Module):
    """Logits [batch, 2] and values [batch]."""

    @nn.compact
    def __call__(self, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        def mlp(name: str, outputs: int, scale: float) -> jax.Array:
            x = obs
            for i in range(2):
                x = nn.tanh(nn.Dense(64, kernel_init=orthogonal(2**0.5), name=f"{name}_{i}")(x))
            return nn.Dense(outputs, kernel_init=orthogonal(scale), name=f"{name}_out")(x)

        return mlp("actor", 2, 0.01), mlp("critic", 1, 1.0)[..., 0]


class Transition(NamedTuple):
    """One step of every environment."""

    obs: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    reward: jax.Array
    done: jax.Array


network: Any = ActorCritic()
TrainState: Any = train_state.TrainState


def optimiser(config: Config, params: Any) -> tuple[optax.GradientTransformation, prune_rl.NeuronGroups]:
    """Adam with a learning rate that falls to 0, and the groups that it prunes."""
    tx = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adam(optax.linear_schedule(config.learning_rate, 0.0, config.gradient_steps), eps=1e-5),
    )
    obs = jnp.zeros((1, 4))
    part: Any = network.apply if config.critic else lambda p, x: network.apply(p, x)[0]  # prune
    groups = prune_rl.find_groups(part, params, obs)  # prune
    tx = prune_rl.dynamic_pruning(  # prune
        tx,
        groups,
        total_updates=config.gradient_steps,
        sparsity=config.sparsity,  # prune
    )  # prune
    return tx, groups


def rollout(config: Config, state: Any, envs: Any, key: jax.Array) -> tuple[Any, Transition]:
    """``num_steps`` of every environment: [num_steps, num_envs, …]."""

    def step(envs: Any, key: jax.Array) -> tuple[Any, Transition]:
        env_state, obs = envs
        action_key, step_key = jax.random.split(key)
        logits, value = network.apply(state.params, obs)
        action = jax.random.categorical(action_key, logits)
        log_prob = jnp.take_along_axis(nn.log_softmax(logits), action[:, None], 1)[:, 0]
        keys = jax.random.split(step_key, config.num_envs)
        new_obs, env_state, reward, terminated, truncated, _ = jax.vmap(ENV.step, (0, 0, 0, None))(
            keys, env_state, action, ENV_PARAMS
        )
        done = (terminated | truncated).astype(jnp.float32)  # as in purejaxrl, a time limit counts as an end
        return (env_state, new_obs), Transition(obs, action, log_prob, value, reward, done)

    return jax.lax.scan(step, envs, jax.random.split(key, config.num_steps))


def advantages(config: Config, batch: Transition, last_value: jax.Array) -> jax.Array:
    """Generalised advantage estimation (Schulman et al. 2016), [num_steps, num_envs]."""

    def backwards(carry: tuple[jax.Array, jax.Array], now: Transition) -> tuple[Any, jax.Array]:
        advantage, next_value = carry
        going_on = config.gamma * (1.0 - now.done)
        delta = now.reward + going_on * next_value - now.value
        advantage = delta + going_on * config.gae_lambda * advantage
        return (advantage, now.value), advantage

    start = (jnp.zeros_like(last_value), last_value)
    return jax.lax.scan(backwards, start, batch, reverse=True)[1]


def loss(config: Config, params: Any, batch: Transition, advantage: jax.Array) -> jax.Array:
    """Clipped surrogate, clipped value loss and entropy (Schulman et al. 2017)."""
    logits, value = network.apply(params, batch.obs)
    log_probs = nn.log_softmax(logits)
    log_prob = jnp.take_along_axis(log_probs, batch.action[:, None], 1)[:, 0]
    target = batch.value + advantage
    near = batch.value + jnp.clip(value - batch.value, -config.clip_eps, config.clip_eps)
    value_loss = 0.5 * jnp.maximum(jnp.square(value - target), jnp.square(near - target)).mean()
    gain = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    ratio = jnp.exp(log_prob - batch.log_prob)
    clipped = jnp.clip(ratio, 1.0 - config.clip_eps, 1.0 + config.clip_eps)
    surrogate = jnp.minimum(ratio * gain, clipped * gain).mean()
    entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1).mean()
    return config.vf_coef * value_loss - surrogate - config.ent_coef * entropy


def train(config: Config, tx: optax.GradientTransformation, key: jax.Array) -> Any:
    """The whole training of one seed."""
    init_key, reset_key, key = jax.random.split(key, 3)
    state = TrainState.create(apply_fn=network.apply, params=network.init(init_key, jnp.zeros((1, 4))), tx=tx)
    reset_keys = jax.random.split(reset_key, config.num_envs)
    obs, env_state = jax.vmap(ENV.reset, (0, None))(reset_keys, ENV_PARAMS)

    def gradient_step(state: Any, minibatch: Any) -> tuple[Any, None]:
        grads = jax.grad(lambda params: loss(config, params, *minibatch))(state.params)
        return state.apply_gradients(grads=grads), None

    def update(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        state, envs = carry
        rollout_key, shuffle_key = jax.random.split(key)
        envs, batch = rollout(config, state, envs, rollout_key)
        last_value = network.apply(state.params, envs[1])[1]
        data = (batch, advantages(config, batch, last_value))
        size = config.num_steps * config.num_envs
        flat = jax.tree.map(lambda x: x.reshape(size, *x.shape[2:]), data)
        keys = jax.random.split(shuffle_key, config.update_epochs)
        order = jax.vmap(jax.random.permutation, (0, None))(keys, size).reshape(
            -1, size // config.num_minibatches
        )
        state, _ = jax.lax.scan(
            lambda s, i: gradient_step(s, jax.tree.map(lambda x: x[i], flat)), state, order
        )
        return (state, envs), batch.reward.sum() / jnp.maximum(batch.done.sum(), 1.0)

    (state, _), _ = jax.lax.scan(update, (state, (env_state, obs)), jax.random.split(key, config.num_updates))
    return state


def evaluate(policy: Any, key: jax.Array, episodes: int) -> jax.Array:
    """The returns of the likeliest actions, float32[episodes]; ``policy`` maps obs [1, 4] to logits [1, 2]."""

    def step(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        env_state, obs, alive = carry
        action = jnp.argmax(policy(obs[None])[0])
        obs, env_state, reward, terminated, truncated, _ = ENV.step(key, env_state, action, ENV_PARAMS)
        return (env_state, obs, alive & ~(terminated | truncated)), reward * alive

    def episode(key: jax.Array) -> jax.Array:
        reset_key, key = jax.random.split(key)
        obs, env_state = ENV.reset(reset_key, ENV_PARAMS)
        keys = jax.random.split(key, ENV_PARAMS.max_steps_in_episode)
        return jax.lax.scan(step, (env_state, obs, jnp.bool_(True)), keys)[1].sum()

    return jax.vmap(episode)(jax.random.split(key, episodes))


def main(config: Config) -> dict[str, Any]:
    """Train all seeds in one program, compact each actor, and play it."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 4)))
    tx, groups = optimiser(config, shapes)
    keys = jnp.stack([jax.random.key(config.seed + i) for i in range(config.seeds)])
    start = time.perf_counter()
    states = jax.jit(jax.vmap(lambda key: train(config, tx, key)))(keys)
    states.step.block_until_ready()
    seconds = time.perf_counter() - start
    widths, returns = [], []
    for i in range(config.seeds):
        params, opt_state = jax.tree.map(lambda leaf, i=i: leaf[i], (states.params, states.opt_state))
        masks = prune_rl.masks_of(opt_state)  # prune
        small = prune_rl.compact(groups, params, masks)  # prune
        act = prune_rl.compact_function(network.apply, groups, params, masks)  # prune
        widths.append([int(mask.sum()) for mask in masks.values()])
        play = jax.jit(
            lambda key, small=small, act=act: evaluate(lambda x: act(small, x)[0], key, config.episodes)
        )
        returns.append(play(jax.random.key(1000 + config.seed + i)))
    return {
        "widths": widths,
        "mean return": [round(float(r.mean()), 1) for r in returns],
        "lowest return": [round(float(r.min()), 1) for r in returns],
        "seconds, compilation included": round(seconds, 1),
    }


if __name__ == "__main__":
    print(json.dumps(main(tyro.cli(Config))))
