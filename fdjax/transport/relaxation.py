"""Over-relaxed Sinkhorn updates, and how far to over-relax."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

RESTING = 0.0  # over-relaxation of an example that is done: it keeps its scalings
_LARGEST = 1.9  # more gains little near the solution and can fail far from it


def relaxed(
    mass: Float[Array, "*teachers labels examples"],
    product: Float[Array, "*teachers labels examples"],
    old: Float[Array, "*teachers labels examples"],
    relaxation: Float[Array, "*teachers 1 examples"],
) -> Float[Array, "*teachers labels examples"]:
    """Over-relaxed update of a scaling from the product of the kernel with the other one.

    Over-relaxation by w multiplies the plain update mass / product by r^(w - 1), where r is its
    ratio to the old scaling, which is also that of the mass to the present marginal. Here
    r^e is ((1 + e) r + 1 - e) / ((1 - e) r + 1 + e), its Pade approximant at r = 1: the same
    near the solution, cheaper than a power, and bounded far from it.

    Args:
        mass: To be met.
        product: Of the kernel with the other scaling.
        old: Scaling so far.
        relaxation: w of each example, in [1, 2), or `RESTING`.

    Returns:
        The new scaling; zero where there is no mass.
    """
    marginal = old * product
    total, extra = mass + marginal, (relaxation - 1) * (mass - marginal)
    # One division, where mass / product and the approximant would take two. Without the scale
    # squares of small masses would leave the float range.
    scale = _inverse_power(total)
    above, below = (total + extra) * scale, (total - extra) * scale
    new = mass * above / jnp.maximum(product * below, jnp.finfo(mass.dtype).tiny)
    return jnp.where(relaxation == RESTING, old, new)


def _inverse_power(number: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The power of two that brings a number >= 0 into [1, 2), as far as there is one."""
    one, infinite = (np.array(x, number.dtype) for x in (1.0, np.inf))
    integers = {32: np.int32, 64: np.int64}[jnp.finfo(number.dtype).bits]
    exponent = jax.lax.bitcast_convert_type(number, integers) & infinite.view(integers)
    return jax.lax.bitcast_convert_type(2 * one.view(integers) - exponent, number.dtype)


def next_relaxation(
    relaxation: Float[Array, "*examples"],
    before: Float[Array, "*examples"],
    after: Float[Array, "*examples"],
    iterations: int,
) -> Float[Array, "*examples"]:
    """Over-relaxation for the next iterations, from how fast the last ones converged.

    Near the solution Sinkhorn is a block Gauss-Seidel iteration with linear rate s. With
    over-relaxation w the rate r obeys (r + w - 1)^2 = r w^2 s, so that s follows from the
    observed r, and w = 2 / (1 + sqrt(1 - s)) is best. At or above the best w the rate is
    w - 1 and tells nothing of s: w is kept. Where the error grew, w goes half-way back to one.

    Args:
        relaxation: In use so far, in [1, 2).
        before: Error of each example at the last check.
        after: Error of each example now.
        iterations: Between the two.

    Returns:
        The new over-relaxation, at least 1.

    References:
        Young, Iterative Solution of Large Linear Systems, 1971, ch. 6; Thibault et al.,
        Overrelaxed Sinkhorn-Knopp, 2021; Lehmann et al., A note on overrelaxation, 2022.
    """
    rate = (after / before) ** (1.0 / iterations)
    plain = (rate + relaxation - 1) ** 2 / jnp.where(rate > 0, rate * relaxation**2, 1.0)
    best = 2 / (1 + jnp.sqrt(1 - jnp.clip(plain, 0.0, 1.0)))
    useful = (rate > relaxation - 1) & (rate < 1)
    chosen = jnp.where(rate >= 1, (1 + relaxation) / 2, jnp.where(useful, best, relaxation))
    return jnp.clip(chosen, 1.0, _LARGEST)
