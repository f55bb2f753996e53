"""Every primitive of JAX has a rule, or is listed here as one that fixes the axes it touches."""

from __future__ import annotations

import jax
from jax.extend import core as jex
from jax.extend.core import primitives

from prune_rl.dependency.interpreter import CONTROL_FLOW
from prune_rl.dependency.jaxpr import INLINED, KEPT_CALLS
from prune_rl.dependency.rules import KEYS, LINKS

# Linear algebra and transforms mix all positions of their axes.
MIX = {
    "cholesky", "custom_lin", "custom_linear_solve", "eig", "eigh", "fft", "hessenberg", "householder_product", "lu",
    "qr", "schur", "svd", "triangular_solve", "tridiagonal", "tridiagonal_solve",
}  # fmt: skip
# Between devices.
MOVE = {"all_gather", "all_to_all", "axis_index", "ppermute", "ragged_all_to_all"}
# With a computation of their own, or only in derivatives of what has a rule.
COMPUTE = {
    "approx_top_k", "reduce", "reduce_window", "select_and_gather_add", "select_and_scatter", "select_and_scatter_add",
    "random_gamma",
}  # fmt: skip
# Not arrays: references, tokens, staged calls.
OTHER = {"after_all", "call", "create_token", "dce_sink", "get", "stage", "swap"}


def test_every_primitive_has_a_rule_or_is_known_to_have_none() -> None:
    """A release of JAX that brings another one fails here: give it a rule in `rules`, or add it to the list."""
    found = {
        str(primitive.name)
        for module in (jax.lax, primitives)
        for name, primitive in vars(module).items()
        if name.endswith("_p") and isinstance(primitive, jex.Primitive)
    }
    assert len(found) > 150
    ours = {*LINKS, *KEYS, *INLINED, *KEPT_CALLS, *CONTROL_FLOW}
    assert found - ours == MIX | MOVE | COMPUTE | OTHER
