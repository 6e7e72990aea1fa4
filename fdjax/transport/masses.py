"""Masses of labels: their logarithm, and marginals scaled to mass one."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def log(mass: Array) -> Array:
    """Logarithm with log 0 = -inf and no warning or NaN gradient."""
    return jnp.where(mass > 0, jnp.log(jnp.where(mass > 0, mass, 1.0)), -jnp.inf)


def mass_tolerance(source: Any, target: Any) -> float:
    """Relative difference of mass that rounding explains.

    bf16 probabilities sum to one within a few per cent only. Beyond it there is no plan, and
    Sinkhorn would run to its last iteration.
    """
    return max(1e-4, *(float(jnp.finfo(mass.dtype).eps) ** 0.5 for mass in (source, target)))


@jax.jit  # a condition outside `jit` is compiled anew in every call
def unit_masses(source: Array, target: Array) -> tuple[tuple[Array, Array, Array], Array]:
    """Marginals scaled to mass one, a column each; their mass; and where the two disagree.

    The arguments have an example a row.
    """
    tolerance = mass_tolerance(source, target)
    dtype = jnp.promote_types(jnp.promote_types(source.dtype, target.dtype), jnp.float32)
    source, target = source.astype(dtype), target.astype(dtype)
    mass, other = source.sum(axis=-1), target.sum(axis=-1)
    wrong = ~(jnp.abs(mass - other) <= tolerance * mass)

    def unit(marginal: Array, total: Array) -> Array:
        total = total[..., None, :]

        def scaled(marginal: Array) -> Array:
            # An example without mass is solved as a uniform one, and costs nothing by its mass.
            whole = jnp.where(total > 0, total, 1.0)
            return jnp.where(total > 0, marginal / whole, 1 / marginal.shape[-2])

        # XLA stores what comes out of a condition; otherwise it would turn and divide the
        # marginal anew wherever that is read.
        turned = jnp.swapaxes(marginal, -1, -2)
        return jax.lax.cond((total == 1).all(), lambda marginal: marginal, scaled, turned)

    return (unit(source, mass), unit(target, other), mass), wrong
