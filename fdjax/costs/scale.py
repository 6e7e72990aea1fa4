"""Prices on a common scale, and on the scale that makes the labels likeliest."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fdjax import checks
from fdjax.costs.predictions import predictor


def normalise(
    cost: Float[Array, "*faculty teacher_classes student_classes"],
    *,
    where: Bool[Array, "*faculty teacher_classes"] | None = None,
) -> Float[Array, "*faculty teacher_classes student_classes"]:
    """Cost divided by its largest entry, so that teachers and epsilons are comparable.

    Args:
        cost: Prices, >= 0.
        where: True for the teacher labels that exist; rows of padding become zero.

    Returns:
        The cost in [0, 1]; a cost of zeros stays so, one that is not finite becomes NaN.
    """
    if where is not None:
        cost = jnp.where(where[..., None], cost, 0.0)
    largest = cost.max(axis=(-2, -1), keepdims=True)
    divisor = jnp.where(largest == 0, 1.0, largest)
    return cost / jnp.where(jnp.isfinite(largest), divisor, jnp.nan)


def calibrate(
    cost: Float[Array, "teacher_classes student_classes"],
    probabilities: Float[Array, "examples teacher_classes"],
    labels: Int[Array, " examples"],
    *,
    where: Bool[Array, " teacher_classes"] | None = None,
) -> Float[Array, "teacher_classes student_classes"]:
    """Cost on the scale at which it explains the labels best, in nats.

    The scale maximises the likelihood of the labels under `predictor` with epsilon = 1. A
    cost that says nothing about the labels is scaled to zero, so its predictor is uniform.

    Args:
        cost: Prices, >= 0, on any scale.
        probabilities: Teacher's predictions on labelled examples.
        labels: Class of each example; unlabelled examples (-1) take no part.
        where: True for the teacher labels that exist; rows of padding become zero.

    Returns:
        `scale * cost`, to be used with epsilon = 1.
    """
    checks.labels("labels", labels, cost.shape[-1], unlabelled=True)
    base = normalise(cost, where=where)
    labelled = labels >= 0

    def likelihood(scale: Float[Array, ""]) -> Float[Array, ""]:
        guess = predictor(scale * base, probabilities)
        chosen = jnp.take_along_axis(guess, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
        tiny = jnp.finfo(guess.dtype).tiny
        return jnp.sum(jnp.where(labelled, jnp.log(jnp.maximum(chosen, tiny)), 0.0))

    # The likelihood of one scale has no second peak that matters in practice, but it is not
    # concave: a coarse grid over the whole range first, then a fine one around its best point.
    coarse = jnp.concatenate([jnp.zeros(1), jnp.geomspace(1e-2, 1e3, 51)])
    best = jnp.argmax(jax.lax.map(likelihood, coarse))
    low, high = coarse[jnp.maximum(best - 1, 0)], coarse[jnp.minimum(best + 1, coarse.size - 1)]
    fine = jnp.concatenate([coarse[best][None], jnp.linspace(low, high, 64)])
    return fine[jnp.argmax(jax.lax.map(likelihood, fine))].astype(base.dtype) * base
