"""Faults of single seeds: values that are NaN, infinite or beyond reason, and what becomes of the seed.

All seeds share one compiled program, so a seed with a fault cannot leave it. It is frozen: its environments on the host
are not stepped any more, its metrics are NaN, it gets no policy, and its place in the program is filled by a copy of a
healthy seed, so that neither NaN nor neurons of its own are left there. The other seeds compute what they would compute
without the fault.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from prune_rl.learners.registry import Config as LearnerConfig
from prune_rl.learners.registry import Metrics
from prune_rl.learners.rollout import Rollout
from prune_rl.runs.log_rows import COUNTS
from prune_rl.spaces import Discrete, Spec

# Observations, rewards and actions above this are beyond reason: sums of their squares come near float32's end.
LIMIT = 1e12
# What ``fault_metrics`` adds to the metrics of an update.
PLACE, VALUE = "fault_place", "fault_value"


@dataclasses.dataclass(frozen=True)
class Fault:
    """The first value of a seed that cannot be learned from.

    Attributes:
        seed: the seed of the run.
        step: environment steps of this seed up to it, those of all its environments together.
        source: "observation", "reward" or "action"; or "metric" or "network", where training itself diverged.
        component: index in the flat observation or action; or the name of the metric.
        value: "NaN", "inf", "-inf" or the number.
        environment: index of the sub-environment, from 0; None where training diverged.
        environment_step: steps of that sub-environment.
    """

    seed: int
    step: int
    source: str
    component: int | str | None
    value: str
    environment: int | None = None
    environment_step: int | None = None

    def sentence(self, env_id: str) -> str:
        """What happened, as one sentence."""
        at = f"at step {self.step:,}"
        if self.source == "network":
            return (
                f"the training of seed {self.seed} diverged: {self.value} {at}; try a lower --learning-rate"
            )
        if self.source == "metric":
            return (
                f"the training of seed {self.seed} diverged {at}: {self.component} is {self.value}; try a lower "
                "--learning-rate"
            )
        where = f"{at} (environment {self.environment}, its step {self.environment_step:,})"
        if self.source == "action":
            return (
                f"the policy of seed {self.seed} in {env_id} put out {self.value} as component {self.component} of an "
                f"action {where}: its training diverged; try a lower --learning-rate"
            )
        what = "reward" if self.source == "reward" else f"component {self.component} of an observation"
        return f"{env_id} gave seed {self.seed} {self.value} as {what} {where}"


class TrainingFailed(RuntimeError):
    """No seed of a run can be trained any further; the message says why, and what to do."""


class Faults:
    """The faults of the members that train together, at most one each: the seeds of a run, or of several.

    Args:
        seeds: of each member.
        config: of the learner.
        spec: of the environment.
        names: what tells members with the same seed apart, such as "learning_rate=0.01"; none in a single run.
    """

    def __init__(
        self, seeds: Sequence[int], config: LearnerConfig, spec: Spec, names: Sequence[str] = ()
    ) -> None:
        self._seeds, self._config, self._spec, self._names = list(seeds), config, spec, list(names)
        self._found: dict[int, Fault] = {}  # by member
        self._untold: list[int] = []

    @property
    def frozen(self) -> npt.NDArray[np.bool_]:
        """bool[S]: members that have a fault."""
        return np.array([member in self._found for member in range(len(self._seeds))])

    def add(self, fault: Fault, member: int | None = None) -> None:
        """Freeze a member, by default the one of the fault's seed; of one that is frozen the first fault stays."""
        member = self._seeds.index(fault.seed) if member is None else member
        if member not in self._found:
            self._found[member] = fault
            self._untold.append(member)

    def untold(self) -> list[Fault]:
        """Those that were added since the last call of this or of ``sentences``."""
        told, self._untold = self._untold, []
        return [self._found[member] for member in told]

    def sentences(self, env_id: str) -> list[str]:
        """What happened to the members that were frozen since the last call of this or of ``untold``."""
        members = list(self._untold)
        names = [f"with {self._names[member]}, " if self._names else "" for member in members]
        return [f"{name}{fault.sentence(env_id)}" for name, fault in zip(names, self.untold(), strict=True)]

    @property
    def members(self) -> list[int]:
        """The members that have a fault, in order, as ``to_json``."""
        return sorted(self._found)

    @property
    def found(self) -> list[Fault]:
        """Their faults, in the same order."""
        return [self._found[member] for member in self.members]

    def restore(self, data: Iterable[Mapping[str, Any]], members: Iterable[int] | None = None) -> None:
        """Those of a checkpoint, from ``to_json`` and ``members``; they count as told.

        Without ``members`` they are those of the faults' seeds.
        """
        faults = [Fault(**entry) for entry in data]
        found = [self._seeds.index(fault.seed) for fault in faults] if members is None else members
        self._found = dict(zip(found, faults, strict=True))
        self._untold = []

    def to_json(self) -> list[dict[str, Any]]:
        """JSON data, in order of members."""
        return [dataclasses.asdict(fault) for fault in self.found]

    def records(self, env_id: str, members: range | None = None) -> list[dict[str, Any]]:
        """The same of some or all members, with a "sentence" each, for faults.json."""
        mine = [
            fault for member, fault in sorted(self._found.items()) if members is None or member in members
        ]
        return [dataclasses.asdict(fault) | {"sentence": fault.sentence(env_id)} for fault in mine]

    def look_at_rollout(self, index: int, rollout: Rollout, done: int) -> bool:
        """Freeze seed number ``index`` if its rollout [T, N, …], the one after ``done`` updates, has a fault.

        Returns whether it has.
        """
        # Maxima first: the arrays of a healthy rollout are not put together.
        with np.errstate(invalid="ignore"):
            healthy = all(np.max(np.abs(x)) <= LIMIT for x in _floats(rollout))
        if not healthy:
            self._add_place(index, *first_fault(rollout), done)
        return not healthy

    def look_at_metrics(self, metrics: Metrics, done: int) -> Metrics:
        """The metrics [n, S] of the updates after ``done``, with NaN for frozen seeds.

        Freezes seeds whose metrics say so: by what ``fault_metrics`` added, which is taken out, or by NaN in a loss.
        """
        metrics = dict(metrics)
        places, values = metrics.pop(PLACE, None), metrics.pop(VALUE, None)
        floats = {
            name: np.array(value)
            for name, value in metrics.items()
            # How far the schedule is describes the masks, which all seeds go on sharing programs by.
            if not name.startswith("prune") and np.issubdtype(np.asarray(value).dtype, np.floating)
        }
        broken = {name: np.isnan(value) for name, value in floats.items() if name not in COUNTS}
        for index, seed in enumerate(self._seeds):
            before = index in self._found
            rows = [int(np.argmax(bad[:, index])) for bad in broken.values() if bad[:, index].any()]
            first = min(rows, default=None)
            if places is not None and values is not None and np.any(places[:, index, 0] >= 0):
                row = int(np.argmax(places[:, index, 0] >= 0))
                if first is None or row <= first:
                    first = row
                    self._add_place(index, places[row, index], values[row, index], done + row)
            if first is not None:
                name = next((name for name, bad in broken.items() if bad[first, index]), None)
                step = (done + int(first) + 1) * self._config.steps_per_update
                self.add(Fault(seed, step, "metric", name, "NaN"), index)
            if index in self._found:
                for value in floats.values():
                    value[0 if before else first :, index] = np.nan
        return metrics | floats

    def _add_place(self, index: int, place: npt.ArrayLike, value: Any, done: int) -> None:
        """A fault at ``place`` = (step, environment, column) of the rollout after ``done`` updates."""
        t, n, column = (int(number) for number in np.asarray(place))
        config, size = self._config, self._spec.observation_size
        actions = 0 if isinstance(self._spec.action, Discrete) else self._spec.action.size
        source, component = next(
            (source, column - before)
            for source, before, count in (
                ("observation", 0, size),
                ("action", size, actions),
                ("reward", size + actions, 1),
                ("observation", size + actions + 1, size),
            )
            if before <= column < before + count
        )
        self.add(
            Fault(
                seed=self._seeds[index],
                step=done * config.steps_per_update + t * config.num_envs + n + 1,
                source=source,
                component=None if source == "reward" else component,
                value="NaN" if math.isnan(value) else f"{float(value):g}",
                environment=n,
                environment_step=done * config.num_steps + t + 1,
            ),
            index,
        )


