"""The fields of a policy's JSON description, converted from and to Python; types and ranges are checked on reading."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from prune_rl.spaces import Box, Discrete

_MAX_SIZE = 1 << 24  # elements of one axis; as float32 they take the 64 MiB allowed for all tensors
_MAX_LENGTH = 64  # hidden layers, and axes of an action or an observation (NumPy's maximum)
_MAX_START = 1 << 62  # of a Discrete action, which has to fit int64
DTYPES = (
    *("float32", "float64", "float16", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)


@dataclasses.dataclass(frozen=True)
class Description:
    """The content of `policy.json` apart from the checksums.

    Attributes:
        observation_size: D.
        widths: neurons of each hidden layer; may be empty (a linear policy).
        activation: a name; not checked here.
        normalised: whether `obs_mean` and `obs_std` are among the tensors.
        obs_clip: positive, may be infinite. In JSON, infinities are null.
        action: the action space.
        squash: whether actions are squashed with tanh.
        metadata: any JSON object.
        skip: whether `skip/kernel` is among the tensors. In JSON, absent if not.
        observation_shape: of one observation, D elements; None where it is not known (files of version 1).
        temperature: of samples; positive.
        spread: of Box actions, None where the file holds none.
    """

    observation_size: int
    widths: tuple[int, ...]
    activation: str
    normalised: bool
    obs_clip: float
    action: Discrete | Box
    squash: bool
    metadata: dict[str, Any]
    skip: bool = False
    observation_shape: tuple[int, ...] | None = None
    temperature: float = 1.0
    spread: SpreadDescription | None = None

    def to_json(self) -> dict[str, Any]:
        """The JSON object that `from_json` takes."""
        action = self.action
        if isinstance(action, Discrete):
            space: dict[str, Any] = {"type": "discrete", "n": action.n, "start": action.start}
        else:
            low, high = ([x if math.isfinite(x) else None for x in b] for b in (action.low, action.high))
            space = {
                "type": "box",
                "shape": list(action.shape),
                "low": low,
                "high": high,
                "dtype": action.dtype,
            }
        skip = {"skip": True} if self.skip else {}
        return skip | {
            "observation_size": self.observation_size,
            "widths": list(self.widths),
            "activation": self.activation,
            "normalised": self.normalised,
            "obs_clip": self.obs_clip if math.isfinite(self.obs_clip) else None,
            "action": space,
            "squash": self.squash,
            "metadata": self.metadata,
            "observation_shape": None if self.observation_shape is None else list(self.observation_shape),
            "temperature": self.temperature,
            "spread": None if self.spread is None else self.spread.to_json(),
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Description:
        """Check types and ranges of a parsed JSON object.

        Raises:
            ValueError: a field is missing or not what it should be; the message names it.
        """
        size = _size(document, "observation_size", least=1)
        shape = document.get("observation_shape")
        if shape is not None:
            shape = _sizes(document, "observation_shape", least=1)
            if math.prod(shape) != size:
                raise ValueError(
                    f"its 'observation_shape' {list(shape)} has not the {size} elements of an observation"
                )
        spread = document.get("spread")
        return cls(
            observation_size=size,
            widths=_sizes(document, "widths", least=0),
            activation=_typed(document, "activation", str),
            normalised=_typed(document, "normalised", bool),
            obs_clip=_number(document.get("obs_clip"), "obs_clip", unbounded=math.inf),
            action=_action(_typed(document, "action", dict)),
            squash=_typed(document, "squash", bool),
            metadata=_typed(document, "metadata", dict),
            skip="skip" in document and _typed(document, "skip", bool),
            observation_shape=shape,
            temperature=_number(document.get("temperature", 1.0), "temperature", unbounded=math.inf),
            spread=None if spread is None else SpreadDescription.from_json(_typed(document, "spread", dict)),
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the policy's tensors."""
        shapes: dict[str, tuple[int, ...]] = {}
        sizes = (self.observation_size, *self.widths, self.action.num_outputs)
        for name, fan_in, fan_out in zip(layer_names(len(self.widths)), sizes[:-1], sizes[1:], strict=True):
            shapes |= {f"{name}/kernel": (fan_in, fan_out), f"{name}/bias": (fan_out,)}
        if self.skip:
            shapes["skip/kernel"] = (self.observation_size, self.action.num_outputs)
        if self.spread is not None:
            width, outputs = sizes[-2], self.action.num_outputs
            shapes["log_std/bias"] = (outputs,)
            if self.spread.kernel:
                shapes["log_std/kernel"] = (width, outputs)
            if self.spread.skip:
                shapes["log_std/skip"] = (self.observation_size, outputs)
        if self.normalised:
            shapes |= {"obs_mean": (self.observation_size,), "obs_std": (self.observation_size,)}
        return shapes


