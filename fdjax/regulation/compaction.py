"""From many candidates to the few of a fixed number that are worth a step."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fdjax import checks
from fdjax.regulation.looking import Seen
from fdjax.regulation.participation import takes_part


def regulated(
    key: Array, seen: Seen, *, confidence: float | Float[Array, ""]
) -> Float[Array, " batch"]:
    """Priorities by which the participants come in random order, and nobody else.

    Where there is room for some of them only, each is used with equal probability, so that the
    mean gradient of those used is in expectation that of all participants.
    """
    order = jax.random.uniform(key, seen.loss.shape)
    return jnp.where(takes_part(seen, confidence=confidence), order, -jnp.inf)


def compact(
    priority: Float[Array, " batch"], slots: int
) -> tuple[Int[Array, " slots"], Bool[Array, " slots"]]:
    """The rows of highest priority, in a number that is known when a step is compiled.

    Args:
        priority: Of each candidate; minus infinity for one that must not be used.
        slots: Rows to return, in [1, batch].

    Returns:
        The rows, in ascending order, and whether each may be used: where too few may, the other
        slots hold rows that must be given no weight.

    Raises:
        InputError: If `slots` is out of range.
    """
    checks.in_range("slots", slots, 1, priority.shape[0])
    _, rows = jax.lax.top_k(priority, slots)
    # In order, so that with room for all a batch stays what it was.
    rows = jnp.sort(rows)
    return rows, priority[rows] > -jnp.inf


def top_share(
    priority: Float[Array, " examples"] | Float[np.ndarray, " examples"], share: float
) -> Int[np.ndarray, " kept"]:
    """Rows of the data to keep: the given share of highest priority, at least one, in order.

    Raises:
        InputError: If `share` lies outside (0, 1].
    """
    checks.require(0.0 < share <= 1.0, f"`share` must lie in (0, 1], got {share}.")
    kept = max(1, round(share * len(priority)))
    return np.sort(np.argsort(-np.asarray(priority), kind="stable")[:kept])
