"""A solve in parts, one after the other, so that it holds no more than some bytes at once."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

# Copies that a solve holds, about, of its costs and of its marginals.
_OF_COSTS, _OF_MARGINALS = 12, 6


class Part(NamedTuple):
    """What is solved at once.

    Attributes:
        teachers: How many.
        examples: Of each of them; fewer than all only of a single teacher.
    """

    teachers: int
    examples: int


def largest(
    teachers: int, examples: int, source: int, target: int, itemsize: int, limit: int
) -> Part:
    """The largest part that a solve of at most `limit` bytes takes: one example at least."""
    of_cost = itemsize * _OF_COSTS * source * target
    of_example = itemsize * _OF_MARGINALS * (source + target)
    whole = limit // (of_cost + examples * of_example)
    if whole:
        return Part(min(teachers, whole), examples)
    return Part(1, min(examples, max(1, (limit - of_cost) // of_example)))


def run(solve: Callable[..., Any], part: Part, cost: Array, arrays: tuple[Array, ...]) -> Any:
    """`solve(cost, *arrays)` in parts.

    Args:
        solve: Takes and returns arrays with leading axes (teachers, examples), the cost one with
            teachers first, and treats examples independently.
        part: What it is given at once.
        cost: Of each teacher.
        arrays: Of each example of each teacher.

    Returns:
        What it returns for all.
    """
    sizes = arrays[0].shape[:2]
    counts = [math.ceil(size / held) for size, held in zip(sizes, part, strict=True)]

    def solved(place: tuple[Array, ...]) -> Any:
        within = [jax.lax.dynamic_slice(a, (*place, 0), (*part, a.shape[2])) for a in arrays]
        costs = jax.lax.dynamic_slice_in_dim(cost, place[0], part.teachers)
        return solve(costs, *within)

    def add(step: Array, known: Any) -> Any:
        # The last part of each axis begins early enough to be whole: some are solved twice.
        place = tuple(
            jnp.minimum(at * held, size - held)
            for at, held, size in zip(divmod(step, counts[1]), part, sizes, strict=True)
        )

        def put(all_of_them: Array, found: Array) -> Array:
            start: Any = (*place, *[0] * (found.ndim - 2))
            return jax.lax.dynamic_update_slice(all_of_them, found, start)

        return jax.tree.map(put, known, solved(place))

    one = jax.eval_shape(solved, (jnp.zeros((), jnp.int32),) * 2)
    blank = jax.tree.map(lambda x: jnp.zeros((*sizes, *x.shape[2:]), x.dtype), one)
    return jax.lax.fori_loop(0, math.prod(counts), add, blank)
