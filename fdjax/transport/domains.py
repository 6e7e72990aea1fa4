"""The ways of computing, from the fastest to the one that is right at every epsilon.

All examples begin in the first; those whose plan does not fit its float range, and the last
stragglers, are gathered and solved in the next.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fdjax import checks

Domain = Literal["auto", "kernel", "wide", "log"]
DOMAINS: tuple[Domain, ...] = ("kernel", "wide", "log")
"""What the numbers in `Solution.domain` stand for."""

# Share of the examples at which those left go on in the next domain: that costs several times as
# much for each of them, but nothing for the others.
_STRAGGLERS = 1 / 50
# Where float64 is float64, in range and not only in digits.
_WIDE_BACKENDS = ("cpu", "gpu")


class Solved(NamedTuple):
    """What `scaling.Solved` holds, and the place in `DOMAINS` where each example was solved."""

    f: Array
    g: Array
    transport_cost: Array
    regularised_cost: Array
    marginal_error: Array
    iterations: Array
    domain: Array


class Way(NamedTuple):
    """One way of computing.

    Attributes:
        solve: As `scaling.solve`, without leaving any example undone.
        width: Examples that share a kernel, at most: a group.
        numbers: Of all kernels that are held at once, at most.
        share: Of all groups that are solved at once, at most; usually few are left.
    """

    solve: Callable[..., tuple[Any, Bool[Array, "groups width"]]]
    width: int
    numbers: int
    share: float


def _wide(cost: Array, *arrays: Array, **settings: Any) -> tuple[Any, Array]:
    """Scalings in float64, which hold 1,400 nats where those in float32 hold 170."""
    from fdjax.transport import scaling

    with jax.enable_x64(True):
        doubles = [array.astype(jnp.float64) for array in (cost, *arrays)]
        solved, held = scaling.solve(*doubles, **settings)
        values = [value.astype(cost.dtype) for value in solved[:-1]]
        return scaling.Solved(*(*values, solved.iterations.astype(jnp.int32))), held


def _log(cost: Array, *arrays: Array, **settings: Any) -> tuple[Any, Array]:
    """Potentials, absorbed into a kernel of every example's own: nothing is lost."""
    from fdjax.transport import absorption

    solved = absorption.solve(cost, *arrays, **settings)
    return solved, jnp.ones(solved.marginal_error.shape, bool)


def _ways() -> dict[Domain, Way]:
    """The ways beyond the kernel domain, in chunks that suit the cache of a processor, or a device.

    Devices want large chunks, in which to fill up a group costs nothing.
    """
    if jax.default_backend() == "cpu":
        return {"wide": Way(_wide, 16, 1, 0.0), "log": Way(_log, 1, 2**18, 0.01)}
    return {"wide": Way(_wide, 64, 2**26, 1.0), "log": Way(_log, 1, 2**26, 1.0)}


def _wide_helps(dtype: Any) -> bool:
    """Whether float64 holds more than the numbers do that the problem comes in."""
    return dtype != jnp.float64 and jax.default_backend() in _WIDE_BACKENDS


