"""A pytree of arrays as NumPy arrays under short names, with a layout from which every leaf can be restored.

The layout is JSON data: {name: {"path": str, "shape": [int], "dtype": str}}. For a typed PRNG key, shape and dtype are
those of its data, with the additional fields "key" (its dtype) and "implementation".
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

Layout = Mapping[str, Mapping[str, Any]]
Arrays = Mapping[str, NDArray[Any]]


def flatten(tree: Any) -> tuple[dict[str, NDArray[Any]], dict[str, dict[str, Any]]]:
    """The leaves as NumPy arrays under short names, and their layout.

    Args:
      tree: any pytree of arrays: JAX or NumPy, of every dtype, typed PRNG keys and empty arrays included.

    Raises:
      TypeError: a leaf is not an array.
    """
    arrays: dict[str, NDArray[Any]] = {}
    layout: dict[str, dict[str, Any]] = {}
    for number, (path, leaf) in enumerate(_leaves_by_path(tree).items()):
        if not hasattr(leaf, "dtype"):
            raise TypeError(f"the leaf {path} is a {type(leaf).__name__}: a checkpoint holds arrays only")
        name = f"leaf_{number:05d}"
        key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.device_get(jax.random.key_data(leaf) if key else leaf))
        arrays[name] = array
        layout[name] = {"path": path, "shape": list(array.shape), "dtype": str(array.dtype)}
        if key:
            layout[name] |= {"key": str(leaf.dtype), "implementation": str(jax.random.key_impl(leaf))}
    return arrays, layout


def mismatch(template: Any, layout: Layout) -> str | None:
    """Describes the first leaf, by path, in which `layout` differs from `template`; None if there is none.

    The template's leaves are arrays or ShapeDtypeStruct; only shape and dtype are compared.
    """
    found = {leaf["path"]: leaf for leaf in layout.values()}
    wanted = _leaves_by_path(template)
    for path in sorted(found.keys() | wanted.keys()):
        if path not in wanted:
            return f"it has a leaf {path} that is not wanted"
        if path not in found:
            return f"it has no leaf {path}"
        there, here = _describe_saved(found[path]), _describe_template(wanted[path])
        if there != here:
            return f"{path} is {there} there, {here} here"
    return None


def unflatten(template: Any, layout: Layout, arrays: Arrays) -> Any:
    """The inverse of `flatten`; every leaf gets the type and the device placement of the template's leaf.

    `mismatch(template, layout)` must be None. A ShapeDtypeStruct in the template stands for a JAX array.
    """
    by_path = {leaf["path"]: (leaf, arrays[name]) for name, leaf in layout.items()}
    restored: list[Any] = []
    for path, wanted in _leaves_by_path(template).items():
        leaf, array = by_path[path]
        if "key" in leaf:
            key = jax.random.wrap_key_data(jnp.array(array), impl=leaf["implementation"])
            restored.append(_place(key, wanted))
        elif isinstance(wanted, (np.ndarray, np.generic)):
            restored.append(array[()] if isinstance(wanted, np.generic) else array)
        else:
            # A copy: the array may be donated, so JAX must own its memory.
            restored.append(_place(jnp.array(array, copy=True), wanted))
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(template), restored)


def digest(arrays: Arrays) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the given order."""
    result = hashlib.sha256()
    for name, array in arrays.items():
        result.update(f"{name} {array.dtype} {array.shape};".encode())
        result.update(np.ascontiguousarray(array).tobytes())
    return result.hexdigest()


def _leaves_by_path(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _describe_template(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else type(leaf).__name__


def _describe_saved(leaf: Mapping[str, Any]) -> str:
    # The data of a typed key has one more axis than the key.
    return f"{leaf['key']}{leaf['shape'][:-1]}" if "key" in leaf else f"{leaf['dtype']}{leaf['shape']}"


def _place(array: jax.Array, wanted: Any) -> jax.Array:
    """Puts `array` where the template's leaf was put on purpose, and leaves it free where that one was free."""
    if isinstance(wanted, jax.Array) and (wanted.committed or len(wanted.sharding.device_set) > 1):
        array = jax.device_put(array, wanted.sharding)
    return array
