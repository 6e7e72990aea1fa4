"""Variants of the transport loss against slow truths, and where they are least."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import truth
import worlds

from fdjax import losses, objectives, training
from fdjax.losses.across_labels import student_distance

EPSILON, BATCH, SOURCE, TARGET = 0.2, 3, 5, 4


def test_student_distance_by_hand():
    cost = np.array([[0.0, 1.0, 3.0], [2.0, 0.0, 0.5], [9.0, 0.0, 0.0]], np.float32)
    seen = jax.jit(student_distance)(cost, where=np.array([True, True, False]))
    np.testing.assert_allclose(seen, [[0.0, 2.0, 3.0], [2.0, 0.0, 2.0], [3.0, 2.0, 0.0]])
    rng = np.random.default_rng(0)
    prices = rng.random((6, 6), np.float32)
    distance = jax.jit(student_distance)
    apart = np.asarray(distance(prices))
    # No detour is cheaper: cost[s, c] <= cost[s, k] + d(k, c), and d obeys the triangle too.
    assert (prices[:, None] <= prices[:, :, None] + apart[None] + 1e-6).all()
    assert (apart[:, None] <= apart[:, :, None] + apart[None] + 1e-6).all()
    # A distance is its own.
    points = rng.normal(size=(6, 2)).astype(np.float32)
    metric = np.linalg.norm(points[:, None] - points, axis=-1)
    np.testing.assert_allclose(distance(metric), metric, atol=1e-6)


@jax.jit
def variants(student, teacher, cost):
    """Values of every variant, and the gradient of the debiased one."""
    settings = {"epsilon": EPSILON, "entropy": "relative", "tau": 1e4}

    def found(name, student):
        return losses.transport(student, teacher, cost, value=name, **settings)

    def debiased(student):
        value = found("debiased", student)
        return value.sum(), value

    gradient, value = jax.grad(debiased, has_aux=True)(student)
    others = {name: found(name, student) for name in ("sharp", "unbalanced")}
    return {"debiased": value, **others}, gradient


def random_logits(rng):
    """Of the student, and of a teacher whose last label is padding."""
    student, teacher = (rng.normal(size=(BATCH, labels)) for labels in (TARGET, SOURCE))
    teacher[:, -1] = -np.inf
    return np.float32(student), np.float32(teacher)


def softmax(logits):
    return np.asarray(jax.nn.softmax(jnp.asarray(logits)), np.float64)


def test_variants_have_the_values_of_their_definitions():
    rng = np.random.default_rng(1)
    (student, teacher), cost = random_logits(rng), rng.random((SOURCE, TARGET), np.float32)
    found, gradient = variants(student, teacher, cost)
    assert np.isfinite(gradient).all()
    apart = np.abs(cost[:-1, :, None] - cost[:-1, None]).max(axis=0)
    for k, (a, b) in enumerate(zip(softmax(teacher), softmax(student), strict=True)):
        _, sharp, relative = truth.sinkhorn(cost, a, b, EPSILON)
        _, _, itself = truth.sinkhorn(apart, b, b, EPSILON)
        np.testing.assert_allclose(found["sharp"][k], sharp, atol=1e-4)
        np.testing.assert_allclose(found["debiased"][k], relative - itself / 2, atol=1e-4)
        # Where leaving mass at home is very dear, all of it moves.
        np.testing.assert_allclose(found["unbalanced"][k], relative, atol=2e-4)


def test_debiased_is_least_at_the_teacher_where_the_labels_are_the_same():
    rng = np.random.default_rng(2)
    _, teacher = random_logits(rng)
    points = 0.3 * rng.normal(size=(TARGET, 2))
    metric = np.linalg.norm(points[:, None] - points, axis=-1)
    cost = np.float32(np.concatenate([metric, np.full((1, TARGET), 9.0)]))
    least, gradient = variants(teacher[:, :-1], teacher, cost)
    np.testing.assert_allclose(gradient, 0.0, atol=2e-3)
    other, gradient = variants(teacher[:, ::-1][:, 1:], teacher, cost)
    assert np.abs(gradient).max() > 1e-2
    assert (other["debiased"] > least["debiased"]).all()


def test_one_function_serves_every_cost():
    one, other = objectives.transport(jnp.ones((6, 3))), objectives.transport(jnp.zeros((6, 3)))
    assert one.loss is other.loss
    assert one.loss is not objectives.transport(jnp.ones((6, 3)), value="sharp").loss


@pytest.mark.slow
@pytest.mark.parametrize("value", ["sharp", "debiased", "unbalanced"])
def test_every_variant_trains(value):
    signal = worlds.teacher_outputs()
    term = objectives.create("transport", cost=worlds.cost(), epsilon=0.1, value=value, tau=0.5)
    objective = objectives.weighted_sum((1.0, objectives.cross_entropy()), (0.3, term))
    lesson = worlds.lesson(objective, signal=signal, labelled=8)
    state, records = training.fit(
        lesson.step, lesson.fresh(), lesson.batches, signal, steps=60, log_every=1
    )
    assert records[-1]["loss"] < records[0]["loss"]
    assert worlds.accuracy_on_test_images(state.variables) > 0.8
