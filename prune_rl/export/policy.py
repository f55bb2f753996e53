"""The compact policy: an MLP evaluated with NumPy, and its directory on disk.

Imports neither JAX nor Gymnasium, so that it runs on small devices.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from prune_rl.export.actions import Spread, describe_spread, post_processing, spread_of
from prune_rl.export.activations import ACTIVATIONS, Array
from prune_rl.export.checks import checked_layers, checked_spread, finite_tensor
from prune_rl.export.description import Description, layer_names
from prune_rl.export.files import PolicyFileError, description_path, read_pair, write_pair
from prune_rl.export.network import network_outputs, repaired_outputs, reshaped
from prune_rl.export.sampling import sample
from prune_rl.spaces import Box, Discrete

if TYPE_CHECKING:
    import jax

Layer = tuple[Array, Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Policy:
    """A deterministic policy. Arrays are copied to read-only float32. Calls are thread-safe.

    Attributes:
        layers: (kernel float32[in, out], bias float32[out]) of each layer, the last one being the linear head.
        activation: a name in `ACTIVATIONS`, applied after every layer but the head.
        action: Discrete (act by argmax; the head has n outputs) or Box (the head has one output per component).
        obs_mean, obs_std: float32[D], or both None. The network sees clip((obs - mean) / std, -obs_clip, obs_clip).
        obs_clip: positive, may be infinite; no effect without mean and std.
        squash: Box only. True: the action is tanh of the head's output, rescaled from [-1, 1] to the (finite) bounds.
            False: it is the head's output, clipped to the bounds.
        metadata: JSON data; tuples become lists in the file.
        skip: float32[D, num_outputs] or None: a linear path from what the network sees to the head's outputs.
        observation_shape: the shape of one observation of the environment, of D elements; None if it is not known.
        spread: what `sample` needs for Box actions, or None.
        temperature: of `sample`; positive. Greedy actions do not depend on it.

    Raises:
        ValueError: shapes that do not chain, NaN or infinity, std <= 0, low > high, an unknown activation.
    """

    layers: tuple[Layer, ...]
    activation: str
    action: Discrete | Box
    obs_mean: Array | None = None
    obs_std: Array | None = None
    obs_clip: float = 10.0
    squash: bool = False
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    skip: Array | None = None
    observation_shape: tuple[int, ...] | None = None
    spread: Spread | None = None
    temperature: float = 1.0
    _obs_shape: tuple[int] = dataclasses.field(init=False, repr=False)
    _clip: tuple[Array, Array] = dataclasses.field(init=False, repr=False)
    _zeros: Array = dataclasses.field(init=False, repr=False)
    _blind: bool = dataclasses.field(init=False, repr=False)
    to_action: Callable[[Array], Any] = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {self.activation!r}; known are {', '.join(ACTIVATIONS)}")
        layers = checked_layers(self.layers, self.action.num_outputs)
        size = layers[0][0].shape[0]
        if (self.obs_mean is None) != (self.obs_std is None):
            raise ValueError("give obs_mean and obs_std together, or neither")
        set_field = functools.partial(object.__setattr__, self)
        for name in ("obs_mean", "obs_std"):
            if getattr(self, name) is not None:
                array = finite_tensor(getattr(self, name), name)
                if array.shape != (size,):
                    raise ValueError(f"{name} has shape {array.shape}, the observation {(size,)}")
                set_field(name, array)
        if self.skip is not None:
            kernel = finite_tensor(self.skip, "skip")
            if kernel.shape != (size, self.action.num_outputs):
                raise ValueError(f"skip has shape {kernel.shape}, not {(size, self.action.num_outputs)}")
            set_field("skip", kernel)
        if self.obs_std is not None and not (self.obs_std > 0.0).all():
            raise ValueError(f"obs_std must be positive, its least value is {self.obs_std.min()}")
        with np.errstate(over="ignore"):
            clip = np.full(size, self.obs_clip, np.float32)
        if not (clip > 0.0).all():
            raise ValueError(f"obs_clip must be positive, got {self.obs_clip}")
        shape = self.observation_shape
        if shape is not None:
            shape = tuple(int(length) for length in shape)
            if math.prod(shape) != size:
                raise ValueError(f"observation_shape is {shape}, but an observation has {size} elements")
        if self.spread is not None:
            set_field("spread", checked_spread(self.spread, self.action, layers[-1][0].shape[0], size))
        if not 0.0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")
        set_field("observation_shape", shape)
        set_field("layers", layers)
        set_field("obs_clip", float(self.obs_clip))
        set_field("_obs_shape", (size,))
        set_field("_clip", (-clip, clip))  # arrays, since ufuncs take twice as long with Python numbers
        set_field("_zeros", np.zeros(self.action.num_outputs, np.float32))
        # Where nothing of the observation reaches the outputs, they do not show a NaN in it.
        set_field("_blind", self.skip is None and any(len(bias) == 0 for _, bias in layers))
        set_field("to_action", post_processing(self.action, self.squash))

    def __reduce__(self) -> tuple[Any, ...]:
        return Policy, tuple(getattr(self, field.name) for field in dataclasses.fields(self) if field.init)

    def __call__(self, obs: ArrayLike) -> Any:
        """The best action, which the environment's action space contains.

        Args:
            obs: one observation of `observation_shape` or [D], or a batch of them, [..., *observation_shape] or
                [..., D]. Without an `observation_shape` any other shape of D elements is one observation, too.
                Infinite components act like very large ones.

        Returns:
            Discrete: np.int64 counted from `action.start`, or int64[...] for a batch. Box: an array
            [*action.shape] or [..., *action.shape] of `action.dtype`. A batch gives bitwise the same results as its
            rows one at a time.

        Raises:
            ValueError: the observation does not have D elements, or a component is NaN.
        """
        return self.to_action(self.outputs(obs))

    @np.errstate(all="ignore")
    def sample(
        self, obs: ArrayLike, rng: np.random.Generator | None = None, *, temperature: float | None = None
    ) -> Any:
        """A random action, distributed as in training: see `__call__` for arguments, results and errors.

        Discrete: from softmax(outputs / temperature). Box: the outputs plus noise of standard deviation
        temperature · `spread`, squashed or clipped as the best action is.

        Args:
            obs: one observation or a batch.
            rng: for example `numpy.random.default_rng(0)`; by default a fresh, unpredictable one.
            temperature: instead of the policy's own, 0 or more; 0 gives the best action.

        Raises:
            ValueError: for Box actions, if there is no `spread`; as `__call__`; a bad temperature.
        """
        return sample(self, self.flat(obs), rng, temperature)

    def as_jax(self) -> Callable[[jax.Array], jax.Array]:
        """The same policy as a pure function of JAX, for `jax.jit`, `jax.vmap` and `jax.grad`; needs JAX.

        It takes what `__call__` takes and gives the same actions up to rounding, with two differences: integers are
        int32 unless JAX's 64-bit mode is on, and a NaN is not noticed, Box actions are NaN then, and Discrete ones the
        first. Values that overflow float32 may be NaN as well.
        """
        from prune_rl.export.jax_policy import as_jax

        return as_jax(self)

    @np.errstate(all="ignore")
    def outputs(self, obs: ArrayLike) -> Array:
        """The head's outputs before post-processing, all finite: float32[num_outputs], or float32[..., num_outputs].

        Where float32 overflows on the way, values are kept within its range.
        """
        x = np.asarray(obs, np.float32)
        if x.shape != self._obs_shape:
            x = reshaped(x, self._obs_shape[0], self.observation_shape)
        outputs = network_outputs(self, x, self._clip)
        # Zero times an infinity or a NaN is NaN; for one row a third of the time of `np.isfinite`.
        finite = self._zeros.dot(outputs) == 0.0 if x.ndim == 1 else np.isfinite(outputs).all()
        return outputs if finite and not self._blind else repaired_outputs(self, x, outputs)

    @property
    def normalisation(self) -> tuple[Array, Array, float] | None:
        """`obs_mean`, `obs_std` and `obs_clip`, or None."""
        mean, std = self.obs_mean, self.obs_std
        return None if mean is None or std is None else (mean, std, self.obs_clip)

    @property
    def observation_size(self) -> int:
        """D."""
        return self._obs_shape[0]

    @property
    def widths(self) -> tuple[int, ...]:
        """Neurons of each hidden layer."""
        return tuple(len(bias) for _, bias in self.layers[:-1])

    @property
    def num_neurons(self) -> int:
        """Neurons of all hidden layers."""
        return sum(self.widths)

    @property
    def num_weights(self) -> int:
        """Elements of all kernels and biases."""
        return self.macs + sum(bias.size for _, bias in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates per decision: the elements of all kernels."""
        skip = 0 if self.skip is None else self.skip.size
        return skip + sum(kernel.size for kernel, _ in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that the best action depends on, the observation statistics among them."""
        return sum(x.nbytes for name, x in self.tensors().items() if not name.startswith("log_std/"))

    def tensors(self) -> dict[str, Array]:
        """Every array under its name in the file: `layer_0/kernel`, ..., `head/bias`, `skip/kernel`, `obs_mean`, …"""
        named: dict[str, Array] = {}
        for prefix, (kernel, bias) in zip(layer_names(len(self.widths)), self.layers, strict=True):
            named |= {f"{prefix}/kernel": kernel, f"{prefix}/bias": bias}
        if self.skip is not None:
            named["skip/kernel"] = self.skip
        if self.obs_mean is not None and self.obs_std is not None:
            named |= {"obs_mean": self.obs_mean, "obs_std": self.obs_std}
        if self.spread is not None:
            named |= self.spread.tensors()
        return named

    def flat(self, obs: ArrayLike) -> Array:
        """Observations as `__call__` takes them, as float32[D] or float32[..., D]; raises ``ValueError`` as it does."""
        x = np.asarray(obs, np.float32)
        return x if x.shape == self._obs_shape else reshaped(x, self._obs_shape[0], self.observation_shape)


def save_policy(path: str | os.PathLike[str], policy: Policy) -> None:
    """Write the policy into the directory `path` as `policy.safetensors` and `policy.json`.

    Replaces an earlier policy there; a crash at any moment leaves the old policy or the new one.

    Raises:
        ValueError: the metadata is not JSON, or the policy is too large to be loaded again (1 MiB of description,
            64 MiB of tensors).
        OSError: the files cannot be written.
    """
    description = Description(
        observation_size=policy.observation_size,
        widths=policy.widths,
        activation=policy.activation,
        normalised=policy.obs_mean is not None,
        obs_clip=policy.obs_clip,
        action=policy.action,
        squash=policy.squash,
        metadata=policy.metadata,
        skip=policy.skip is not None,
        observation_shape=policy.observation_shape,
        temperature=policy.temperature,
        spread=describe_spread(policy.spread),
    )
    write_pair(Path(path), description.to_json(), policy.tensors())


def load_policy(path: str | os.PathLike[str]) -> Policy:
    """Load a policy from its directory, from a run directory that contains `policy/`, or from its `policy.json`.

    Raises:
        PolicyFileError: the files are missing, damaged or malformed, or cannot be read.
    """
    found = description_path(Path(path))
    document, tensors = read_pair(found, lambda document: Description.from_json(document).shapes())
    description = Description.from_json(document)
    names = layer_names(len(description.widths))
    try:
        return Policy(
            layers=tuple((tensors[f"{name}/kernel"], tensors[f"{name}/bias"]) for name in names),
            activation=description.activation,
            action=description.action,
            obs_mean=tensors.get("obs_mean"),
            obs_std=tensors.get("obs_std"),
            obs_clip=description.obs_clip,
            squash=description.squash,
            metadata=description.metadata,
            skip=tensors.get("skip/kernel"),
            observation_shape=description.observation_shape,
            spread=spread_of(description.spread, tensors),
            temperature=description.temperature,
        )
    except ValueError as error:
        raise PolicyFileError(f"cannot load the policy file {found}: {error}") from None
