"""From the teachers of a faculty to their scores, their ranking and their weights."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from fdjax import checks, sharding
from fdjax.types import UNLABELLED, TeacherOutputs

ScoreFn: TypeAlias = Callable[[TeacherOutputs, Int[Array, " examples"], int], Float[Array, ""]]
"""Score of one teacher from its outputs, the labels and the number of classes."""


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
    checks.require(len(teachers) > 0, "`teachers` is empty; hand in the outputs of at least one.")
    sizes = [_sizes(teacher, position) for position, teacher in enumerate(teachers)]
    examples, classes, width = (max(column) for column in zip(*sizes, strict=True))
    wanted = sizes[0][0]
    for position, (got, _, _) in enumerate(sizes):
        checks.require(
            got == wanted,
            f"`teachers[{position}]` has outputs of {got} examples, but `teachers[0]` of {wanted}; "
            "observe all teachers on the same examples.",
        )
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


@functools.lru_cache(maxsize=256)
def _compiled(
    score_fn: ScoreFn, num_classes: int, batch_size: int | None, mesh: Mesh | None
) -> Callable[[TeacherOutputs, Int[Array, " examples"]], Float[Array, " teachers"]]:
    """The whole pass as one jitted function, remembered so that a second call does not retrace."""

    def run(faculty: TeacherOutputs, labels: Int[Array, " examples"]) -> Float[Array, " teachers"]:
        def score(teacher: TeacherOutputs) -> Float[Array, ""]:
            return score_fn(teacher, labels, num_classes)

        def part(teachers: TeacherOutputs) -> Float[Array, " teachers"]:
            if batch_size is None:
                return jax.vmap(score)(teachers)
            return jax.lax.map(score, teachers, batch_size=batch_size)

        return (part if mesh is None else sharding.over_leading_axis(part, mesh))(faculty)

    return jax.jit(run)


def score_faculty(
    score_fn: ScoreFn,
    faculty: TeacherOutputs,
    labels: Int[Array | np.ndarray, " examples"],
    num_classes: int,
    *,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, " teachers"]:
    """Scores every teacher of a faculty in one compiled pass.

    A second call with the same `score_fn` object and sizes reuses the compiled pass: make a
    `functools.partial` with settings once and keep it.

    Args:
        score_fn: Score of one teacher, as in `scores.SCORES`.
        faculty: Outputs with a leading axis of teachers, as `stack` gives.
        labels: Class of each example; unlabelled examples (-1) take no part.
        num_classes: Number of classes of the task.
        batch_size: Teachers at a time (on each device); all by default. Bounds the memory.
        mesh: Devices over which the teachers are spread, from `sharding.device_mesh`.

    Returns:
        The scores in the order of the teachers, higher is better; NaN where a teacher does
        not define the score.

    Raises:
        InputError: If a label is out of range, a class has no labelled example or a shape
            does not fit.
    """
    checks.labels("labels", labels, num_classes, unlabelled=True)
    checks.every_class_present("labels", labels, num_classes)
    if batch_size is not None:
        checks.positive("batch_size", batch_size)
    checks.shape("faculty.probabilities", faculty.probabilities, (None, len(labels), None))
    teachers, _, classes = faculty.probabilities.shape
    labelled = np.asarray(labels) != UNLABELLED
    if not labelled.all():
        labels = labels[labelled]
        faculty = faculty._replace(
            probabilities=faculty.probabilities[:, labelled],
            features=None if faculty.features is None else faculty.features[:, labelled],
        )
    # A faculty made by hand may leave these at one value for all teachers.
    faculty = faculty._replace(
        class_mask=jnp.broadcast_to(jnp.asarray(faculty.class_mask), (teachers, classes)),
        source_accuracy=jnp.broadcast_to(jnp.asarray(faculty.source_accuracy), (teachers,)),
        num_parameters=jnp.broadcast_to(jnp.asarray(faculty.num_parameters), (teachers,)),
    )
    run = _compiled(score_fn, num_classes, batch_size, mesh)
    return run(faculty, jnp.asarray(labels))


def rank(scores: Float[Array | np.ndarray, " teachers"], names: Sequence[str]) -> tuple[str, ...]:
    """Names of the teachers, best score first; equal scores keep the given order.

    Raises:
        InputError: If the numbers of scores and names differ or a score is NaN; it names the
            teachers.
    """
    checks.shape("scores", scores, (len(names),))
    values = np.asarray(scores)
    unknown = [name for name, missing in zip(names, np.isnan(values), strict=True) if missing]
    listed = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
    checks.require(
        not unknown,
        f"`scores` is NaN for {len(unknown)} of {len(names)} teachers ({listed}); leave them out "
        "or take a score that needs only predictions, such as leep: a black box has no score of "
        "features.",
    )
    return tuple(names[position] for position in np.argsort(-values, kind="stable"))


def mixture(scores: Float[Array, " teachers"], *, temperature: float) -> Float[Array, " teachers"]:
    """Weights of several teachers, softmax(scores / temperature).

    Args:
        scores: Higher is better; -inf leaves a teacher out.
        temperature: In units of the score, > 0; small means the best teacher alone.

    Returns:
        Weights that sum to one; under `jit` a NaN score makes them NaN.

    Raises:
        InputError: If a score is NaN or the temperature is not positive.
    """
    checks.positive("temperature", temperature)
    unknown = checks.is_concrete(scores) and bool(np.isnan(np.asarray(scores)).any())
    checks.require(not unknown, "`scores` holds NaN; leave those teachers out or set them to -inf.")
    return jax.nn.softmax(scores / temperature)