def _floats(rollout: Rollout) -> list[Any]:
    """What may have a fault, [T, N] or [T, N, …], in the order in which it comes to be within a step."""
    actions = [rollout.action] if rollout.action.ndim > rollout.reward.ndim else []
    return [rollout.obs, *actions, rollout.reward, rollout.next_obs]


def first_fault(rollout: Rollout) -> tuple[jax.Array, jax.Array]:
    """The first value of a rollout [T, N, …] that is NaN, infinite or beyond ``LIMIT``; jittable.

    Returns its place, int32[3]: step, environment, and column among observation, action (Box only), reward and next
    observation; −1 each if there is none. And its value, float32[].
    """
    lead = rollout.reward.shape
    columns = [jnp.asarray(x, jnp.float32).reshape(*lead, -1) for x in _floats(rollout)]
    values = jnp.concatenate(columns, axis=-1)
    bad = ~(jnp.abs(values) <= LIMIT)
    first = jnp.argmax(bad)
    place = jnp.stack(jnp.unravel_index(first, values.shape)).astype(jnp.int32)
    return jnp.where(jnp.any(bad), place, -1), values.reshape(-1)[first]


def fault_metrics(rollout: Rollout) -> Metrics:
    """The fault of a rollout, for ``look_at_metrics``. Jittable; it leaves the rollout alone, since XLA would compile
    what reads a changed one to other bits.
    """
    place, value = first_fault(rollout)
    return {PLACE: place, VALUE: jnp.where(place[0] >= 0, value, 0.0)}
