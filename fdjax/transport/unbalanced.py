"""Transport that leaves the teacher's mass at home where it has no counterpart.

    min_P  <P, cost> + epsilon KL(P | source target') + tau KL(P 1 | source),  with P' 1 = target

Only the teacher's marginal is relaxed. The student's whole prediction is carried still, so what
one teacher label keeps is made up by the others: those that find a counterpart nearby.
"""

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fdjax import checks
from fdjax.transport.domains import DOMAINS
from fdjax.transport.masses import log, unit_masses
from fdjax.transport.solver import Potentials, Solution, check_problem, plan
from fdjax.transport.value import Entropy, first_order_only, negative_entropy


@partial(jax.jit, static_argnames=("threshold", "max_iterations"))
def _solve_problems(*arrays: Array, threshold: float, max_iterations: int) -> Any:
    """Jitted here, as ott-jax traces anew on each call outside `jit`."""
    from fdjax.transport import semi_relaxed

    return semi_relaxed.solve(*arrays, threshold=threshold, max_iterations=max_iterations)


@lru_cache  # a new function each time would be traced each time
def _vmappable(threshold: float, max_iterations: int) -> Any:
    """`_solve_problems` whose `vmap` is more problems side by side instead of a batched loop."""

    @jax.custom_batching.custom_vmap
    def solve_problems(*arrays: Array) -> Any:
        return _solve_problems(*arrays, threshold=threshold, max_iterations=max_iterations)

    @solve_problems.def_vmap
    def _rule(axis_size: int, in_batched: Any, *arrays: Array) -> Any:
        full = (
            array if batched else jnp.broadcast_to(array, (axis_size, *array.shape))
            for array, batched in zip(arrays, in_batched, strict=True)
        )
        solved = solve_problems(*(array.reshape(-1, *array.shape[2:]) for array in full))
        split = jax.tree.map(lambda out: out.reshape(axis_size, -1, *out.shape[1:]), solved)
        return split, jax.tree.map(lambda _: True, split)

    return solve_problems


def _solve_relative(
    cost: Array,
    source: Array,
    target: Array,
    epsilon: Array,
    tau: Array,
    threshold: float,
    max_iterations: int,
) -> tuple[Solution, Potentials]:
    """`solve_unbalanced`, and beside it the potentials relative to the marginals."""

    def columns(rows: Array) -> Array:
        return jnp.swapaxes(rows, -1, -2)

    (a, b, mass), wrong = unit_masses(source, target)
    a, b = columns(a), columns(b)
    dtype = jnp.promote_types(a.dtype, jnp.promote_types(cost.dtype, jnp.float32))
    epsilon, softness = epsilon.astype(dtype), (epsilon / tau).astype(dtype)
    batch = a.shape[:-1]
    shared = jnp.broadcast_to((cost / epsilon)[..., None, :, :], (*batch, *cost.shape[-2:]))

    def problems(array: Array, *shape: int) -> Array:
        return jax.lax.stop_gradient(array.astype(dtype).reshape(-1, *shape))

    solved = _vmappable(float(threshold), int(max_iterations))(
        problems(shared, *cost.shape[-2:]),
        problems(a, a.shape[-1], 1),
        problems(b, b.shape[-1], 1),
        problems(jnp.broadcast_to(softness, batch), 1, 1),
    )
    f, g = (potential.reshape(*batch, -1) for potential in (solved.f, solved.g))
    sharp, regularised, error, iterations = (value.reshape(batch) for value in solved[2:])
    nan = jnp.where(wrong, jnp.nan, 1.0)
    scale = epsilon * mass * nan
    solution = Solution(
        source_potential=epsilon * (f + log(a) + log(mass)[..., None]),
        target_potential=epsilon * (g + log(b)),
        transport_cost=scale * sharp,
        regularised_cost=scale * regularised,
        marginal_error=nan * error,
        converged=(error < threshold) & ~wrong,
        iterations=iterations,
        domain=jnp.full(batch, DOMAINS.index("log")),
    )
    unit = (nan * epsilon)[..., None]
    return solution, (unit * f, unit * g)


def _check(cost: Any, source: Any, target: Any, epsilon: Any, tau: Any) -> None:
    check_problem(cost, source, target, epsilon)
    checks.positive("tau", tau)
    checks.finite("tau", tau)


