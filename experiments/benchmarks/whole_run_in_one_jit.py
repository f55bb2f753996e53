"""PPO on CartPole-v1 with the whole run in one compiled program, in the way of purejaxrl.

No pruning, no normalisation, no truncation apart from termination, no metrics. The environment is ours, so that both
sides step the same one. After Lu et al. 2022, `Discovered Policy Optimisation
<https://arxiv.org/abs/2210.05639>`_, whose code made this way known.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.benchmarks.turns import Timing, wait_for
from prune_rl.envs.cartpole import CartPole
from prune_rl.learners.ppo import Config

Params = Any
ENV = CartPole()


class Transition(NamedTuple):
    """One step of all environments, or a batch of them."""

    obs: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    reward: jax.Array
    done: jax.Array


def init_network(key: jax.Array, sizes: tuple[int, ...], scale: float) -> Params:
    """Orthogonal layers [(kernel, bias), …]; the last one is scaled."""
    keys = jax.random.split(key, len(sizes) - 1)
    layers = []
    for i, (layer_key, inputs, outputs) in enumerate(zip(keys, sizes[:-1], sizes[1:], strict=True)):
        gain = scale if i == len(sizes) - 2 else 2**0.5
        kernel = jax.nn.initializers.orthogonal(gain)(layer_key, (inputs, outputs), jnp.float32)
        layers.append((kernel, jnp.zeros(outputs)))
    return layers


def apply_network(layers: Params, x: jax.Array) -> jax.Array:
    """Outputs […, O] for inputs […, I]."""
    for kernel, bias in layers[:-1]:
        x = jnp.tanh(x @ kernel + bias)
    kernel, bias = layers[-1]
    outputs: jax.Array = x @ kernel + bias
    return outputs


def train(key: jax.Array, config: Config, updates: int) -> Params:
    """Parameters after ``updates`` updates; a pure function, compiled as a whole."""
    schedule = optax.linear_schedule(config.learning_rate, 0.0, config.learning_steps)
    clip = optax.clip_by_global_norm(config.max_grad_norm)
    tx = optax.chain(clip, optax.adam(schedule, eps=1e-5))
    actor_key, critic_key, reset_key, key = jax.random.split(key, 4)
    params = {
        "actor": init_network(actor_key, (4, *config.hidden, 2), 0.01),
        "critic": init_network(critic_key, (4, *config.hidden, 1), 1.0),
    }

    def step(carry: Any, _: None) -> tuple[Any, Transition]:
        params, env_state, obs, key = carry
        action_key, reset_key, key = jax.random.split(key, 3)
        logits = apply_network(params["actor"], obs)
        action = jax.random.categorical(action_key, logits)
        log_prob = _log_prob(logits, action)
        value = apply_network(params["critic"], obs)[..., 0]
        stepped, next_obs, reward, terminated, truncated = jax.vmap(ENV.step)(env_state, action)
        done = terminated | truncated
        fresh_state, fresh_obs = jax.vmap(ENV.reset)(jax.random.split(reset_key, config.num_envs))
        env_state = jax.tree.map(lambda new, old: _where(done, new, old), fresh_state, stepped)
        transition = Transition(obs, action, log_prob, value, reward, done)
        return (params, env_state, _where(done, fresh_obs, next_obs), key), transition

    def loss(params: Params, batch: Transition, advantage: jax.Array, target: jax.Array) -> jax.Array:
        logits = apply_network(params["actor"], batch.obs)
        value = apply_network(params["critic"], batch.obs)[..., 0]
        ratio = jnp.exp(_log_prob(logits, batch.action) - batch.log_prob)
        scaled = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        clipped = jnp.clip(ratio, 1.0 - config.clip_eps, 1.0 + config.clip_eps)
        actor_loss = -jnp.minimum(ratio * scaled, clipped * scaled).mean()
        log_probs = jax.nn.log_softmax(logits)
        entropy = -(jnp.exp(log_probs) * log_probs).sum(-1).mean()
        value_loss = 0.5 * jnp.square(value - target).mean()
        return actor_loss + config.vf_coef * value_loss - config.ent_coef * entropy

    def minibatch(carry: Any, batch: Any) -> tuple[Any, None]:
        params, opt_state = carry
        updates, opt_state = tx.update(jax.grad(loss)(params, *batch), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    def update(carry: Any, _: None) -> tuple[Any, None]:
        params, opt_state, env_state, obs, key = carry
        (_, env_state, obs, key), rollout = jax.lax.scan(
            step, (params, env_state, obs, key), None, config.num_steps
        )
        last_value = apply_network(params["critic"], obs)[..., 0]
        advantage = _advantages(rollout, last_value, config)
        rows = (rollout, advantage, advantage + rollout.value)
        rows = jax.tree.map(lambda x: x.reshape(config.steps_per_update, *x.shape[2:]), rows)

        def epoch(carry: Any, key: jax.Array) -> tuple[Any, None]:
            order = jax.random.permutation(key, config.steps_per_update)
            shuffled = jax.tree.map(
                lambda x: x[order].reshape(config.num_minibatches, -1, *x.shape[1:]), rows
            )
            return jax.lax.scan(minibatch, carry, shuffled)

        epoch_key, key = jax.random.split(key)
        keys = jax.random.split(epoch_key, config.update_epochs)
        (params, opt_state), _ = jax.lax.scan(epoch, (params, opt_state), keys)
        return (params, opt_state, env_state, obs, key), None

    env_state, obs = jax.vmap(ENV.reset)(jax.random.split(reset_key, config.num_envs))
    carry: Any = (params, tx.init(params), env_state, obs, key)
    carry, _ = jax.lax.scan(update, carry, None, updates)
    return carry[0]


def _log_prob(logits: jax.Array, action: jax.Array) -> jax.Array:
    return jnp.take_along_axis(jax.nn.log_softmax(logits), action[..., None], -1)[..., 0]


def _where(done: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    return jnp.where(done.reshape(-1, *(1,) * (new.ndim - 1)), new, old)


def _advantages(rollout: Transition, last_value: jax.Array, config: Config) -> jax.Array:
    """Generalised advantage estimates [T, N]."""

    def step(carry: Any, row: Transition) -> tuple[Any, jax.Array]:
        advantage, next_value = carry
        alive = 1.0 - row.done
        delta = row.reward + config.gamma * next_value * alive - row.value
        advantage = delta + config.gamma * config.gae_lambda * alive * advantage
        return (advantage, row.value), advantage

    start = (jnp.zeros_like(last_value), last_value)
    advantages: jax.Array = jax.lax.scan(step, start, rollout, reverse=True, unroll=16)[1]
    return advantages


class OneJit:
    """The program, compiled; every repeat trains anew from another seed."""

    def __init__(self, config: Config, updates: int) -> None:
        self._program: Any = (
            jax.jit(lambda key: train(key, config, updates)).lower(jax.random.key(0)).compile()
        )
        self._work = updates * config.steps_per_update
        self._seed = 0
        self.run()

    def run(self) -> Timing:
        """Environment steps and their seconds."""
        self._seed += 1
        key = jax.random.key(self._seed)
        started = time.perf_counter()
        self.params = self._program(key)
        wait_for(self.params)
        return Timing(time.perf_counter() - started, self._work)
