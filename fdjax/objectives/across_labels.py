"""Objectives between a student and a teacher whose label spaces differ."""

import functools
from collections.abc import Callable
from typing import Any, get_args

from jaxtyping import Array, Float

from fdjax import checks, losses
from fdjax import transport as ot
from fdjax.losses.across_labels import Value
from fdjax.objectives.base import Objective
from fdjax.types import Batch, Outputs

Tree = Any


def transport(
    cost: Float[Array, "teacher_classes student_classes"],
    *,
    temperature: float = 1.0,
    epsilon: float = 1.0,
    entropy: ot.Entropy = "plain",
    value: Value = "regularised",
    tau: float = 1.0,
) -> Objective:
    """Transport of the teacher's prediction to the student's; see `losses.transport`.

    The cost is carried in the state, so a step compiled once serves every teacher whose
    arrays have the same shapes.

    Raises:
        InputError: If the cost holds NaN or infinity, `epsilon` or `tau` is not positive, or
            `value` is unknown.
    """
    checks.finite("cost", cost)
    checks.positive("epsilon", epsilon)
    checks.choice("value", value, get_args(Value))
    checks.positive("tau", tau)
    return Objective(
        init=lambda key, batch, student, teacher: ((), cost),
        loss=_loss(temperature, epsilon, entropy, value, tau),
    )


@functools.cache  # one function for each choice of settings, for jit compiles each function anew
def _loss(
    temperature: float, epsilon: float, entropy: ot.Entropy, value: Value, tau: float
) -> Callable[..., tuple[Array, Tree]]:
    def loss(
        params: Tree, state: Tree, key: Array, batch: Batch, student: Outputs, teacher: Outputs
    ) -> tuple[Float[Array, " batch"], Tree]:
        per_example = losses.transport(
            student.logits,
            teacher.logits,
            state,
            temperature=temperature,
            epsilon=epsilon,
            entropy=entropy,
            value=value,
            tau=tau,
        )
        return per_example, state

    return loss
