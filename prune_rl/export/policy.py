"""The compact policy: an MLP evaluated with NumPy, and its directory on disk.

Imports neither JAX nor Gymnasium, so that it runs on small devices.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from prune_rl.export.activations import ACTIVATIONS, Array
from prune_rl.export.description import Description, layer_names
from prune_rl.export.files import DESCRIPTION_FILE, PolicyFileError, read_pair, write_pair
from prune_rl.spaces import Box, Discrete

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
    _obs_shape: tuple[int] = dataclasses.field(init=False, repr=False)
    _clip: tuple[Array, Array] = dataclasses.field(init=False, repr=False)
    _to_action: Callable[[Array], Any] = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {self.activation!r}; known are {', '.join(ACTIVATIONS)}")
        layers = _checked_layers(self.layers, self.action.num_outputs)
        size = layers[0][0].shape[0]
        if (self.obs_mean is None) != (self.obs_std is None):
            raise ValueError("give obs_mean and obs_std together, or neither")
        set_field = functools.partial(object.__setattr__, self)
        for name in ("obs_mean", "obs_std"):
            if getattr(self, name) is not None:
                array = _tensor(getattr(self, name), name)
                if array.shape != (size,):
                    raise ValueError(f"{name} has shape {array.shape}, the observation {(size,)}")
                set_field(name, array)
        if self.skip is not None:
            kernel = _tensor(self.skip, "skip")
            if kernel.shape != (size, self.action.num_outputs):
                raise ValueError(f"skip has shape {kernel.shape}, not {(size, self.action.num_outputs)}")
            set_field("skip", kernel)
        if self.obs_std is not None and not (self.obs_std > 0.0).all():
            raise ValueError(f"obs_std must be positive, its least value is {self.obs_std.min()}")
        with np.errstate(over="ignore"):
            clip = np.full(size, self.obs_clip, np.float32)
        if not (clip > 0.0).all():
            raise ValueError(f"obs_clip must be positive, got {self.obs_clip}")
        set_field("layers", layers)
        set_field("obs_clip", float(self.obs_clip))
        set_field("_obs_shape", (size,))
        set_field("_clip", (-clip, clip))  # arrays, since ufuncs take twice as long with Python numbers
        set_field("_to_action", _post_processing(self.action, self.squash))

    def __reduce__(self) -> tuple[Any, ...]:
        return Policy, tuple(getattr(self, field.name) for field in dataclasses.fields(self) if field.init)

    def __call__(self, obs: ArrayLike) -> Any:
        """Act.

        Args:
            obs: one observation, [D] or any other shape of D elements, or a batch [..., D].

        Returns:
            Discrete: np.int64, or int64[...] for a batch. Box: float32[*action.shape] or float32[..., *action.shape].
            A batch gives bitwise the same results as its rows one at a time.

        Raises:
            ValueError: the observation does not have D elements.
        """
        return self._to_action(self.outputs(obs))

    def outputs(self, obs: ArrayLike) -> Array:
        """The head's outputs before post-processing: float32[num_outputs], or float32[..., num_outputs]."""
        x = np.asarray(obs, np.float32)
        if x.shape != self._obs_shape:
            x = self._reshaped(x)
        if self.obs_mean is not None and self.obs_std is not None:
            x = x - self.obs_mean
            x /= self.obs_std
            low, high = self._clip
            np.maximum(x, low, out=x)
            np.minimum(x, high, out=x)
        activation = ACTIVATIONS[self.activation]
        head_kernel, head_bias = self.layers[-1]
        inputs = x
        if x.ndim == 1:
            for kernel, bias in self.layers[:-1]:
                x = x.dot(kernel)  # takes a third of the time of `@`
                x += bias
                x = activation(x)
            outputs: Array = x.dot(head_kernel)
            outputs += head_bias
            if self.skip is not None:
                outputs += inputs.dot(self.skip)
            return outputs
        # As [..., 1, D] every row is multiplied like a single observation. One matrix product for the whole batch would
        # be faster, but differ in the last bit, which can change an episode.
        x = inputs = x[..., None, :]
        for kernel, bias in self.layers[:-1]:
            x = activation(x @ kernel + bias)
        outputs = x @ head_kernel + head_bias
        if self.skip is not None:
            outputs += inputs @ self.skip
        return outputs[..., 0, :]

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
        """Bytes of all tensors, the observation statistics among them."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Array]:
        """Every array under its name in the file: `layer_0/kernel`, ..., `head/bias`, `skip/kernel`, `obs_mean`, …"""
        named: dict[str, Array] = {}
        for prefix, (kernel, bias) in zip(layer_names(len(self.widths)), self.layers, strict=True):
            named |= {f"{prefix}/kernel": kernel, f"{prefix}/bias": bias}
        if self.skip is not None:
            named["skip/kernel"] = self.skip
        if self.obs_mean is not None and self.obs_std is not None:
            named |= {"obs_mean": self.obs_mean, "obs_std": self.obs_std}
        return named

    def _reshaped(self, x: Array) -> Array:
        size = self._obs_shape[0]
        if x.ndim > 1 and x.shape[-1] == size:
            return np.ascontiguousarray(x)
        if x.size == size:
            return x.reshape(size)
        raise ValueError(f"this policy takes observations of {size} elements, got one of shape {x.shape}")


def save_policy(path: str | os.PathLike[str], policy: Policy) -> None:
    """Write the policy into the directory `path` as `policy.safetensors` and `policy.json`.

    Replaces an earlier policy there; a crash at any moment leaves the old policy or the new one.

    Raises:
        ValueError: the metadata is not JSON, or the policy is too large to be loaded again (1 MiB of description,
            1 GiB of tensors).
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
    )
    write_pair(Path(path), description.to_json(), policy.tensors())


