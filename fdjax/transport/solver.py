"""Entropic optimal transport between every teacher prediction and its student prediction."""

import math
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fdjax import checks
from fdjax.transport import domains, parts
from fdjax.transport.domains import Domain, Solved, check_domain
from fdjax.transport.masses import log, mass_tolerance, unit_masses

Potentials = tuple[Float[Array, "*faculty batch source"], Float[Array, "*faculty batch target"]]


class Solution(NamedTuple):
    """Solved transport problems; see `solve`.

    Attributes:
        source_potential: Dual potential f, in units of cost; -inf where there is no mass.
        target_potential: Dual potential g; the plan is exp((f + g - cost) / epsilon).
        transport_cost: Sharp cost <P, cost>: what rankings use.
        regularised_cost: <P, cost> + epsilon KL(P | source target'). It is not a distance:
            from a distribution to itself it is above zero.
        marginal_error: L1 distance of the plan's source marginal from `source`, as a share
            of the mass (the target marginal is met exactly).
        converged: Whether `marginal_error` is below the threshold. False, with costs of NaN,
            where source and target differ in mass.
        iterations: Sinkhorn iterations until the example was done, in both domains together; a
            multiple of ten (unless `max_iterations` is none).
        domain: Where the example was solved, a place in `DOMAINS`; see `solve`.
    """

    source_potential: Float[Array, "*faculty batch source"]
    target_potential: Float[Array, "*faculty batch target"]
    transport_cost: Float[Array, "*faculty batch"]
    regularised_cost: Float[Array, "*faculty batch"]
    marginal_error: Float[Array, "*faculty batch"]
    converged: Bool[Array, "*faculty batch"]
    iterations: Int[Array, "*faculty batch"]
    domain: Int[Array, "*faculty batch"]


@lru_cache  # a new function each time would be traced each time
def _vmappable(domain: Domain, threshold: float, max_iterations: int) -> Any:
    """`domains.solve` whose `vmap` is a larger direct sum instead of a batched loop.

    Batching ott-jax's while-loop would turn each of its conditions into "compute both": the
    direct sum takes the new axis as it takes the others.
    """

    @jax.custom_batching.custom_vmap
    def solve_blocks(cost: Array, source: Array, target: Array, start: Array) -> Solved:
        return domains.solve(
            cost,
            source,
            target,
            start,
            domain=domain,
            threshold=threshold,
            max_iterations=max_iterations,
        )

    @solve_blocks.def_vmap
    def _rule(axis_size: int, in_batched: Any, *arrays: Array) -> Any:
        full = [
            array if batched else jnp.broadcast_to(array, (axis_size, *array.shape))
            for array, batched in zip(arrays[1:], in_batched[1:], strict=True)
        ]
        if in_batched[0]:  # one cost for each: they are further teachers
            merged = [array.reshape(-1, *array.shape[2:]) for array in (arrays[0], *full)]
            solved = solve_blocks(*merged)
            split = [out.reshape(axis_size, -1, *out.shape[1:]) for out in solved]
        else:  # one shared cost: they are further examples
            merged = [jnp.moveaxis(array, 0, -2) for array in full]
            flat = [array.reshape(*array.shape[:-2], -1) for array in merged]
            solved = solve_blocks(arrays[0], *flat)
            split = [
                jnp.moveaxis(out.reshape(*out.shape[:-1], axis_size, -1), -2, 0) for out in solved
            ]
        batched: Any = [True] * len(split)
        return Solved(*split), Solved(*batched)

    return solve_blocks


