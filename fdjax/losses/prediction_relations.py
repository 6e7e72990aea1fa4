"""Distillation of how predictions relate: among the classes of an image, and among images."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fdjax import checks

_EPSILON = 1e-8  # added to the product of the norms, as the authors do


def _norm(rows: Float[Array, "rows columns"]) -> Float[Array, " rows"]:
    """Length of each row; zero, with a gradient of zero, for a row of zeros."""
    square = jnp.sum(rows**2, axis=-1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def _correlation(
    student: Float[Array, "rows columns"], teacher: Float[Array, "rows columns"]
) -> Float[Array, " rows"]:
    """Pearson correlation of each row of the student with that of the teacher, in [-1, 1]."""
    student, teacher = (rows - rows.mean(axis=-1, keepdims=True) for rows in (student, teacher))
    inner = jnp.sum(student * teacher, axis=-1)
    return inner / (_norm(student) * _norm(teacher) + _EPSILON)


def dist(
    student_logits: Float[Array, "*examples classes"],
    teacher_logits: Float[Array, "*examples teacher_classes"],
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Float[Array, ""]:
    """One minus the correlation of the two predictions, by image and by class.

    A strong teacher's exact probabilities are hard to meet; the loss asks only that the
    student's be a linear function of them, within each image (inter-class relation) and
    within each class over the images of the batch (intra-class relation).

    Args:
        student_logits: Over the task's classes. With more than one leading axis, as for
            segmentation, every position is an example.
        teacher_logits: Over the same classes.
        beta: Weight of the relation by image, >= 0.
        gamma: Weight of the relation by class, >= 0.
        temperature: Softening of both, > 0. The authors' code starts from 1 for all three.

    Returns:
        Temperature squared times the weighted sum, a scalar: each relation is in [0, 2].

    Raises:
        InputError: If the shapes differ, there are fewer than two examples or classes, or a
            setting is out of range.

    References:
        Huang, You, Wang, Qian, Xu, Knowledge Distillation from A Stronger Teacher, NeurIPS
        2022, section 4.
    """
    checks.positive("temperature", temperature)
    checks.require(beta >= 0, f"`beta` must be >= 0, got {beta}.")
    checks.require(gamma >= 0, f"`gamma` must be >= 0, got {gamma}.")
    checks.require(
        student_logits.shape == teacher_logits.shape,
        f"`dist` needs one label space, but the student's logits have shape "
        f"{student_logits.shape} and the teacher's {teacher_logits.shape}; use the objective "
        "`transport`, which carries one label space to another.",
    )
    classes = student_logits.shape[-1]
    student, teacher = (
        jax.nn.softmax(logits.reshape(-1, classes) / temperature)
        for logits in (student_logits, teacher_logits)
    )
    checks.require(
        len(student) > 1 and classes > 1,
        f"`dist` correlates predictions, so it needs two examples and two classes or more, got "
        f"{len(student)} and {classes}; use larger batches.",
    )
    by_image = 1 - jnp.mean(_correlation(student, teacher))
    by_class = 1 - jnp.mean(_correlation(student.T, teacher.T))
    return temperature**2 * (beta * by_image + gamma * by_class)
