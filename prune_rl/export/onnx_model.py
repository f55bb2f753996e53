"""A policy as an ONNX model: `obs` float32[batch, D] to `actions`, with everything in between inside the graph."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from prune_rl.export.actions import exact_bounds
from prune_rl.export.lowering import LIMIT, Affine, Lowered, lower
from prune_rl.export.policy import Policy
from prune_rl.export.quantize import BIAS_UNIT, LARGEST, LARGEST_ACTIVATION, TABLE_UNIT, QuantizedPolicy
from prune_rl.spaces import Box, Discrete

# Opset and what came with it, so that older runtimes read the file. QuantizeLinear to int16 came with 21.
OPSET, IR_VERSION = 17, 8
INT8_OPSET, INT8_IR_VERSION = 21, 10


class MissingOnnx(ImportError, ValueError):
    """The package onnx is not installed; the message says how to get it."""


def import_onnx() -> ModuleType:
    """The package onnx.

    Raises:
        MissingOnnx: it is not installed.
    """
    try:
        import onnx
        import onnx.helper
    except ImportError as error:
        raise MissingOnnx(
            "the export to ONNX needs the package onnx, which is not installed: pip install 'prune_rl[onnx]'"
        ) from error
    module: ModuleType = onnx
    return module


class Graph:
    """Nodes in the order in which they were added; values are called by name."""

    def __init__(self, onnx: ModuleType) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def constant(self, name: str, value: ArrayLike, dtype: Any = np.float32) -> str:
        """An initialiser; equal names must mean equal values."""
        self.constants[name] = self.onnx.numpy_helper.from_array(np.array(value, dtype), name)
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output, whose name is returned."""
        output = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(op, list(inputs), [output], name=output, **attributes))
        return output

    def cast(self, value: str, dtype: Any) -> str:
        """``value`` converted to a dtype of NumPy."""
        return self.add("Cast", value, to=self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def clip(self, value: str, name: str, low: ArrayLike, high: ArrayLike, dtype: Any = np.float32) -> str:
        """Clipped componentwise; scalars by one node."""
        least, most = np.array(low, dtype), np.array(high, dtype)
        if least.ndim and (least == least[0]).all() and (most == most[0]).all():
            least, most = least[0], most[0]
        bounds = self.constant(f"{name}_low", least, dtype), self.constant(f"{name}_high", most, dtype)
        if least.ndim == 0:
            return self.add("Clip", value, *bounds)
        return self.add("Min", self.add("Max", value, bounds[0]), bounds[1])


def onnx_model(policy: Policy, metadata: Mapping[str, str] | None = None) -> Any:
    """An `onnx.ModelProto` that computes the actions of ``policy``, opset 17, any batch size.

    Input `obs` is float32[batch, D], observations as the environment gives them, flattened in C order. Output `actions`
    is int64[batch] for Discrete actions, counted from the space's start, and [batch, *shape] of the action's dtype for
    Box ones. An observation with NaN gives NaN where the dtype has it, start - 1 for Discrete actions, and the lower
    bounds for integers.

    Args:
        policy: any policy.
        metadata: strings that become the model's metadata.

    Raises:
        MissingOnnx: the package onnx is not installed.
    """
    graph, lowered = Graph(import_onnx()), lower(policy)
    x = "obs"
    if lowered.limit == LIMIT:
        x = graph.clip(x, "finite", -LIMIT, LIMIT)
    if lowered.mean is not None and lowered.std is not None:
        x = graph.add("Sub", x, graph.constant("obs_mean", lowered.mean))
        x = graph.add("Div", x, graph.constant("obs_std", lowered.std))
        x = graph.clip(x, "obs_clip", -lowered.limit, lowered.limit)
    inputs = x
    for index, layer in enumerate(lowered.layers):
        head = index == len(lowered.layers) - 1
        x = _affine(graph, x, inputs, layer, "head" if head else f"layer_{index}")
        if not head:
            x = _activation(graph, x, lowered.activation)
    return _model(graph, _actions(graph, x, lowered), lowered, metadata)


def onnx_int8_model(quantized: QuantizedPolicy, metadata: Mapping[str, str] | None = None) -> Any:
    """A quantised policy as a model with QuantizeLinear and DequantizeLinear nodes; see `onnx_model`.

    Weights, biases and activations are the integers of ``quantized``. Activation functions are computed in float32, so
    that an activation may differ from the C code's: by one step, with tanh by 4.
    """
    policy = quantized.policy
    graph, lowered = Graph(import_onnx()), lower(policy)
    x = graph.add("Sub", "obs", graph.constant("obs_mean", quantized.mean))
    x = graph.add("Mul", x, graph.constant("obs_factor", quantized.factor))
    x = inputs = _rounded(graph, x, LARGEST_ACTIVATION)
    for index, layer in enumerate(quantized.hidden):
        name = f"layer_{index}"
        x = _integer_affine(graph, x, layer.kernel, layer.bias, layer.scale, name)
        unit, largest = (1, LARGEST_ACTIVATION) if layer.table is None else (TABLE_UNIT, LARGEST)
        if layer.table is not None:
            # A table is read at whole steps of the sum.
            step = layer.scale * 2.0**layer.shift / layer.multiplier
            x = _rounded(
                graph, graph.add("Div", x, graph.constant(f"{name}/step", step.astype(np.float32))), largest
            )
            x = graph.add("Mul", x, f"{name}/step")
        x = _activation(graph, x, policy.activation)
        steps = graph.constant(f"{name}/steps", (1.0 / (unit * layer.step)).astype(np.float32))
        x = _rounded(graph, graph.add("Mul", x, steps), largest)
        if unit != 1:
            x = graph.add("Mul", x, graph.constant("table_unit", unit))
    if quantized.skip:
        x = graph.add("Concat", x, inputs, axis=-1)
    head = quantized.head
    x = _integer_affine(graph, x, head.kernel, head.bias, head.scale, "head")
    return _model(graph, _actions(graph, x, lowered), lowered, metadata, INT8_OPSET, INT8_IR_VERSION)


def _rounded(graph: Graph, x: str, largest: int) -> str:
    """To whole numbers from -largest to largest."""
    bits = 8 if largest <= LARGEST else 16
    one = graph.constant("one", 1.0)
    zero = graph.constant(f"zero_point_{bits}", 0, f"int{bits}")
    x = graph.add("QuantizeLinear", graph.clip(x, f"int{bits}", -float(largest), float(largest)), one, zero)
    return graph.add("DequantizeLinear", x, one, zero)


def _integer_affine(
    graph: Graph, x: str, kernel: ArrayLike, bias: ArrayLike, scale: ArrayLike, name: str
) -> str:
    scales = graph.constant(f"{name}/scale", np.asarray(scale, np.float32))
    weights = graph.constant(f"{name}/kernel", kernel, np.int8)
    x = graph.add("MatMul", x, graph.add("DequantizeLinear", weights, scales, axis=1))
    offset = graph.constant(f"{name}/bias", BIAS_UNIT * np.asarray(bias, np.int32), np.int32)
    return graph.add("Add", x, graph.add("DequantizeLinear", offset, scales, axis=0))


def _affine(graph: Graph, x: str, inputs: str, layer: Affine, name: str) -> str:
    y = graph.add("MatMul", x, graph.constant(f"{name}/kernel", layer.kernel))
    y = graph.add("Add", y, graph.constant(f"{name}/bias", layer.bias))
    if layer.skip is not None:
        y = graph.add("Add", y, graph.add("MatMul", inputs, graph.constant("skip/kernel", layer.skip)))
    if layer.exponent:
        scale = np.float32(2.0**layer.exponent)
        y = graph.clip(y, f"{name}/finite", -np.float32(LIMIT) / scale, np.float32(LIMIT) / scale)
        y = graph.add("Mul", y, graph.constant(f"{name}/scale", scale))
    return y


def _activation(graph: Graph, x: str, name: str) -> str:
    if name == "silu":
        return graph.add("Mul", x, graph.add("Sigmoid", x))
    if name == "gelu":
        cubic = graph.add("Mul", x, graph.add("Mul", x, x))
        inner = graph.add("Add", x, graph.add("Mul", cubic, graph.constant("gelu_cubic", 0.044715)))
        inner = graph.add("Mul", inner, graph.constant("gelu_scale", np.sqrt(2.0 / np.pi)))
        gate = graph.add("Add", graph.add("Tanh", inner), graph.constant("unit", 1.0))
        return graph.add("Mul", graph.add("Mul", x, graph.constant("half", 0.5)), gate)
    if name == "leaky_relu":
        return graph.add("LeakyRelu", x, alpha=0.01)
    operators = {"tanh": "Tanh", "relu": "Relu", "elu": "Elu", "softplus": "Softplus", "sigmoid": "Sigmoid"}
    return graph.add(operators[name], x)


def _actions(graph: Graph, x: str, policy: Lowered) -> str:
    action = policy.action
    # Operators that converters for microcontrollers have: not IsNaN, and no cast to bool.
    zero = graph.constant("zero", 0.0)
    is_nan = graph.add("Where", graph.add("Equal", "obs", "obs"), zero, graph.constant("nan", 1.0))
    count = graph.add("ReduceSum", is_nan, graph.constant("last", [-1], np.int64), keepdims=1)
    nan = graph.add("Greater", count, zero)
    if isinstance(action, Discrete):
        best = graph.add("ArgMax", x, axis=-1, keepdims=1)
        if action.start:
            best = graph.add("Add", best, graph.constant("start", action.start, np.int64))
        best = graph.add("Where", nan, graph.constant("no_action", action.start - 1, np.int64), best)
        return graph.add("Squeeze", best, graph.constant("last_axis", [-1], np.int64))
    if policy.squash:
        x = graph.add("Mul", graph.add("Tanh", x), graph.constant("action_half_width", policy.half))
        x = graph.add("Add", x, graph.constant("action_centre", policy.centre))
    x = graph.clip(x, "action", policy.low, policy.high)
    dtype = np.dtype(action.dtype)
    if dtype.kind == "f":
        x = _exact_floats(graph, x, action)
        missing = graph.constant("no_action", np.nan, dtype)
    else:
        low, high = exact_bounds(action)
        x = graph.clip(graph.add("Round", graph.cast(x, np.float64)), "exact", low, high, np.float64)
        missing = graph.constant("no_action", low, np.float64)
    x = graph.add("Where", nan, missing, x)
    if dtype.kind != "f":
        x = graph.cast(x, dtype)
    if len(action.shape) == 1:
        return x
    return graph.add("Reshape", x, graph.constant("action_shape", [-1, *action.shape], np.int64))


def _exact_floats(graph: Graph, x: str, action: Box) -> str:
    dtype = np.dtype(action.dtype)
    if dtype == np.float32:
        return x
    largest = min(float(np.finfo(dtype).max), LIMIT)
    if largest < LIMIT:
        x = graph.clip(x, "finite_action", -largest, largest)
    low, high = (np.nan_to_num(bound) for bound in exact_bounds(action))
    if (
        dtype == np.float16
    ):  # runtimes lack its comparisons: rounded, bounded in float32, and exact when cast again
        x = graph.cast(graph.cast(x, dtype), np.float32)
        return graph.cast(graph.clip(x, "exact", low, high), dtype)
    return graph.clip(graph.cast(x, dtype), "exact", low, high, dtype)


def _model(
    graph: Graph,
    actions: str,
    policy: Lowered,
    metadata: Mapping[str, str] | None,
    version: int = OPSET,
    ir_version: int = IR_VERSION,
) -> Any:
    onnx, action = graph.onnx, policy.action
    shape = [] if isinstance(action, Discrete) else list(action.shape)
    dtype = np.dtype(np.int64 if isinstance(action, Discrete) else action.dtype)
    graph.nodes.append(onnx.helper.make_node("Identity", [actions], ["actions"], name="actions"))
    info = onnx.helper.make_tensor_value_info
    made = onnx.helper.make_graph(
        graph.nodes,
        "policy",
        [info("obs", onnx.TensorProto.FLOAT, ["batch", policy.observation_size])],
        [info("actions", onnx.helper.np_dtype_to_tensor_dtype(dtype), ["batch", *shape])],
        list(graph.constants.values()),
    )
    opset = onnx.helper.make_opsetid("", version)
    model = onnx.helper.make_model(
        made, opset_imports=[opset], ir_version=ir_version, producer_name="prune_rl"
    )
    onnx.helper.set_model_props(model, dict(metadata or {}))
    onnx.checker.check_model(model, full_check=True)
    return model
