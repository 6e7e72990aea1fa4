"""Losses on the step from one layer's maps to the next: how the two layers relate in each image."""

import functools
from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fdjax import checks
from fdjax.losses.pairs import EXACT, Maps, check_layers, of_one_size

Rows = Float[Array, "batch positions channels"]
Directions = Float[Array, "batch _ _"]
"""Vectors over a layer's channels: [image, channel, vector]."""


def _check_channels(loss: str, student_maps: Sequence[Maps], teacher_maps: Sequence[Maps]) -> None:
    """Refuses sides that differ in channels at a layer, or have fewer than two layers."""
    check_layers(loss, student_maps, teacher_maps, fewest=2)
    for i, (student, teacher) in enumerate(zip(student_maps, teacher_maps, strict=True)):
        own, given = student.shape[-1], teacher.shape[-1]
        checks.require(
            own == given,
            f"`{loss}` compares channel by channel, but in pair {i} of layers the student "
            f"has {own} and the teacher {given}; choose a student as wide, or another loss.",
        )


def fsp(student_maps: Sequence[Maps], teacher_maps: Sequence[Maps]) -> Float[Array, " batch"]:
    """Flow of solution procedure: channels of neighbouring layers agree as the teacher's do.

    The flow between two layers is the mean over positions of the product of a channel of the
    one and a channel of the other, the larger maps being averaged to the size of the smaller.

    Args:
        student_maps: Of two layers or more, first one first.
        teacher_maps: Of as many, with the same channels; heights and widths may differ.

    Returns:
        Mean squared difference of the flows, summed over neighbouring layers, for each
        example. RepDistiller minimises it, with weight 50, in a first stage only.

    Raises:
        InputError: If there are fewer than two layers, or layers or channels differ in number.

    References:
        Yim, Joo, Bae, Kim, A Gift from Knowledge Distillation, CVPR 2017, eq. 1 and 2.
    """
    _check_channels("fsp", student_maps, teacher_maps)

    def flow(before: Maps, after: Maps) -> Float[Array, "batch before after"]:
        before, after = of_one_size("fsp", before, after)
        positions = before.shape[1] * before.shape[2]
        return jnp.einsum("bhwi,bhwj->bij", before, after, precision=EXACT) / positions

    steps = zip(pairwise(student_maps), pairwise(teacher_maps), strict=True)
    gaps = [flow(*student) - flow(*teacher) for student, teacher in steps]
    return jnp.stack([jnp.mean(gap**2, axis=(1, 2)) for gap in gaps]).sum(axis=0)


def _decomposed(rows: Rows) -> tuple[Directions, Float[Array, "batch _"]]:
    """All right singular vectors and squared singular values, largest first.

    From the smaller of the two matrices of inner products: a symmetric eigenproblem as large
    as the layer is wide costs far less than the decomposition of all positions.
    """
    _, positions, channels = rows.shape
    wide = positions < channels
    product = "bpc,bqc->bpq" if wide else "bpc,bpd->bcd"
    inner = jnp.einsum(product, rows, rows, precision=EXACT)
    squares, vectors = _eigh(inner)
    squares, vectors = jnp.maximum(squares[:, ::-1], 0.0), vectors[:, :, ::-1]
    exists = squares > _noise(squares, inner.shape[-1])
    if wide:
        vectors = jnp.einsum("bpc,bpn->bcn", rows, vectors, precision=EXACT)
        vectors = vectors * jax.lax.rsqrt(jnp.where(exists, squares, 1.0))[:, None]
    return jnp.where(exists[:, None], vectors, 0.0), jnp.where(exists, squares, 0.0)


def _eigh(
    matrices: Float[Array, "batch size size"],
) -> tuple[Float[Array, "batch size"], Float[Array, "batch size size"]]:
    """Eigenvalues and vectors of symmetric matrices; on a processor one matrix after the other.

    There a batch of decompositions holds one of XLA's threads while it waits for others of the
    same threads: two batches at once on two cores wait for each other for ever (jax 0.10.2).
    """
    decomposed = functools.partial(jnp.linalg.eigh, symmetrize_input=False)
    if jax.default_backend() == "cpu":
        squares, vectors = jax.lax.map(lambda one: tuple(decomposed(one)), matrices)
    else:
        squares, vectors = decomposed(matrices)
    return squares, vectors


def _noise(squares: Float[Array, "batch _"], size: int) -> Float[Array, "batch 1"]:
    """What rounding alone can make of squared singular values, and of their differences."""
    return size * jnp.finfo(squares.dtype).eps * squares[:, :1]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def leading_directions(rows: Rows, count: int) -> tuple[Directions, Float[Array, "batch _"]]:
    """First right singular vectors of each image's matrix, and their singular values.

    A direction that the matrix lacks, within rounding, is zero. The sign of a vector is as it
    comes. Derivatives are exact to first order, but for equal singular values, between whose
    vectors nothing is defined: there they are zero where the textbook rule divides by zero.

    Args:
        rows: Channels of each position of each image.
        count: How many, at most as many as positions and channels.
    """
    directions, squares = _decomposed(rows)
    return directions[:, :, :count], jnp.sqrt(squares[:, :count])


