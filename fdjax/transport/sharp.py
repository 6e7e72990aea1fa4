"""The sharp transport cost, without its entropy, as a differentiable function."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fdjax import checks
from fdjax.transport.solver import solve_relative

HIGHEST = jax.lax.Precision.HIGHEST
_CHUNK = 64  # examples whose plans are held at once in the backward pass


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _sharp_cost(
    cost: Array, source: Array, target: Array, epsilon: Array, threshold: float, iterations: int
) -> Array:
    return _forward(cost, source, target, epsilon, threshold, iterations)[0]


def _forward(
    cost: Array, source: Array, target: Array, epsilon: Array, threshold: float, iterations: int
) -> Any:
    solution, _ = solve_relative(
        cost,
        source,
        target,
        epsilon=epsilon,
        threshold=threshold,
        max_iterations=iterations,
    )
    return solution.transport_cost, (solution, cost, source, target, epsilon)


def _example_gradient(cost: Array, f: Array, g: Array) -> tuple[Array, Array, Array]:
    """Derivatives of <P, C> of one example with respect to C, source and target (epsilon 1).

    The marginals a, b of the plan P = exp(f + g - C) fix how f and g follow a change of C, a
    or b: a linear system in (x, y) with the blocks diag(a), P, P' and diag(b), whose adjoint
    is solved here for the right-hand sides (P * C) 1 and (P * C)' 1, with x eliminated.
    """
    plan = jnp.exp(f[:, None] + g[None] - cost)
    a, b = plan.sum(axis=1), plan.sum(axis=0)
    inverse_a = jnp.where(a > 0, 1 / jnp.where(a > 0, a, 1.0), 0.0)
    weighted = plan * cost
    r, c = weighted.sum(axis=1), weighted.sum(axis=0)
    # b b' fills the null space (f + t, g - t leaves the plan); a label without mass stands
    # apart with a one on the diagonal.
    system = jnp.diag(jnp.where(b > 0, b, 1.0)) + jnp.outer(b, b)
    system -= jnp.matmul(plan.T * inverse_a, plan, precision=HIGHEST)
    y = jnp.linalg.solve(system, c - jnp.matmul(plan.T, r * inverse_a, precision=HIGHEST))
    y = jnp.where(b > 0, y, 0.0)
    x = (r - jnp.matmul(plan, y, precision=HIGHEST)) * inverse_a
    return plan * (1 + x[:, None] + y[None]) - weighted, x, y


def _backward(threshold: float, iterations: int, saved: Any, cotangent: Array) -> Any:
    del threshold, iterations
    solution, cost, source, target, epsilon = saved
    faculty, batch = cost.shape[:-2], source.shape[-2]
    unit = (cost / epsilon).reshape(-1, *cost.shape[-2:])
    f, g = (
        (potential / epsilon).reshape(-1, batch, potential.shape[-1])
        for potential in (solution.source_potential, solution.target_potential)
    )
    weights = cotangent.reshape(-1, batch)

    def teacher(arrays: Any) -> Any:
        unit_cost, f, g, weights = arrays

        def example(arrays: Any) -> Any:
            f, g, weight = arrays
            of_cost, of_source, of_target = _example_gradient(unit_cost, f, g)
            return weight * of_cost, weight * of_source, weight * of_target

        of_cost, of_source, of_target = jax.lax.map(example, (f, g, weights), batch_size=_CHUNK)
        return of_cost.sum(axis=0), of_source, of_target

    of_cost, of_source, of_target = jax.lax.map(teacher, (unit, f, g, weights))
    of_cost = of_cost.reshape(*faculty, *cost.shape[-2:])
    # <P, cost> = epsilon S(cost / epsilon), S the cost with epsilon one.
    of_epsilon = jnp.sum(cotangent * solution.transport_cost) / epsilon
    of_epsilon -= jnp.sum(of_cost * cost) / epsilon
    return (
        of_cost.astype(cost.dtype),
        (epsilon * of_source).reshape(source.shape).astype(source.dtype),
        (epsilon * of_target).reshape(target.shape).astype(target.dtype),
        of_epsilon.astype(epsilon.dtype),
    )


_sharp_cost.defvjp(_forward, _backward)


def sharp_cost(
    cost: Float[Array, "*faculty source target"],
    source: Float[Array, "*faculty batch source"],
    target: Float[Array, "*faculty batch target"],
    *,
    epsilon: float | Float[Array, ""],
    threshold: float = 1e-4,
    max_iterations: int = 2000,
) -> Float[Array, "*faculty batch"]:
    """Sharp cost <P, cost> of the entropic plan P, with its gradient.

    The value that rankings use, as a loss. Its gradient is not the potentials: it is found by
    differentiating the marginal constraints, with one dense solve of a target x target system
    an example, far dearer than `transport_cost`, whose gradient is free. Memory: the plans of
    64 examples at a time.

    Args:
        cost: Price of moving mass from teacher label to student label.
        source: Teacher's prediction, a distribution.
        target: Student's prediction, a distribution.
        epsilon: Entropic regularisation in units of `cost`, > 0.
        threshold: Largest marginal error at which an example is done. The gradient is as
            exact as the plan.
        max_iterations: Bound on the number of iterations.

    Returns:
        Cost of each example, in units of `cost`. The gradient with respect to a label
        without mass is zero.

    Raises:
        InputError: As `solve`.

    References:
        Cuturi, Sinkhorn Distances, NeurIPS 2013; Luise et al., Differential Properties of
        Sinkhorn Approximation, NeurIPS 2018 (the gradient).
    """
    checks.positive("epsilon", epsilon)
    dtype = jnp.promote_types(jnp.result_type(cost, source, target), jnp.float32)
    return _sharp_cost(cost, source, target, jnp.asarray(epsilon, dtype), threshold, max_iterations)
