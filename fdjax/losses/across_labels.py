"""Losses between a student and a teacher whose label spaces differ."""

import jax
from jaxtyping import Array, Float

from fdjax import checks
from fdjax import transport as ot


def transport(
    student_logits: Float[Array, "batch student_classes"],
    teacher_logits: Float[Array, "batch teacher_classes"],
    cost: Float[Array, "teacher_classes student_classes"],
    *,
    temperature: float = 1.0,
    epsilon: float = 1.0,
    entropy: ot.Entropy = "plain",
) -> Float[Array, " batch"]:
    """Entropic cost of carrying the teacher's prediction to the student's.

    The same cost that scores teachers, minimised over the student. It needs no label, so
    unlabelled images teach as well.

    Args:
        student_logits: Over the task's classes.
        teacher_logits: Over the teacher's classes; -inf for padding.
        cost: Price of moving mass from teacher label to student label; with `epsilon` = 1
            in nats, as `costs.from_predictions` and `costs.calibrate` give it.
        temperature: Softening of both predictions, > 0.
        epsilon: Entropic regularisation in units of `cost`, > 0.
        entropy: "plain" is least at the projected teacher; "relative" sharpens.

    Returns:
        Cost of each example, in units of `cost`. "plain" may be negative.

    Raises:
        InputError: If the cost does not fit the logits.

    References:
        Lu, Ye, Zhan, Selective Cross-Task Distillation, 2022 (our reconstruction).
    """
    checks.positive("temperature", temperature)
    checks.shape("cost", cost, (teacher_logits.shape[-1], student_logits.shape[-1]))
    return ot.transport_cost(
        cost,
        jax.nn.softmax(teacher_logits / temperature),
        jax.nn.softmax(student_logits / temperature),
        epsilon=epsilon,
        entropy=entropy,
    )
