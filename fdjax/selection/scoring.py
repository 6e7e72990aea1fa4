"""The scores of all teachers of a faculty in one compiled pass."""

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from fdjax import checks, sharding
from fdjax.selection import memory, soundness
from fdjax.selection.stacking import Faculty, as_buckets
from fdjax.types import UNLABELLED, TeacherOutputs

ScoreFn: TypeAlias = Callable[[TeacherOutputs, Int[Array, " examples"], int], Float[Array, ""]]
"""Score of one teacher from its outputs, the labels and the number of classes."""


@functools.lru_cache(maxsize=256)
def _compiled(
    score_fn: ScoreFn, num_classes: int, batch_size: int | None, mesh: Mesh | None
) -> Callable[..., Float[Array, "teachers labellings"]]:
    """The whole pass as one jitted function, remembered so that a second call does not retrace."""

    def score(teacher: TeacherOutputs, labels: Int[Array, " examples"]) -> Float[Array, ""]:
        return score_fn(teacher, labels, num_classes)

    def run(
        faculty: TeacherOutputs, labellings: Int[Array, "labellings examples"]
    ) -> Float[Array, "teachers labellings"]:
        def part(teachers: TeacherOutputs) -> Float[Array, "teachers labellings"]:
            # Traced here, so that what it takes is known before the batches are cut.
            first, labels = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype),
                (teachers, labellings),
            )
            program = jax.make_jaxpr(score)(first, labels)
            scored = jaxpr_as_fun(program)

            def one(teacher: TeacherOutputs) -> Float[Array, " labellings"]:
                sound = soundness.is_sound(teacher)
                leaves = jax.tree.leaves(soundness.harmless(teacher, sound))
                values = jax.lax.map(lambda labels: scored(*leaves, labels)[0], labellings)
                return jnp.where(sound, values, jnp.nan)

            number = teachers.probabilities.shape[0]
            alone = mesh is not None and sharding.short_of_threads(mesh)
            size = batch_size or (1 if alone else memory.batch_size(program.jaxpr, number))
            return jax.lax.map(one, teachers, batch_size=min(size, number))

        return (part if mesh is None else sharding.over_leading_axis(part, mesh))(faculty)

    # Spread over processes, the scores of all are of use to each.
    return jax.jit(run, out_shardings=None if mesh is None else sharding.everywhere(mesh))


def _spread(
    run: Callable[..., Array], faculty: TeacherOutputs, labellings: np.ndarray, mesh: Mesh
) -> Float[Array, "teachers labellings"]:
    """The pass over the devices of a mesh, each of which gets its own teachers only."""
    teachers = sharding.put(faculty, sharding.by_rows(mesh))
    scores: Array = sharding.fetch(run(teachers, labellings))
    return scores[: len(faculty.probabilities)]


def _labelled_only(faculty: TeacherOutputs, labelled: np.ndarray) -> TeacherOutputs:
    """One stacked faculty without its unlabelled examples, every field one row a teacher."""
    teachers, _, classes = faculty.probabilities.shape
    if not labelled.all():
        faculty = faculty._replace(
            probabilities=faculty.probabilities[:, labelled],
            features=None if faculty.features is None else faculty.features[:, labelled],
        )
    # A faculty made by hand may leave these at one value for all teachers.
    return faculty._replace(
        class_mask=jnp.broadcast_to(jnp.asarray(faculty.class_mask), (teachers, classes)),
        source_accuracy=jnp.broadcast_to(jnp.asarray(faculty.source_accuracy), (teachers,)),
        num_parameters=jnp.broadcast_to(jnp.asarray(faculty.num_parameters), (teachers,)),
    )


