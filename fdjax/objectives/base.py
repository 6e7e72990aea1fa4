"""An objective: a loss with the arrays it learns or remembers, and sums of several."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from fdjax import checks
from fdjax.types import Batch, Outputs

Tree = Any


class Objective(NamedTuple):
    """A loss as a pair of pure functions.

    Attributes:
        init: `(key, batch, student, teacher) -> (params, state)` from the outputs on a first
            batch. `params` are trained with the student; `state` is carried along.
        loss: `(params, state, key, batch, student, teacher) -> (per_example, state)`. The
            mean of `per_example` over the batch is minimised.
        listens: Whether an image that it sees for the first time is only remembered. A short
            training then gains by a pass before it in which nothing is trained.
    """

    init: Callable[[Array, Batch, Outputs, Outputs], tuple[Tree, Tree]]
    loss: Callable[
        [Tree, Tree, Array, Batch, Outputs, Outputs], tuple[Float[Array, " batch"], Tree]
    ]
    listens: bool = False


def stateless(loss: Callable[[Batch, Outputs, Outputs], Float[Array, " batch"]]) -> Objective:
    """Objective of a loss that learns and remembers nothing."""
    return Objective(
        init=lambda key, batch, student, teacher: ((), ()),
        loss=lambda params, state, key, batch, student, teacher: (
            loss(batch, student, teacher),
            state,
        ),
    )


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

    return Objective(init, loss, listens=any(term.listens for _, term in terms))
