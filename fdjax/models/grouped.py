"""Convolutions of channels apart, as sums of products.

Compilers map a grouped convolution badly: on a CPU, its gradient takes XLA up to 25 times as
long as that of the same sum written out.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def depthwise(
    maps: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width 1 channels"],
    strides: tuple[int, int],
    padding: Sequence[tuple[int, int]],
) -> Float[Array, "batch new_height new_width channels"]:
    """Convolution of each channel by itself: one product for each entry of the kernel.

    The sum is made in float32 and then has the type of the maps.

    Args:
        maps: Input.
        kernel: Weights of each channel.
        strides: Down and to the right.
        padding: Zeros before and after, for height and for width.
    """
    padded = jnp.pad(maps, ((0, 0), *padding, (0, 0)))
    counts = [
        (size - length) // stride + 1
        for size, length, stride in zip(padded.shape[1:3], kernel.shape[:2], strides, strict=True)
    ]
    total = jnp.zeros((), jnp.float32)
    for row in range(kernel.shape[0]):
        for column in range(kernel.shape[1]):
            rows, columns = (
                slice(start, start + (count - 1) * stride + 1, stride)
                for start, count, stride in zip((row, column), counts, strides, strict=True)
            )
            seen = padded[:, rows, columns].astype(jnp.float32)
            total = total + seen * kernel[row, column, 0].astype(jnp.float32)
    return total.astype(maps.dtype)


def by_pixel(
    maps: Float[Array, "batch height width channels"],
    kernel: Float[Array, "1 1 group_channels new_channels"],
    groups: int,
) -> Float[Array, "batch height width new_channels"]:
    """1x1 convolution in groups: one product of matrices for each group of channels.

    Args:
        maps: Input.
        kernel: Weights; the first channels of the result are of the first group.
        groups: Number of groups.
    """
    *pixels, channels = maps.shape
    parts = maps.reshape(*pixels, groups, channels // groups)
    weights = kernel.reshape(channels // groups, groups, -1)
    return jnp.einsum("bhwgi,igo->bhwgo", parts, weights).reshape(*pixels, -1)


def convolve(
    maps: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width group_channels new_channels"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    feature_group_count: int,
    **settings: Any,
) -> Float[Array, "batch new_height new_width new_channels"]:
    """Any convolution, for `nn.Conv` to call in the place of `jax.lax.conv_general_dilated`.

    Args:
        maps: Input.
        kernel: Weights.
        strides: Down and to the right.
        padding: Zeros before and after, for height and for width.
        feature_group_count: Number of groups.
        **settings: The rest, for convolutions that are neither of the two above.
    """
    if feature_group_count > 1 and kernel.shape[2] == 1 and kernel.shape[3] == maps.shape[3]:
        return depthwise(maps, kernel, (strides[0], strides[1]), padding)
    if feature_group_count > 1 and kernel.shape[:2] == (1, 1) and tuple(strides) == (1, 1):
        return by_pixel(maps, kernel, feature_group_count)
    return jax.lax.conv_general_dilated(
        maps, kernel, strides, padding, feature_group_count=feature_group_count, **settings
    )