def check_problem(cost: Any, source: Any, target: Any, epsilon: Any) -> None:
    """Refuses shapes that do not fit, and costs or masses that make no transport problem.

    Raises:
        InputError: Naming the argument. Values are looked at outside `jit` only.
    """
    checks.positive("epsilon", epsilon)
    faculty = cost.shape[:-2]
    checks.require(cost.ndim >= 2, f"`cost` must have two axes or more, got {cost.ndim}.")
    batch = source.shape[-2] if source.ndim >= 2 else None
    checks.shape("source", source, (*faculty, None, cost.shape[-2]))
    checks.shape("target", target, (*faculty, batch, cost.shape[-1]))
    checks.finite("cost", cost)
    for name, mass in (("source", source), ("target", target)):
        checks.finite(name, mass)
        if checks.is_concrete(mass):
            # NumPy, because under `jit` an operation on a constant is traced as well.
            held = bool((np.asarray(mass, np.float64) >= 0).all())
            checks.require(held, f"`{name}` must hold masses >= 0.")
    if checks.is_concrete(source, target):
        totals = [np.asarray(mass, np.float64).sum(axis=-1) for mass in (source, target)]
        off = np.abs(totals[0] - totals[1]) > mass_tolerance(source, target) * totals[0]
        checks.require(
            not bool(off.any()),
            "`source` and `target` must have the same mass in every example; normalise each of "
            "them, for instance by softmax.",
        )


def solve_relative(
    cost: Float[Array, "*faculty source target"],
    source: Float[Array, "*faculty batch source"],
    target: Float[Array, "*faculty batch target"],
    *,
    epsilon: float | Float[Array, ""],
    threshold: float,
    max_iterations: int,
    initial: Potentials | None = None,
    domain: Domain = "auto",
) -> tuple[Solution, Potentials]:
    """`solve`, and beside it the potentials relative to the marginals (finite everywhere).

    They are the derivatives of `regularised_cost` with respect to source and target.
    """
    check_problem(cost, source, target, epsilon)
    checks.positive("threshold", threshold)
    checks.positive("max_iterations", max_iterations)
    faculty = cost.shape[:-2]

    def columns(rows: Array) -> Array:
        return jnp.swapaxes(rows, -1, -2)

    (a, b, mass), wrong = unit_masses(source, target)
    dtype = jnp.promote_types(a.dtype, jnp.promote_types(cost.dtype, jnp.float32))
    check_domain(domain, dtype)
    epsilon = jnp.asarray(epsilon, dtype)

    def blocks(array: Array) -> Array:
        return jax.lax.stop_gradient(array.astype(dtype).reshape(-1, *array.shape[-2:]))

    start = jnp.zeros_like(a)
    if initial is not None:
        # A label that had no mass before has no potential: it starts as in a cold solve.
        start = columns(initial[0]) / epsilon - log(a)
        start = jnp.where((a > 0) & jnp.isfinite(start), start, 0.0)
        # A constant that f has and g lacks changes no plan, but far from zero it costs digits.
        start = start - jnp.sum(a * start, axis=-2, keepdims=True)
    solve_blocks = _vmappable(domain, float(threshold), int(max_iterations))
    solved = solve_blocks(blocks(cost / epsilon), blocks(a), blocks(b), blocks(start))
    f, g, sharp, regularised, error, iterations, solved_in = (
        array.reshape(*faculty, *array.shape[1:]) for array in solved
    )
    scale = epsilon * mass * jnp.where(wrong, jnp.nan, 1.0)
    solution = Solution(
        source_potential=columns(epsilon * (f + log(a) + log(mass)[..., None, :])),
        target_potential=columns(epsilon * (g + log(b))),
        transport_cost=scale * sharp,
        regularised_cost=scale * regularised,
        marginal_error=jnp.where(wrong, jnp.nan, error),
        converged=(error < threshold) & ~wrong,
        iterations=iterations,
        domain=solved_in,
    )
    unit = jnp.where(wrong, jnp.nan, epsilon)[..., None, :]
    return solution, (columns(unit * f), columns(unit * g))