def score_labellings(
    score_fn: ScoreFn,
    faculty: Faculty,
    labellings: Int[Array | np.ndarray, "labellings examples"],
    num_classes: int,
    *,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "labellings teachers"]:
    """Scores of every teacher under several labellings of the same examples, in one pass.

    Of what labellings leave out (-1) a part is a resample, and labels in another order are a
    null: see `resample`.

    Args:
        score_fn: As for `score_faculty`.
        faculty: As for `score_faculty`.
        labellings: Class of each example, -1 where it takes no part. An example without a label
            in any of them is not computed with.
        num_classes: Number of classes of the task.
        batch_size: As for `score_faculty`.
        mesh: As for `score_faculty`.

    Returns:
        A row of scores for each labelling.

    Raises:
        InputError: If a shape does not fit.
    """
    if batch_size is not None:
        checks.positive("batch_size", batch_size)
    labellings = np.asarray(labellings, np.int32)
    checks.shape("labellings", labellings, (None, None))
    labelled = (labellings != UNLABELLED).any(axis=0)
    buckets = as_buckets(faculty)
    for part in buckets.faculties:
        shape = (None, labellings.shape[1], None)
        checks.shape("faculty.probabilities", part.probabilities, shape)
    run = _compiled(score_fn, num_classes, batch_size, mesh)
    chosen = labellings[:, labelled]
    faculties = [_labelled_only(part, labelled) for part in buckets.faculties]
    if mesh is None:
        parts = [run(part, chosen) for part in faculties]
    else:
        parts = [_spread(run, part, chosen, mesh) for part in faculties]
    if len(parts) == 1:
        return parts[0].T
    order = np.argsort(np.concatenate(buckets.positions))
    return jnp.concatenate(parts)[order].T


def score_faculty(
    score_fn: ScoreFn,
    faculty: Faculty,
    labels: Int[Array | np.ndarray, " examples"],
    num_classes: int,
    *,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, " teachers"]:
    """Scores every teacher of a faculty in one compiled pass, or one for each bucket of sizes.

    A second call with the same `score_fn` object and sizes reuses the compiled pass: make a
    `functools.partial` with settings once and keep it.

    On a processor, scores that use LAPACK are faster with `OPENBLAS_NUM_THREADS=1` in the
    environment before JAX is imported, as the experiments set it: its threads wait by spinning, in
    the way of XLA's.

    On a processor of two cores XLA (jax 0.10.2) has been seen to wait for ever in scores that use
    LAPACK, such as hscore; `JAX_CPU_ENABLE_ASYNC_DISPATCH=0` in the environment prevented it there,
    and the experiments set it. It did not where two factorisations of one program did not wait
    for each other: a score should make the second need the first, as `transrate` does. Nor does it
    on a `mesh` of several simulated devices of one process: there teachers are scored one at a
    time, unless `batch_size` says otherwise, or NPROC in the environment gives XLA two threads a
    device (NPROC=8 for four).

    Args:
        score_fn: Score of one teacher, as in `scores.SCORES`.
        faculty: Outputs with a leading axis of teachers, as `stack` gives; or, for teachers of
            very different sizes, what `bucket` gives (or the teachers one by one, which are then
            put into buckets at every call).
        labels: Class of each example; unlabelled examples (-1) take no part.
        num_classes: Number of classes of the task.
        batch_size: Teachers at a time (on each device). By default as many as keep the arrays
            between outputs and score, as the trace of the score tells them, within 32 MiB on a
            processor (larger batches leave its caches and are slower) or an eighth of an
            accelerator's memory; one at least.
        mesh: Devices over which the teachers are spread, from `sharding.device_mesh`. They may be
            those of several processes (`jax.distributed`), each of which then makes the same call
            and gets all scores.

    Returns:
        The scores in the order of the teachers, higher is better; NaN where a teacher does
        not define the score, and where its probabilities are none (`faults` says why): the
        others are scored all the same.

    Raises:
        InputError: If a label is out of range, a class has no labelled example or a shape
            does not fit.
    """
    checks.labels("labels", labels, num_classes, unlabelled=True)
    checks.every_class_present("labels", labels, num_classes)
    return score_labellings(
        score_fn,
        faculty,
        np.asarray(labels)[None],
        num_classes,
        batch_size=batch_size,
        mesh=mesh,
    )[0]
