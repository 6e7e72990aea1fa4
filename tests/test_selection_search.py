"""The least of many costs: against sorting them all, whatever the bounds, ties and sizes."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from fdjax import selection
from fdjax.checks import InputError


class World:
    """Costs, and bounds of them that are as bad as they like."""

    def __init__(self, costs, *slack):
        self.costs = np.asarray(costs, float)
        self.first, *self.others = (self.costs - each for each in slack)
        self.asked = []

    def solve(self, some):
        self.asked += some.tolist()
        return self.costs[some]

    def find(self, k):
        refine = [one.__getitem__ for one in self.others]
        return selection.smallest(self.first, k, refine=refine, solve=self.solve)


# Few different costs, so that ties are the rule; looseness 0 makes the bound the cost itself.
values = st.integers(0, 6).map(float)


@hypothesis.given(
    st.integers(2, 4).flatmap(
        lambda number: st.lists(st.tuples(*[values] * number), min_size=1, max_size=300)
    ),
    st.integers(1, 320),
)
@hypothesis.settings(deadline=None, max_examples=200)
def test_the_answer_is_that_of_sorting_all_costs(rows, k):
    world = World(*map(np.asarray, zip(*rows, strict=True)))
    found = world.find(k)
    expected = np.argsort(world.costs, kind="stable")[:k]
    assert found.positions == tuple(expected)
    np.testing.assert_array_equal(found.costs, world.costs[expected])
    assert len(world.asked) == len(set(world.asked)) == found.solved
    assert found.total == len(rows) and 0 < found.share <= 1
    # Those that were left out could not have been among the first.
    out = np.setdiff1d(np.arange(len(rows)), world.asked)
    assert (np.max([world.first, *world.others], axis=0)[out] > found.costs[-1]).all()
    assert len(found.bounded) == len(world.others)


def test_good_bounds_spare_most():
    costs = np.random.default_rng(0).permutation(10_000) / 100
    found = World(costs, 4.0, 2.0, 1.0).find(5)
    assert found.costs.tolist() == [0.0, 0.01, 0.02, 0.03, 0.04]
    # All up to 0.04 + 1 (but for rounding), after those up to 0.04 + 4 got the second bound, and
    # those up to 0.04 + 2 the third.
    assert 104 <= found.solved < 400
    assert 300 < found.bounded[0] < 600 and 50 < found.bounded[1] < 300


def test_a_bound_that_is_not_worth_it_is_not_counted():
    costs = np.arange(200.0)
    nothing = World(costs, 150.0, np.inf, 1.0)
    found = nothing.find(2)
    assert found.positions == (0, 1) and found.bounded[0] == 0 and found.bounded[1] > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": 0}, "`k` must be positive"),
        ({"bounds": np.zeros(0)}, "nothing to choose from"),
        ({"bounds": np.array([0.0, np.nan])}, "`bounds` must not hold NaN"),
        ({"solve": lambda some: np.full(len(some), np.nan)}, "`solve` must not return NaN"),
    ],
)
def test_what_cannot_be_searched_is_refused(change, words):
    given = {"bounds": np.zeros(2), "k": 1, "solve": np.zeros_like, "refine": [np.zeros_like]}
    with pytest.raises(InputError, match=words):
        selection.smallest(**given | change)


def test_a_second_bound_of_nan_is_refused():
    bounds = np.zeros(100)
    with pytest.raises(InputError, match="`refine` must not return NaN"):
        selection.smallest(
            bounds,
            1,
            refine=[lambda some: np.full(len(some), np.nan)],
            solve=lambda some: np.zeros(len(some)),
        )
