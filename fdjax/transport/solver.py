"""Entropic optimal transport between every teacher prediction and its student prediction."""

from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fdjax import checks

Potentials = tuple[Float[Array, "*faculty batch source"], Float[Array, "*faculty batch target"]]


Domain = Literal["auto", "kernel", "log"]


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
        iterations: Sinkhorn iterations run; one number, as all examples run together.
        log_domain: Whether log-sum-exp was needed because the kernel underflows.
    """

    source_potential: Float[Array, "*faculty batch source"]
    target_potential: Float[Array, "*faculty batch target"]
    transport_cost: Float[Array, "*faculty batch"]
    regularised_cost: Float[Array, "*faculty batch"]
    marginal_error: Float[Array, "*faculty batch"]
    converged: Bool[Array, "*faculty batch"]
    iterations: Int[Array, ""]
    log_domain: Bool[Array, ""]


class _Solved(NamedTuple):
    """The problem with unit masses in units of epsilon; leading axes [teachers, examples].

    Potentials are relative to the marginals (P = a b exp(f + g - cost)), hence finite
    also where there is no mass: the gradients of the regularised cost.
    """

    f: Array
    g: Array
    transport_cost: Array
    marginal_error: Array
    iterations: Array
    log_domain: Array


def _log(mass: Array) -> Array:
    """Logarithm with log 0 = -inf and no warning or NaN gradient."""
    return jnp.where(mass > 0, jnp.log(jnp.where(mass > 0, mass, 1.0)), -jnp.inf)


def _limits(dtype: Any) -> tuple[float, float]:
    """Smallest and largest normal number."""
    return float(jnp.finfo(dtype).tiny), float(jnp.finfo(dtype).max)


def _finish(apply: Any, sharp: Any, potential: Array, source: Array, target: Array) -> Any:
    """Closes a solve by one exact target update and measures what is left of the error."""
    g = -apply(potential, 0)
    row = -apply(g + _log(target), 1)
    # Where there is mass, f is the iterate (so that the plan's columns are exact); elsewhere
    # it is the soft-minimum that the first grain of mass would have.
    f = jnp.where(source > 0, potential - _log(jnp.where(source > 0, source, 1.0)), row)
    error = jnp.abs(jnp.where(source > 0, source * jnp.expm1(f - row), 0.0)).sum(axis=-1)
    return f, g, sharp(potential, g + _log(target)), error


def _kernel_solve(cost: Array, source: Array, target: Array, start: Array, **settings: Any) -> Any:
    """Scaling iterations; also says which examples the float range did not hold."""
    from fdjax.transport import direct_sum

    # Taking the row and then the column minimum out of the cost changes only the potentials,
    # and leaves a kernel whose largest entry is one in every row; where its smallest would
    # underflow, all are raised as far as sums of them leave room.
    row = cost.min(axis=-1)
    column = (cost - row[:, :, None]).min(axis=-2)
    widest = (cost - row[:, :, None] - column[:, None, :]).max(axis=(-2, -1))
    log_tiny, log_huge = (jnp.log(limit) for limit in _limits(cost.dtype))
    row = row + jnp.clip(widest + log_tiny + 5, 0, log_huge / 2)[:, None]
    reduced = cost - row[:, :, None] - column[:, None, :]
    kernel = jnp.exp(-reduced)
    weighted = kernel * cost

    def apply(potential: Array, axis: int) -> Array:
        shift, other = (row, column) if axis == 0 else (column, row)
        scaling = jnp.exp(potential - shift[:, None, :])
        product = direct_sum.apply_kernel(kernel, scaling, axis)
        return _log(product) - other[:, None, :]

    def sharp(f: Array, g: Array) -> Array:
        u, v = jnp.exp(f - row[:, None, :]), jnp.exp(g - column[:, None, :])
        return (u * direct_sum.apply_kernel(weighted, v, 1)).sum(axis=-1)

    first = jnp.exp(start - row[:, None, :])
    found, iterations = direct_sum.iterate(
        reduced, kernel, source, target, first, log_domain=False, **settings
    )
    potential = found + row[:, None, :]
    f, g, transport_cost, error = _finish(apply, sharp, potential, source, target)
    # What the float range lost: entries of the kernel that underflowed, each of mass
    # u_i v_j tiny at most, and single products within the sums, each below tiny.
    tiny, _ = _limits(cost.dtype)
    u, v = jnp.exp(found), jnp.exp(g + _log(target) - column[:, None, :])
    under = (kernel < tiny).astype(cost.dtype)
    entries = (u * direct_sum.apply_kernel(under, v, 1)).sum(axis=-1)
    products = target.shape[-1] * u.sum(axis=-1) + source.shape[-1] * v.sum(axis=-1)
    lost = tiny * (entries + products)
    finite = jnp.isfinite(f).all(axis=-1) & jnp.isfinite(g).all(axis=-1) & jnp.isfinite(error)
    held = finite & (lost < 1e-2 * settings["threshold"])
    return _Solved(f, g, transport_cost, error, iterations, jnp.array(False)), held


def _log_solve(cost: Array, source: Array, target: Array, start: Array, **settings: Any) -> _Solved:
    """Log-sum-exp iterations: slower, safe at every epsilon."""
    from fdjax.transport import direct_sum

    def apply(potential: Array, axis: int) -> Array:
        return direct_sum.apply_lse_kernel(cost, potential, axis)

    def sharp(f: Array, g: Array) -> Array:
        def example(f: Array, g: Array) -> Array:
            plan = jnp.exp(f[:, :, None] + g[:, None, :] - cost)
            return (plan * cost).sum(axis=(-2, -1))

        return direct_sum.over_examples(example, cost.size, f, g)

    found, iterations = direct_sum.iterate(
        cost, cost, source, target, start, log_domain=True, **settings
    )
    f, g, transport_cost, error = _finish(apply, sharp, found, source, target)
    return _Solved(f, g, transport_cost, error, iterations, jnp.array(True))


@partial(jax.jit, static_argnames=("domain", "threshold", "max_iterations"))
def _solve_blocks(
    cost: Array,
    source: Array,
    target: Array,
    start: Array,
    *,
    domain: Domain,
    threshold: float,
    max_iterations: int,
) -> _Solved:
    """Kernel mode where it is exact, else all again in the log domain.

    Jitted here, as ott-jax traces anew on each call outside `jit` (a thousand times slower).
    """
    settings: Any = {"threshold": threshold, "max_iterations": max_iterations}
    arrays = (cost, source, target, start)
    if domain == "log":
        return _log_solve(*arrays, **settings)
    fast, held = _kernel_solve(*arrays, **settings)
    if domain == "kernel":
        return fast._replace(
            transport_cost=jnp.where(held, fast.transport_cost, jnp.nan),
            marginal_error=jnp.where(held, fast.marginal_error, jnp.nan),
            f=jnp.where(held[..., None], fast.f, jnp.nan),
            g=jnp.where(held[..., None], fast.g, jnp.nan),
        )
    return jax.lax.cond(held.all(), lambda *_: fast, partial(_log_solve, **settings), *arrays)


@lru_cache  # a new function each time would be traced each time
def _vmappable(domain: Domain, threshold: float, max_iterations: int) -> Any:
    """`_solve_blocks` whose `vmap` is a larger direct sum instead of a batched loop.

    Batching ott-jax's while-loop would turn each of its conditions, and the choice of the
    domain, into "compute both": the direct sum takes the new axis as it takes the others.
    """

    @jax.custom_batching.custom_vmap
    def solve_blocks(cost: Array, source: Array, target: Array, start: Array) -> _Solved:
        return _solve_blocks(
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
            split = [out.reshape(axis_size, -1, *out.shape[1:]) for out in solved[:4]]
        else:  # one shared cost: they are further examples
            merged = [jnp.moveaxis(array, 0, 1) for array in full]
            flat = [array.reshape(array.shape[0], -1, array.shape[-1]) for array in merged]
            solved = solve_blocks(arrays[0], *flat)
            split = [
                jnp.moveaxis(out.reshape(out.shape[0], axis_size, -1, *out.shape[2:]), 1, 0)
                for out in solved[:4]
            ]
        batched: Any = (True, True, True, True, False, False)
        return _Solved(*split, *solved[4:]), _Solved(*batched)

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
        off = np.abs(totals[0] - totals[1]) > _mass_tolerance(source, target) * totals[0]
        checks.require(
            not bool(off.any()),
            "`source` and `target` must have the same mass in every example; normalise each of "
            "them, for instance by softmax.",
        )


def _mass_tolerance(source: Any, target: Any) -> float:
    """Relative difference of mass that rounding explains.

    bf16 probabilities sum to one within a few per cent only. Beyond it there is no plan, and
    Sinkhorn would run to its last iteration.
    """
    return max(1e-4, *(float(jnp.finfo(mass.dtype).eps) ** 0.5 for mass in (source, target)))


def _unit_masses(source: Array, target: Array) -> tuple[tuple[Array, Array, Array], Array]:
    """Marginals scaled to mass one, their mass, and where the two masses disagree."""
    tolerance = _mass_tolerance(source, target)
    dtype = jnp.promote_types(jnp.promote_types(source.dtype, target.dtype), jnp.float32)
    source, target = source.astype(dtype), target.astype(dtype)
    mass = source.sum(axis=-1, keepdims=True)
    other = target.sum(axis=-1, keepdims=True)
    wrong = ~(jnp.abs(mass - other) <= tolerance * mass)
    divide = [jnp.where(total > 0, total, 1.0) for total in (mass, other)]
    return (source / divide[0], target / divide[1], mass[..., 0]), wrong[..., 0]


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
    checks.choice("domain", domain, get_args(Domain))
    faculty = cost.shape[:-2]
    (a, b, mass), wrong = _unit_masses(source, target)
    dtype = jnp.promote_types(a.dtype, jnp.promote_types(cost.dtype, jnp.float32))
    epsilon = jnp.asarray(epsilon, dtype)

    def blocks(array: Array) -> Array:
        return jax.lax.stop_gradient(array.astype(dtype).reshape(-1, *array.shape[-2:]))

    start = _log(a) if initial is None else initial[0] / epsilon
    solve_blocks = _vmappable(domain, float(threshold), int(max_iterations))
    solved = solve_blocks(blocks(cost / epsilon), blocks(a), blocks(b), blocks(start))

    def shaped(array: Array) -> Array:
        return array.reshape(*faculty, *array.shape[1:])

    f, g = shaped(solved.f), shaped(solved.g)
    error = shaped(solved.marginal_error)
    nan = jnp.where(wrong, jnp.nan, 1.0)
    dual = (a * f).sum(axis=-1) + (b * g).sum(axis=-1)
    solution = Solution(
        source_potential=epsilon * (f + _log(a) + _log(mass)[..., None]),
        target_potential=epsilon * (g + _log(b)),
        transport_cost=epsilon * shaped(solved.transport_cost) * mass * nan,
        regularised_cost=epsilon * dual * mass * nan,
        marginal_error=error * nan,
        converged=(error < threshold) & ~wrong,
        iterations=solved.iterations,
        log_domain=solved.log_domain,
    )
    return solution, (epsilon * f * nan[..., None], epsilon * g * nan[..., None])


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
) -> Solution:
    """Solves min <P, cost> + epsilon KL(P | source target') for a whole batch or faculty.

    All examples of all teachers are one problem to ott-jax (their direct sum), so that an
    iteration is a matrix product. Where the kernel exp(-cost / epsilon) does not fit the
    float range the problem is solved again by log-sum-exp, so the answer is right at every
    epsilon; `Solution.log_domain` tells.

    Args:
        cost: Price of moving mass from teacher label to student label.
        source: Masses of the teacher labels; may hold zeros (labels that a teacher lacks).
        target: Masses of the student labels; the same total as `source`.
        epsilon: Entropic regularisation in units of `cost`, > 0; may be traced.
        threshold: Largest L1 error of the marginals of an example at which it is done.
        max_iterations: Bound on the number of iterations.
        initial: Potentials to start from, as (source_potential, target_potential) of an
            earlier solution of the same shapes.
        domain: "kernel" iterates scalings by matrix products, stops when an example leaves
            the float range and gives NaN for it; "log" iterates potentials by log-sum-exp;
            "auto" is "kernel" and, if any example does not fit, "log" for all.

    Returns:
        The solution; examples that did not converge are marked, not hidden.

    Raises:
        InputError: If shapes do not fit, or outside `jit` values make no transport problem.

    References:
        Cuturi, Sinkhorn Distances, NeurIPS 2013; ott-jax.
    """
    solution, _ = solve_relative(
        cost,
        source,
        target,
        epsilon=epsilon,
        threshold=threshold,
        max_iterations=max_iterations,
        initial=initial,
        domain=domain,
    )
    return solution


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
