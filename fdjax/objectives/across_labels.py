"""Objectives between a student and a teacher whose label spaces differ."""

from typing import Any

from jaxtyping import Array, Float

from fdjax import checks, losses
from fdjax import transport as ot
from fdjax.objectives.base import Objective
from fdjax.types import Batch, Outputs

Tree = Any


def transport(
    cost: Float[Array, "teacher_classes student_classes"],
    *,
    temperature: float = 1.0,
    epsilon: float = 1.0,
    entropy: ot.Entropy = "plain",
) -> Objective:
    """Transport of the teacher's prediction to the student's; see `losses.transport`.

    The cost is carried in the state, so a step compiled once serves every teacher whose
    arrays have the same shapes.

    Raises:
        InputError: If the cost holds NaN or infinity, or `epsilon` is not positive.
    """
    checks.finite("cost", cost)
    checks.positive("epsilon", epsilon)

    def loss(
        params: Tree, state: Tree, key: Array, batch: Batch, student: Outputs, teacher: Outputs
    ) -> tuple[Float[Array, " batch"], Tree]:
        value = losses.transport(
            student.logits,
            teacher.logits,
            state,
            temperature=temperature,
            epsilon=epsilon,
            entropy=entropy,
        )
        return value, state

    return Objective(init=lambda key, batch, student, teacher: ((), cost), loss=loss)
