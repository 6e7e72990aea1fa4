"""What a teacher is in few numbers: for each of its labels a vector and a mass.

All vectors lie in one embedding, that of a reference encoder, so that teachers of any label space
can be compared with a task that none of them has seen: `scores.nearest` finds those from which it
can be reached most cheaply.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, BFloat16, Float

from fdjax import checks

Geometry = Literal["cosine", "sqeuclidean"]


class Sketch(NamedTuple):
    """A teacher, or a task, in a shared embedding.

    Attributes:
        vectors: Where each label lies.
        masses: How much it weighs, >= 0; they need not sum to one.
    """

    vectors: Float[np.ndarray, "labels dimensions"]
    masses: Float[np.ndarray, " labels"]


def sketch(
    probabilities: Float[Array | np.ndarray, "examples labels"],
    encoded: Float[Array | np.ndarray, "examples dimensions"],
) -> Sketch:
    """Mean of what the encoder says of the examples of each label, and how many there are.

    Of a teacher: what it predicts of a fixed set of probe images, each of which counts for a label
    as far as the teacher sees the label in it. Nothing else is asked of the teacher, and nothing
    of the images that it was trained on. Of a task: its labels as rows of zeros and a one.

    Args:
        probabilities: Of each label; each row sums to one.
        encoded: The same examples in the shared embedding; best about a common mean.

    Returns:
        The sketch in float32, without the labels that have no mass.

    Raises:
        InputError: If the numbers of examples differ or a value is no probability.
    """
    given = np.asarray(probabilities, np.float64)
    places = np.asarray(encoded, np.float64)
    checks.shape("probabilities", given, (None, None))
    checks.shape("encoded", places, (len(given), None))
    checks.finite("encoded", places)
    checks.require(
        bool((given >= 0).all() and given.sum() > 0),
        "`probabilities` must be at least 0, and not all of them 0.",
    )
    masses = given.sum(axis=0)
    known = masses > 0
    vectors = (given.T[known] @ places) / masses[known, None]
    shares = masses[known] / masses.sum()
    return Sketch(vectors.astype(np.float32), shares.astype(np.float32))


class Shelf(NamedTuple):
    """Sketches of like sizes side by side, the heaviest labels first, padded without mass.

    Attributes:
        positions: Places of the teachers in the order they were given.
        vectors: Zeros where padded.
        masses: Sum to one for each teacher.
        heads: The heavier half of the labels, rounded and on the device, for bounds of all: blocks
            of `BLOCK` teachers each, with zeros behind the last.
        squares: Of the heads before rounding: their squared lengths, each times its mass, summed.
    """

    positions: np.ndarray
    vectors: Float[np.ndarray, "teachers labels dimensions"]
    masses: Float[np.ndarray, "teachers labels"]
    heads: tuple[BFloat16[Array, "dimensions block heaviest"], ...]
    squares: Float[np.ndarray, " teachers"]


class Index(NamedTuple):
    """The sketches of a faculty, ready to be searched.

    Attributes:
        names: Of the teachers.
        geometry: "cosine" (vectors are then of length one) or "sqeuclidean".
        shelves: The sketches by their number of labels.
        moments: Mean and standard deviation of every coordinate of each teacher.
        radii: Length of the longest vector of each teacher.
    """

    names: tuple[str, ...]
    geometry: Geometry
    shelves: tuple[Shelf, ...]
    moments: Float[np.ndarray, "teachers twice_dimensions"]
    radii: Float[np.ndarray, " teachers"]


def _padded(
    sketches: Sequence[Sketch], positions: Sequence[int], dimensions: int
) -> tuple[np.ndarray, np.ndarray]:
    labels = max(len(sketches[position].masses) for position in positions)
    vectors = np.zeros((len(positions), labels, dimensions), np.float32)
    masses = np.zeros((len(positions), labels), np.float32)
    for row, position in enumerate(positions):
        one = sketches[position]
        order = np.argsort(one.masses, kind="stable")[::-1]
        vectors[row, : len(order)] = one.vectors[order]
        masses[row, : len(order)] = one.masses[order]
    return vectors, masses


def _refuse(wrong: Any, names: Sequence[str], what: str) -> None:
    """Refuses sketches of which something is wrong, naming the first of them."""
    if wrong.any():
        raise checks.InputError(
            f"the sketch of {names[int(np.argmax(wrong))]} {what} ({int(wrong.sum())} such); "
            "make it again, or leave the teacher out."
        )


def _sound(vectors: np.ndarray, masses: np.ndarray, names: Sequence[str]) -> None:
    broken = ~np.isfinite(vectors).all(axis=(1, 2)) | ~np.isfinite(masses).all(axis=1)
    _refuse(broken, names, "holds NaN or infinity")
    _refuse((masses < 0).any(axis=1), names, "has a negative mass")
    _refuse(masses.sum(axis=1) <= 0, names, "has no mass at all")


def _moments(vectors: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of each coordinate.

    From the differences to the mean: that of the squares would lose the small deviations.
    """
    weights = masses.astype(np.float64)
    mean = np.einsum("ts,tsd->td", weights, vectors)
    square = np.einsum("ts,tsd->td", weights, (vectors - mean[:, None]) ** 2)
    return np.concatenate([mean, np.sqrt(square)], axis=1).astype(np.float32)


