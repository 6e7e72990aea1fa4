"""Teachers of different sizes side by side: padded to one size, or in buckets of like sizes."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fdjax import checks
from fdjax.types import TeacherOutputs


def _sizes(teacher: TeacherOutputs, position: int) -> tuple[int, int, int]:
    """Examples, labels and features of one teacher, zero features for a black box."""
    name = f"teachers[{position}]"
    checks.shape(f"{name}.probabilities", teacher.probabilities, (None, None))
    examples, classes = np.shape(teacher.probabilities)
    checks.shape(f"{name}.class_mask", teacher.class_mask, (classes,))
    width = 0
    if teacher.features is not None:
        checks.shape(f"{name}.features", teacher.features, (examples, None))
        width = np.shape(teacher.features)[1]
    if teacher.class_vectors is not None:
        expected = None if teacher.features is None else width
        checks.shape(f"{name}.class_vectors", teacher.class_vectors, (classes, expected))
        width = np.shape(teacher.class_vectors)[1]
    return examples, classes, width


def _all_sizes(teachers: Sequence[TeacherOutputs]) -> list[tuple[int, int, int]]:
    """Sizes of every teacher, once they are known to have seen as many examples."""
    checks.require(len(teachers) > 0, "`teachers` is empty; hand in the outputs of at least one.")
    sizes = [_sizes(teacher, position) for position, teacher in enumerate(teachers)]
    wanted = sizes[0][0]
    for position, (got, _, _) in enumerate(sizes):
        checks.require(
            got == wanted,
            f"`teachers[{position}]` has outputs of {got} examples, but `teachers[0]` of {wanted}; "
            "observe all teachers on the same examples.",
        )
    return sizes


def _side_by_side(arrays: Sequence[Any], shape: tuple[int, ...]) -> Array:
    """Arrays in zero-padded rows of one shape; NaN for each that is missing."""
    known = [np.asarray(array) for array in arrays if array is not None]
    rows = np.zeros((len(arrays), *shape), np.result_type(*known))
    for row, array in zip(rows, arrays, strict=True):
        if array is None:
            row[...] = np.nan
        else:
            row[tuple(slice(size) for size in np.shape(array))] = array
    return jnp.asarray(rows)


def stack(teachers: Sequence[TeacherOutputs]) -> TeacherOutputs:
    """Teachers as one faculty: the same type with one more leading axis.

    Labels and features are padded with zeros to the largest teacher. Beside teachers with
    features a black box gets features (or class vectors) of NaN, so that scores of features
    are NaN for it and for no other; where no teacher has them they stay None.

    Args:
        teachers: What each teacher says of the same examples. Read on the host.

    Returns:
        The faculty.

    Raises:
        InputError: If there is no teacher, the examples differ in number or a shape does
            not fit; it names the teacher by its position.
    """
    examples, classes, width = (max(column) for column in zip(*_all_sizes(teachers), strict=True))
    features = [teacher.features for teacher in teachers]
    vectors = [teacher.class_vectors for teacher in teachers]
    blind = all(array is None for array in features)
    rowless = all(array is None for array in vectors)
    return TeacherOutputs(
        probabilities=_side_by_side([t.probabilities for t in teachers], (examples, classes)),
        features=None if blind else _side_by_side(features, (examples, width)),
        class_vectors=None if rowless else _side_by_side(vectors, (classes, width)),
        class_mask=_side_by_side([t.class_mask for t in teachers], (classes,)),
        source_accuracy=jnp.asarray([float(t.source_accuracy) for t in teachers]),
        num_parameters=jnp.asarray([float(t.num_parameters) for t in teachers]),
    )


class Buckets(NamedTuple):
    """A faculty in parts, each of teachers of like sizes.

    Attributes:
        positions: For each bucket the places of its teachers in the order they were given.
        faculties: The stacked teachers of each bucket.
    """

    positions: tuple[tuple[int, ...], ...]
    faculties: tuple[TeacherOutputs, ...]


Faculty: TypeAlias = TeacherOutputs | Buckets | Sequence[TeacherOutputs]
"""Teachers stacked by `stack`, in buckets, or one by one, which are then put into buckets."""


def bucket(teachers: Sequence[TeacherOutputs]) -> Buckets:
    """Teachers in buckets of like sizes, so that a large one does not pad the small ones.

    Teachers share a bucket if their numbers of labels lie between the same powers of two, so do
    their numbers of features, and both or neither know features and class vectors. A bucket is
    padded to its own largest teacher: less than twice in either direction. Each bucket is one
    shape to compile.

    Args:
        teachers: What each teacher says of the same examples. Read on the host.

    Returns:
        The buckets, small teachers first.

    Raises:
        InputError: As `stack`.
    """
    members: dict[tuple[int, int, bool, bool], list[int]] = {}
    for position, (_, classes, width) in enumerate(_all_sizes(teachers)):
        one = teachers[position]
        kind = (one.features is None, one.class_vectors is None)
        # No feature is not one feature: padding would make nothing of it look like something.
        key = (max(classes - 1, 0).bit_length(), max(2 * width - 1, 0).bit_length(), *kind)
        members.setdefault(key, []).append(position)
    positions = tuple(tuple(members[key]) for key in sorted(members))
    return Buckets(positions, tuple(stack([teachers[p] for p in part]) for part in positions))


def as_buckets(faculty: Faculty) -> Buckets:
    """Any form of a faculty as buckets; a stacked one is a single bucket."""
    if isinstance(faculty, Buckets):
        return faculty
    if not isinstance(faculty, TeacherOutputs):
        return bucket(faculty)
    checks.shape("faculty.probabilities", faculty.probabilities, (None, None, None))
    return Buckets((tuple(range(len(faculty.probabilities))),), (faculty,))