def solve_unbalanced(
    cost: Float[Array, "*faculty source target"],
    source: Float[Array, "*faculty batch source"],
    target: Float[Array, "*faculty batch target"],
    *,
    epsilon: float | Float[Array, ""],
    tau: float | Float[Array, ""],
    threshold: float = 1e-3,
    max_iterations: int = 2000,
) -> Solution:
    """Solves the problem above for a whole batch or faculty.

    In the log domain, with a kernel of each example's own: right at every epsilon, but it stores
    the plans, and is slower than the balanced `solve`.

    Args:
        cost: Price of moving mass from teacher label to student label. Unlike in the balanced
            problem, a constant added to a row matters: it keeps more of the label at home.
        source: Masses of the teacher labels; may hold zeros.
        target: Masses of the student labels; the same total as `source`.
        epsilon: Entropic regularisation in units of `cost`, > 0.
        tau: Price of changing the teacher's marginal, in units of `cost`, > 0. Small lets
            everything come from the labels that are cheapest to leave; large is balanced.
        threshold: Largest `marginal_error` at which an example is done.
        max_iterations: Bound on the number of iterations.

    Returns:
        The solution; `plan` makes its plans. `regularised_cost` holds all three terms, and
        `marginal_error` is the L1 distance of the plan's source marginal from that which the
        source potential f asks for, source exp(-f / tau) with f relative to the source.

    Raises:
        InputError: If shapes do not fit, `tau` is not positive and finite, or outside `jit`
            values make no transport problem.

    References:
        Chizat et al., Scaling Algorithms for Unbalanced Optimal Transport Problems, 2018; ott-jax
        with `tau_a` = tau / (tau + epsilon) on the cost less epsilon log source, as its
        entropy has no reference measure.
    """
    _check(cost, source, target, epsilon, tau)
    numbers = jnp.asarray(epsilon), jnp.asarray(tau)
    return _solve_relative(cost, source, target, *numbers, threshold, max_iterations)[0]


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _cost(
    cost: Array,
    source: Array,
    target: Array,
    epsilon: Array,
    tau: Array,
    threshold: float,
    iterations: int,
) -> Array:
    return _forward(cost, source, target, epsilon, tau, threshold, iterations)[0]


def _forward(
    cost: Array,
    source: Array,
    target: Array,
    epsilon: Array,
    tau: Array,
    threshold: float,
    iterations: int,
) -> Any:
    arguments = cost, source, target, epsilon, tau
    solution, potentials = _solve_relative(*arguments, threshold, iterations)
    return solution.regularised_cost, (solution, potentials, arguments)


def _backward(threshold: float, iterations: int, saved: Any, cotangent: Array) -> Any:
    """Envelope theorem: each derivative is that of the problem with its best plan held fixed."""
    del threshold, iterations
    solution, (f, g), (cost, source, target, epsilon, tau) = saved
    weighted = cotangent[..., None, None] * plan(solution, cost, epsilon)
    # What leaves home is source (1 + change), and KL(P 1 | source) follows.
    change = jnp.expm1(-f / tau)
    kept = jnp.sum(source * (-f / tau * (1 + change) - change), axis=-1)
    divergence = (solution.regularised_cost - solution.transport_cost - tau * kept) / epsilon
    gradients = (
        weighted.sum(axis=-3).astype(cost.dtype),
        (-(tau + epsilon) * cotangent[..., None] * change).astype(source.dtype),
        (cotangent[..., None] * g).astype(target.dtype),
        jnp.sum(cotangent * divergence).astype(epsilon.dtype),
        jnp.sum(cotangent * kept).astype(tau.dtype),
    )
    return first_order_only(gradients)


_cost.defvjp(_forward, _backward)


def unbalanced_cost(
    cost: Float[Array, "*faculty source target"],
    source: Float[Array, "*faculty batch source"],
    target: Float[Array, "*faculty batch target"],
    *,
    epsilon: float | Float[Array, ""],
    tau: float | Float[Array, ""],
    entropy: Entropy = "plain",
    threshold: float = 1e-3,
    max_iterations: int = 2000,
) -> Float[Array, "*faculty batch"]:
    """Unbalanced cost of every example, with its gradient by the envelope theorem.

    "relative" is the least value of the problem above; "plain" adds epsilon times the negative
    entropies of source and target. For a large tau they are those of `transport_cost`. Over the
    target, "plain" is least at the projected teacher `costs.predictor` of another source,

        source_s exp(-m_s / (tau + epsilon))  up to its mass,

    where m_s = -epsilon log sum_c exp(-cost[s, c] / epsilon) is the price of leaving s: a label
    without a counterpart, from which every way is dear, hardly counts.

    Args:
        cost: Price of moving mass from teacher label to student label.
        source: Teacher's prediction, a distribution.
        target: Student's prediction, a distribution.
        epsilon: Entropic regularisation in units of `cost`, > 0.
        tau: As for `solve_unbalanced`.
        entropy: Which of the two values.
        threshold: As for `solve_unbalanced`.
        max_iterations: Bound on the number of iterations.

    Returns:
        Cost of each example, in units of `cost`. Second derivatives are refused.

    Raises:
        InputError: As `solve_unbalanced`, or if `entropy` is unknown.

    References:
        As for `solve_unbalanced`; Sejourne et al., Sinkhorn Divergences for Unbalanced Optimal
        Transport, 2019 (the gradient).
    """
    checks.choice("entropy", entropy, ("plain", "relative"))
    _check(cost, source, target, epsilon, tau)
    dtype = jnp.promote_types(jnp.result_type(cost, source, target), jnp.float32)
    numbers = jnp.asarray(epsilon, dtype), jnp.asarray(tau, dtype)
    value = _cost(cost, source, target, *numbers, threshold, max_iterations)
    if entropy == "relative":
        return value
    return value + epsilon * (negative_entropy(source) + negative_entropy(target))
