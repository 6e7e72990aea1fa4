"""The transport score against hand-worked costs, exact plans and its special cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle_files
import pytest
from test_scores import CLASSES, LABELS, black_box, padded, teacher

from fdjax import costs, scores
from fdjax.checks import InputError
from fdjax.types import TeacherOutputs

PROBABILITIES = jnp.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
COST = jnp.array([[0.0, 1.0], [0.4, 0.2], [1.0, 0.3]])
PLAIN = TeacherOutputs(PROBABILITIES, None, None, jnp.ones(3, bool))


def test_a_given_cost_by_hand():
    labels = jnp.array([0, 1])
    found = scores.transport(PLAIN, labels, 2, cost=COST)
    np.testing.assert_allclose(found, -((0.5 * 0.0 + 0.5 * 0.4) + 0.3) / 2, rtol=1e-6)


def test_solved_levels_reach_the_exact_plan_by_hand():
    labels = jnp.array([0, 1])
    # Mean prediction (1/4, 1/4, 1/2) to (1/2, 1/2): labels 0 and 1 to class 0, label 2 to 1.
    found = scores.transport(PLAIN, labels, 2, cost=COST, level="task", epsilon=0.01)
    np.testing.assert_allclose(found, -(0.25 * 0.0 + 0.25 * 0.4 + 0.5 * 0.3), atol=2e-3)
    # To (3/4, 1/4): label 1 is split evenly. To (1/4, 3/4): label 2 is split as the target.
    found = scores.transport(PLAIN, labels, 2, cost=COST, smoothing=0.5, epsilon=0.01)
    np.testing.assert_allclose(found, -((0.1 + 0.05) + (0.25 * 1.0 + 0.75 * 0.3)) / 2, atol=2e-3)


def test_the_cost_of_centres_is_the_expected_distance_to_the_class_centre():
    outputs, labels = teacher()
    centres = np.stack([outputs.features[labels == c].mean(axis=0) for c in range(CLASSES)])
    rows = np.asarray(outputs.class_vectors)
    centres, rows = centres - centres.mean(axis=0), rows - rows.mean(axis=0)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cost = 1 - rows @ centres.T
    cost /= cost.max()
    expected = -np.mean(np.sum(np.asarray(outputs.probabilities) * cost.T[labels], axis=1))
    found = scores.transport(outputs, labels, CLASSES, cost="centres")
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_mean_probability_is_a_special_case():
    # With cost 1 - P(y|z) the score is LEEP without its logarithm, less one.
    data = oracle_files.load("transfer/leep_nolog_sfda")
    logits = data["features"] @ data["head_weight"].T + data["head_bias"]
    probabilities = jax.nn.softmax(jnp.asarray(logits))
    labels = jnp.asarray(data["labels"])
    classes = int(labels.max()) + 1
    joint = jax.nn.one_hot(labels, classes).T @ probabilities
    cost = 1 - (joint / joint.sum(axis=0)).T
    outputs = TeacherOutputs(probabilities, None, None, jnp.ones(1000, bool))
    found = scores.transport(outputs, labels, classes, cost=cost)
    np.testing.assert_allclose(found, data["leep_nolog"] - 1, atol=1e-5)


def test_predictions_serve_a_black_box():
    outputs, labels = teacher()
    outputs = black_box(outputs)
    assert jnp.isnan(scores.transport(outputs, labels, CLASSES, cost="centres"))
    found = scores.transport(outputs, labels, CLASSES, leave_one_out=False)
    cost = costs.normalise(costs.from_predictions(outputs.probabilities, labels, CLASSES))
    expected = -jnp.mean(jnp.sum(outputs.probabilities * cost.T[labels], axis=-1))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_each_label_is_judged_by_the_others():
    outputs, labels = teacher()
    outputs = black_box(outputs)
    score = scores.transport
    found = score(outputs, labels, CLASSES)
    p, y = np.asarray(outputs.probabilities, np.float64), np.asarray(labels)
    count, total = np.bincount(y), 0.0
    for example in range(len(y)):
        rest = np.arange(len(y)) != example
        joint = np.stack([p[rest & (y == c)].sum(axis=0) for c in range(CLASSES)], axis=1)
        joint[:, y[example]] *= count[y[example]] / (count[y[example]] - 1)
        prior = count / count.sum()
        cost = -np.log((joint + prior) / (joint.sum(axis=1, keepdims=True) + 1.0))
        total += p[example] @ cost[:, y[example]]
    np.testing.assert_allclose(found, -total / len(y), rtol=1e-5)
    # Jensen: the mean surprise of labels is above the surprise of their mean.
    assert found <= scores.reference(outputs, labels, CLASSES)
    wide = outputs._replace(
        probabilities=jnp.pad(outputs.probabilities, ((0, 0), (0, 3))),
        class_mask=jnp.pad(jnp.asarray(outputs.class_mask), (0, 3)),
    )
    traced = jax.jit(score, static_argnums=2)(wide, labels, CLASSES)
    np.testing.assert_allclose(traced, found, rtol=1e-5)
    unlabelled = outputs._replace(probabilities=jnp.pad(outputs.probabilities, ((0, 2), (0, 0))))
    np.testing.assert_allclose(
        score(unlabelled, jnp.pad(labels, (0, 2), constant_values=-1), CLASSES), found, rtol=1e-6
    )
    gradient = jax.grad(lambda p: score(outputs._replace(probabilities=p), labels, CLASSES))(
        outputs.probabilities
    )
    assert jnp.isfinite(gradient).all()


def test_a_teacher_that_says_nothing_scores_the_entropy_of_the_classes():
    labels = jnp.array([0, 0, 0, 1, 1, 1])
    silent = TeacherOutputs(jnp.full((6, 4), 0.25), None, None, jnp.ones(4, bool))
    found = scores.transport(silent, labels, 2)
    np.testing.assert_allclose(found, -np.log(2), rtol=1e-6)
    # Labels as many as examples tell nothing of the others, whatever they say of their own.
    own = TeacherOutputs(jnp.eye(6), None, None, jnp.ones(6, bool))
    np.testing.assert_allclose(scores.transport(own, labels, 2), -np.log(2), rtol=1e-6)
    assert scores.leep(own, labels, 2) > -1e-5  # which every label of its own satisfies


@pytest.mark.slow
@pytest.mark.parametrize("level", ["example", "task"])
def test_solved_levels_ignore_padding_and_do_not_spread_nan(level):
    outputs, labels = teacher()
    settings = {"cost": "centres", "level": level, "smoothing": 0.1, "epsilon": 0.1}
    plain = scores.transport(outputs, labels, CLASSES, **settings)
    assert -1 <= plain <= 0
    blind = padded(outputs)._replace(features=jnp.full_like(padded(outputs).features, jnp.nan))
    faculty = jax.tree.map(lambda *leaves: jnp.stack(leaves), padded(outputs), blind)
    score = jax.jit(jax.vmap(lambda one: scores.transport(one, labels, CLASSES, **settings)))
    found = score(faculty)
    np.testing.assert_allclose(found[0], plain, atol=1e-5)
    assert jnp.isnan(found[1])


def test_smoothing_goes_to_the_closed_form():
    outputs, labels = teacher()
    score = functools.partial(scores.transport, outputs, labels, CLASSES, leave_one_out=False)
    np.testing.assert_allclose(score(smoothing=1e-4), score(), atol=1e-3)


def test_a_class_without_example_is_nan_under_jit():
    outputs, labels = teacher()
    for cost in ("centres", "predictions"):
        score = jax.jit(functools.partial(scores.transport, cost=cost), static_argnums=2)
        assert jnp.isnan(score(outputs, labels, CLASSES + 1))
    with pytest.raises(InputError, match="no example of class 3"):
        scores.transport(outputs, labels, CLASSES + 1)


def test_gradients_match_finite_differences():
    outputs, labels = teacher()
    outputs = padded(outputs)

    def of(tree):
        features, probabilities = tree
        changed = outputs._replace(features=features, probabilities=probabilities)
        return scores.transport(changed, labels, CLASSES, cost="centres")

    point = (outputs.features, outputs.probabilities)
    gradient = jax.grad(of)(point)
    assert all(jnp.isfinite(leaf).all() for leaf in gradient)
    keys = jax.random.split(jax.random.key(0))
    step = tuple(1e-2 * jax.random.normal(k, x.shape) for k, x in zip(keys, point, strict=True))
    ahead = of(jax.tree.map(jnp.add, point, step))
    behind = of(jax.tree.map(jnp.subtract, point, step))
    expected = sum(jnp.vdot(g, s) for g, s in zip(gradient, step, strict=True))
    np.testing.assert_allclose((ahead - behind) / 2, expected, rtol=2e-2, atol=1e-4)


def test_bad_settings_are_refused():
    outputs, labels = teacher()
    with pytest.raises(InputError, match=r"`smoothing` must lie in \[0.0, 1.0\], got 1.5"):
        scores.transport(outputs, labels, CLASSES, smoothing=1.5)
    with pytest.raises(InputError, match="`epsilon` must be positive"):
        scores.transport(outputs, labels, CLASSES, epsilon=-0.1)
    with pytest.raises(InputError, match=r"`cost` must have shape \(6, 3\), got \(3, 6\)"):
        scores.transport(outputs, labels, CLASSES, cost=jnp.ones((CLASSES, LABELS)))
