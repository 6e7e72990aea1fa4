"""Bringing a student's and a teacher's maps or vectors to where a loss can compare them."""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fdjax import checks

Maps: TypeAlias = Float[Array, "batch _ _ _"]
"""Maps of a batch, channels last; each layer has its own height, width and channels."""

EXACT = jax.lax.Precision.HIGHEST
"""Relations are differences of nearly equal products: no device may round their factors."""


def check_maps(loss: str, student_maps: Any, teacher_maps: Any) -> None:
    """Refuses what is not maps of one batch.

    Raises:
        InputError: If a side has not four axes, or the sides differ in their number of images.
    """
    for side, maps in (("student", student_maps), ("teacher", teacher_maps)):
        checks.require(
            np.ndim(maps) == 4,
            f"`{loss}` compares maps of shape (batch, height, width, channels), but those of the "
            f"{side} have shape {tuple(np.shape(maps))}; give it maps between stages.",
        )
    _check_batch(loss, student_maps, teacher_maps)


def check_layers(
    loss: str, student_maps: Sequence[Any], teacher_maps: Sequence[Any], *, fewest: int = 1
) -> None:
    """Refuses lists of maps that do not stand side by side.

    Raises:
        InputError: If the sides have different numbers of layers, or fewer than `fewest`, or
            `check_maps` refuses a pair.
    """
    given = len(student_maps), len(teacher_maps)
    checks.require(
        given[0] == given[1] >= fewest,
        f"`{loss}` needs maps of as many layers of the student as of the teacher, at least "
        f"{fewest}, got {given[0]} and {given[1]}; choose layers that both have.",
    )
    for student, teacher in zip(student_maps, teacher_maps, strict=True):
        check_maps(loss, student, teacher)


def check_relations(
    loss: str, student: Any, teacher: Any, *, smallest: int = 2, vectors: bool = True
) -> None:
    """Refuses what has no relations between its images.

    Raises:
        InputError: If `vectors` and a side has not two axes, the sides differ in their number
            of images, or there are fewer than `smallest`.
    """
    for side, array in (("student", student), ("teacher", teacher)):
        checks.require(
            np.ndim(array) == 2 if vectors else np.ndim(array) >= 2,
            f"`{loss}` compares features of shape (batch, features), but those of the {side} have "
            f"shape {tuple(np.shape(array))}; give one vector an image.",
        )
    _check_batch(loss, student, teacher)
    checks.require(
        len(student) >= smallest,
        f"`{loss}` relates {smallest} images of a batch to each other, but the batch has "
        f"{len(student)}; raise the batch size.",
    )


def _check_batch(loss: str, student: Any, teacher: Any) -> None:
    checks.require(
        len(student) == len(teacher),
        f"`{loss}` compares both sides image by image, but the student saw {len(student)} images "
        f"and the teacher {len(teacher)}; give both the same batch.",
    )


def unit(vectors: Float[Array, "*shape"], axis: int | tuple[int, ...] = -1) -> Array:
    """Vectors of length one along `axis`.

    One no longer than 1e-12 (a dead sample or channel) becomes zero, and no gradient passes:
    its direction is nobody's to choose.
    """
    square = jnp.sum(vectors**2, axis=axis, keepdims=True)
    some = square > 1e-24
    return jnp.where(some, vectors * jax.lax.rsqrt(jnp.where(some, square, 1.0)), 0.0)


@jax.custom_jvp
def inner_products(rows: Float[Array, "batch features"]) -> Float[Array, "batch batch"]:
    """Inner products of all pairs of rows.

    Their matrix is symmetric, so its gradient takes one product, where the rule for a product of
    two matrices takes two.
    """
    return jnp.matmul(rows, rows.T, precision=EXACT)


@inner_products.defjvp
def _inner_products_change(
    primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Float[Array, "batch batch"], Float[Array, "batch batch"]]:
    (rows,), (change,) = primals, tangents
    half = jnp.matmul(change, rows.T, precision=EXACT)
    return inner_products(rows), half + half.T


def pooled(maps: Maps, size: tuple[int, int]) -> Maps:
    """Averages over windows that cover the maps, so that `size` positions remain.

    Window i of n over m positions is [floor(i m / n), ceil((i + 1) m / n)): the windows
    overlap where n does not divide m, as PyTorch's adaptive average pooling has them.

    Args:
        maps: Of any height and width not below `size`.
        size: Height and width of the result.
    """
    batch, height, width, channels = maps.shape
    if (height, width) == size:
        return maps
    if height % size[0] == 0 and width % size[1] == 0:
        window = height // size[0], width // size[1]
        tiles = maps.reshape(batch, size[0], window[0], size[1], window[1], channels)
        return tiles.mean(axis=(2, 4))
    rows, columns = (
        jnp.asarray(_windows(*sizes), maps.dtype) for sizes in ((height, size[0]), (width, size[1]))
    )
    return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, maps, precision=EXACT)


def _windows(positions: int, windows: int) -> np.ndarray:
    """Averaging matrix whose row i is window i."""
    matrix = np.zeros((windows, positions))
    for i in range(windows):
        low, high = i * positions // windows, math.ceil((i + 1) * positions / windows)
        matrix[i, low:high] = 1 / (high - low)
    return matrix


def of_one_size(loss: str, one: Maps, other: Maps) -> tuple[Maps, Maps]:
    """Both maps at the height and width of the smaller one, the larger one averaged.

    Raises:
        InputError: If one is higher and the other wider.
    """
    sizes = one.shape[1:3], other.shape[1:3]
    smaller = min(sizes[0][0], sizes[1][0]), min(sizes[0][1], sizes[1][1])
    checks.require(
        smaller in sizes,
        f"`{loss}` averages the larger map to the size of the smaller one, but of {sizes[0]} and "
        f"{sizes[1]} neither is the larger; choose layers of the same proportions.",
    )
    return pooled(one, smaller), pooled(other, smaller)
