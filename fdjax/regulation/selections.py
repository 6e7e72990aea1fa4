"""Other people's ways to spend the same budget: which of many candidates are worth a step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fdjax.regulation.looking import Seen

Selection = Callable[[Array, Seen], Float[Array, " batch"]]
"""`(key, seen) -> priority`: the highest are used first, those of minus infinity never."""


def uniform(key: Array, seen: Seen) -> Float[Array, " batch"]:
    """A random subset, all being equally likely."""
    return jax.random.uniform(key, seen.loss.shape)


def hardest(key: Array, seen: Seen) -> Float[Array, " batch"]:
    """Those of the highest loss.

    References:
        Shrivastava, Gupta, Girshick, Training region-based object detectors with online hard
        example mining, CVPR 2016.
    """
    return seen.loss


def entropy(key: Array, seen: Seen) -> Float[Array, " batch"]:
    """Those whose prediction is least certain; labels are not asked."""
    return seen.entropy


def least_confident(key: Array, seen: Seen) -> Float[Array, " batch"]:
    """Those whose predicted class is least probable; labels are not asked."""
    return 1.0 - seen.confidence


def forgetting(key: Array, seen: Seen) -> Float[Array, " batch"]:
    """Those that were never learnt, and then those that were forgotten most often.

    Equals, which are many, are in random order.

    References:
        Toneva et al., An empirical study of example forgetting, ICLR 2019.
    """
    order = 0.5 * jax.random.uniform(key, seen.loss.shape)
    return jnp.where(seen.learnt, seen.forgotten + order, 1e6 * (1.0 + order))


def el2n(key: Array, seen: Seen) -> Float[Array, " batch"]:
    """Those of the largest error, as a length; see `Seen.error_norm`.

    References:
        Paul, Ganguli, Dziugaite, Deep learning on a data diet, NeurIPS 2021.
    """
    return seen.error_norm


def grand(key: Array, seen: Seen) -> Float[Array, " batch"]:
    """Those of the largest gradient by the last layer; see `Seen.gradient_norm`.

    References:
        As `el2n`; the paper takes the gradient by all layers.
    """
    return seen.gradient_norm


def prioritised(key: Array, seen: Seen, *, power: float = 2.0) -> Float[Array, " batch"]:
    """Drawn without replacement, with odds that grow with the place of the loss.

    The odds of the example with the r-th lowest loss of n are (r / n) ** power. Priorities are
    these odds' logarithms with Gumbel noise, whose highest k are such a draw of k.

    References:
        Jiang et al., Accelerating deep learning by focusing on the biggest losers, 2019, which
        takes the place among the last losses; here it is that among the candidates.
    """
    place = jnp.argsort(jnp.argsort(seen.loss)) + 1.0
    noise = jax.random.gumbel(key, seen.loss.shape)
    return power * jnp.log(place / seen.loss.shape[0]) + noise


SELECTIONS: dict[str, Selection] = {
    "uniform": uniform,
    "hardest": hardest,
    "prioritised": prioritised,
    "entropy": entropy,
    "least_confident": least_confident,
    "forgetting": forgetting,
    "el2n": el2n,
    "grand": grand,
}
"""By name; each can judge a batch by what the learner shows, or the data by what another did."""
