"""Small layers that an objective learns and puts between a student and its teacher.

Each is a pair of functions: one makes fresh arrays, one applies them. First weights are uniform
within 1 / sqrt(fan in), as the public code of these methods has them. Normalisation is by the
batch: these layers serve in training only, so there are no running statistics.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fdjax import checks
from fdjax.losses.pairs import Maps

Layer: TypeAlias = dict[str, Array]
Size: TypeAlias = tuple[int, int]

_FIRST = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def linear(key: Array, inputs: int, outputs: int) -> Layer:
    """A fresh linear layer of vectors."""
    kernel_key, bias_key = jax.random.split(key)
    return {
        "kernel": _FIRST(kernel_key, (inputs, outputs)),
        "bias": _bias(bias_key, inputs, outputs),
    }


def apply_linear(
    layer: Layer, vectors: Float[Array, "batch inputs"]
) -> Float[Array, "batch outputs"]:
    """The layer's value."""
    return vectors @ layer["kernel"] + layer["bias"]


def pointwise(key: Array, widths: Sequence[int]) -> list[Float[Array, "_ _"]]:
    """Fresh kernels of 1x1 convolutions without bias, from each width to the next."""
    keys = jax.random.split(key, len(widths) - 1)
    return [_FIRST(one, pair) for one, pair in zip(keys, pairwise(widths), strict=True)]


def regressor(key: Array, student: Maps, teacher: Maps) -> Layer:
    """A fresh convolution that brings the student's maps to the teacher's shape, with a norm.

    Raises:
        InputError: If no such convolution is defined for the two sizes.
    """
    own, wanted = _size(student), _size(teacher)
    shrink = (1 + own[0] - wanted[0], 1 + own[1] - wanted[1])
    size = {"halve": (3, 3), "double": (4, 4), "shrink": shrink}[_form(own, wanted)]
    return _convolution(key, size, student.shape[-1], teacher.shape[-1], normalised=True)


def apply_regressor(layer: Layer, student: Maps, teacher: Maps) -> Maps:
    """The student's maps in the teacher's shape, normalised, before any activation.

    Maps twice as large are halved by a 3x3 convolution, maps half as large doubled by a
    transposed 4x4 one; otherwise the kernel is as large as leaves the teacher's size.
    """
    form = _form(_size(student), _size(teacher))
    if form == "double":
        axes = ("NHWC", "HWIO", "NHWC")
        maps = jax.lax.conv_transpose(
            student, layer["kernel"], (2, 2), "SAME", dimension_numbers=axes
        )
    elif form == "halve":
        maps = _convolved(layer, student, stride=2, padding=1)
    else:
        maps = _convolved(layer, student, stride=1, padding=0)
    return _normalised(layer, maps)


def stack(key: Array, inputs: int, outputs: int, *, normalised: bool) -> list[Layer]:
    """Three fresh 3x3 convolutions, to `inputs`, `outputs` and `outputs` channels."""
    keys = jax.random.split(key, 3)
    widths = pairwise((inputs, inputs, outputs, outputs))
    return [
        _convolution(one, (3, 3), *width, normalised=normalised)
        for one, width in zip(keys, widths, strict=True)
    ]


def apply_stack(layers: Sequence[Layer], maps: Maps) -> Maps:
    """3x3 convolutions, each with its norm if it has one and a leaky ReLU of slope 0.1."""
    for layer in layers:
        maps = _convolved(layer, maps, stride=1, padding=1)
        maps = _normalised(layer, maps) if "scale" in layer else maps + layer["bias"]
        maps = jax.nn.leaky_relu(maps, 0.1)
    return maps


def _convolution(key: Array, size: Size, inputs: int, outputs: int, *, normalised: bool) -> Layer:
    kernel_key, bias_key = jax.random.split(key)
    kernel = _FIRST(kernel_key, (*size, inputs, outputs))
    if normalised:  # which takes away any bias
        return {"kernel": kernel, "scale": jnp.ones(outputs), "offset": jnp.zeros(outputs)}
    return {"kernel": kernel, "bias": _bias(bias_key, math.prod(size) * inputs, outputs)}


def _bias(key: Array, fan_in: int, outputs: int) -> Float[Array, " outputs"]:
    reach = fan_in**-0.5
    return jax.random.uniform(key, (outputs,), minval=-reach, maxval=reach)


def _convolved(layer: Layer, maps: Maps, *, stride: int, padding: int) -> Maps:
    around = (padding, padding)
    axes = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        maps, layer["kernel"], (stride, stride), (around, around), dimension_numbers=axes
    )


def _normalised(layer: Layer, maps: Maps) -> Maps:
    """Each channel with mean zero and variance one over the batch, then scale and offset."""
    mean = jnp.mean(maps, axis=(0, 1, 2))
    variance = jnp.mean((maps - mean) ** 2, axis=(0, 1, 2))
    return (maps - mean) * (layer["scale"] * jax.lax.rsqrt(variance + 1e-5)) + layer["offset"]


def _size(maps: Maps) -> Size:
    return maps.shape[1], maps.shape[2]


def _form(own: Size, wanted: Size) -> Literal["halve", "double", "shrink"]:
    """How maps of the size `own` come to the size `wanted`."""
    if own == (2 * wanted[0], 2 * wanted[1]):
        return "halve"
    if (2 * own[0], 2 * own[1]) == wanted:
        return "double"
    checks.require(
        own[0] >= wanted[0] and own[1] >= wanted[1],
        f"no regressor is defined from the student's maps of {own[0]}x{own[1]} to the teacher's of "
        f"{wanted[0]}x{wanted[1]}; choose layers where the student's are larger, or just half as "
        "large.",
    )
    return "shrink"
