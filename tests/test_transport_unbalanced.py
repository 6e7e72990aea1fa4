"""Unbalanced transport against POT, ott-jax, a slow truth, its limits and finite differences."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
import truth
from ott.geometry import geometry
from ott.problems.linear import linear_problem
from ott.solvers.linear import sinkhorn
from scipy.special import logsumexp, rel_entr, softmax

from fdjax import checks, transport

BATCH, SOURCE, TARGET = 4, 7, 5


@functools.cache
def problem():
    """Cost in [0, 1] and masses, in double precision on the host.

    Some masses are zero, and the last source label is padding of a price of its own.
    """
    rng = np.random.default_rng(0)
    cost = rng.random((SOURCE, TARGET))
    a, b = (np.exp(2 * rng.normal(size=(BATCH, labels))) for labels in (SOURCE, TARGET))
    a[0, 2] = a[:, -1] = b[1, 3] = 0.0
    a[3] = np.eye(SOURCE)[4]
    return cost, a / a.sum(axis=1, keepdims=True), b / b.sum(axis=1, keepdims=True)


def single(*arrays):
    return [jnp.asarray(array, jnp.float32) for array in arrays]


@jax.jit
def solved(cost, a, b, epsilon, tau):
    settings = {"epsilon": epsilon, "tau": tau, "threshold": 1e-4, "max_iterations": 5000}
    solution = transport.solve_unbalanced(cost, a, b, **settings)
    return solution, transport.plan(solution, cost, epsilon)


def slow_plans(epsilon, tau):
    """Log-domain iterations in double precision, without the label that is padding."""
    cost, a, b = problem()
    cost, a = cost[None, :-1] / epsilon, a[:, :-1]
    with np.errstate(divide="ignore"):
        log_a, log_b = np.log(a)[:, :, None], np.log(b)[:, None]
    f = np.ones_like(log_a) * np.inf
    new = np.zeros_like(log_a)
    while np.abs(new - f).max() > 1e-11:
        f = new
        g = -logsumexp(f + log_a - cost, axis=1, keepdims=True)
        new = -logsumexp(g + log_b - cost, axis=2, keepdims=True) * tau / (tau + epsilon)
    return np.exp(f + log_a + g + log_b - cost)


def value_of(plan, epsilon, tau):
    """The three terms, by their definition."""
    cost, a, b = problem()
    a = a[:, :-1]
    return (
        (plan * cost[:-1]).sum(axis=(1, 2))
        + epsilon * rel_entr(plan, a[:, :, None] * b[:, None]).sum(axis=(1, 2))
        + tau * rel_entr(plan.sum(axis=2), a).sum(axis=1)
    )


@pytest.mark.parametrize(
    ("epsilon", "tau"),
    [(1.0, 0.1), (1.0, 10.0), (0.1, 0.01), (0.1, 1.0), (0.01, 0.1), (0.01, 1.0), (0.001, 0.01)],
)
def test_plans_and_values_at_every_epsilon_in_single_precision(epsilon, tau):
    cost, a, b = problem()
    solution, plan = solved(*single(cost, a, b), epsilon, tau)
    assert solution.converged.all()
    expected = slow_plans(epsilon, tau)
    np.testing.assert_allclose(plan[:, :-1], expected, atol=1e-4)
    np.testing.assert_array_equal(plan[:, -1], 0.0)
    np.testing.assert_allclose(plan.sum(axis=1), b, atol=3e-5)
    value = value_of(expected, epsilon, tau)
    np.testing.assert_allclose(solution.regularised_cost, value, rtol=1e-5, atol=2e-6)
    sharp = (expected * cost[:-1]).sum(axis=(1, 2))
    np.testing.assert_allclose(solution.transport_cost, sharp, atol=1e-4)


def test_pot_agrees():
    cost, a, b = problem()
    epsilon, tau, seen = 0.1, 0.3, slice(None, -1)
    theirs = ot.unbalanced.sinkhorn_unbalanced(
        *(a[2, seen], b[2], cost[seen], epsilon, (tau, np.inf)), numItermax=10_000, stopThr=1e-10
    )
    _, plan = solved(*single(cost, a, b), epsilon, tau)
    np.testing.assert_allclose(plan[2, seen], theirs, atol=1e-4)


def test_ott_agrees_on_a_cost_that_holds_the_reference_measure():
    cost, a, b = single(*problem())
    epsilon, tau, seen = 0.1, 0.3, slice(None, -1)

    @jax.jit
    def theirs(cost, a, b):
        geom = geometry.Geometry(cost - epsilon * jnp.log(a)[:, None], epsilon=epsilon)
        one = linear_problem.LinearProblem(geom, a, b, tau_a=tau / (tau + epsilon))
        return sinkhorn.Sinkhorn(threshold=1e-4)(one).matrix

    _, plan = solved(cost, a, b, epsilon, tau)
    expected = theirs(cost[seen], a[2, seen], b[2])
    np.testing.assert_allclose(plan[2, seen], expected, atol=1e-4)


def test_a_large_tau_is_balanced_and_a_small_one_takes_the_cheapest():
    cost, a, b = problem()
    arrays = single(cost, a, b)
    solution, plan = solved(*arrays, 0.1, 1e4)
    for k in range(BATCH):
        balanced, sharp, relative = truth.sinkhorn(cost, a[k], b[k], 0.1)
        np.testing.assert_allclose(plan[k], balanced, atol=2e-4)
        np.testing.assert_allclose(solution.transport_cost[k], sharp, atol=2e-4)
        np.testing.assert_allclose(solution.regularised_cost[k], relative, rtol=1e-3)
    prices = [solved(*arrays, 0.1, tau)[0].regularised_cost for tau in (0.01, 0.1, 1.0, 1e4)]
    assert all((less <= more + 1e-6).all() for less, more in itertools.pairwise(prices))
    # All but free to stay at home, mass leaves where the way is short.
    _, plan = solved(*arrays, 0.1, 1e-4)
    free = a[:, :, None] * np.exp(-cost / 0.1)
    np.testing.assert_allclose(plan, b[:, None] * free / free.sum(axis=1, keepdims=True), atol=2e-3)


@jax.jit
def slopes(*point):
    def total(cost, a, b, epsilon, tau):
        settings = {"epsilon": epsilon, "tau": tau, "threshold": 1e-11}
        return transport.unbalanced_cost(cost, a, b, **settings).sum()

    return jax.value_and_grad(total, argnums=range(5))(*point)


def test_gradients_against_finite_differences(x64):
    rng = np.random.default_rng(1)
    cost, a, b = problem()
    point = [cost, a, b, np.float64(0.1), np.float64(0.3)]
    gradient = [np.asarray(slope) for slope in slopes(*point)[1]]
    assert all(np.isfinite(slope).all() for slope in gradient)
    np.testing.assert_array_equal(gradient[0][-1], 0.0)
    for argument, (at, slope) in enumerate(zip(point, gradient, strict=True)):
        direction = rng.normal(size=at.shape)
        if argument in (1, 2):  # keeps the mass, and zeros where they are
            direction = at * (direction - (at * direction).sum(axis=1, keepdims=True))

        def along(x, argument=argument):
            return float(slopes(*point[:argument], x, *point[argument + 1 :])[0])

        expected = truth.directional_derivative(along, at, direction, 1e-5)
        np.testing.assert_allclose((slope * direction).sum(), expected, rtol=1e-6, atol=1e-9)


def test_plain_is_least_at_the_projected_teacher_of_the_labels_that_leave(x64):
    cost, a, b = problem()
    epsilon, tau = np.float64(0.1), np.float64(0.3)
    leaving = -epsilon * logsumexp(-cost / epsilon, axis=1)
    source = a * np.exp(-leaving / (tau + epsilon))
    best = source / source.sum(axis=1, keepdims=True) @ softmax(-cost / epsilon, axis=1)
    least, gradient = slopes(cost, a, best, epsilon, tau)
    # Flat along all directions that keep the mass.
    slope = np.asarray(gradient[2])
    np.testing.assert_allclose(slope - slope.mean(axis=1, keepdims=True), 0.0, atol=1e-8)
    assert float(slopes(cost, a, b, epsilon, tau)[0]) > float(least)


def test_faculty_axes_and_vmap_are_more_problems():
    cost, a, b = problem()
    stacked = single(np.stack([cost, cost[::-1]]), np.stack([a, a]), np.stack([b, b]))
    settings = {"epsilon": 0.1, "tau": 0.2, "threshold": 1e-4}

    @jax.jit
    @jax.vmap
    def one_of_each(cost, a, b):
        return transport.unbalanced_cost(cost[None], a[None], b[None], **settings)[0]

    found = one_of_each(*stacked)
    for k in range(2):
        solution, _ = solved(*(array[k] for array in stacked), 0.1, 0.2)
        entropies = [np.where(mass > 0, mass * np.log(mass + 1e-30), 0).sum(1) for mass in (a, b)]
        plain = np.asarray(solution.regularised_cost) + 0.1 * sum(entropies)
        np.testing.assert_allclose(found[k], plain, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": 0.0}, "`tau` must be positive, got 0.0"),
        ({"tau": float("inf")}, "`tau` must be finite"),
        ({"epsilon": -1.0}, "`epsilon` must be positive"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    cost, a, b = single(*problem())
    with pytest.raises(checks.InputError, match=message):
        transport.unbalanced_cost(cost, a, b, **{"epsilon": 0.1, "tau": 1.0, **settings})


def test_second_derivatives_are_refused():
    cost, a, b = single(*problem())

    def value(b):
        return transport.unbalanced_cost(cost, a, b, epsilon=0.1, tau=1.0).sum()

    with pytest.raises(checks.InputError, match="second derivatives"):
        jax.eval_shape(jax.grad(lambda b: jax.grad(value)(b).sum()), b)
