"""Drawing positives and negatives from a labelled data set, inside a compiled step."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from fdjax import checks

Positives = Literal["exact", "relax"]
Negatives = Literal["other_classes", "anything"]

# Each round leaves a pair of positions as it lies to another with probability a half, so that
# what is left of the first order after these is less than one part in ten million.
_ROUNDS = 24


class Classes(NamedTuple):
    """The data sorted by class, so that a class and all others are ranges of one order.

    Attributes:
        order: Examples, class by class.
        start: Of the class of each example, in `order`.
        size: Of the class of each example.
    """

    order: Int[Array, " examples"]
    start: Int[Array, " examples"]
    size: Int[Array, " examples"]


def sort_by_class(labels: Int[Array | np.ndarray, " examples"]) -> Classes:
    """Prepares the labels of the whole data; each unlabelled example is a class of its own."""
    values = np.asarray(labels)
    alone = values.max(initial=0) + 1 + np.arange(len(values))
    values = np.where(values < 0, alone, values)
    _, place, sizes = np.unique(values, return_inverse=True, return_counts=True)
    starts = np.cumsum(sizes) - sizes
    arrays = (np.argsort(values, kind="stable"), starts[place], sizes[place])
    return Classes(*(jnp.asarray(array, jnp.int32) for array in arrays))


def _scrambled(bits: Array) -> Array:
    """A hash of 32 bits, each of which follows from all of the input."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x21F0AAAD)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x735A2D97)
    return bits ^ (bits >> 15)


def without_replacement(
    key: Array, population: Int[Array, " batch"], count: int
) -> Int[Array, "batch {count}"]:
    """For each example the first `count` numbers of a random order of [0, population).

    The order is never written down: a swap-or-not shuffle finds each place of it by itself, so
    the work goes with what is drawn, where sorting random keys would go with the population
    (measured: fifteen times as quick for 16,384 of 50,000).

    Args:
        key: Randomness.
        population: Of each example, >= 1.
        count: Numbers to draw; those past the population of an example mean nothing.

    References:
        Hoang, Morris, Rogaway, An Enciphering Scheme Based on a Card Shuffle, CRYPTO 2012
        (there with a cipher's random bits, here with a hash's).
    """
    size = population[:, None]
    salts = jax.random.bits(key, (_ROUNDS, 2, *size.shape))
    turns = (salts[:, 0] % size.astype(jnp.uint32)).astype(jnp.int32)

    def maybe_swap(i: Array, place: Array) -> Array:
        # Places pair up by a random reflection; a bit that both see decides whether they swap.
        partner = turns[i] - place
        partner = jnp.where(partner < 0, partner + size, partner)
        seen = jnp.maximum(place, partner).astype(jnp.uint32)
        return jnp.where(_scrambled(seen ^ salts[i, 1]) & 1 == 1, partner, place)

    first = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), (len(population), count))
    return jax.lax.fori_loop(0, _ROUNDS, maybe_swap, first)


def draw(
    key: Array,
    classes: Classes,
    indices: Int[Array, " batch"],
    count: int,
    *,
    positives: Positives = "exact",
    negatives: Negatives = "other_classes",
) -> Int[Array, "batch candidates"]:
    """Rows of the data to compare each example with: one positive, then `count` negatives.

    Args:
        key: Randomness.
        classes: From `sort_by_class`.
        indices: Row of each example.
        count: Negatives of each example, >= 1.
        positives: "exact" is the example itself; "relax" one of its class by chance, itself
            included.
        negatives: "other_classes" are examples of other classes, none of them twice unless
            there are fewer than `count`; "anything" is drawn from all the data evenly, itself
            and its class included (the alias method of the authors, its weights being equal).

    Raises:
        InputError: If a setting is unknown or `count` is not positive.

    References:
        Tian, Krishnan, Isola, Contrastive Representation Distillation, ICLR 2020, table 6
        (negatives of other classes against negatives of other images).
    """
    checks.positive("count", count)
    checks.choice("positives", positives, get_args(Positives))
    checks.choice("negatives", negatives, get_args(Negatives))
    examples = len(classes.order)
    shape = (len(indices), count)
    positive_key, distinct_key, repeated_key = jax.random.split(key, 3)
    start, size = (jnp.take(of, indices, mode="clip") for of in (classes.start, classes.size))
    own = indices
    if positives == "relax":
        place = start + jax.random.randint(positive_key, own.shape, 0, size)
        own = jnp.take(classes.order, place, mode="clip")
    if negatives == "anything":
        others = jax.random.randint(repeated_key, shape, 0, examples)
    else:
        pool = examples - size
        place = without_replacement(distinct_key, pool, count)

        def repeat_in_small_pools() -> Array:
            repeated = jax.random.randint(repeated_key, shape, 0, pool[:, None])
            return jnp.where(pool[:, None] >= count, place, repeated)

        place = jax.lax.cond((pool < count).any(), repeat_in_small_pools, lambda: place)
        # The class of the example is a gap in the order.
        place = jnp.where(place < start[:, None], place, place + size[:, None])
        others = jnp.take(classes.order, place, mode="clip")
    return jnp.concatenate([own[:, None], others], axis=1)