@leading_directions.defjvp
def _leading_directions_derivative(
    count: int, primals: tuple[Rows], tangents: tuple[Rows]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """First-order perturbation of the eigenvectors of rows' rows."""
    (rows,), (change,) = primals, tangents
    every, squares = _decomposed(rows)
    chosen, own = every[:, :, :count], squares[:, :count]
    product = functools.partial(jnp.einsum, precision=EXACT)

    def inner_change(vectors: Directions) -> Directions:
        """Change of rows' rows, applied to vectors."""
        moved = product("bpc,bpn->bcn", change, product("bpc,bcn->bpn", rows, vectors))
        return moved + product("bpc,bpn->bcn", rows, product("bpc,bcn->bpn", change, vectors))

    moved = inner_change(chosen)
    along = product("bcm,bcn->bmn", every, moved)
    gap = own[:, None, :] - squares[:, :, None]
    apart = jnp.abs(gap) > _noise(squares, every.shape[-1])[:, :, None]
    weights = jnp.where(apart, along / jnp.where(apart, gap, 1.0), 0.0)
    # Channels outside the span of all rows: there the squared singular value is zero.
    outside = moved - product("bcm,bmn->bcn", every, along)
    exists = (own > 0)[:, None, :]
    direction_change = product("bcm,bmn->bcn", every, weights) + jnp.where(
        exists, outside / jnp.where(exists, own[:, None, :], 1.0), 0.0
    )
    values = jnp.sqrt(own)
    growth = product("bcn,bcn->bn", chosen, moved)
    value_change = jnp.where(own > 0, growth / (2 * jnp.where(own > 0, values, 1.0)), 0.0)
    return (chosen, values), (direction_change, value_change)


def _rows(maps: Maps) -> Rows:
    return maps.reshape(maps.shape[0], -1, maps.shape[-1])


def _aligned(student: Directions, teacher: Directions) -> Directions:
    """For each of the teacher's vectors the student's nearest line, pointing the same way."""
    cosine = jnp.einsum("bcm,bcn->bmn", student, teacher, precision=EXACT)
    nearest = jnp.argmax(jnp.abs(cosine), axis=1, keepdims=True)
    sign = jnp.sign(jnp.take_along_axis(cosine, nearest, axis=1))
    return sign * jnp.take_along_axis(student, nearest, axis=2)


def _relation(before: Directions, after: Directions) -> Float[Array, "batch _ _ _"]:
    """How near entries of both layers' vectors are, in (0, 1]: [image, after, before, vector]."""
    return jnp.exp(-((after[:, :, None] - before[:, None]) ** 2) / 8)


def kdsvd(
    student_maps: Sequence[Maps], teacher_maps: Sequence[Maps], *, count: int = 1
) -> Float[Array, " batch"]:
    """Singular vectors of neighbouring layers relate as the teacher's do.

    Each image's map is a matrix, positions by channels. Of its right singular vectors the
    teacher's first `count` are taken, and for each the nearest of the student's first `count`
    + 3, with its sign; both are scaled by the teacher's singular values (of length one
    together, so that with `count` = 1 they play no part). Entries of a layer's vector and of
    the next one's are related by a radial kernel.

    The sign of a singular vector is nobody's choice, but the loss depends on it. Here each of
    the teacher's vectors has a sum >= 0, so that the loss is a function of the maps; for
    maps after a ReLU and `count` = 1 all its entries are then >= 0. The public code takes
    what its linear algebra returns, which for such maps is the same up to one common sign,
    and that changes nothing.

    On a CPU of several cores set OPENBLAS_NUM_THREADS=1 before starting: otherwise the threads
    of the linear algebra and those of JAX hinder each other, from 64 channels on tenfold.

    Args:
        student_maps: Of two layers or more, first one first.
        teacher_maps: Of as many, with the same channels; heights and widths may differ.
        count: Vectors of each layer, >= 1; at most as many as positions and channels.

    Returns:
        Sum of squared differences of the relations of neighbouring layers, for each example.
        There is no published weight.

    Raises:
        InputError: If layers or channels differ in number, there are fewer than two layers,
            or `count` does not fit.

    References:
        Lee, Kim, Song, Self-supervised Knowledge Distillation Using Singular Value
        Decomposition, ECCV 2018, as in RepDistiller.
    """
    _check_channels("kdsvd", student_maps, teacher_maps)
    smallest = min(min(_rows(maps).shape[1:]) for maps in (*student_maps, *teacher_maps))
    checks.in_range("count", count, 1, smallest)
    vectors = []
    for student, teacher in zip(map(_rows, student_maps), map(_rows, teacher_maps), strict=True):
        wanted, values = leading_directions(teacher, count)
        wanted = wanted * jnp.where(wanted.sum(axis=1, keepdims=True) < 0, -1.0, 1.0)
        own, _ = leading_directions(student, min(count + 3, *student.shape[1:]))
        length = jnp.sqrt(jnp.sum(values**2, axis=1, keepdims=True))
        scale = (values / jnp.where(length > 0, length, 1.0))[:, None]
        vectors.append((scale * _aligned(own, wanted), scale * wanted))
    gaps = [
        _relation(own_before, own_after) - _relation(before, after)
        for (own_before, before), (own_after, after) in pairwise(vectors)
    ]
    return jnp.stack([jnp.sum(gap**2, axis=(1, 2, 3)) for gap in gaps]).sum(axis=0)
