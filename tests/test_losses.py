"""Losses against values by hand, the reference code's numbers and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle_files
import pytest

from fdjax import checks, costs, losses


def test_cross_entropy_by_hand_and_zero_where_unlabelled():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]))
    value = losses.cross_entropy(logits, jnp.array([0, 1, -1]))
    np.testing.assert_allclose(value, [-np.log(0.5), -np.log(0.8), 0.0], rtol=1e-6)
    gradient = jax.grad(lambda z: losses.cross_entropy(z, jnp.array([0, 1, -1])).sum())(logits)
    np.testing.assert_array_equal(gradient[2], 0.0)


@pytest.mark.parametrize("name", ["kd_C10_T1", "kd_C10_T4", "kd_C20_T2", "kd_C100_T4"])
def test_kd_agrees_with_the_reference_code(name, x64):
    stored = oracle_files.load(f"distill/{name}")
    student, teacher = (jnp.asarray(stored[key], jnp.float64) for key in ("student", "teacher"))

    def loss(logits):
        return losses.kd(logits, teacher, temperature=float(stored["T"])).mean()

    value, gradient = jax.value_and_grad(loss)(student)
    np.testing.assert_allclose(value, stored["loss"], rtol=1e-9)
    scale = np.abs(stored["grad_student"]).max()
    np.testing.assert_allclose(gradient, stored["grad_student"], atol=1e-7 * scale)


def test_kd_ignores_teacher_labels_without_mass():
    student = jnp.array([[1.0, 2.0, 3.0]])
    teacher = jnp.array([[0.0, 1.0, -jnp.inf]])
    value, gradient = jax.value_and_grad(lambda z: losses.kd(z, teacher).sum())(student)
    assert jnp.isfinite(value) and jnp.isfinite(gradient).all()


def test_kd_refuses_unequal_label_spaces_and_names_the_mend():
    with pytest.raises(checks.InputError, match="use the objective `transport`"):
        losses.kd(jnp.zeros((2, 3)), jnp.zeros((2, 4)))


def test_transport_is_least_at_the_projected_teacher():
    keys = jax.random.split(jax.random.key(0), 2)
    teacher = 2 * jax.random.normal(keys[0], (8, 6))
    cost = 3 * jax.random.uniform(keys[1], (6, 4))
    best = jnp.log(costs.predictor(cost, jax.nn.softmax(teacher)))
    least = losses.transport(best, teacher, cost)
    other = losses.transport(best + 0.5 * jax.random.normal(keys[0], best.shape), teacher, cost)
    assert (other > least).all()
    soft = losses.transport(best, teacher, cost, temperature=2.0)
    assert soft.shape == (8,) and jnp.isfinite(soft).all()


def test_transport_ignores_padding_of_the_teacher():
    keys = jax.random.split(jax.random.key(0), 3)
    student, teacher = jax.random.normal(keys[0], (8, 4)), jax.random.normal(keys[1], (8, 6))
    cost = 3 * jax.random.uniform(keys[2], (6, 4))
    base = losses.transport(student, teacher, cost)
    padded = losses.transport(
        student,
        jnp.pad(teacher, ((0, 0), (0, 2)), constant_values=-jnp.inf),
        jnp.pad(cost, ((0, 2), (0, 0))),
    )
    np.testing.assert_allclose(padded, base, atol=1e-4)


def test_transport_refuses_a_cost_that_does_not_fit():
    with pytest.raises(checks.InputError, match="`temperature` must be positive"):
        losses.transport(jnp.zeros((2, 3)), jnp.zeros((2, 4)), jnp.zeros((4, 3)), temperature=0.0)
