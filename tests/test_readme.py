"""The code that the README shows runs as it stands."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

README = Path(__file__).parents[1] / "README.md"


def test_the_transforms_in_your_own_project_run():
    (code,) = (
        block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "def fn" in block
    )
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (32, 4))
    params = {
        "hidden": {"w": jax.random.normal(keys[1], (4, 20)), "b": jnp.zeros((20,))},
        "out": {"w": jax.random.normal(keys[2], (20, 3))},
    }
    # Tests forbid silent rank promotion, which the README uses; and its training is made short enough to reach the end.
    code = code.replace('b"])', 'b"][None, :])').replace("total_updates=10_000", "total_updates=200")
    before, after = code.split("masks = ", 1)
    scope = {"params": params, "x": x}
    exec(before, scope)
    assert scope["groups"]["hidden"].size == 20
    params, opt_state = params, scope["opt_state"]
    for _ in range(200):
        params, opt_state = scope["step"](params, opt_state, x, jnp.sin(x[:, :3]))
    scope |= {"params": params, "opt_state": opt_state}
    exec("masks = " + after, scope)
    assert scope["small"]["hidden"]["w"].shape == (4, 2)
    difference = scope["small_fn"](scope["small"], x) - scope["fn"](params, x)
    assert float(jnp.max(jnp.abs(difference))) < 1e-5
    assert optax.tree.sum(scope["masks"]) == 2
