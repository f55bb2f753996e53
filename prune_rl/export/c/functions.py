"""The functions of the exported C code. `@` stands for the prefix of every name at file level.

MISRA-minded: no recursion, one exit, no pointer arithmetic but indexing, sized integer types. No expression multiplies
and adds in float where the last bit matters, since compilers may fuse the two.
"""

from __future__ import annotations

from prune_rl.export import tanh
from prune_rl.export.c.literals import float_literal

CLAMP = """
static float @clamp(float x, float low, float high)
{
    float y = x;
    if (y < low) {
        y = low;
    }
    if (y > high) {
        y = high;
    }
    return y;
}
"""

# Four sums at a time: four independent chains of additions, or one vector.
AFFINE = """
/* y = x kernel + bias; the kernel in blocks of four outputs, [outputs / 4][inputs][4], then the others' rows. */
static void @affine(const float *kernel, const float *bias, const float *x, uint32_t inputs, float *y, uint32_t outputs)
{
    uint32_t j = 0U;
    uint32_t k = 0U;
    while ((j + 4U) <= outputs) {
        float sum[4] = {bias[j], bias[j + 1U], bias[j + 2U], bias[j + 3U]};
        for (uint32_t i = 0U; i < inputs; i++) {
            sum[0] += kernel[k] * x[i];
            sum[1] += kernel[k + 1U] * x[i];
            sum[2] += kernel[k + 2U] * x[i];
            sum[3] += kernel[k + 3U] * x[i];
            k += 4U;
        }
        y[j] = sum[0];
        y[j + 1U] = sum[1];
        y[j + 2U] = sum[2];
        y[j + 3U] = sum[3];
        j += 4U;
    }
    while (j < outputs) {
        float sum = bias[j];
        for (uint32_t i = 0U; i < inputs; i++) {
            sum += kernel[k] * x[i];
            k++;
        }
        y[j] = sum;
        j++;
    }
}
"""

TANH = """
#ifdef @PREFIX_LIBM
#define @tanh tanhf
#else
/* Error at most ABSOLUTE, and RELATIVE of the value. With E = exp(2|x|) - 1 it is E / (E + 2). */
static float @tanh(float x)
{
    const float a = (x < 0.0f) ? -x : x;
    const float c = (a < LARGEST) ? a : LARGEST;
    const float b = c + c;
    const float scaled = b * PER_LOG_2;
    const uint32_t k = (uint32_t)(float)(scaled + 0.5f);
    const float count = (float)k;
    const float power = (float)((uint32_t)1U << k);
    float product = count * HIGH;
    float r = b - product;
    float p = C4;
    float e;
    product = count * LOW;
    r = r - product;
    product = p * r;
    p = product + C3;
    product = p * r;
    p = product + C2;
    product = p * r;
    p = product + C1;
    product = p * r;
    p = product + C0;
    product = r * r;
    product = p * product;
    p = product + r;
    product = power * p;
    e = product + (power - 1.0f);
    e = e / (e + 2.0f);
    return (x < 0.0f) ? -e : e;
}
#endif
"""
for _name, _value in {
    "ABSOLUTE": f"{tanh.MAX_ABSOLUTE_ERROR:.1e}",
    "RELATIVE": f"{tanh.MAX_RELATIVE_ERROR:.1e}",
    "LARGEST": float_literal(tanh.LARGEST),
    "PER_LOG_2": float_literal(tanh.PER_LOG_2),
    "HIGH": float_literal(tanh.LOG_2_HIGH),
    "LOW": float_literal(tanh.LOG_2_LOW),
    **{f"C{i}": float_literal(value) for i, value in enumerate(tanh.COEFFICIENTS)},
}.items():
    TANH = TANH.replace(_name, _value)

# log(1 + u) = 2 artanh(z) with u = exp(-|x|) and z = u / (2 + u) <= 1/3.
_SOFTPLUS = """
    const float t = @tanh(0.5f * ((x < 0.0f) ? -x : x));
    const float z = (1.0f - t) / (3.0f + t);
    const float s = z * z;
    float p = 1.0f / 13.0f;
    p = (p * s) + (1.0f / 11.0f);
    p = (p * s) + (1.0f / 9.0f);
    p = (p * s) + (1.0f / 7.0f);
    p = (p * s) + (1.0f / 5.0f);
    p = (p * s) + (1.0f / 3.0f);
    p = (p * s) + 1.0f;
    return ((x > 0.0f) ? x : 0.0f) + (2.0f * z * p);
"""

_BODIES = {
    "tanh": "    return @tanh(x);\n",
    "relu": "    return (x > 0.0f) ? x : 0.0f;\n",
    "leaky_relu": "    return (x >= 0.0f) ? x : (0.01f * x);\n",
    "silu": "    return x * ((0.5f * @tanh(0.5f * x)) + 0.5f);\n",
    "gelu": "    const float cubic = 0.044715f * (x * x * x);\n"
    "    return (0.5f * x) * (1.0f + @tanh(0.797884561f * (x + cubic)));\n",
    # exp(x) - 1 = 2 t / (1 - t) with t = tanh(x / 2), for x <= 0.
    "elu": "    const float t = @tanh(0.5f * ((x < 0.0f) ? x : 0.0f));\n"
    "    return (x > 0.0f) ? x : ((2.0f * t) / (1.0f - t));\n",
    "softplus": _SOFTPLUS.strip("\n") + "\n",
    "sigmoid": "    return (0.5f * @tanh(0.5f * x)) + 0.5f;\n",
}


def needs_tanh(activation: str) -> bool:
    """Whether the C code of this activation calls that of tanh."""
    return "@tanh" in _BODIES[activation]


def activation_function(activation: str) -> str:
    """The function that applies an activation to an array."""
    return (
        f"\n/* {activation} */\nstatic float @activation(float x)\n{{\n{_BODIES[activation]}}}\n"
        "\nstatic void @activate(float *x, uint32_t count)\n{\n"
        "    for (uint32_t i = 0U; i < count; i++) {\n        x[i] = @activation(x[i]);\n    }\n}\n"
    )


SATURATE = """
/* The sums were of weights scaled by 1 / scale, so that none overflows. */
static void @saturate(float *x, uint32_t count, float limit, float scale)
{
    for (uint32_t i = 0U; i < count; i++) {
        x[i] = scale * @clamp(x[i], -limit, limit);
    }
}
"""
