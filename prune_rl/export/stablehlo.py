"""A policy as StableHLO, through `jax.export`: a versioned program of any batch size for every platform of XLA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prune_rl.export.policy import Policy

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def stablehlo(policy: Policy) -> bytes:
    """What `jax.export.deserialize` reads: a function from float32[batch, D] to actions of the policy's own dtype.

    It is `Policy.as_jax` in JAX's 64-bit mode, so that integers and float64 are what they are in NumPy; a caller needs
    that mode only to read such actions. An observation with NaN gives what `as_jax` does.
    """
    import jax
    from jax import export

    with jax.enable_x64(True):
        (batch,) = export.symbolic_shape("batch")
        struct: Any = jax.ShapeDtypeStruct  # has no types
        obs = struct((batch, policy.observation_size), jax.numpy.float32)
        exported = export.export(jax.jit(policy.as_jax()), platforms=PLATFORMS)(obs)
    return bytes(exported.serialize())
