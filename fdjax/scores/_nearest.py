"""The teachers nearest to a task by the cost of transport between sketches, most never solved.

The score is the sharp cost <P, C> of the entropic plan P, as in `scores.transport`, here from the
vectors and masses of a teacher's labels to those of the task: lower is better.

Why a bound of exact transport is a bound of it: the plan that is computed meets the masses b of
the task exactly, and the masses a of the teacher up to `threshold`, in L1. So it is a plan from
some a' to b, and costs at least the exact cost OT(a', b). With Kantorovich potentials f, g of
(a, b), where the range of f is at most that of C, which is R,

    <P, C> >= <f, a'> + <g, b> = OT(a, b) + <f, a' - a> >= OT(a, b) - threshold R / 2.

This holds at every epsilon, and so do the bounds, which are of OT(a, b):

1. By moments. C is (half) a squared distance, and for every plan and coordinate d, by
   Cauchy-Schwarz, E (x_d - y_d)^2 >= (mean x_d - mean y_d)^2 + (std x_d - std y_d)^2: the sum over
   the coordinates is a squared distance of vectors that a teacher has once for all. (Of the means
   alone it is the centroid bound.)
2. Of the heaviest labels. Without the constraint of the task all mass goes the cheapest way, which
   costs sum_i a_i min_j C_ij; half of its terms, those with most of the mass, are at most as much.
   With |x - y|^2 = |x|^2 + |y|^2 - 2 x.y this is one matrix product for many teachers, in bfloat16:
   vectors are off by u = 2^-8 of their length at most, and x.y by (2 u + u^2) |x||y|.
3. Relaxed. Without the constraint on either side all mass takes the cheapest way: sum_j b_j min_i
   C_ij and sum_i a_i min_j C_ij. Either minimum is one potential of a feasible pair of the dual
   problem; the best other one of the pair, a minimum again, adds what the constraint is worth.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, BFloat16, Float, Int

from fdjax import checks, costs
from fdjax.selection import Found, Geometry, Index, Sketch, index, smallest
from fdjax.selection.sketches import BLOCK
from fdjax.transport import Domain, solve

_BOUNDED, _SOLVED, _LOGGED = 1024, 32, 16  # teachers at a time
_WORTH_IT = 10  # how many times faster the second bound is than the third
_ROUNDING = 1e-5  # of costs, of which R is the largest, in float32
_COARSE = 2 * 2.0**-8 + 2.0**-16  # of |x||y|, in bfloat16

Vectors = Float[Array, "teachers labels dimensions"]
Masses = Float[Array, "teachers labels"]


def _costs(
    vectors: Vectors, task: Float[Array, "classes dimensions"], geometry: Geometry
) -> Float[Array, "teachers labels classes"]:
    def one(teacher: Array) -> Array:
        return costs.between_vectors(teacher, task, metric=geometry, centre=False)

    return jax.vmap(one)(vectors)


@jax.jit
def _leaving(
    heads: BFloat16[Array, "dimensions block heaviest"],
    masses: Float[Array, "block heaviest"],
    task: Float[Array, "classes dimensions"],
) -> Float[Array, " block"]:
    """The sum over the heaviest labels of the second bound, without their |x|^2."""
    products = jnp.matmul(
        task.astype(jnp.bfloat16),
        heads.reshape(len(heads), -1),
        preferred_element_type=jnp.float32,
    )
    least = jnp.sum(task**2, axis=1, keepdims=True) - 2 * products
    while len(least) > 1:  # by halves: one pass, where XLA's own minimum over rows is slow
        half = len(least) // 2
        lower = jnp.minimum(least[:half], least[half : 2 * half])
        least = jnp.concatenate([lower, least[2 * half :]])
    return jnp.sum(least.reshape(masses.shape) * masses, axis=1)


@functools.partial(jax.jit, static_argnames="geometry")
def _relaxed(
    vectors: Vectors, masses: Masses, task: Any, target: Any, *, geometry: Geometry
) -> Float[Array, " teachers"]:
    """The third bound."""
    cost = _costs(vectors, task, geometry)
    # Labels without mass are none.
    cost = jnp.where(masses[..., None] > 0, cost, jnp.inf)
    arriving = cost.min(axis=1, keepdims=True)
    leaving = jnp.where(masses > 0, cost.min(axis=2), 0.0)[..., None]
    rest_leaving = jnp.where(masses > 0, (cost - arriving).min(axis=2), 0.0)
    rest_arriving = (cost - leaving).min(axis=1)
    one = arriving[:, 0] @ target + jnp.sum(rest_leaving * masses, axis=1)
    other = rest_arriving @ target + jnp.sum(leaving[..., 0] * masses, axis=1)
    return jnp.maximum(one, other)


@functools.partial(jax.jit, static_argnames=("geometry", "domain", "threshold", "max_iterations"))
def _solved(
    vectors: Vectors,
    masses: Masses,
    task: Any,
    target: Any,
    epsilon: Any,
    *,
    geometry: Geometry,
    domain: Domain,
    **settings: Any,
) -> Float[Array, " teachers"]:
    """Sharp costs; NaN where the domain does not hold the plan, or it did not converge."""
    arriving = jnp.broadcast_to(target, (len(vectors), 1, *target.shape))
    found = solve(
        _costs(vectors, task, geometry),
        masses[:, None],
        arriving,
        epsilon=epsilon,
        domain=domain,
        **settings,
    )
    return jnp.where(found.converged, found.transport_cost, jnp.nan)[:, 0]


class _Search:
    """One task and the sketches of a faculty: bounds and costs by position."""

    def __init__(self, faculty: Index, task: Sketch, **settings: Any):
        checks.positive("epsilon", settings["epsilon"])
        checks.positive("threshold", settings["threshold"])
        goal = index([task], ["the task"], geometry=faculty.geometry)
        wanted = faculty.moments.shape[1] // 2
        got = goal.moments.shape[1] // 2
        checks.require(
            got == wanted,
            f"the task has vectors of {got} dimensions, the faculty of {wanted}; sketch both by "
            "one encoder.",
        )
        self.faculty, self.settings = faculty, settings
        self.moments = goal.moments[0]
        self.task = goal.shelves[0].vectors[0], goal.shelves[0].masses[0]
        self.scale = 0.5 if faculty.geometry == "cosine" else 1.0
        range_of_costs = self.scale * (faculty.radii + goal.radii[0]) ** 2
        self.slack = (settings["threshold"] / 2 + _ROUNDING) * range_of_costs
        self.coarse = self.scale * 2 * _COARSE * faculty.radii * goal.radii[0]
        self.shelf = np.empty(len(faculty.names), int)
        self.row = np.empty(len(faculty.names), int)
        for number, shelf in enumerate(faculty.shelves):
            self.shelf[shelf.positions] = number
            self.row[shelf.positions] = np.arange(len(shelf.positions))

    def in_parts(
        self, some: Int[np.ndarray, " some"], size: int, function: Callable[..., Array]
    ) -> Float[np.ndarray, " some"]:
        """Values of some teachers, computed `size` of a shelf at a time: one shape a shelf."""
        values = np.empty(len(some), np.float32)
        for number, shelf in enumerate(self.faculty.shelves):
            here = np.flatnonzero(self.shelf[some] == number)
            for start in range(0, len(here), size):
                part = here[start : start + size]
                rows = np.resize(self.row[some[part]], size)  # filled up by the same again
                found = function(shelf.vectors[rows], shelf.masses[rows], *self.task)
                values[part] = np.asarray(found)[: len(part)]
        return values

    def by_moments(self) -> Float[np.ndarray, " teachers"]:
        """The first bound, of all."""
        apart = self.faculty.moments - self.moments
        return self.scale * np.einsum("td,td->t", apart, apart) - self.slack

    def leaving(self, some: Int[np.ndarray, " some"]) -> Float[np.ndarray, " some"]:
        """The second bound, by looking at everyone; none where few are left."""
        if _WORTH_IT * len(some) < len(self.row):
            return np.full(len(some), -np.inf, np.float32)
        found = np.empty(len(self.row), np.float32)
        for shelf in self.faculty.shelves:
            labels = shelf.heads[0].shape[2]
            for start, heads in zip(itertools.count(0, BLOCK), shelf.heads, strict=False):
                here = shelf.positions[start : start + BLOCK]
                masses = np.zeros((BLOCK, labels), np.float32)
                masses[: len(here)] = shelf.masses[start : start + BLOCK, :labels]
                found[here] = np.asarray(_leaving(heads, masses, self.task[0]))[: len(here)]
            found[shelf.positions] += shelf.squares
        return self.scale * found[some] - self.coarse[some] - self.slack[some]

    def relaxed(self, some: Int[np.ndarray, " some"]) -> Float[np.ndarray, " some"]:
        """The third bound."""
        function = functools.partial(_relaxed, geometry=self.faculty.geometry)
        return self.in_parts(some, _BOUNDED, function) - self.slack[some]

    def costs(self, some: Int[np.ndarray, " some"]) -> Float[np.ndarray, " some"]:
        """The costs, each the same whoever is solved beside it.

        Hence no `domain` of "auto", which takes the last few of a batch out of it.
        """

        def solved(domain: Domain) -> Callable[..., Array]:
            settings = self.settings | {"domain": domain, "geometry": self.faculty.geometry}
            return functools.partial(_solved, **settings)

        values = self.in_parts(some, _SOLVED, solved("kernel"))
        missing = np.isnan(values)  # beyond the float range
        values[missing] = self.in_parts(some[missing], _LOGGED, solved("log"))
        wrong = some[np.isnan(values)]
        checks.require(
            not wrong.size,
            f"transport did not converge for {', '.join(self.faculty.names[p] for p in wrong[:5])} "
            f"({wrong.size} teachers); choose a larger `epsilon` or `max_iterations`.",
        )
        return values


def nearest(
    faculty: Index,
    task: Sketch,
    k: int,
    *,
    epsilon: float = 0.05,
    threshold: float = 1e-3,
    max_iterations: int = 2000,
) -> Found:
    """The k teachers to whose sketches transport from the task's is cheapest, and their costs.

    The same as the k least of `sketch_costs`, which solves for every teacher; here most are ruled
    out by lower bounds of their costs, see the head of this module. Memory beside the index is that
    of a few hundred teachers.

    What it cannot see: whether a teacher is any good, and whether it knows more than its sketch
    tells. A teacher of many labels, few of which the task needs, pays for carrying the others.

    Args:
        faculty: The sketches of all teachers.
        task: The task's, in the same embedding.
        k: How many, >= 1; all if there are fewer.
        epsilon: Entropic regularisation in units of the cost, for "cosine" of [0, 2].
        threshold: Largest marginal error of a plan.
        max_iterations: Bound on the number of iterations.

    Returns:
        Positions and costs, least first, and how many were bounded and solved.

    Raises:
        InputError: If a setting or a size does not fit, the task's sketch holds NaN, or transport
            did not converge for a teacher that was solved; it names the teacher.

    References:
        Kusner et al., From Word Embeddings to Document Distances, ICML 2015 (bounds by centroids
        and by relaxation, pruned search; for exact transport).
    """
    search = _Search(
        faculty, task, epsilon=epsilon, threshold=threshold, max_iterations=max_iterations
    )
    return smallest(
        search.by_moments(), k, refine=[search.leaving, search.relaxed], solve=search.costs
    )


def sketch_costs(
    faculty: Index,
    task: Sketch,
    *,
    epsilon: float = 0.05,
    threshold: float = 1e-3,
    max_iterations: int = 2000,
) -> Float[np.ndarray, " teachers"]:
    """Cost of transport between the task's sketch and that of every teacher; lower is better.

    Args:
        faculty: As for `nearest`.
        task: As for `nearest`.
        epsilon: As for `nearest`.
        threshold: As for `nearest`.
        max_iterations: As for `nearest`.

    Returns:
        Sharp costs of the entropic plans.

    Raises:
        InputError: As `nearest`.
    """
    search = _Search(
        faculty, task, epsilon=epsilon, threshold=threshold, max_iterations=max_iterations
    )
    return search.costs(np.arange(len(faculty.names)))
