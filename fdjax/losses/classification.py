"""Losses between a student's logits and labels, or a teacher's logits over the same labels."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fdjax import checks


def cross_entropy(
    student_logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    """Surprise of the true class, in nats; zero for an unlabelled example (-1).

    Raises:
        InputError: If a label is out of range (outside `jit`).
    """
    checks.labels("labels", labels, student_logits.shape[-1], unlabelled=True)
    log_probabilities = jax.nn.log_softmax(student_logits)
    chosen = jnp.take_along_axis(log_probabilities, jnp.maximum(labels, 0)[:, None], axis=-1)
    return jnp.where(labels >= 0, -chosen[:, 0], 0.0)


def kd(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch teacher_classes"],
    *,
    temperature: float = 4.0,
) -> Float[Array, " batch"]:
    """Divergence of the softened student from the softened teacher, times temperature squared.

    Args:
        student_logits: Over the task's classes.
        teacher_logits: Over the same classes; -inf where the teacher gives no mass.
        temperature: Softening of both, > 0.

    Returns:
        T^2 KL(teacher || student) of each example, in nats.

    Raises:
        InputError: If the label spaces differ in size.

    References:
        Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015.
    """
    checks.positive("temperature", temperature)
    checks.require(
        student_logits.shape == teacher_logits.shape,
        f"`kd` needs one label space, but the student has {student_logits.shape[-1]} classes and "
        f"the teacher {teacher_logits.shape[-1]}; use the objective `transport`, which carries one "
        "label space to another.",
    )
    log_teacher = jax.nn.log_softmax(teacher_logits / temperature)
    log_student = jax.nn.log_softmax(student_logits / temperature)
    teacher = jnp.exp(log_teacher)
    # A teacher class without mass contributes nothing, whatever its logarithm.
    gap = jnp.where(teacher > 0, log_teacher - log_student, 0.0)
    return temperature**2 * jnp.sum(teacher * gap, axis=-1)
