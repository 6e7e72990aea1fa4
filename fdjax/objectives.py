"""What a student is trained for: losses with the arrays they learn or remember."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from fdjax import checks, losses
from fdjax import transport as ot
from fdjax.types import Batch, Outputs

Tree = Any


class Objective(NamedTuple):
    """A loss as a pair of pure functions.

    Attributes:
        init: `(key, batch, student, teacher) -> (params, state)` from the outputs on a first
            batch. `params` are trained with the student; `state` is carried along.
        loss: `(params, state, key, batch, student, teacher) -> (per_example, state)`. The
            mean of `per_example` over the batch is minimised.
    """

    init: Callable[[Array, Batch, Outputs, Outputs], tuple[Tree, Tree]]
    loss: Callable[
        [Tree, Tree, Array, Batch, Outputs, Outputs], tuple[Float[Array, " batch"], Tree]
    ]


def _stateless(loss: Callable[[Batch, Outputs, Outputs], Float[Array, " batch"]]) -> Objective:
    """Objective of a loss that learns and remembers nothing."""
    return Objective(
        init=lambda key, batch, student, teacher: ((), ()),
        loss=lambda params, state, key, batch, student, teacher: (
            loss(batch, student, teacher),
            state,
        ),
    )


def cross_entropy() -> Objective:
    """Cross-entropy of the labelled examples.

    Each labelled example weighs batch / labelled, so that the mean over the batch is the
    mean over its labelled examples, however many unlabelled ones stand beside them.
    """

    def loss(batch: Batch, student: Outputs, teacher: Outputs) -> Float[Array, " batch"]:
        labelled = jnp.sum(batch.labels >= 0)
        share = batch.labels.shape[0] / jnp.maximum(labelled, 1)
        return share * losses.cross_entropy(student.logits, batch.labels)

    return _stateless(loss)


def kd(*, temperature: float = 4.0) -> Objective:
    """Hinton's distillation for one label space; see `losses.kd`."""
    return _stateless(
        lambda batch, student, teacher: losses.kd(
            student.logits, teacher.logits, temperature=temperature
        )
    )


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


def weighted_sum(*terms: tuple[float, Objective]) -> Objective:
    """Sum of objectives, each times its weight (carried in the state, as a number).

    Args:
        *terms: Pairs of a weight >= 0 and an objective; at least one.

    Raises:
        InputError: If there is no term, or a weight is negative.
    """
    checks.require(len(terms) > 0, "`weighted_sum` needs at least one pair (weight, objective).")
    for weight, _ in terms:
        checks.require(weight >= 0, f"`weight` must be >= 0, got {weight}.")

    def init(key: Array, batch: Batch, student: Outputs, teacher: Outputs) -> tuple[Tree, Tree]:
        parts = [term.init(key, batch, student, teacher) for _, term in terms]
        weights = jnp.asarray([weight for weight, _ in terms], jnp.float32)
        return tuple(p for p, _ in parts), (weights, tuple(s for _, s in parts))

    def loss(
        params: Tree, state: Tree, key: Array, batch: Batch, student: Outputs, teacher: Outputs
    ) -> tuple[Float[Array, " batch"], Tree]:
        weights, states = state
        total = jnp.zeros(batch.labels.shape[0])
        updated: list[Tree] = []
        for i, (_, term) in enumerate(terms):
            value, new = term.loss(params[i], states[i], key, batch, student, teacher)
            total = total + weights[i] * value
            updated.append(new)
        return total, (weights, tuple(updated))

    return Objective(init, loss)


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "cross_entropy": cross_entropy,
    "kd": kd,
    "transport": transport,
}


def create(name: str, **settings: Any) -> Objective:
    """Objective of the table by name, with those of the settings that it takes.

    Args:
        name: One of `OBJECTIVES`.
        **settings: Settings of objectives; those of others are passed over, so that one set of
            flags serves them all.

    Raises:
        InputError: If the name is unknown, no objective takes a setting, or one is missing.
    """
    checks.choice("objective", name, OBJECTIVES)
    known = {key for other in OBJECTIVES.values() for key in inspect.signature(other).parameters}
    for key in settings:
        checks.choice("setting of an objective", key, sorted(known))
    taken = inspect.signature(OBJECTIVES[name]).parameters
    for key, parameter in taken.items():
        checks.require(
            key in settings or parameter.default is not parameter.empty,
            f"the objective `{name}` needs `{key}`.",
        )
    return OBJECTIVES[name](**{key: value for key, value in settings.items() if key in taken})
