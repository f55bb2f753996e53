"""The importance scores by name, and what each needs beside the parameters."""

from __future__ import annotations

from typing import NamedTuple

from prune_rl.pruning.brain_surgeon import surgeon_importance
from prune_rl.pruning.elimination import elimination_importance
from prune_rl.pruning.importance import (
    Importance,
    fisher_importance,
    magnitude_importance,
    output_importance,
    random_importance,
    taylor_importance,
)


class Score(NamedTuple):
    """An importance function.

    Attributes:
        function: of the signature that `prune_rl.pruning.importance` describes.
        needs: names of the arguments that it cannot do without.
        takes_neurons: whether it takes ``neurons`` too.
    """

    function: Importance
    needs: frozenset[str] = frozenset()
    takes_neurons: bool = False


SCORES: dict[str, Score] = {
    "taylor": Score(taylor_importance, frozenset({"grads"})),
    "fisher": Score(fisher_importance, frozenset({"grads"})),
    "magnitude": Score(magnitude_importance),
    "output": Score(output_importance, frozenset({"activations"})),
    "random": Score(random_importance, frozenset({"key"}), takes_neurons=True),
    "surgeon": Score(surgeon_importance, frozenset({"activations"})),
    "elimination": Score(elimination_importance, frozenset({"activations"})),
}


def score_named(name: str) -> Score:
    """The score of that name. Raises ``ValueError`` if there is none."""
    if name not in SCORES:
        raise ValueError(f"unknown importance {name!r}; choose one of {', '.join(sorted(SCORES))}")
    return SCORES[name]


def gradient_importance(importance: str | Importance) -> Importance:
    """The importance function for an optax transformation, which has parameters and gradients and nothing else.

    Raises:
        ValueError: there is no score of that name, or it needs activations or a key.
    """
    if not isinstance(importance, str):
        return importance
    function, needs, _ = score_named(importance)
    if needs - {"grads"}:
        usable = ", ".join(name for name, score in SCORES.items() if not score.needs - {"grads"})
        raise ValueError(
            f"importance {importance!r} needs {' and '.join(sorted(needs))}, which an optax transformation does not "
            f"have; choose one of {usable}"
        )
    return function