BLOCK = 1024
"""Teachers whose heads are looked at together."""
_CHUNK = 2048  # sketches whose float64 differences are held at once


def index(
    sketches: Sequence[Sketch],
    names: Sequence[str] | None = None,
    *,
    geometry: Geometry = "cosine",
) -> Index:
    """Sketches of one embedding, ready to be searched.

    Args:
        sketches: One a teacher. Those whose numbers of labels lie between the same powers of two
            are padded to one size; each size is a shape to compile.
        names: Of the teachers, for messages; by default their positions.
        geometry: Price of carrying mass from a vector to another: "cosine" is 1 - cosine
            similarity, in [0, 2]; "sqeuclidean" the squared distance.

    Returns:
        The index; about 5 bytes for each number of each padded sketch.

    Raises:
        InputError: If there is no sketch, sizes do not fit, or a sketch holds NaN, negative masses,
            none at all or, for "cosine", a vector of zeros; it names the teacher.
    """
    checks.choice("geometry", geometry, ("cosine", "sqeuclidean"))
    checks.require(len(sketches) > 0, "`sketches` is empty; hand in that of one teacher at least.")
    named = tuple(names or (f"sketches[{place}]" for place in range(len(sketches))))
    checks.shape("names", named, (len(sketches),))
    dimensions = np.shape(sketches[0].vectors)[-1]
    members: dict[int, list[int]] = {}
    for position, one in enumerate(sketches):
        labels = len(one.masses)
        if np.shape(one.vectors) != (labels, dimensions) or labels == 0:
            raise checks.InputError(
                f"the sketch of {named[position]} must have a mass for each vector, and vectors of "
                f"{dimensions} dimensions as that of {named[0]} has, got vectors of shape "
                f"{np.shape(one.vectors)} and {labels} masses."
            )
        members.setdefault((labels - 1).bit_length(), []).append(position)
    shelves = []
    moments = np.empty((len(sketches), 2 * dimensions), np.float32)
    radii = np.empty(len(sketches), np.float32)
    for size in sorted(members):
        positions = np.asarray(members[size])
        vectors, masses = _padded(sketches, members[size], dimensions)
        half = -(-vectors.shape[1] // 2)
        squares = np.empty(len(positions), np.float32)
        for start in range(0, len(positions), _CHUNK):
            part = slice(start, start + _CHUNK)
            here = positions[part]
            _finish(vectors[part], masses[part], [named[place] for place in here], geometry)
            moments[here] = _moments(vectors[part], masses[part])
            radii[here] = np.linalg.norm(vectors[part], axis=2).max(axis=1)
            squares[part] = np.einsum("ts,tsd->t", masses[part, :half], vectors[part, :half] ** 2)
        shelves.append(Shelf(positions, vectors, masses, _blocks(vectors[:, :half]), squares))
    return Index(named, geometry, tuple(shelves), moments, radii)


def _blocks(vectors: np.ndarray) -> tuple[Array, ...]:
    """Vectors by blocks of teachers, dimensions first: as columns, of which products are fast."""
    _, labels, dimensions = vectors.shape
    blocks = []
    for start in range(0, len(vectors), BLOCK):
        block = np.zeros((dimensions, BLOCK, labels), jnp.bfloat16)
        part = vectors[start : start + BLOCK]
        block[:, : len(part)] = np.moveaxis(part, 2, 0)
        blocks.append(jnp.asarray(block))
    return tuple(blocks)


def _finish(
    vectors: np.ndarray, masses: np.ndarray, names: Sequence[str], geometry: Geometry
) -> None:
    """Checks padded sketches, and scales in place masses to one and vectors as is their geometry.

    Raises:
        InputError: As `index`.
    """
    _sound(vectors, masses, names)
    masses /= masses.sum(axis=1, keepdims=True, dtype=np.float64)
    if geometry == "cosine":
        length = np.linalg.norm(vectors, axis=2, keepdims=True)
        empty = (length[..., 0] == 0) & (masses > 0)
        _refuse(empty.any(axis=1), names, "has a vector of zeros, which has no direction")
        vectors /= np.where(length == 0, 1.0, length)
