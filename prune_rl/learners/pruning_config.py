"""Options that every learner shares: how it prunes."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Literal, get_args, get_origin, get_type_hints

# Share of training for which importance is tracked before the first neuron may go.
WARM_UP = 0.01
# Mask updates of a whole run, where the number of updates between two is not given.
MASK_UPDATES = 120
# Observations for distillation that fit into memory, for each seed.
MOST_OBSERVATIONS = 10_000_000


@dataclasses.dataclass(frozen=True)
class Pruning:
    """How neurons are removed while training goes on."""

    # Numbers that one program can have many values of, see `prune_rl.learners.traced_numbers`.
    TRACED: ClassVar[tuple[str, ...]] = ("tolerance", "strength", "gate", "energy")

    tolerance: float | None = 0.02
    """How much return may go, as a share. Neurons go while the return of training holds, and are taken back where it
    does not come back, so that each layer finds its width; at the end the policy is the smallest of those kept on the
    way that returns at least so much of the dense control's return, or of the run's best where there is no control.
    None: neurons go by the schedule from begin to end, to sparsity."""
    sparsity: float = 1.0
    """Share of each hidden layer of the actor that may be gone in the end, in [0, 1]."""
    critic: bool = False
    """Prune the critic too."""
    critic_sparsity: float = 0.5
    """Share of each hidden layer of the critic that may be gone in the end, in [0, 1], if the critic is pruned."""
    begin: float = 0.86
    """Share of training after which neurons may go."""
    end: float = 0.94
    """Share of training after which none goes any more."""
    proximal_begin: float | None = None
    """Share of training after which the proximal step acts and importance is tracked, by default 0.01 before the first
    neuron may go; until then training is that of the dense control, to the bit."""
    critic_begin: float | None = None
    """The same for the critic, by default as for the actor."""
    critic_end: float | None = None
    """The same for the critic, by default as for the actor."""
    every: int | None = None
    """Learner updates between two mask updates, by default such that about 120 lie between begin and end; if no
    multiple of it lies there, one is made at end."""
    score: Literal["taylor", "fisher", "magnitude", "output", "random", "surgeon", "elimination"] = (
        "elimination"
    )
    """What orders the neurons, see `prune_rl.pruning.importance`."""
    refit: bool = True
    """Move what removed neurons contributed to the surviving outgoing weights, by least squares on the rollout."""
    scope: Literal["layer", "global"] = "layer"
    """Rank neurons within their layer, or over all layers of a network (normalised per layer first)."""
    energy: float | None = None
    """Without tolerance: what goes at a mask update holds at most this share of a layer's present importance, in
    [0, 1)."""
    gate: float | None = None
    """Without tolerance: the schedule rests while the running training return is below reference - gate * |reference|,
    and goes on after end."""
    min_width: int | None = None
    """No layer gets narrower than this: by default 0 in an actor with the linear path of --skip, else 1."""
    strength: float = 1e-4
    """Strength of the group-sparse proximal step on the actor; 0 leaves it out."""
    metric: Literal["euclidean", "adam"] = "euclidean"
    """Metric of the proximal step."""
    shrink: Literal["auto", "always", "never"] = "auto"
    """Gather what is left into smaller arrays while training goes on, which makes it cheaper and leaves the result the
    same up to rounding. auto: where the work saved is worth a compilation; never: neurons are masked only."""
    learning_rate_floor: float | None = None
    """While neurons may go, Adam's step size is at least this share of learning_rate, and after end it falls linearly
    to learning_rate_end: a network that has just narrowed has to learn, where nothing is distilled. None: it goes on as
    in the dense control."""
    rest: bool = False
    """With tolerance and distillation: from begin on the learner makes no updates of its own, acts without noise, and
    distillation goes on to the end."""
    distill_ratio: float = 1.0
    """With tolerance, in the first episodes after a removal: gradient steps per environment step that bring the policy
    back to that of before the first removal, on the states of the last rollouts. 0 leaves them out."""
    distill_batch_size: int = 256
    """Observations per such step."""
    distill_buffer: int = 65_536
    """Observations that they are drawn from, the last ones."""
    distill_learning_rate: float = 2.4e-2
    """The first step size of Adam in a distillation, divided by the root of the mean width of a layer + 1."""
    importance_decay: float = 0.99
    """Decay of the running mean of importance over gradient steps."""

    def floor(self, skip: bool) -> int:
        """Neurons that each hidden layer of the actor keeps; ``skip``: whether a linear path bypasses them."""
        return (0 if skip else 1) if self.min_width is None else self.min_width

    def window(self, network: Literal["actor", "critic"]) -> tuple[float, float]:
        """Shares of training between which the neurons of a network go."""
        if network == "actor":
            return self.begin, self.end
        begin, end = self.critic_begin, self.critic_end
        return self.begin if begin is None else begin, self.end if end is None else end

    def updates_apart(self, num_updates: int) -> int:
        """Learner updates between two mask updates in a run of ``num_updates``."""
        if self.every is not None:
            return self.every
        return max(1, round((self.end - self.begin) * num_updates / MASK_UPDATES))

    def check(self, hidden: tuple[int, ...], *, least_width: int = 1) -> None:
        """Raise ``ValueError`` for options that cannot work with these hidden widths, or a floor below the least."""
        for name in ("sparsity", "critic_sparsity"):
            _in_range(f"prune.{name}", getattr(self, name), 0.0, 1.0)
        if self.energy is not None:
            _in_range("prune.energy", self.energy, 0.0, 1.0, open_end=True)
        for prefix, (begin, end) in (("", self.window("actor")), ("critic_", self.window("critic"))):
            _in_range(f"prune.{prefix}begin", begin, 0.0, 1.0)
            _in_range(f"prune.{prefix}end", end, 0.0, 1.0)
            if begin > end:
                raise ValueError(
                    f"prune.{prefix}begin must not exceed prune.{prefix}end, got {begin} > {end}"
                )
        if self.proximal_begin is not None:
            begin = min(self.begin, self.window("critic")[0]) if self.critic else self.begin
            _in_range("prune.proximal_begin", self.proximal_begin, 0.0, 1.0)
            if self.proximal_begin > begin:
                raise ValueError(
                    f"prune.proximal_begin must not exceed the share of training after which neurons may go, got "
                    f"{self.proximal_begin} > {begin}"
                )
        if self.gate is not None and not (self.gate >= 0 and math.isfinite(self.gate)):
            raise ValueError(f"prune.gate must be >= 0, got {self.gate}")
        if self.tolerance is not None and not (self.tolerance >= 0 and math.isfinite(self.tolerance)):
            raise ValueError(f"prune.tolerance must be a finite number >= 0, got {self.tolerance}")
        if not (self.strength >= 0 and math.isfinite(self.strength)):
            raise ValueError(f"prune.strength must be a finite number >= 0, got {self.strength}")
        if self.learning_rate_floor is not None:
            _in_range("prune.learning_rate_floor", self.learning_rate_floor, 0.0, 100.0)
        _in_range("prune.distill_ratio", self.distill_ratio, 0.0, 1000.0)
        for name in ("distill_batch_size", "distill_buffer"):
            _in_range(f"prune.{name}", getattr(self, name), 1, MOST_OBSERVATIONS)
        if not 0.0 < self.distill_learning_rate <= 1.0:
            raise ValueError(
                f"prune.distill_learning_rate must lie in (0, 1], got {self.distill_learning_rate}"
            )
        if self.every is not None and self.every < 1:
            raise ValueError(f"prune.every must be >= 1, got {self.every}")
        if self.tolerance is not None:
            for name, value in (("energy", self.energy), ("gate", self.gate)):
                if value is not None:
                    raise ValueError(
                        f"prune.{name} = {value} is for a schedule, and prune.tolerance = {self.tolerance} decides by "
                        f"itself when neurons go: leave prune.{name} out, or set prune.tolerance to None"
                    )
            if self.scope == "global":
                raise ValueError(
                    f"prune.scope global is for a schedule, and with prune.tolerance = {self.tolerance} each layer "
                    "finds its own width: choose layer, or set prune.tolerance to None"
                )
        if self.min_width is not None and self.min_width < least_width:
            linear = " without --skip" if self.min_width == 0 else ""
            raise ValueError(f"prune.min_width must be >= {least_width}{linear}, got {self.min_width}")
        if self.min_width is not None and hidden and self.min_width > min(hidden):
            raise ValueError(
                f"prune.min_width = {self.min_width} is wider than the narrowest hidden layer ({min(hidden)}); "
                f"lower it or widen --hidden {' '.join(map(str, hidden))}"
            )
        _in_range("prune.importance_decay", self.importance_decay, 0.0, 1.0, open_end=True)
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                choices = ", ".join(get_args(kind))
                raise ValueError(f"unknown prune.{name} {getattr(self, name)!r}; choose one of {choices}")


def _in_range(name: str, value: float, low: float, high: float, *, open_end: bool = False) -> None:
    if not (low <= value < high if open_end else low <= value <= high):
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}{')' if open_end else ']'}, got {value}")
