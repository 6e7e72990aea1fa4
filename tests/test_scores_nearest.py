"""The teachers nearest to a task: sketches, bounds against exact transport, search against all."""

import jax.numpy as jnp
import numpy as np
import ot
import pytest

from fdjax import costs, scores, selection, transport
from fdjax.checks import InputError
from fdjax.scores import _nearest

GEOMETRIES = ("cosine", pytest.param("sqeuclidean", marks=pytest.mark.slow))
EPSILON = {"cosine": 0.05, "sqeuclidean": 0.3}


def world(seed=0, teachers=150, dimensions=5, spread=0.7):
    """Teachers of 3 to 8 labels around some places, every tenth given twice, and a task of one."""
    random = np.random.default_rng(seed)
    places = random.normal(size=(6, dimensions))

    def one(labels):
        centre = places[random.integers(6)]
        vectors = centre + spread * random.normal(size=(labels, dimensions))
        return selection.Sketch(
            vectors.astype(np.float32), random.dirichlet(np.ones(labels)).astype(np.float32)
        )

    sketches = [one(random.integers(3, 9)) for _ in range(teachers)]
    for place in range(0, teachers - 1, 10):
        sketches[place + 1] = sketches[place]
    return sketches, one(4)


def cost_between(teacher, task, geometry):
    return costs.between_vectors(
        jnp.asarray(teacher.vectors), jnp.asarray(task.vectors), metric=geometry, centre=False
    )


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_search_finds_what_scoring_everyone_finds(geometry, seed):
    sketches, task = world(seed)
    index = selection.index(sketches, geometry=geometry)
    epsilon = EPSILON[geometry]
    everyone = scores.sketch_costs(index, task, epsilon=epsilon)
    for k in (1, 10, 11, 150, 400):
        found = scores.nearest(index, task, k, epsilon=epsilon)
        expected = np.argsort(everyone, kind="stable")[:k]
        assert found.positions == tuple(expected)
        np.testing.assert_array_equal(found.costs, everyone[expected])
    assert found.solved == len(sketches)
    assert scores.nearest(index, task, 3, epsilon=epsilon).solved < len(sketches)
    # Padding, and who is solved beside whom, move no cost beyond rounding: one by one.
    for place in (0, 17, 101):
        alone = transport.solve(
            cost_between(sketches[place], task, geometry),
            jnp.asarray(sketches[place].masses)[None],
            jnp.asarray(task.masses)[None],
            epsilon=epsilon,
        )
        np.testing.assert_allclose(alone.transport_cost[0], everyone[place], rtol=1e-4)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("epsilon", [0.05, pytest.param(1.0, marks=pytest.mark.slow)])
def test_bounds_are_below_exact_transport_and_that_below_the_score(geometry, epsilon):
    sketches, task = world(3, teachers=60)
    index = selection.index(sketches, geometry=geometry)
    settings = {"epsilon": epsilon, "threshold": 1e-3, "max_iterations": 2000}
    search = _nearest._Search(index, task, **settings)
    everyone = np.arange(60)
    exact = np.array(
        [
            ot.emd2(
                one.masses.astype(float) / one.masses.sum(dtype=float),
                task.masses.astype(float) / task.masses.sum(dtype=float),
                np.asarray(cost_between(one, task, geometry), float),
            )
            for one in sketches
        ]
    )
    score = search.costs(everyone)
    first, second = search.by_moments(), search.leaving(everyone)
    third, slack = search.relaxed(everyone), search.slack
    for bound in (first, second, third):
        assert (bound + slack <= exact + 1e-5).all() and (bound <= score).all()
    assert (exact - slack <= score).all()
    # They are worth something: the third comes near, the others tell the far from the near.
    assert np.median((third + slack) / exact) > 0.8
    assert np.corrcoef(first, exact)[0, 1] > 0.7 and np.corrcoef(second, exact)[0, 1] > 0.7


