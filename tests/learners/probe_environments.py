"""Tiny environments whose optimal values and policies are known in closed form, in the interface of `JaxEnv`.

Each isolates one part of a learner: when a probe fails, the parts that the earlier ones need are known to work. They
observe one number; `Mixture` puts several into one environment, so that one compiled program trains on all of them.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prune_rl.envs.autoreset import JaxEnv
from prune_rl.spaces import Box, Discrete, Spec

Step = tuple["ProbeState", jax.Array, jax.Array, jax.Array, jax.Array]


class ProbeState(NamedTuple):
    """``signal`` float32[]: drawn at the reset; ``steps`` int32[]: steps since then."""

    signal: jax.Array
    steps: jax.Array


def _sign(key: jax.Array) -> jax.Array:
    return jnp.where(jax.random.bernoulli(key), 1.0, -1.0).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Probe:
    """A probe with two actions; a fresh episode draws its signal, ±1, and shows it."""

    time_limit: int = 1

    @property
    def spec(self) -> Spec:
        return Spec(observation_size=1, action=Discrete(2))

    def reset(self, key: jax.Array) -> tuple[ProbeState, jax.Array]:
        state = ProbeState(_sign(key), jnp.int32(0))
        return state, self.observe(state)

    def observe(self, state: ProbeState) -> jax.Array:
        return jnp.reshape(state.signal, (1,))

    def reward(self, state: ProbeState, action: jax.Array) -> jax.Array:
        raise NotImplementedError

    def step(self, env_state: ProbeState, action: jax.Array) -> Step:
        reward = jnp.asarray(self.reward(env_state, action), jnp.float32)
        state = ProbeState(env_state.signal, env_state.steps + 1)
        return state, self.observe(state), reward, state.steps >= self.time_limit, jnp.zeros((), bool)


@dataclasses.dataclass(frozen=True)
class OneReward(Probe):
    """One step, reward 1 whatever happens: value 1."""

    def reward(self, state: ProbeState, action: jax.Array) -> jax.Array:
        return jnp.ones(())


@dataclasses.dataclass(frozen=True)
class ObservedReward(Probe):
    """One step, the reward is what was observed: value of an observation = the observation."""

    def reward(self, state: ProbeState, action: jax.Array) -> jax.Array:
        return state.signal


@dataclasses.dataclass(frozen=True)
class DelayedReward(Probe):
    """Two steps that observe 0 and 1, reward 1 in the second: values γ and 1."""

    time_limit: int = 2

    def observe(self, state: ProbeState) -> jax.Array:
        return jnp.reshape(state.steps.astype(jnp.float32), (1,))

    def reward(self, state: ProbeState, action: jax.Array) -> jax.Array:
        return state.steps.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class ChosenReward(Probe):
    """One step, action 1 is worth +1, action 0 is worth −1: the policy must take 1, and the value becomes 1."""

    def reward(self, state: ProbeState, action: jax.Array) -> jax.Array:
        return jnp.where(action == 1, 1.0, -1.0)


@dataclasses.dataclass(frozen=True)
class MatchedReward(Probe):
    """One step, +1 if the action (0 or 1) is the sign of the observation, else −1: the policy must look."""

    def reward(self, state: ProbeState, action: jax.Array) -> jax.Array:
        return jnp.where((action == 1) == (state.signal > 0), 1.0, -1.0)


@dataclasses.dataclass(frozen=True)
class TimeLimited(Probe):
    """Reward 1 at every step of an endless task that is truncated after ``time_limit`` steps: value 1/(1 − γ).

    Taken for terminations, the truncations would give Σ_{i<k} γ^i at most, k being the time limit.
    """

    time_limit: int = 4

    def reward(self, state: ProbeState, action: jax.Array) -> jax.Array:
        return jnp.ones(())

    def observe(self, state: ProbeState) -> jax.Array:
        return jnp.ones(1)

    def step(self, env_state: ProbeState, action: jax.Array) -> Step:
        state, obs, reward, ended, never = super().step(env_state, action)
        return state, obs, reward, never, ended


@dataclasses.dataclass(frozen=True)
class ContinuousTarget(Probe):
    """One step, reward −(a − 0.7 · observation)²: the mean must become 0.7 · observation."""

    scale: float = 0.7
    low: float = -2.0
    high: float = 2.0

    @property
    def spec(self) -> Spec:
        return Spec(observation_size=1, action=Box((self.low,), (self.high,), (1,)))

    def reward(self, state: ProbeState, action: jax.Array) -> jax.Array:
        return jnp.negative(jnp.square(action[0] - self.scale * state.signal))


@dataclasses.dataclass(frozen=True)
class FarTarget(ContinuousTarget):
    """One step, best action 80 within bounds that a standard normal never comes near."""

    low: float = 50.0
    high: float = 100.0

    def reward(self, state: ProbeState, action: jax.Array) -> jax.Array:
        return jnp.negative(jnp.square((jnp.clip(action[0], self.low, self.high) - 80.0) / 10.0))


class MixtureState(NamedTuple):
    """``which`` int32[]: the probe of this episode; ``states``: one state of each."""

    which: jax.Array
    states: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Mixture:
    """At each reset one of the probes, evenly; observes which one (one-hot), and what that one observes."""

    probes: tuple[JaxEnv[Any], ...]

    @property
    def time_limit(self) -> int:
        return max(probe.time_limit for probe in self.probes)

    @property
    def spec(self) -> Spec:
        first = self.probes[0].spec
        return Spec(len(self.probes) + first.observation_size, first.action)

    def observation(self, which: int, observed: float) -> jax.Array:
        """What the learner sees while probe ``which`` shows ``observed``."""
        return self._observe(jnp.int32(which), jnp.float32(observed)[None])

    def reset(self, key: jax.Array) -> tuple[MixtureState, jax.Array]:
        which_key, key = jax.random.split(key)
        which = jax.random.randint(which_key, (), 0, len(self.probes))
        states, observations = zip(*(probe.reset(key) for probe in self.probes), strict=True)
        return MixtureState(which, states), self._observe(which, jnp.stack(observations)[which])

    def step(
        self, env_state: MixtureState, action: jax.Array
    ) -> tuple[MixtureState, jax.Array, jax.Array, jax.Array, jax.Array]:
        steps = (
            probe.step(state, action) for probe, state in zip(self.probes, env_state.states, strict=True)
        )
        states, *parts = zip(*steps, strict=True)
        observed, reward, terminated, truncated = (jnp.stack(part)[env_state.which] for part in parts)
        obs = self._observe(env_state.which, observed)
        return MixtureState(env_state.which, states), obs, reward, terminated, truncated

    def _observe(self, which: jax.Array, observed: jax.Array) -> jax.Array:
        return jnp.concatenate([jax.nn.one_hot(which, len(self.probes)), observed])
