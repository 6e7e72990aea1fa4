"""The leave-one-out score against a slow loop, and what sets it apart from LEEP."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_scores import CLASSES, EXAMPLES, LABELS, teacher

from fdjax import checks, scores
from fdjax.types import TeacherOutputs


def plain(probabilities):
    return TeacherOutputs(probabilities, None, None, jnp.ones(probabilities.shape[1], bool))


def slow(probabilities, labels, classes, smoothing):
    """Each label judged by a conditional that is counted without it, class by class."""
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels)
    count = np.bincount(y, minlength=classes)
    prior = count / count.sum()
    total = 0.0
    for i in range(len(y)):
        others = np.arange(len(y)) != i
        # Mean prediction of each class without example i, times the size of the class.
        joint = np.stack([count[c] * p[others & (y == c)].mean(axis=0) for c in range(classes)], 1)
        conditional = (joint + smoothing * prior) / (joint.sum(axis=1, keepdims=True) + smoothing)
        total += np.log(p[i] @ conditional[:, y[i]])
    return total / len(y)


@pytest.mark.parametrize("smoothing", [1.0, 0.1])
def test_score_agrees_with_a_slow_loop(smoothing):
    outputs, labels = teacher()
    found = scores.reference(outputs, labels, CLASSES, smoothing=smoothing)
    wanted = slow(outputs.probabilities, labels, CLASSES, smoothing)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_chance_predictions_of_many_labels_gain_nothing_here_but_in_leep():
    labels = jnp.arange(EXAMPLES) % CLASSES
    chance = plain(jax.nn.softmax(3 * jax.random.normal(jax.random.key(3), (EXAMPLES, 60))))
    assert scores.leep(chance, labels, CLASSES) > -0.75 * np.log(CLASSES)
    assert scores.reference(chance, labels, CLASSES) < -0.9 * np.log(CLASSES)


def test_a_teacher_that_says_nothing_scores_the_entropy_of_the_classes():
    labels = jnp.array([0] * 6 + [1] * 2)
    silent = plain(jnp.full((8, LABELS), 1 / LABELS))
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    np.testing.assert_allclose(scores.reference(silent, labels, 2), -entropy, rtol=1e-5)


def test_a_class_without_an_example_is_not_defined_and_one_example_is():
    outputs, labels = teacher()
    score = jax.jit(scores.reference, static_argnums=2)
    assert jnp.isnan(score(outputs, labels, CLASSES + 1))
    single = jnp.where(jnp.arange(EXAMPLES) == 0, CLASSES, labels)
    assert jnp.isfinite(score(outputs, single, CLASSES + 1))


def test_bad_input_is_refused():
    outputs, labels = teacher()
    with pytest.raises(checks.InputError, match="`smoothing` must be positive"):
        scores.reference(outputs, labels, CLASSES, smoothing=0.0)
