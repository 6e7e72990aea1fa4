"""Transport costs as differentiable functions of predictions, costs and epsilon."""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fdjax import checks
from fdjax.transport.solver import plan, solve_relative

Entropy = Literal["plain", "relative"]


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _relative_cost(
    cost: Array, source: Array, target: Array, epsilon: Array, threshold: float, iterations: int
) -> Array:
    return _relative_forward(cost, source, target, epsilon, threshold, iterations)[0]


def _relative_forward(
    cost: Array, source: Array, target: Array, epsilon: Array, threshold: float, iterations: int
) -> Any:
    solution, potentials = solve_relative(
        cost,
        source,
        target,
        epsilon=epsilon,
        threshold=threshold,
        max_iterations=iterations,
    )
    like = (source, target)  # the cotangents must have the types of the arguments
    return solution.regularised_cost, (solution, potentials, cost, epsilon, like)


@jax.custom_jvp
def first_order_only(gradients: Any) -> Any:
    """The gradients as they are, refusing to be differentiated once more."""
    return gradients


@first_order_only.defjvp
def _refuse(primals: Any, tangents: Any) -> Any:
    raise checks.InputError(
        "second derivatives of `transport_cost` are not available: its gradient treats the "
        "potentials as constants. Take them of the closed form `transport_cost_to_labels`, or by "
        "finite differences of the gradient."
    )


def _relative_backward(threshold: float, iterations: int, saved: Any, cotangent: Array) -> Any:
    """Envelope theorem: the potentials and the plan are the derivatives (METHODS: A')."""
    del threshold, iterations
    solution, (f, g), cost, epsilon, (source, target) = saved
    # XLA fuses the exponential into this sum: the plans of the batch are never stored.
    weighted = cotangent[..., None, None] * plan(solution, cost, epsilon)
    divergence = (solution.regularised_cost - solution.transport_cost) / epsilon
    gradients = (
        weighted.sum(axis=-3).astype(cost.dtype),
        (cotangent[..., None] * f).astype(source.dtype),
        (cotangent[..., None] * g).astype(target.dtype),
        jnp.sum(cotangent * divergence).astype(epsilon.dtype),
    )
    return first_order_only(gradients)


_relative_cost.defvjp(_relative_forward, _relative_backward)


def negative_entropy(mass: Float[Array, "*batch labels"]) -> Float[Array, "*batch"]:
    """sum m log m with 0 log 0 = 0 and a finite derivative everywhere."""
    mass = mass.astype(jnp.promote_types(mass.dtype, jnp.float32))
    return jnp.sum(mass * jnp.log(jnp.maximum(mass, jnp.finfo(mass.dtype).tiny)), axis=-1)


def transport_cost(
    cost: Float[Array, "*faculty source target"],
    source: Float[Array, "*faculty batch source"],
    target: Float[Array, "*faculty batch target"],
    *,
    epsilon: float | Float[Array, ""],
    entropy: Entropy = "plain",
    threshold: float = 1e-3,
    max_iterations: int = 2000,
) -> Float[Array, "*faculty batch"]:
    """Regularised transport cost of every example, with its gradient by the envelope theorem.

    "relative" is <P, cost> + epsilon KL(P | source target') and "plain" is
    <P, cost> - epsilon H(P); they share the plan P. As a loss over the target, "plain" is
    least at the projected teacher `costs.predictor`, and "relative" at something sharper.
    To rank teachers use `solve(...).transport_cost`: "plain" rewards many labels.

    The gradient needs one solve and no unrolled iteration. It is finite for zero masses
    (labels that a teacher lacks, underflowed softmax). Second derivatives are refused.

    Args:
        cost: Price of moving mass from teacher label to student label.
        source: Teacher's prediction, a distribution.
        target: Student's prediction, a distribution.
        epsilon: Entropic regularisation in units of `cost`, > 0.
        entropy: Which of the two values.
        threshold: Largest marginal error at which an example is done; 1e-3 leaves the
            gradient within about 1 % of its largest entry.
        max_iterations: Bound on the number of iterations.

    Returns:
        Cost of each example, in units of `cost`.

    Raises:
        InputError: As `solve`, or if `entropy` is unknown.

    References:
        Cuturi, Sinkhorn Distances, NeurIPS 2013; Feydy et al., Interpolating between Optimal
        Transport and MMD, AISTATS 2019 (potentials as gradients).
    """
    checks.choice("entropy", entropy, ("plain", "relative"))
    checks.positive("epsilon", epsilon)
    dtype = jnp.promote_types(jnp.result_type(cost, source, target), jnp.float32)
    value = _relative_cost(
        cost, source, target, jnp.asarray(epsilon, dtype), threshold, max_iterations
    )
    if entropy == "relative":
        return value
    return value + epsilon * (negative_entropy(source) + negative_entropy(target))


def transport_cost_to_labels(
    cost: Float[Array, "*faculty source target"],
    source: Float[Array, "*faculty batch source"],
    labels: Int[Array, " batch"],
) -> Float[Array, "*faculty batch"]:
    """Cost of carrying each prediction to one label.

    With one target label there is one plan only, so no solver is needed. A smoothed label has
    many, and no closed form: give it to `solve` or `transport_cost`.

    Args:
        cost: Price of moving mass from teacher label to student label.
        source: Teacher's prediction; sums to one.
        labels: Target label of each example.

    Returns:
        Expected cost of each example, in units of `cost`; NaN for an unlabelled one (-1).

    Raises:
        InputError: If a shape does not fit or a label is out of range.
    """
    checks.shape("source", source, (*cost.shape[:-2], None, cost.shape[-2]))
    checks.shape("labels", labels, (source.shape[-2],))
    checks.labels("labels", labels, cost.shape[-1], unlabelled=True)
    to_label = jnp.take(jnp.swapaxes(cost, -1, -2), jnp.maximum(labels, 0), axis=-2)
    expected = jnp.sum(source * to_label, axis=-1)
    return jnp.where(labels >= 0, expected, jnp.nan)