def load_policy(path: str | os.PathLike[str]) -> Policy:
    """Load a policy from its directory, from a run directory that contains `policy/`, or from its `policy.json`.

    Raises:
        PolicyFileError: the files are missing, damaged or malformed.
    """
    path = Path(path)
    folders = (path, path / "policy")
    found = (folder / DESCRIPTION_FILE for folder in folders if (folder / DESCRIPTION_FILE).exists())
    description_path = path if path.suffix == ".json" else next(found, path / DESCRIPTION_FILE)
    document, tensors = read_pair(description_path, lambda document: Description.from_json(document).shapes())
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
        )
    except ValueError as error:
        raise PolicyFileError(f"cannot load the policy file {description_path}: {error}") from None


def measure_latency(policy: Policy, *, repeats: int = 2000) -> float:
    """Median time of one action at batch size 1, in seconds; includes about 0.05 µs for the clock.

    Raises:
        ValueError: `repeats` is not positive.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    obs = np.random.default_rng(0).standard_normal(policy.observation_size).astype(np.float32)
    for _ in range(min(repeats, 100)):
        policy(obs)
    clock = time.perf_counter_ns
    times = np.empty(repeats)
    for i in range(repeats):
        start = clock()
        policy(obs)
        times[i] = clock() - start
    return float(np.median(times)) * 1e-9


def _checked_layers(layers: tuple[Layer, ...], num_outputs: int) -> tuple[Layer, ...]:
    if not layers:
        raise ValueError("a policy needs at least one layer, the head")
    checked = tuple((_tensor(x[0], f"kernel {i}"), _tensor(x[1], f"bias {i}")) for i, x in enumerate(layers))
    width = checked[0][0].shape[0] if checked[0][0].ndim else 0
    if width < 1:
        raise ValueError("the first kernel must be [observation size, width] with a size of at least 1")
    for i, (kernel, bias) in enumerate(checked):
        if kernel.ndim != 2 or kernel.shape[0] != width or bias.shape != kernel.shape[1:]:
            raise ValueError(
                f"layer {i} does not chain: it has {width} inputs, a kernel {kernel.shape} and a bias {bias.shape}"
            )
        width = kernel.shape[1]
    if width != num_outputs or width < 1:
        raise ValueError(f"the head has {width} outputs where the action space needs {num_outputs}")
    return checked


def _tensor(value: ArrayLike, name: str) -> Array:
    """A read-only float32 copy."""
    with np.errstate(over="ignore"):
        array = np.array(value, np.float32, order="C")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinity")
    array.setflags(write=False)
    return array


def _post_processing(action: Discrete | Box, squash: bool) -> Callable[[Array], Any]:
    if isinstance(action, Discrete):
        if squash:
            raise ValueError("squash is for Box actions only")
        return lambda outputs: outputs.argmax(-1)
    with np.errstate(over="ignore"):
        low, high = np.array(action.low, np.float32), np.array(action.high, np.float32)
    if not (low <= high).all() or (low == np.inf).any() or (high == -np.inf).any():
        raise ValueError("each lower action bound must be at most its upper bound, and neither NaN")
    if squash and not np.isfinite([low, high]).all():
        raise ValueError("squash needs finite action bounds, and these are not")
    with np.errstate(invalid="ignore"):  # inf - inf for unbounded actions, which are not squashed
        centre, half = 0.5 * low + 0.5 * high, 0.5 * high - 0.5 * low
    shape = action.shape

    def to_action(outputs: Array) -> Array:
        if squash:
            outputs = centre + half * np.tanh(outputs)
        bounded = np.minimum(np.maximum(outputs, low), high)
        return bounded if len(shape) == 1 else bounded.reshape(outputs.shape[:-1] + shape)

    return to_action
