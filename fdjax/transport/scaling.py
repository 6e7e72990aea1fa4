"""The kernel domain: scalings within the float range, nothing but matrix products in the loop."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fdjax.transport import direct_sum

_FAR = 20.0  # nats to which sums of scalings may grow before these are balanced
_DRIFT = 8.0  # nats by which their ranges must differ


class Solved(NamedTuple):
    """The problem with unit masses in units of epsilon; blocks [teachers, labels, examples].

    Potentials are relative to the marginals (P = a b exp(f + g - cost)), hence finite
    also where there is no mass: the gradients of the regularised cost.
    """

    f: Float[Array, "teachers source examples"]
    g: Float[Array, "teachers target examples"]
    transport_cost: Float[Array, "teachers examples"]
    regularised_cost: Float[Array, "teachers examples"]
    marginal_error: Float[Array, "teachers examples"]
    iterations: Int[Array, "teachers examples"]


def dual(source: Array, f: Array, target: Array, g: Array) -> Float[Array, "teachers examples"]:
    """Value of relative potentials: the regularised cost, when they are the best ones."""
    return inner(source, f) + inner(target, g)


def inner(x: Array, y: Array) -> Float[Array, "teachers examples"]:
    """Inner product of the columns; XLA runs it several times as fast as a sum of products."""
    return jnp.einsum("tle,tle->te", x, y, precision=direct_sum.HIGHEST)


def _tiny(dtype: Any) -> float:
    """Smallest normal number."""
    return float(jnp.finfo(dtype).tiny)


def _lost_mass(
    kernel: Array, u: Array, v: Array, totals: tuple[Array, Array]
) -> Float[Array, "teachers examples"]:
    """Bound on the mass that the float range lost of every example's plan.

    Entries of the kernel that underflowed are of mass u_i v_j tiny at most, and single products
    within the sums are below tiny each. The totals are the sums of u and v.
    """
    tiny = _tiny(kernel.dtype)
    under = kernel < tiny

    def entries() -> Array:
        rows = direct_sum.apply(under.astype(kernel.dtype), v)
        return inner(u, rows)

    underflowed = jax.lax.cond(under.any(), entries, lambda: jnp.zeros_like(u[:, 0]))
    total_u, total_v = totals
    return tiny * (underflowed + v.shape[-2] * total_u + u.shape[-2] * total_v)


def _totals(u: Array, v: Array) -> tuple[Array, Array]:
    """Sum of the scalings of every example."""
    return u.sum(axis=-2), v.sum(axis=-2)


def _drift(u: Array, v: Array, totals: tuple[Array, Array]) -> Float[Array, "teachers examples"]:
    """Nats by which v should grow and u shrink for both to have the same range; mostly none.

    Their product is bounded by the plan, but each alone may drift out of the float range.
    """
    far = jnp.maximum(*totals) > jnp.exp(_FAR)

    def drift() -> Array:
        middle_u, middle_v = (
            jnp.log(x.max(axis=-2)) + jnp.log(jnp.where(x > 0, x, jnp.inf).min(axis=-2))
            for x in (u, v)
        )
        shift = (middle_u - middle_v) / 4
        return jnp.where(far & jnp.isfinite(shift) & (jnp.abs(shift) > _DRIFT), shift, 0.0)

    return jax.lax.cond(far.any(), drift, lambda: jnp.zeros_like(totals[0]))


@direct_sum.registered
class _Scaling(direct_sum.Sinkhorn):
    """Scalings as they are; an example whose plan the float range does not hold is lost.

    The memory is (drift, K' u).
    """

    def refresh(self, ot_prob: Any, state: direct_sum.State) -> direct_sum.Refreshed:
        geom, u = ot_prob.geom, state.fu
        columns = geom.apply_kernel(u, axis=0)
        v = ot_prob.b / jnp.maximum(columns, _tiny(u.dtype))
        product, totals = geom.apply_kernel(v, axis=1), _totals(u, v)
        lost = ~(_lost_mass(geom.block_kernel, u, v, totals) < 1e-2 * self.threshold)
        return direct_sum.Refreshed(u, v, product, lost, (_drift(u, v, totals), columns))

    def balanced(self, state: direct_sum.State) -> direct_sum.State:
        shift = jnp.exp(state.memory[0])[:, None]
        u, v = state.potentials
        return state._replace(potentials=(u / shift, v * shift))


def solve(
    cost: Float[Array, "teachers source target"],
    source: Float[Array, "teachers source examples"],
    target: Float[Array, "teachers target examples"],
    start: Float[Array, "teachers source examples"],
    *,
    threshold: float,
    max_iterations: int,
    leave: float = 0.0,
) -> tuple[Solved, Bool[Array, "teachers examples"]]:
    """Scaling iterations; also says which examples the float range held.

    Args:
        cost: In units of epsilon.
        source: Masses of the teacher labels.
        target: Masses of the student labels.
        start: First source potential, relative to `source`.
        threshold: Largest marginal error of an example at which it is done.
        max_iterations: Bound on the number of iterations.
        leave: Share of the examples that may be left undone; see `direct_sum.Sinkhorn`.
    """
    # Taking the row and then the column minimum out of the cost changes only the potentials,
    # and leaves a kernel whose largest entry is one in every row; where its smallest would
    # underflow, all are raised as far as sums of them leave room.
    tiny, huge = _tiny(cost.dtype), float(jnp.finfo(cost.dtype).max)
    row = cost.min(axis=-1, keepdims=True)
    column = (cost - row).min(axis=-2, keepdims=True)
    widest = (cost - row - column).max(axis=(-2, -1), keepdims=True)
    row = row + jnp.clip(widest + jnp.log(tiny) + 5, 0, jnp.log(huge) / 2)
    kernel = jnp.exp(row + column - cost)
    column = jnp.swapaxes(column, -1, -2)

    # The first update makes of this product source exp(start - row), up to a constant; what
    # the source scaling was before it plays no part.
    product = jnp.exp(row - row.min(axis=-2, keepdims=True) - start)
    scalings = jnp.zeros_like(source), (target > 0).astype(target.dtype)
    none = jnp.zeros_like(source[:, 0])
    state = direct_sum.iterate(
        _Scaling,
        kernel,
        source,
        target,
        (scalings, product, (none, target)),
        threshold=threshold,
        max_iterations=max_iterations,
        leave=leave,
    )
    (u, v), (_, columns) = state.potentials, state.memory
    # Where there is mass, f is the iterate (so that the plan's columns are exact); elsewhere
    # it is the soft-minimum that the first grain of mass would have.
    f = row + jnp.log(jnp.where(source > 0, u / source, 1 / state.product))
    g = column - jnp.log(columns)
    transport_cost = inner(u, direct_sum.apply(kernel * cost, v))
    value = dual(source, f, target, g)  # finite only if every potential is
    solved = Solved(f, g, transport_cost, value, state.example_error, state.iterations)
    return solved, jnp.isfinite(value) & ~state.lost
