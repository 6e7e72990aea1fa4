"""The loop in which a source label gives as much of its mass as its potential allows."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from fdjax.transport import absorption, direct_sum, scaling
from fdjax.transport.masses import log

_STEEPEST = 80.0  # largest exponent of a mass, so that the error of a wild iterate is finite


def given(
    source: Float[Array, "*batch source"],
    f: Float[Array, "*batch source"],
    softness: Float[Array, "*#batch #source"],
) -> Float[Array, "*batch source"]:
    """Mass that the source gives at its potential f: source exp(-softness f)."""
    return source * jnp.exp(jnp.minimum(-softness * f, _STEEPEST))


@direct_sum.registered
class _SemiRelaxed(absorption.Absorbing):
    """Absorbing scalings whose source marginal follows the source potential.

    The memory is that of the absorbing loop, with a cost less log source (so that f is relative
    to the source), and softness = epsilon / tau.
    """

    def source(self, ot_prob: Any, state: direct_sum.State) -> Array:
        """What the present potential gives."""
        _, f, _, softness = state.memory
        return given(ot_prob.a, f + jnp.log(state.fu), softness)

    def source_step(self, ot_prob: Any, state: direct_sum.State) -> direct_sum.State:
        """A part of the balanced step.

        A step of f changes the mass asked for as well as that carried: 1 / (1 + softness) of
        the balanced step meets both.
        """
        old, (u, v) = state.fu, super().source_step(ot_prob, state).potentials
        share = 1 / (1 + state.memory[3])
        massive = ot_prob.a > 0
        u = jnp.where(massive, old * (jnp.where(massive, u, old) / old) ** share, 1.0)
        return state._replace(potentials=(self.bounded(u), v))

    def refresh(self, ot_prob: Any, state: direct_sum.State) -> direct_sum.Refreshed:
        *absorbed, softness = state.memory
        found = super().refresh(ot_prob, state._replace(memory=tuple(absorbed)))
        return found._replace(memory=(*found.memory, softness))


def solve(
    cost: Float[Array, "problems source target"],
    source: Float[Array, "problems source 1"],
    target: Float[Array, "problems target 1"],
    softness: Float[Array, "problems 1 1"],
    *,
    threshold: float,
    max_iterations: int,
) -> scaling.Solved:
    """Solves problems with a cost each, of unit masses; it stores their plans.

    Args:
        cost: In units of epsilon.
        source: Masses of the teacher labels, of which some may stay at home.
        target: Masses of the student labels, all of which arrive.
        softness: epsilon / tau.
        threshold: Largest L1 difference of the mass that is carried from the source from that
            which the potential gives, at which a problem is done.
        max_iterations: Bound on the number of iterations.

    References:
        Chizat et al., Scaling Algorithms for Unbalanced Optimal Transport Problems, 2018.
    """
    reduced = cost - log(source)
    start = jnp.zeros_like(source)
    plan = absorption.absorbed(reduced, start, target)
    ones = jnp.ones_like(source), (target > 0).astype(source.dtype)
    state = direct_sum.iterate(
        _SemiRelaxed,
        plan,
        source,
        target,
        (ones, plan.sum(axis=-1, keepdims=True), (reduced, start, plan, softness)),
        threshold=threshold,
        max_iterations=max_iterations,
    )
    f = state.memory[1]
    g = absorption.target_potential(reduced, f)
    exponent = jnp.swapaxes(g + log(target), 1, 2)
    plan = jnp.exp(f - reduced + exponent)
    leaving = given(source, f, softness)
    error = jnp.abs(plan.sum(axis=2, keepdims=True) - leaving).sum(axis=1)
    # The potential that the first grain of mass of a label without any would have.
    first = -absorption.log_sum_exp(exponent - cost, 2) / (1 + softness)
    f = jnp.where(source > 0, f, first)
    transport_cost = (plan * cost).sum(axis=(1, 2))[:, None]
    # The dual; for small softness its first term is that of the balanced problem.
    kept = -jnp.expm1(jnp.minimum(-softness * f, _STEEPEST)) / softness
    value = scaling.dual(source, kept, target, g)
    return scaling.Solved(f, g, transport_cost, value, error, state.iterations)
