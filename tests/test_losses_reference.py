"""Loss of reference transport: its gradient, gates, forms and what it must not feel."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import belief, checks, costs, losses
from fdjax.losses.reference import FORMS, GATES

KEYS = jax.random.split(jax.random.key(0), 4)
STUDENT = jax.random.normal(KEYS[0], (6, 3))
TEACHER = 2 * jax.random.normal(KEYS[1], (6, 4))
COST = 3 * jax.random.uniform(KEYS[2], (4, 3))
TARGET = jnp.array([[0.8, 0.1, 0.1], [0.4, 0.3, 0.3], [1 / 3, 1 / 3, 1 / 3]])


def test_gates_and_forms_by_hand():
    logits = jnp.zeros((3, 3))
    soft = losses.gated(logits, TARGET, form="soft")
    np.testing.assert_allclose(soft, np.log(3), rtol=1e-6)
    # Confidence (3 max - 1) / 2: 0.7, 0.1 and 0.
    shut = losses.gated(logits, TARGET, form="soft", gate="threshold", level=0.6)
    np.testing.assert_allclose(shut, [np.log(3), 0, 0], rtol=1e-6)
    power = losses.gated(logits, TARGET, form="soft", gate="power", level=2.0)
    np.testing.assert_allclose(power, np.log(3) * np.array([0.49, 0.01, 0]), atol=1e-6)
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
    hard = losses.gated(logits, TARGET[:1])
    np.testing.assert_allclose(hard, np.log(2), rtol=1e-6)
    sharp = losses.gated(logits, TARGET[:1], form="sharp")
    np.testing.assert_allclose(sharp, (64 * np.log(2) + 2 * np.log(4)) / 66, rtol=1e-6)


def test_an_annealed_target_goes_from_soft_to_hard():
    target = jnp.array([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0], [0.4, 0.4, 0.2]])
    np.testing.assert_allclose(losses.annealed(target, 0.0), target, rtol=1e-6)
    np.testing.assert_allclose(
        losses.annealed(target, 0.5)[0], np.array([25, 9, 4]) / 38, rtol=1e-6
    )
    cold = losses.annealed(target, 1.0)
    np.testing.assert_allclose(cold, [[1, 0, 0], [1, 0, 0], [0.5, 0.5, 0]], atol=1e-6)
    for progress, form in ((0.0, "soft"), (0.5, "sharp"), (1.0, "hard")):
        found = losses.gated(STUDENT[:2], TARGET[:2], progress=progress)  # the third is a tie
        wanted = losses.gated(STUDENT[:2], TARGET[:2], form=form)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_the_gradient_is_student_less_target_and_none_flows_through_the_target():
    probabilities = jax.nn.softmax(TEACHER)
    wanted = belief.reference_target(jax.nn.log_softmax(STUDENT), probabilities, COST)
    gradient = jax.grad(lambda z: losses.reference(z, TEACHER, COST, form="soft").sum())(STUDENT)
    np.testing.assert_allclose(gradient, jax.nn.softmax(STUDENT) - wanted, atol=1e-6)
    given = jax.random.normal(KEYS[3], (6, 3))
    passed = jax.grad(lambda b: losses.reference(STUDENT, TEACHER, COST, log_belief=b).sum())(given)
    np.testing.assert_array_equal(passed, 0.0)


def test_a_teacher_that_says_nothing_leaves_the_student_alone():
    flat = jnp.ones((4, 3)) * jnp.arange(4.0)[:, None]
    gradient = jax.grad(lambda z: losses.reference(z, TEACHER, flat, form="soft").sum())(STUDENT)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_from_a_uniform_belief_it_is_least_at_the_projected_teacher():
    best = jnp.log(costs.predictor(COST, jax.nn.softmax(TEACHER)))
    settings = {"log_belief": jnp.zeros_like(STUDENT), "form": "soft"}
    least = losses.reference(best, TEACHER, COST, **settings)
    other = losses.reference(best + 0.3 * STUDENT, TEACHER, COST, **settings)
    assert (other > least).all()


@pytest.mark.parametrize(("form", "gate"), list(itertools.product(FORMS, GATES)))
def test_padding_and_impossible_classes_are_harmless(form, gate):
    settings = {"form": form, "gate": gate, "level": 0.1}

    def loss(student, teacher, cost):
        return losses.reference(student, teacher, cost, **settings)

    base = loss(STUDENT, TEACHER, COST)
    padded = loss(
        STUDENT,
        jnp.pad(TEACHER, ((0, 0), (0, 2)), constant_values=-jnp.inf),
        jnp.pad(COST, ((0, 2), (0, 0))),
    )
    np.testing.assert_allclose(padded, base, atol=1e-5)
    blocked = STUDENT.at[:, 0].set(-jnp.inf)
    value, gradient = jax.jit(jax.value_and_grad(lambda z: loss(z, TEACHER, COST).sum()))(blocked)
    assert jnp.isfinite(value) and jnp.isfinite(gradient).all()


def test_vmap_over_teachers_is_the_same_one_by_one():
    teachers = jnp.stack([TEACHER, TEACHER[::-1]])
    mapped = jax.vmap(lambda t: losses.reference(STUDENT, t, COST, temperature=2.0))(teachers)
    for row, one in zip(mapped, teachers, strict=True):
        wanted = losses.reference(STUDENT, one, COST, temperature=2.0)
        np.testing.assert_allclose(row, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.gated(TARGET, TARGET, level=-1.0), "`level` must be >= 0"),
        (lambda: losses.reference(STUDENT, TEACHER, COST, temperature=0.0), "`temperature` must"),
        (lambda: losses.reference(STUDENT, TEACHER, COST, epsilon=0.0), "`epsilon` must"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(checks.InputError, match=message):
        call()
