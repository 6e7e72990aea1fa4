"""Prices between labels from vectors that stand for them."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fdjax import checks

Metric = Literal["cosine", "sqeuclidean", "euclidean"]


def class_centres(
    features: Float[Array, "examples features"],
    labels: Int[Array, " examples"],
    num_classes: int,
) -> Float[Array, "num_classes features"]:
    """Mean feature vector of each class.

    Args:
        features: One vector an example, in the feature space of a teacher.
        labels: Class of each example; unlabelled examples (-1) take no part.
        num_classes: Number of classes of the task.

    Returns:
        The centres. Under `jit` a class without an example has a centre of NaN.

    Raises:
        InputError: If a label is out of range or a class has no example.
    """
    checks.labels("labels", labels, num_classes, unlabelled=True)
    checks.every_class_present("labels", labels, num_classes)
    member = jax.nn.one_hot(labels, num_classes, dtype=features.dtype)
    total = jnp.einsum("nc,nd->cd", member, features, precision=jax.lax.Precision.HIGHEST)
    return total / member.sum(axis=0)[:, None]


def _centred(
    vectors: Float[Array, "classes features"], where: Bool[Array, " classes"] | None
) -> Float[Array, "classes features"]:
    if where is None:
        return vectors - vectors.mean(axis=0)
    return (vectors - vectors.mean(axis=0, where=where[:, None])) * where[:, None]


def _unit(vectors: Float[Array, "classes features"]) -> Float[Array, "classes features"]:
    # A zero vector (padding, or a centre equal to the mean) stays zero with zero gradient;
    # compared with "==" so that NaN stays NaN.
    square = jnp.sum(vectors**2, axis=-1, keepdims=True)
    zero = square == 0
    return jnp.where(zero, 0.0, vectors * jax.lax.rsqrt(jnp.where(zero, 1.0, square)))


def between_vectors(
    teacher: Float[Array, "teacher_classes features"],
    student: Float[Array, "student_classes features"],
    *,
    metric: Metric = "cosine",
    centre: bool = True,
    where: Bool[Array, " teacher_classes"] | None = None,
) -> Float[Array, "teacher_classes student_classes"]:
    """Distance of every teacher class vector to every student class vector.

    With the rows of a teacher's last layer and the class centres of the task under the
    teacher's backbone, this is the ground cost of selective cross-task distillation as we
    reconstruct it: it needs no class names and no source data.

    Args:
        teacher: One vector for each teacher label.
        student: One vector for each student label, in the same feature space.
        metric: "cosine" is 1 - cosine similarity, in [0, 2]; "sqeuclidean" and
            "euclidean" are in (squared) units of the features.
        centre: Subtract from each side its own mean. Features after a ReLU are
            non-negative, so without it all centres point the same way.
        where: True for the teacher labels that exist; the others do not enter the mean.

    Returns:
        The cost, >= 0.

    Raises:
        InputError: If the feature spaces differ in size or the metric is unknown.

    References:
        Lu, Ye, Zhan, Selective Cross-Task Distillation, 2022 (the setting); Ye, Lu, Zhan,
        Distilling Cross-Task Knowledge via Relationship Matching, CVPR 2020 (the centres).
    """
    checks.choice("metric", metric, ("cosine", "sqeuclidean", "euclidean"))
    checks.require(
        teacher.shape[-1] == student.shape[-1],
        f"`teacher` and `student` vectors must have the same number of features, got "
        f"{teacher.shape[-1]} and {student.shape[-1]}; take the class centres under this teacher.",
    )
    if centre:
        teacher, student = _centred(teacher, where), _centred(student, None)
    if metric == "cosine":
        teacher, student = _unit(teacher), _unit(student)
    inner = jnp.einsum("sd,cd->sc", teacher, student, precision=jax.lax.Precision.HIGHEST)
    if metric == "cosine":
        return jnp.clip(1.0 - inner, 0.0, 2.0)
    square = jnp.maximum(
        jnp.sum(teacher**2, axis=-1)[:, None] + jnp.sum(student**2, axis=-1) - 2 * inner, 0.0
    )
    if metric == "sqeuclidean":
        return square
    zero = square == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))