def _again(
    place: int,
    way: Way,
    arrays: tuple[Array, Array, Array],
    start: Array,
    before: Solved,
    done: Array,
    **settings: Any,
) -> tuple[Solved, Array, Array]:
    """Solves those examples that are not `done` in another way, some at a time.

    Args:
        place: Of the way in `DOMAINS`.
        way: How.
        arrays: Cost, source, target.
        start: First source potentials.
        before: What is known of all examples.
        done: Which of them stay as they are.
        **settings: Threshold and bound on the iterations.

    Returns:
        What is known now, potentials to go on from, and which examples are done.
    """
    cost, source, target = arrays
    teachers, examples = done.shape
    # A group is a teacher with some of its examples; a chunk is some groups.
    width = min(way.width, examples)
    most = (done.size + width - 1) // width
    size = max(1, min(most, max(16, int(way.share * most)), way.numbers // cost[0].size))
    order = jnp.argsort(done, axis=1, stable=True)  # those not done come first
    wanted = (~done).sum(axis=1)
    groups = (wanted + width - 1) // width
    last = jnp.cumsum(groups)

    def solve_chunk(chunk: Array, known: tuple[Solved, Array, Array]) -> Any:
        solved, start, done = known
        group = chunk * size + jnp.arange(size)
        teacher = jnp.minimum(jnp.searchsorted(last, group, side="right"), teachers - 1)
        first = (group - (last - groups)[teacher]) * width
        position = first[:, None] + jnp.arange(width)
        example = order[teacher[:, None], jnp.minimum(position, examples - 1)]
        # Groups are filled up with problems without mass, which are done at once, and whose
        # results are dropped.
        real = position < wanted[teacher][:, None]
        at = (teacher[:, None], slice(None), example)
        a, b, f = (jnp.swapaxes(blocks[at], 1, 2) for blocks in (source, target, start))
        a, b = (jnp.where(real[:, None], mass, 0.0) for mass in (a, b))
        found, held = way.solve(cost[teacher], a, b, f, **settings)
        ended = (found.marginal_error < settings["threshold"]) | (
            found.iterations == settings["max_iterations"]
        )
        to = jnp.where(real & held, teacher[:, None], teachers)  # beyond the last: dropped

        def put(blocks: Array, value: Array) -> Array:
            if blocks.ndim == 3:
                value = jnp.swapaxes(value, 1, 2)
                return blocks.at[to, :, example].set(value, mode="drop")
            return blocks.at[to, example].set(value, mode="drop")

        spent = solved.iterations[teacher[:, None], example] + found.iterations
        here = jnp.full_like(spent, place)
        values = Solved(*(*found._replace(iterations=spent), here))
        return jax.tree.map(put, solved, values), put(start, found.f), put(done, ended)

    chunks = (last[-1] + size - 1) // size
    return jax.lax.fori_loop(0, chunks, solve_chunk, (before, start, done))


def _unfit(solved: Solved, held: Array) -> Solved:
    """NaN for the examples that a forced domain does not hold."""
    nan = jnp.where(held, 1.0, jnp.nan)
    f, g, *values = solved[:5]
    values = [f * nan[:, None], g * nan[:, None], *(value * nan for value in values)]
    return Solved(*(*values, *solved[5:]))


def check_domain(domain: Domain, dtype: Any) -> None:
    """Refuses an unknown domain, and a wide one where float64 is no wider.

    Raises:
        InputError: Saying which are there.
    """
    checks.choice("domain", domain, ("auto", *DOMAINS))
    checks.require(
        domain != "wide" or jnp.dtype(dtype) == jnp.float64 or _wide_helps(dtype),
        f'`domain` "wide" needs float64, which {jax.default_backend()} devices lack; leave it at '
        '"auto".',
    )


@partial(jax.jit, static_argnames=("domain", "threshold", "max_iterations"))
def solve(
    cost: Float[Array, "teachers source target"],
    source: Float[Array, "teachers source examples"],
    target: Float[Array, "teachers target examples"],
    start: Float[Array, "teachers source examples"],
    *,
    domain: Domain,
    threshold: float,
    max_iterations: int,
) -> Solved:
    """Every example in the first domain that holds it, or in the one that is named.

    Jitted here, as ott-jax traces anew on each call outside `jit` (a thousand times slower).

    Args:
        cost: In units of epsilon.
        source: Masses of the teacher labels.
        target: Masses of the student labels.
        start: First source potential, relative to `source`.
        domain: See `solver.solve`.
        threshold: Largest marginal error of an example at which it is done.
        max_iterations: Bound on the number of iterations in each domain.
    """
    from fdjax.transport import scaling  # it imports ott-jax, which takes seconds

    settings: Any = {"threshold": threshold, "max_iterations": max_iterations}
    arrays, ways = (cost, source, target), _ways()
    blank = jnp.zeros_like(source[:, 0])
    nothing = jnp.zeros(blank.shape, jnp.int32)
    known = Solved(start, jnp.zeros_like(target), blank, blank, blank, nothing, nothing)
    done = jnp.zeros(blank.shape, bool)
    if domain in ("kernel", "wide"):  # all examples at once, as none of them goes on
        solve_all = scaling.solve if domain == "kernel" else _wide
        found, held = solve_all(*arrays, start, **settings)
        return _unfit(Solved(*(*found, nothing + DOMAINS.index(domain))), held)
    if domain == "auto":
        found, held = scaling.solve(*arrays, start, leave=_STRAGGLERS, **settings)
        known = Solved(*found, nothing)
        done = held & ((found.marginal_error < threshold) | (found.iterations == max_iterations))
        start = jnp.where(held[:, None], found.f, start)
        if _wide_helps(cost.dtype):
            place = DOMAINS.index("wide")
            known, start, done = _again(place, ways["wide"], arrays, start, known, done, **settings)
    place = DOMAINS.index("log")
    known, _, _ = _again(place, ways["log"], arrays, start, known, done, **settings)
    return known
