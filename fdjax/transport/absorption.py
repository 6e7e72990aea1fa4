"""The log domain: potentials absorbed into a kernel of every example's own, at every epsilon."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from fdjax.transport import direct_sum, scaling
from fdjax.transport.masses import log

_BOUND = 1e15  # of scalings between two absorptions: products of them stay in the float range


def log_sum_exp(exponent: Array, axis: int) -> Array:
    """log of the sum of exponentials over an axis, which is kept; -inf for none."""
    highest = exponent.max(axis=axis, keepdims=True)
    highest = jnp.where(jnp.isfinite(highest), highest, 0.0)
    return highest + log(jnp.exp(exponent - highest).sum(axis=axis, keepdims=True))


def target_potential(cost: Array, f: Array) -> Float[Array, "problems target 1"]:
    """The one relative potential that meets the target marginal exactly."""
    return -jnp.swapaxes(log_sum_exp(f - cost, 1), 1, 2)


@direct_sum.registered
class Absorbing(direct_sum.Sinkhorn):
    """Scalings of a kernel that holds the potentials already, so that they stay near one.

    Every check absorbs them anew: the kernel is then the plan itself. Its problems are
    "teachers" of one example each; the memory is (cost, f, plan).
    """

    def geometry(self, ot_prob: Any, state: direct_sum.State) -> direct_sum.DirectSum:
        """The latest plans are the kernels."""
        kernels = direct_sum.both_ways(state.memory[2])
        return direct_sum.DirectSum(kernels, ot_prob.geom.examples)

    def bounded(self, scaling: Array) -> Array:
        """A scaling whose products with others stay in the float range."""
        return jnp.where(scaling > 0, jnp.clip(scaling, 1 / _BOUND, _BOUND), 0.0)

    def refresh(self, ot_prob: Any, state: direct_sum.State) -> direct_sum.Refreshed:
        """Absorbs the scalings."""
        (cost, f, _), b = state.memory, ot_prob.b
        f = f + log(state.fu)
        plan = absorbed(cost, f, b)
        u, v = (x.astype(plan.dtype) for x in (f > -jnp.inf, b > 0))
        product = plan.sum(axis=-1, keepdims=True)
        none = jnp.zeros_like(state.lost)
        return direct_sum.Refreshed(u, v, product, none, (cost, f, plan))


def absorbed(cost: Array, f: Array, b: Array) -> Float[Array, "problems source target"]:
    """The plan of a source potential, with the target marginal met exactly."""
    g = jnp.swapaxes(target_potential(cost, f) + log(b), 1, 2)
    return jnp.exp(f + g - cost)


def solve(
    cost: Float[Array, "problems source target"],
    source: Float[Array, "problems source 1"],
    target: Float[Array, "problems target 1"],
    start: Float[Array, "problems source 1"],
    *,
    threshold: float,
    max_iterations: int,
) -> scaling.Solved:
    """Solves problems with a cost each; it stores their plans.

    Between absorptions, which exponentiate and are few, an iteration is two matrix-vector
    products an example.

    Args:
        cost: In units of epsilon.
        source: Masses of the teacher labels.
        target: Masses of the student labels.
        start: First source potential, relative to `source`.
        threshold: Largest marginal error of a problem at which it is done.
        max_iterations: Bound on the number of iterations.

    References:
        Schmitzer, Stabilized Sparse Scaling Algorithms for Entropy Regularized Transport
        Problems, 2019 (absorption).
    """
    first = log(source) + start
    plan = absorbed(cost, first, target)
    ones = tuple((mass > 0).astype(plan.dtype) for mass in (source, target))
    state = direct_sum.iterate(
        Absorbing,
        plan,
        source,
        target,
        (ones, plan.sum(axis=-1, keepdims=True), (cost, first, plan)),
        threshold=threshold,
        max_iterations=max_iterations,
    )
    f = state.memory[1]
    g = target_potential(cost, f)
    exponent = jnp.swapaxes(g + log(target), 1, 2) - cost
    plan = jnp.exp(f + exponent)
    error = jnp.abs(plan.sum(axis=2, keepdims=True) - source).sum(axis=1)
    f = jnp.where(source > 0, f - log(source), -log_sum_exp(exponent, 2))
    transport_cost = (plan * cost).sum(axis=(1, 2))[:, None]
    value = scaling.dual(source, f, target, g)
    return scaling.Solved(f, g, transport_cost, value, error, state.iterations)
