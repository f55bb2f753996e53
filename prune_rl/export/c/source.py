"""The header and the source file of a policy."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from prune_rl.export.c.actions import ActionCode, action_code
from prune_rl.export.c.functions import AFFINE, CLAMP, SATURATE, TANH, activation_function, needs_tanh
from prune_rl.export.c.literals import array, blocked, float_literal
from prune_rl.export.c.self_test import self_test
from prune_rl.export.lowering import LIMIT, Lowered, lower
from prune_rl.export.policy import Policy


@dataclasses.dataclass(frozen=True)
class CSource:
    """The text of `NAME.h` and `NAME.c`."""

    name: str
    header: str
    source: str


def c_source(policy: Policy, name: str = "policy", metadata: Mapping[str, str] | None = None) -> CSource:
    """C99 code of ``NAME_act``, which computes the actions of ``policy`` in float32.

    The code has no state, allocates nothing, and includes `stdint.h` alone. Compiled with `NAME_LIBM` defined (NAME in
    capitals) it uses `tanhf` of `math.h`; with `NAME_SELF_TEST` it has a `main` that compares actions with NumPy's.

    Args:
        policy: any policy.
        name: of the files, and the prefix of all names in them: a C identifier.
        metadata: written into the comment at the top of the header.

    Raises:
        ValueError: ``name`` is no identifier of C.
    """
    check_name(name)
    lowered = lower(policy)
    action = action_code(lowered)
    parts = [_constants(lowered), action.constants, _functions(lowered, action), _act(lowered, action)]
    return assemble(policy, name, metadata, action, parts, self_test(policy, action.kind, action.size))


def check_name(name: str) -> None:
    """Raises ``ValueError`` if ``name`` is no identifier of C."""
    if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name):
        raise ValueError(
            f"the name of a C export must be letters, digits and underscores, and begin with a letter, got {name!r}"
        )


def assemble(
    policy: Policy,
    name: str,
    metadata: Mapping[str, str] | None,
    action: ActionCode,
    parts: list[str],
    test: str,
) -> CSource:
    """Header and source from the parts of the source, in which `@` stands for the prefix."""
    upper = name.upper()
    size = policy.observation_size
    lines = [f"{key}: {value}" for key, value in (metadata or {}).items()]
    comment = "".join(f" * {_comment_text(line)}\n" for line in ["A policy, written by prune_rl.", *lines])
    header = f"""/*
{comment} */
#ifndef {upper}_H
#define {upper}_H

#include <stdint.h>

#define {upper}_OBSERVATION_SIZE {size}
#define {upper}_ACTION_SIZE {action.size}

/* Writes the best action for an observation, flattened in C order, as the environment gives it; returns 0.
 * If a component is NaN, it returns 1 and leaves the action as it is. Reentrant. */
int32_t {name}_act(const float observation[{size}], {action.kind} action[{action.size}]);

#endif
"""
    source = (
        f'#include "{name}.h"\n\n#include <float.h>\n\n#ifdef __FAST_MATH__\n'
        '#error "compile without -ffast-math: it removes the tests for NaN"\n'
        "#endif\n#if defined(FLT_EVAL_METHOD) && (FLT_EVAL_METHOD != 0)\n"
        '#error "rounding needs float arithmetic in float: on x86 add -msse2 -mfpmath=sse"\n'
        f"#endif\n#ifdef @PREFIX_LIBM\n#include <math.h>\n#endif\n\n{''.join(parts)}{test}"
    )
    return CSource(name, header, source.replace("@PREFIX", upper).replace("@", f"{name}_"))


def _comment_text(line: str) -> str:
    return line.replace("*/", "* /").replace("\n", " ").replace("@", "(at)").replace("\\", "/")


def _constants(policy: Lowered) -> str:
    text = []
    if policy.mean is not None and policy.std is not None:
        text += [array("float", "@mean", policy.mean), array("float", "@std", policy.std)]
    for index, layer in enumerate(policy.layers):
        text += [
            array("float", f"@kernel_{index}", blocked(layer.kernel)),
            array("float", f"@bias_{index}", layer.bias),
        ]
        if layer.skip is not None:
            text.append(array("float", "@skip", blocked(layer.skip)))
    return "".join(text)


def _functions(policy: Lowered, action: ActionCode) -> str:
    hidden = len(policy.layers) > 1
    tanh = action.tanh or (hidden and needs_tanh(policy.activation))
    return "".join(
        (
            CLAMP,
            AFFINE,
            TANH if tanh else "",
            activation_function(policy.activation) if hidden else "",
            SATURATE if any(layer.exponent for layer in policy.layers) else "",
            action.functions,
        )
    )


def check_and_normalise(policy: Lowered) -> str:
    """Statements that write what the network sees into `x`, and whether a component is NaN into `status`."""
    limit = float_literal(policy.limit)
    if policy.mean is None:
        steps = f"        x[i] = @clamp(observation[i], -{limit}, {limit});\n"
    else:
        value = "observation[i]"
        if policy.limit == LIMIT:
            value = f"@clamp(observation[i], -{limit}, {limit})"
        steps = f"        x[i] = @clamp(({value} - @mean[i]) / @std[i], -{limit}, {limit});\n"
    return (
        f"    for (uint32_t i = 0U; i < {policy.observation_size}U; i++) {{\n"
        "        if (observation[i] != observation[i]) {\n            status = 1;\n        }\n"
        f"{steps}    }}\n"
    )


def _act(policy: Lowered, action: ActionCode) -> str:
    size, outputs = policy.observation_size, policy.outputs
    widths = [len(layer.bias) for layer in policy.layers[:-1]]
    # Layers read one buffer and write the other.
    buffers = [max(widths[index::2], default=0) for index in (0, 1)]
    names = ["even", "odd"]
    declarations = [f"float x[{size}]", f"float outputs[{outputs}]"]
    declarations += [f"float {names[i]}[{buffer}]" for i, buffer in enumerate(buffers) if buffer]
    calls, source, count = [], "x", size
    for index, layer in enumerate(policy.layers):
        last = index == len(policy.layers) - 1
        target, width = ("outputs", outputs) if last else (names[index % 2], widths[index])
        calls.append(f"@affine(@kernel_{index}, @bias_{index}, {source}, {count}U, {target}, {width}U);")
        if layer.skip is not None:
            calls.append(f"@affine(@skip, outputs, x, {size}U, outputs, {outputs}U);")
        if layer.exponent:
            scale = np.float32(2.0**layer.exponent)
            limit = float_literal(np.float32(LIMIT) / scale)
            calls.append(f"@saturate({target}, {width}U, {limit}, {float_literal(scale)});")
        if not last:
            calls.append(f"@activate({target}, {width}U);")
        source, count = target, width
    body = "".join(f"        {call}\n" for call in calls)
    return (
        f"\nint32_t @act(const float observation[{size}], {action.kind} action[{action.size}])\n{{\n"
        + "".join(f"    {declaration};\n" for declaration in declarations)
        + "    int32_t status = 0;\n"
        + check_and_normalise(policy)
        + f"    if (status == 0) {{\n{body}{action.body}    }}\n    return status;\n}}\n"
    )