@dataclasses.dataclass(frozen=True)
class SpreadDescription:
    """Which tensors give the log standard deviation of Box actions, and its bounds (in JSON, infinities are null).

    ``log_std/bias`` always; ``log_std/kernel`` and ``log_std/skip`` if it depends on the observation.
    """

    kernel: bool
    skip: bool
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """The JSON object that `from_json` takes."""
        low, high = (bound if math.isfinite(bound) else None for bound in (self.low, self.high))
        return {"kernel": self.kernel, "skip": self.skip, "low": low, "high": high}

    @classmethod
    def from_json(cls, spread: dict[str, Any]) -> SpreadDescription:
        """Raises ``ValueError`` as ``Description.from_json``."""
        return cls(
            kernel=_typed(spread, "kernel", bool),
            skip=_typed(spread, "skip", bool),
            low=_number(spread.get("low"), "the spread's lower bound", unbounded=-math.inf),
            high=_number(spread.get("high"), "the spread's upper bound", unbounded=math.inf),
        )


def layer_names(num_hidden: int) -> list[str]:
    """`layer_0`, `layer_1`, ..., `head`."""
    return [*(f"layer_{i}" for i in range(num_hidden)), "head"]


def _action(space: dict[str, Any]) -> Discrete | Box:
    kind = space.get("type")
    if kind == "discrete":
        start = _typed({"start": 0, **space}, "start", int)
        if not -_MAX_START <= start <= _MAX_START:
            raise ValueError(f"its field 'start' must be from {-_MAX_START} to {_MAX_START}")
        return Discrete(_size(space, "n", least=1), start)
    if kind == "box":
        shape = _sizes(space, "shape", least=1)
        low, high = _typed(space, "low", list), _typed(space, "high", list)
        if not len(low) == len(high) == math.prod(shape):
            raise ValueError(
                f"its action has {len(low)} lower and {len(high)} upper bounds, its 'shape' asks otherwise"
            )
        dtype = space.get("dtype", "float32")
        if dtype not in DTYPES:
            raise ValueError(f"its action's 'dtype' must be one of {', '.join(DTYPES)}")
        exact = "int" in dtype
        return Box(
            tuple(_number(x, "an action's lower bound", unbounded=-math.inf, exact=exact) for x in low),
            tuple(_number(x, "an action's upper bound", unbounded=math.inf, exact=exact) for x in high),
            shape,
            dtype,
        )
    raise ValueError("its field 'action' is neither of type 'discrete' nor of type 'box'")


def _typed(document: dict[str, Any], key: str, kind: type) -> Any:
    value = document.get(key)
    if type(value) is not kind:
        raise ValueError(f"its field {key!r} must be of type {kind.__name__}, not {type(value).__name__}")
    return value


def _size(document: dict[str, Any], key: str, *, least: int) -> int:
    value: int = _typed(document, key, int)
    if not least <= value <= _MAX_SIZE:
        raise ValueError(f"its field {key!r} must be from {least} to {_MAX_SIZE}")
    return value


def _sizes(document: dict[str, Any], key: str, *, least: int) -> tuple[int, ...]:
    values = _typed(document, key, list)
    if len(values) > _MAX_LENGTH:
        raise ValueError(f"its field {key!r} has {len(values)} elements, more than the {_MAX_LENGTH} allowed")
    return tuple(_size({key: value}, key, least=least) for value in values)


def _number(value: Any, what: str, *, unbounded: float, exact: bool = False) -> float:
    """A float, or an int as it is if ``exact``."""
    if value is None:
        return unbounded
    if type(value) not in (int, float):
        raise ValueError(f"{what} must be a number or null, not {type(value).__name__}")
    try:
        number = float(value)
        return value if exact and type(value) is int else number
    except OverflowError:
        raise ValueError(f"{what} is too large for a floating-point number") from None
