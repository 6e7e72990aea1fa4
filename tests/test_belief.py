"""Beliefs updated by teachers: by hand, by ott-jax in the limit, and by a generic optimiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ott.geometry import geometry
from ott.problems.linear import linear_problem
from ott.solvers.linear import sinkhorn
from scipy import optimize
from scipy.special import log_softmax, softmax

from fdjax import belief, checks, costs

KEYS = jax.random.split(jax.random.key(0), 3)
BELIEF = jax.nn.log_softmax(jax.random.normal(KEYS[0], (5, 3)))
TEACHER = jax.nn.softmax(2 * jax.random.normal(KEYS[1], (5, 4)))
COST = 3 * jax.random.uniform(KEYS[2], (4, 3))


def plan(log_belief, source, cost, epsilon):
    """Closed plan of one example, in float64."""
    inner = np.asarray(log_belief, np.float64) - np.asarray(cost, np.float64) / epsilon
    return np.asarray(source, np.float64)[:, None] * softmax(inner, axis=1)


def test_target_by_hand():
    log_belief = jnp.log(jnp.array([[0.5, 0.5], [0.8, 0.2]]))
    teacher = jnp.array([[0.25, 0.75], [1.0, 0.0]])
    # Label 0 is three times as likely under class 0; label 1 says nothing.
    cost = jnp.array([[0.0, np.log(3.0)], [7.0, 7.0]])
    found = belief.reference_target(log_belief, teacher, cost)
    first = 0.25 * 0.75 + 0.75 * 0.5
    second = 2.4 / 2.6
    np.testing.assert_allclose(found, [[first, 1 - first], [second, 1 - second]], rtol=1e-6)


def test_target_is_ott_s_with_a_free_marginal():
    epsilon = 0.3
    solver = sinkhorn.Sinkhorn(threshold=1e-6, max_iterations=500)

    @jax.jit
    @jax.vmap
    def target_marginal(log_belief, source):
        # ott-jax's kernel exp((f + g - cost) / epsilon) has no reference measure, so the belief
        # goes into the cost; tau_b -> 0 takes the price off leaving the second marginal.
        free = geometry.Geometry(cost_matrix=COST - epsilon * log_belief, epsilon=epsilon)
        problem = linear_problem.LinearProblem(free, a=source, tau_a=1.0, tau_b=1e-5)
        return solver(problem).matrix.sum(axis=0)

    found = belief.reference_target(BELIEF, TEACHER, COST, epsilon=epsilon)
    np.testing.assert_allclose(target_marginal(BELIEF, TEACHER), found, atol=1e-4)


def test_target_is_the_optimum_of_the_stated_problem():
    epsilon = 0.5
    log_belief, source, cost = (np.asarray(x, np.float64) for x in (BELIEF[0], TEACHER[0], COST))
    reference = np.log(source)[:, None] + log_softmax(log_belief)

    def objective(flat):
        logs = np.log(source)[:, None] + log_softmax(flat.reshape(4, 3), axis=1)
        return np.sum(np.exp(logs) * (cost + epsilon * (logs - reference)))

    least = optimize.minimize(objective, np.zeros(12), tol=1e-12)
    closed = plan(log_belief, source, cost, epsilon)
    generic = source[:, None] * softmax(least.x.reshape(4, 3), axis=1)
    np.testing.assert_allclose(generic, closed, atol=1e-5)
    found = belief.reference_target(BELIEF, TEACHER, COST, epsilon=epsilon)
    np.testing.assert_allclose(found[0], closed.sum(axis=0), atol=1e-6)


def test_a_teacher_that_says_nothing_changes_nothing():
    flat = jnp.arange(4.0)[:, None] * jnp.ones((4, 3))
    np.testing.assert_allclose(belief.log_update(BELIEF, TEACHER, flat), 0.0, atol=1e-6)
    silent = belief.reference_target(BELIEF, jnp.zeros((5, 4)), COST)
    np.testing.assert_allclose(silent, jnp.exp(BELIEF), rtol=1e-6)
    half = belief.reference_target(BELIEF, TEACHER / 2, COST)
    whole = belief.reference_target(BELIEF, TEACHER, COST)
    np.testing.assert_allclose(half, (jnp.exp(BELIEF) + whole) / 2, rtol=1e-5)


def test_the_belief_comes_back_on_average():
    # sum_c q_c u_c = 1: an update moves mass and makes none.
    update = belief.log_update(BELIEF, TEACHER, COST)
    np.testing.assert_allclose(jnp.sum(jnp.exp(BELIEF + update), axis=1), 1.0, rtol=1e-5)


def test_a_uniform_belief_gives_the_projected_teacher():
    found = belief.reference_target(jnp.zeros((5, 3)), TEACHER, COST, epsilon=0.7)
    wanted = costs.predictor(COST, TEACHER, epsilon=0.7)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_constants_of_rows_and_padding_change_nothing():
    base = belief.reference_target(BELIEF, TEACHER, COST)
    moved = belief.reference_target(BELIEF + 2.0, TEACHER, COST + 50 * jnp.arange(4.0)[:, None])
    np.testing.assert_allclose(moved, base, atol=1e-5)
    padded = belief.reference_target(
        BELIEF, jnp.pad(TEACHER, ((0, 0), (0, 2))), jnp.pad(COST, ((0, 2), (0, 0)))
    )
    np.testing.assert_allclose(padded, base, atol=1e-6)


def test_jit_and_vmap_over_teachers():
    both = jnp.stack([TEACHER, TEACHER[::-1]])
    mapped = jax.jit(jax.vmap(belief.log_update, in_axes=(None, 0, None)))(BELIEF, both, COST)
    np.testing.assert_allclose(mapped[1], belief.log_update(BELIEF, both[1], COST), atol=1e-6)


def test_extremes_stay_finite_and_so_do_their_gradients():
    log_belief = jnp.array([[0.0, -jnp.inf, -90.0], [-1e4, 0.0, -5.0]])
    teacher = jnp.array([[0.0, 1.0, 0.0, 0.0], [1e-38, 0.0, 0.5, 0.5]])
    cost = 300 * COST

    def total(log_belief, teacher, cost):
        return jnp.sum(belief.reference_target(log_belief, teacher, cost)[:, 0])

    assert jnp.isfinite(belief.log_update(log_belief, teacher, cost)).all()
    found = belief.reference_target(log_belief, teacher, cost)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-6)
    assert found[0, 1] == 0.0
    for gradient in jax.grad(total, argnums=(0, 1, 2))(log_belief, teacher, cost):
        assert jnp.isfinite(gradient).all()


def test_updates_of_several_teachers_multiply():
    update = belief.log_update(BELIEF, TEACHER, COST)
    other = belief.log_update(BELIEF, TEACHER[::-1], COST)
    both = jnp.stack([update, other])
    alone = belief.pooled_target(BELIEF, both, jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(alone, belief.reference_target(BELIEF, TEACHER, COST), rtol=1e-5)
    pooled = belief.pooled_target(BELIEF, both, jnp.array([0.5, 2.0]))
    wanted = np.exp(BELIEF) * np.exp(update) ** 0.5 * np.exp(other) ** 2
    np.testing.assert_allclose(pooled, wanted / wanted.sum(axis=1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: belief.log_update(BELIEF, TEACHER, COST, epsilon=0.0), "`epsilon` must be"),
        (lambda: belief.reference_target(BELIEF, TEACHER, COST, epsilon=-1.0), "`epsilon` must"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(checks.InputError, match=message):
        call()
