"""Decoupled distillation: how sure the teacher is of the label, apart from what else it sees."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fdjax import checks
from fdjax.losses.classification import kd


def target_classes(
    labels: Int[Array, " batch"], num_classes: int
) -> Bool[Array, "batch num_classes"]:
    """True at the label of each example; nowhere for an unlabelled one (-1)."""
    return labels[:, None] == jnp.arange(num_classes)


def _label_or_not(
    logits: Float[Array, "batch classes"], is_label: Bool[Array, "batch classes"]
) -> Float[Array, "batch 2"]:
    """Logits of the two events "it is the label" and "it is another class"."""
    label = jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)
    others = jax.nn.logsumexp(jnp.where(is_label, -jnp.inf, logits), axis=-1)
    return jnp.stack([label, others], axis=-1)


def dkd(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch teacher_classes"],
    labels: Int[Array, " batch"],
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Float[Array, " batch"]:
    """Divergence on "the label or not" plus divergence among the other classes, each weighed.

    Hinton's loss is the first plus (1 - p) times the second, where p is the teacher's
    probability of the label: a sure teacher's knowledge of the other classes hardly counts
    there. Here its weight is `beta`, however sure the teacher is.

    Args:
        student_logits: Over the task's classes.
        teacher_logits: Over the same classes.
        labels: Class of each example; an unlabelled one (-1) has loss zero.
        alpha: Weight of the label, >= 0.
        beta: Weight of the other classes, >= 0; in the paper 8 on CIFAR-100 for most pairs,
            0.5 on ImageNet (there with a temperature of 1).
        temperature: Softening of both, > 0.

    Returns:
        Temperature squared times the weighted sum, for each example in nats. The paper's
        warm-up (20 epochs in which the whole term grows from zero) is the caller's.

    Raises:
        InputError: If the label spaces differ in size, there are fewer than two classes, a
            label is out of range or a setting is not.

    References:
        Zhao, Cui, Song, Qiu, Liang, Decoupled Knowledge Distillation, CVPR 2022, eq. 7.
    """
    checks.positive("temperature", temperature)
    checks.require(alpha >= 0, f"`alpha` must be >= 0, got {alpha}.")
    checks.require(beta >= 0, f"`beta` must be >= 0, got {beta}.")
    batch, classes = student_logits.shape
    checks.require(
        teacher_logits.shape == student_logits.shape,
        f"`dkd` needs one label space, but the student has {classes} classes and the teacher "
        f"{teacher_logits.shape[-1]}; use the objective `transport`, which carries one label "
        "space to another.",
    )
    checks.require(classes > 1, "`dkd` needs two classes or more, got one.")
    checks.shape("labels", labels, (batch,))
    checks.labels("labels", labels, classes, unlabelled=True)
    is_label = target_classes(labels, classes)
    student, teacher = student_logits / temperature, teacher_logits / temperature
    # With both sides softened already, each part is Hinton's loss on fewer events.
    label = kd(_label_or_not(student, is_label), _label_or_not(teacher, is_label), temperature=1.0)
    others = kd(
        jnp.where(is_label, -jnp.inf, student),
        jnp.where(is_label, -jnp.inf, teacher),
        temperature=1.0,
    )
    value = temperature**2 * (alpha * label + beta * others)
    return jnp.where(labels >= 0, value, 0.0)
