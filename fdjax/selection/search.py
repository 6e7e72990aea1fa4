"""The least of many costs, of which only lower bounds are cheap."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fdjax import checks

# Of what is solved at once: few at first, when the bound to beat is not known yet.
_FIRST, _MOST = 64, 1024


Evaluate = Callable[[Int[np.ndarray, " some"]], Float[np.ndarray, " some"]]
"""Bounds or costs of some, by position."""


class Found(NamedTuple):
    """The least costs, and what it took to find them.

    Attributes:
        positions: Whose they are, least first; equal ones in order.
        costs: The costs.
        total: How many there are to choose from.
        bounded: For how many each further bound was computed, in their order.
        solved: For how many the cost was.
    """

    positions: tuple[int, ...]
    costs: Float[np.ndarray, " found"]
    total: int
    bounded: tuple[int, ...]
    solved: int

    @property
    def share(self) -> float:
        """Share of all costs that were computed, in (0, 1]."""
        return self.solved / self.total


def smallest(
    bounds: Float[np.ndarray, " total"],
    k: int,
    *,
    refine: Sequence[Evaluate],
    solve: Evaluate,
) -> Found:
    """The k least costs, computing no cost whose bound is above the k-th least one.

    Bound by bound: first the costs of those with the least bounds so far, then the next bound of
    all that may still be among the k least. At last costs in the order of the best bounds, until
    the next one exceeds the k-th least cost so far. What is left has a cost of at least its bound,
    hence above k others: the answer is that of computing every cost, ties included, for one whose
    bound is equal to the k-th least cost is computed.

    Args:
        bounds: Lower bound of each cost.
        k: How many are wanted, >= 1; all if there are fewer.
        refine: Further lower bounds, the cheapest to compute first; minus infinity for none.
        solve: The costs.

    Returns:
        The k least costs, those of lower position first where they are equal.

    Raises:
        InputError: If there is nothing to choose from, `k` is not positive, or a bound or a cost
            is NaN.
    """
    checks.positive("k", k)
    bounds = np.array(bounds, np.float64)
    checks.shape("bounds", bounds, (None,))
    total = len(bounds)
    checks.require(total > 0, "`bounds` is empty: there is nothing to choose from.")
    k = min(k, total)
    costs = np.full(total, np.nan)
    solved = np.zeros(total, bool)

    def compute(some: np.ndarray) -> None:
        costs[some] = solve(some)
        solved[some] = True
        checks.require(not bool(np.isnan(costs[some]).any()), "`solve` must not return NaN.")

    def left() -> np.ndarray:
        """Those that may be among the k least, by their bounds."""
        known = costs[solved]
        worst = np.partition(known, k - 1)[k - 1] if len(known) >= k else np.inf
        some = np.flatnonzero(~solved & (bounds <= worst))
        return some[np.argsort(bounds[some], kind="stable")]

    checks.require(not bool(np.isnan(bounds).any()), "`bounds` must not hold NaN.")
    bounded = []
    for bound in refine:
        compute(left()[: max(k, _FIRST)])
        again = np.sort(left())  # in the order in which they lie
        found = bound(again) if again.size else np.empty(0)
        checks.require(not bool(np.isnan(found).any()), "`refine` must not return NaN.")
        bounds[again] = np.maximum(bounds[again], found)
        bounded.append(int(np.isfinite(found).sum()))
    size = max(k, _FIRST)
    while (some := left()).size:
        compute(some[:size])
        size = min(2 * size, _MOST)
    known = np.flatnonzero(solved)
    best = known[np.lexsort((known, costs[known]))][:k]
    return Found(tuple(best.tolist()), costs[best], total, tuple(bounded), len(known))
