"""The kernel domain: scalings within the float range, nothing but matrix products in the loop."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fdjax.transport import direct_sum


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


def _bounds(u: Array, v: Array) -> tuple[Array, Array]:
    """What u and v may each have lost of an example's plan, in smallest normal numbers.

    Products of them with numbers that underflowed are below these sums.
    """
    return v.shape[-2] * u.sum(axis=-2), u.shape[-2] * v.sum(axis=-2)


def _lost_mass(
    kernel: Array, u: Array, v: Array, bounds: tuple[Array, Array]
) -> Float[Array, "teachers examples"]:
    """Bound on the mass that the float range lost of every example's plan.

    Entries of the kernel that underflowed are of mass u_i v_j tiny at most, and single products
    within the sums are below tiny each.
    """
    tiny = _tiny(kernel.dtype)
    under = kernel < tiny

    def entries() -> Array:
        rows = direct_sum.apply(under.astype(kernel.dtype), v)
        return inner(u, rows)

    underflowed = jax.lax.cond(under.any(), entries, lambda: jnp.zeros_like(u[:, 0]))
    return tiny * (underflowed + sum(bounds))


def _drift(bounds: tuple[Array, Array]) -> Float[Array, "teachers examples"]:
    """Nats by which v should grow and u shrink for the least loss.

    Their product is bounded by the plan, but each alone may drift out of the float range.
    """
    drift = (jnp.log(bounds[0]) - jnp.log(bounds[1])) / 2
    return jnp.where(jnp.isfinite(drift), drift, 0.0)


@direct_sum.registered
class _Scaling(direct_sum.Sinkhorn):
    """Scalings as they are; an example whose plan the float range does not hold is lost.

    The memory is (drift, K' u).
    """

    def refresh(self, ot_prob: Any, state: direct_sum.State) -> direct_sum.Refreshed:
        geom, u = ot_prob.geom, state.fu
        columns = geom.apply_kernel(u, axis=0)
        v = ot_prob.b / jnp.maximum(columns, _tiny(u.dtype))
        product, bounds = geom.apply_kernel(v, axis=1), _bounds(u, v)
        lost = ~(_lost_mass(geom.block_kernel, u, v, bounds) < 1e-2 * self.threshold)
        return direct_sum.Refreshed(u, v, product, lost, (_drift(bounds), columns))

    def balanced(self, state: direct_sum.State) -> direct_sum.State:
        # What is done rests to the bit; what is lost may be held again.
        done = (state.relaxation == direct_sum.RESTING) & ~state.lost
        shift = jnp.exp(jnp.where(done, 0.0, state.memory[0]))[:, None]
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
    raised = jnp.clip(widest + jnp.log(tiny) + 5, 0, jnp.log(huge) / 2)
    # The first update makes source exp(start - row) of this product, and shares among both
    # scalings by what the kernel is raised; what the source scaling was plays no part.
    exponent = raised / 2 + row - row.min(axis=-2, keepdims=True) - start
    product = jnp.exp(jnp.clip(exponent, jnp.log(tiny) + 5, jnp.log(huge) - 5))
    row = row + raised
    kernel = jnp.exp(row + column - cost)
    column = jnp.swapaxes(column, -1, -2)

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
    (u, v), (drift, columns) = state.potentials, state.memory
    # Where there is mass, f is the iterate (so that the plan's columns are exact); elsewhere
    # it is the soft-minimum that the first grain of mass would have.
    f = row + jnp.log(jnp.where(source > 0, u / source, 1 / state.product))
    g = column - jnp.log(columns)
    # Balanced, as a cost times a scaling may leave the float range.
    shift = jnp.exp(drift)
    moved = direct_sum.apply(kernel * cost, v * shift[:, None])
    transport_cost = inner(u, moved) / shift
    value = dual(source, f, target, g)  # finite only if every potential is
    solved = Solved(f, g, transport_cost, value, state.example_error, state.iterations)
    return solved, jnp.isfinite(value) & jnp.isfinite(transport_cost) & ~state.lost
