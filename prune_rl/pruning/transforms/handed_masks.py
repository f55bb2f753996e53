"""The extra arguments of a transformation inside ours: those that the caller gave, and masks where they are used."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

import jax
import optax

from prune_rl.dependency.tree_paths import Masks, Params
from prune_rl.pruning.transforms.scale_by_width import ScaleByWidthState


def hand_masks(inner: optax.GradientTransformation, *, given: bool) -> optax.GradientTransformationExtraArgs:
    """``inner``, which gets masks where it uses them.

    Args:
        inner: any optax transformation.
        given: whether the masks are an argument of the caller, which every transformation gets. If not, they go to
            ``scale_by_width`` alone, since others, such as a line search, hand extra arguments on to functions of the
            caller.
    """
    wrapped = optax.with_extra_args_support(inner)

    def update_fn(
        updates: Params, state: Any, params: Params | None = None, *, masks: Masks | None = None, **extra: Any
    ) -> tuple[Params, Any]:
        if masks is not None and (given or _scales_by_width(state)):
            extra["masks"] = masks
            # A line search gives the function all arguments that are not its own.
            if "value_fn" in extra:
                extra["value_fn"] = _without_masks(extra["value_fn"])
        result: tuple[Params, Any] = wrapped.update(updates, state, params, **extra)
        return result

    return optax.GradientTransformationExtraArgs(wrapped.init, cast(Any, update_fn))


def _scales_by_width(state: Any) -> bool:
    def is_ours(node: Any) -> bool:
        return isinstance(node, ScaleByWidthState)

    return any(map(is_ours, jax.tree.leaves(state, is_leaf=is_ours)))


def _without_masks(value_fn: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(value_fn)
    if "masks" in signature.parameters:
        return value_fn

    def function(*arguments: Any, masks: Any = None, **named: Any) -> Any:
        del masks
        return value_fn(*arguments, **named)

    # Optax gives a function the arguments that its signature names.
    ours = inspect.Parameter("masks", inspect.Parameter.KEYWORD_ONLY, default=None)
    parameters = sorted([*signature.parameters.values(), ours], key=lambda parameter: parameter.kind)
    cast(Any, function).__signature__ = signature.replace(parameters=parameters)
    return function