@pytest.mark.parametrize("geometry", ["cosine", "sqeuclidean"])
def test_the_bound_of_the_heaviest_labels_is_off_by_its_rounding_at_most(geometry):
    """Over more than one block, beside sums in double precision; and none where few are left."""
    sketches, task = world(5, teachers=1100)
    index = selection.index(sketches, geometry=geometry)
    search = _nearest._Search(index, task, epsilon=0.1, threshold=1e-3, max_iterations=2000)
    everyone = np.arange(len(sketches))
    expected = np.empty(len(sketches))
    for shelf in index.shelves:
        half = -(-shelf.vectors.shape[1] // 2)
        assert (np.diff(shelf.masses, axis=1) <= 0).all()
        apart = shelf.vectors[:, :half, None].astype(float) - search.task[0].astype(float)
        least = (search.scale * apart**2).sum(axis=3).min(axis=2)
        expected[shelf.positions] = (shelf.masses[:, :half] * least).sum(axis=1)
    found = search.leaving(everyone) + search.slack
    assert (found <= expected + 1e-5).all() and (expected <= found + 2 * search.coarse + 1e-5).all()
    assert (expected > found + search.coarse / 100).any()  # it is rounded indeed
    some = np.array([1099, 3, 500] * 60)
    np.testing.assert_array_equal(search.leaving(some), (found - search.slack)[some])
    assert np.isneginf(search.leaving(np.arange(9))).all()


def test_moments_by_hand():
    line = selection.Sketch(np.array([[0.0], [2.0]], np.float32), np.array([1.0, 1.0], np.float32))
    point = selection.Sketch(np.array([[4.0]], np.float32), np.array([3.0], np.float32))
    index = selection.index([line, point], geometry="sqeuclidean")
    np.testing.assert_allclose(index.moments, [[1.0, 1.0], [4.0, 0.0]])
    np.testing.assert_allclose(index.radii, [2.0, 4.0])
    # From 0 and 2 to 4: 16 and 4 by halves; from 4 to itself nothing.
    found = scores.nearest(index, point, 2, epsilon=0.1)
    assert found.positions == (1, 0)
    np.testing.assert_allclose(found.costs, [0.0, 10.0], atol=1e-4)


def test_plans_beyond_the_float_range_are_solved_all_the_same():
    sketches, task = world(4, teachers=12)
    index = selection.index(sketches, geometry="sqeuclidean")
    sharp = scores.sketch_costs(index, task, epsilon=0.02)
    np.testing.assert_allclose(sharp, scores.sketch_costs(index, task, epsilon=0.1), rtol=0.1)


def test_a_sketch_is_the_mean_image_of_every_label():
    random = np.random.default_rng(0)
    encoded = random.normal(size=(6, 3))
    labels = np.array([0, 0, 1, 3, 3, 3])
    task = selection.sketch(np.eye(5)[labels], encoded)
    np.testing.assert_allclose(task.masses, [2 / 6, 1 / 6, 3 / 6], rtol=1e-6)
    expected = [encoded[labels == label].mean(axis=0) for label in (0, 1, 3)]
    np.testing.assert_allclose(task.vectors, expected, rtol=1e-5)
    soft = selection.sketch(np.full((6, 2), 0.5), encoded)
    np.testing.assert_allclose(soft.vectors, [encoded.mean(axis=0)] * 2, rtol=1e-5)


def broken(sketches, place, **change):
    sketches = list(sketches)
    sketches[place] = sketches[place]._replace(**change)
    return sketches


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"masses": np.array([0.5, np.nan], np.float32)}, "teacher-7 holds NaN or infinity"),
        ({"vectors": np.full((2, 5), np.inf, np.float32)}, "teacher-7 holds NaN or infinity"),
        ({"masses": np.array([1.5, -0.5], np.float32)}, "teacher-7 has a negative mass"),
        ({"masses": np.zeros(2, np.float32)}, "teacher-7 has no mass at all"),
        ({"vectors": np.zeros((2, 5), np.float32)}, "teacher-7 has a vector of zeros"),
        ({"vectors": np.ones((3, 5), np.float32)}, "teacher-7 must have a mass for each vector"),
        ({"vectors": np.ones((2, 4), np.float32)}, "vectors of 5 dimensions"),
    ],
)
def test_a_bad_sketch_is_refused_and_its_teacher_named(change, words):
    sketches, _ = world(teachers=9)
    whole = selection.Sketch(np.ones((2, 5), np.float32), np.array([0.5, 0.5], np.float32))
    sketches[7] = whole
    names = [f"teacher-{place}" for place in range(9)]
    selection.index(sketches, names)
    with pytest.raises(InputError, match=words):
        selection.index(broken(sketches, 7, **change), names)


@pytest.mark.slow
def test_a_teacher_whose_plan_did_not_converge_is_named():
    sketches, task = world(teachers=9)
    names = [f"teacher-{place}" for place in range(9)]
    with pytest.raises(InputError, match="transport did not converge for teacher-"):
        scores.nearest(selection.index(sketches, names), task, 3, epsilon=1e-3, max_iterations=10)


def test_settings_and_sizes_are_refused_before_any_work():
    sketches, task = world(teachers=9)
    index = selection.index(sketches)
    narrow = selection.Sketch(task.vectors[:, :3], task.masses)
    with pytest.raises(InputError, match="the task has vectors of 3 dimensions, the faculty of 5"):
        scores.nearest(index, narrow, 3)
    with pytest.raises(InputError, match="the task holds NaN"):
        scores.nearest(index, task._replace(masses=task.masses * np.nan), 3)
    with pytest.raises(InputError, match="`epsilon` must be positive"):
        scores.nearest(index, task, 3, epsilon=0.0)
    with pytest.raises(InputError, match="`k` must be positive"):
        scores.nearest(index, task, 0)
    with pytest.raises(InputError, match="`sketches` is empty"):
        selection.index([])
    with pytest.raises(Exception, match="geometry"):
        selection.index(sketches, geometry="euclidean")
    with pytest.raises(InputError, match="`probabilities` must be at least 0"):
        selection.sketch(np.zeros((3, 2)), np.ones((3, 4)))