def solve(
    cost: Float[Array, "*faculty source target"],
    source: Float[Array, "*faculty batch source"],
    target: Float[Array, "*faculty batch target"],
    *,
    epsilon: float | Float[Array, ""],
    threshold: float = 1e-3,
    max_iterations: int = 2000,
    initial: Potentials | None = None,
    domain: Domain = "auto",
    memory_limit: int | None = None,
) -> Solution:
    """Solves min <P, cost> + epsilon KL(P | source target') for a whole batch or faculty.

    All examples of all teachers are one problem to ott-jax (their direct sum), so that an
    iteration is a matrix product. Examples whose plan does not fit the float range of the
    shared kernel exp(-cost / epsilon) are solved again in a wider one, in float64, and those
    that do not fit there either in the log domain, so the answer is right at every epsilon;
    `Solution.domain` tells. Beside arguments and results it holds about four times the
    marginals, and in the other domains the kernels of a few examples.

    Args:
        cost: Price of moving mass from teacher label to student label.
        source: Masses of the teacher labels; may hold zeros (labels that a teacher lacks).
        target: Masses of the student labels; the same total as `source`.
        epsilon: Entropic regularisation in units of `cost`, > 0; may be traced.
        threshold: Largest L1 error of the marginals of an example at which it is done.
        max_iterations: Bound on the number of iterations in each domain.
        initial: Potentials to start from, as (source_potential, target_potential) of an
            earlier solution of the same shapes.
        domain: "kernel" iterates scalings by products with one kernel for all examples, and
            gives NaN for those that leave the float range; "wide" does so in float64; "log"
            absorbs the potentials into a kernel of each example's own, right at every
            epsilon; "auto" is "kernel", and for those examples that do not fit and for the
            last stragglers, some at a time, "wide" (not on TPUs, where float64 is no wider),
            and then "log".
        memory_limit: Bytes that the solve may hold, about, beside arguments and results:
            teachers, or examples of one, are then solved in parts, one after the other. All
            at once by default, which is mostly faster.

    Returns:
        The solution; examples that did not converge are marked, not hidden.

    Raises:
        InputError: If shapes do not fit, or outside `jit` values make no transport problem.

    References:
        Cuturi, Sinkhorn Distances, NeurIPS 2013; ott-jax.
    """
    settings: Any = {"threshold": threshold, "max_iterations": max_iterations, "domain": domain}
    if memory_limit is None:
        return solve_relative(cost, source, target, epsilon=epsilon, initial=initial, **settings)[0]
    checks.positive("memory_limit", memory_limit)
    # Within the parts values are traced and no longer looked at.
    check_problem(cost, source, target, epsilon)
    faculty, (batch, labels) = cost.shape[:-2], source.shape[-2:]
    arrays = (source, target, *(initial or ()))
    itemsize = max(4, *(array.dtype.itemsize for array in (cost, *arrays)))
    part = parts.largest(
        math.prod(faculty), batch, labels, target.shape[-1], itemsize, memory_limit
    )
    solution = _solve_in_parts(
        cost.reshape(-1, *cost.shape[-2:]),
        tuple(array.reshape(-1, *array.shape[-2:]) for array in arrays),
        epsilon,
        part=part,
        **settings,
    )
    return Solution(*(leaf.reshape(*faculty, *leaf.shape[1:]) for leaf in solution))


@partial(jax.jit, static_argnames=("part", "domain", "threshold", "max_iterations"))
def _solve_in_parts(
    cost: Float[Array, "teachers source target"],
    arrays: tuple[Array, ...],
    epsilon: Any,
    *,
    part: parts.Part,
    **settings: Any,
) -> Solution:
    """All of them; jitted, as a loop outside `jit` is compiled anew in every call."""

    def solve_part(cost: Array, source: Array, target: Array, *initial: Any) -> Solution:
        found, _ = solve_relative(
            cost, source, target, epsilon=epsilon, initial=initial or None, **settings
        )
        return found

    return parts.run(solve_part, part, cost, arrays)


def plan(
    solution: Solution,
    cost: Float[Array, "*faculty source target"],
    epsilon: float | Float[Array, ""],
) -> Float[Array, "*faculty batch source target"]:
    """Transport plan of every example: mass carried from each label to each label.

    This stores batch * source * target numbers; nothing else in this room does.

    Args:
        solution: Of the same cost and epsilon.
        cost: As given to `solve`.
        epsilon: As given to `solve`.

    Returns:
        Plans whose marginals are source and target up to `solution.marginal_error`.
    """
    f, g = solution.source_potential, solution.target_potential
    return jnp.exp((f[..., :, None] + g[..., None, :] - cost[..., None, :, :]) / epsilon)
