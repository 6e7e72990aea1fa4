"""Costs between label spaces against values worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import checks, costs

LABELS = jnp.array([0, 0, 1, 1, 1, 2])
PROBABILITIES = jax.nn.softmax(2 * jax.random.normal(jax.random.key(0), (6, 4)))


def test_class_centres_are_means_and_unlabelled_examples_do_not_count():
    features = jnp.arange(12.0).reshape(6, 2)
    centres = costs.class_centres(features, LABELS, 3)
    np.testing.assert_allclose(centres, [[1.0, 2.0], [6.0, 7.0], [10.0, 11.0]])
    more = jnp.concatenate([features, jnp.full((1, 2), 99.0)])
    labels = jnp.concatenate([LABELS, jnp.array([-1])])
    np.testing.assert_allclose(costs.class_centres(more, labels, 3), centres)
    traced = jax.jit(costs.class_centres, static_argnums=2)(features, LABELS, 4)
    np.testing.assert_allclose(traced[:3], centres)
    assert jnp.isnan(traced[3]).all()


def test_distances_by_hand():
    teacher = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    student = jnp.array([[2.0, 0.0], [-1.0, 0.0], [3.0, 3.0]])
    cosine = costs.between_vectors(teacher, student, centre=False)
    np.testing.assert_allclose(cosine, [[0, 2, 1 - 0.5**0.5], [1, 1, 1 - 0.5**0.5]], atol=1e-6)
    square = costs.between_vectors(teacher, student, metric="sqeuclidean", centre=False)
    np.testing.assert_allclose(square, [[1, 4, 13], [8, 5, 10]], rtol=1e-6)
    plain = costs.between_vectors(teacher, student, metric="euclidean", centre=False)
    np.testing.assert_allclose(plain, jnp.sqrt(square), rtol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "sqeuclidean", "euclidean"])
def test_centring_ignores_a_common_shift_and_padding(metric):
    keys = jax.random.split(jax.random.key(1), 2)
    teacher, student = jax.random.normal(keys[0], (4, 8)), jax.random.normal(keys[1], (3, 8))
    base = costs.between_vectors(teacher, student, metric=metric)
    shifted = costs.between_vectors(teacher + 3.0, student - 2.0, metric=metric)
    np.testing.assert_allclose(shifted, base, atol=1e-4)
    padded = costs.between_vectors(
        jnp.pad(teacher, ((0, 2), (0, 1))),
        jnp.pad(student, ((0, 0), (0, 1))),
        metric=metric,
        where=jnp.arange(6) < 4,
    )
    np.testing.assert_allclose(padded[:4], base, atol=1e-5)
    gradient = jax.grad(
        lambda x: costs.between_vectors(x, student, metric=metric, where=jnp.arange(6) < 4).sum()
    )(jnp.pad(teacher, ((0, 2), (0, 0))))
    assert jnp.isfinite(gradient).all()


def test_conditional_surprise_by_hand():
    hard = jax.nn.one_hot(jnp.array([0, 0, 1, 1, 0, 1]), 3)
    cost = costs.from_predictions(hard, LABELS, 3, smoothing=0.5)
    prior = np.array([2, 3, 1]) / 6
    joint = np.array([[2, 1, 0], [0, 2, 1], [0, 0, 0]])
    expected = -np.log((joint + 0.5 * prior) / (joint.sum(axis=1, keepdims=True) + 0.5))
    np.testing.assert_allclose(cost, expected, rtol=1e-6)
    # A teacher label that was never seen tells no more than the prior.
    np.testing.assert_allclose(jnp.exp(-cost[2]), prior, rtol=1e-6)


def test_normalise_reaches_one_and_ignores_padding():
    cost = jnp.array([[1.0, 4.0], [2.0, 0.0]])
    np.testing.assert_allclose(costs.normalise(cost), cost / 4)
    padded = jnp.concatenate([cost, jnp.full((1, 2), 1e6)])
    where = jnp.array([True, True, False])
    np.testing.assert_allclose(
        costs.normalise(padded, where=where), jnp.pad(cost / 4, ((0, 1), (0, 0)))
    )
    both = costs.normalise(jnp.stack([cost, 3 * cost]))
    np.testing.assert_allclose(both[0], both[1])
    np.testing.assert_array_equal(costs.normalise(jnp.zeros((2, 2))), 0.0)


def likelihood(cost):
    guess = costs.predictor(cost, PROBABILITIES)
    return float(jnp.log(guess[jnp.arange(6), LABELS]).sum())


def test_calibrate_finds_the_most_likely_scale():
    cost = costs.from_predictions(PROBABILITIES, LABELS, 3)
    found = costs.calibrate(5 * cost, PROBABILITIES, LABELS)
    grid = [likelihood(s * costs.normalise(cost)) for s in np.geomspace(1e-2, 1e3, 2000)]
    assert likelihood(found) >= max(grid) - 1e-3
    np.testing.assert_allclose(
        jax.jit(costs.calibrate)(7 * cost, PROBABILITIES, LABELS), found, rtol=1e-3
    )
    padded = costs.calibrate(
        jnp.pad(cost, ((0, 2), (0, 0)), constant_values=9.0),
        jnp.pad(PROBABILITIES, ((0, 0), (0, 2))),
        LABELS,
        where=jnp.arange(6) < 4,
    )
    np.testing.assert_allclose(padded[:4], found, rtol=1e-3)


def test_calibrate_silences_a_cost_that_says_nothing():
    flat = jnp.full((10, 4), 0.25)
    labels = jnp.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    found = costs.calibrate(1.0 - jnp.eye(4, 3), flat, labels)
    guess = costs.predictor(found, flat)
    np.testing.assert_allclose(guess, jnp.full((10, 3), 1 / 3), atol=0.1)


def test_predictor_is_a_distribution_and_is_leep_s():
    cost = costs.from_predictions(PROBABILITIES, LABELS, 3)
    guess = costs.predictor(cost, PROBABILITIES)
    np.testing.assert_allclose(guess.sum(axis=-1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(guess, PROBABILITIES @ jnp.exp(-cost), rtol=1e-5)


def test_leave_one_out_is_the_predictor_made_from_the_others():
    found = costs.leave_one_out_predictor(PROBABILITIES, LABELS, 3, smoothing=0.5)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-6)
    prior = np.array([2, 3, 1]) / 6
    # Example 2, of class 1: its two fellows count for three.
    p = np.asarray(PROBABILITIES, np.float64)
    joint = np.stack([p[[0, 1]].sum(axis=0), 1.5 * p[[3, 4]].sum(axis=0), p[5]], axis=1)
    conditional = (joint + 0.5 * prior) / (joint.sum(axis=1, keepdims=True) + 0.5)
    np.testing.assert_allclose(found[2], p[2] @ conditional, rtol=1e-5)
    # Alone in its class, an example is told by the smoothing only.
    joint = np.stack([p[[0, 1]].sum(axis=0), p[[2, 3, 4]].sum(axis=0), np.zeros(4)], axis=1)
    conditional = (joint + 0.5 * prior) / (joint.sum(axis=1, keepdims=True) + 0.5)
    np.testing.assert_allclose(found[5], p[5] @ conditional, rtol=1e-5)


def test_leave_one_out_of_unlabelled_padded_and_constant_predictions():
    base = costs.leave_one_out_predictor(PROBABILITIES, LABELS, 3)
    extra = jax.nn.softmax(jnp.arange(4.0))[None]
    more = costs.leave_one_out_predictor(
        jnp.concatenate([PROBABILITIES, extra]), jnp.append(LABELS, -1), 3
    )
    np.testing.assert_allclose(more[:6], base, rtol=1e-6)
    plain = costs.predictor(costs.from_predictions(PROBABILITIES, LABELS, 3), extra)
    np.testing.assert_allclose(more[6:], plain, rtol=1e-5)
    padded = jnp.pad(PROBABILITIES, ((0, 0), (0, 2)))
    np.testing.assert_allclose(costs.leave_one_out_predictor(padded, LABELS, 3), base, rtol=1e-6)
    traced = jax.jit(costs.leave_one_out_predictor, static_argnums=2)(PROBABILITIES, LABELS, 3)
    np.testing.assert_allclose(traced, base, rtol=1e-5)
    # A teacher that says nothing keeps to the prior, the label left out or not.
    labels = jnp.array([0, 0, 0, 1, 1, 1])
    flat = costs.leave_one_out_predictor(jnp.full((6, 4), 0.25), labels, 2)
    np.testing.assert_allclose(flat, 0.5, rtol=1e-6)


def test_leave_one_out_surprise_is_the_cost_made_from_the_others():
    found = costs.leave_one_out_surprise(PROBABILITIES, LABELS, 3, smoothing=0.5)
    p, labels = np.asarray(PROBABILITIES, np.float64), np.asarray(LABELS)
    count = np.bincount(labels)
    for example, label in enumerate(labels):
        rest = np.arange(len(labels)) != example
        joint = np.stack([p[rest & (labels == c)].sum(axis=0) for c in range(3)], axis=1)
        joint[:, label] *= count[label] / max(count[label] - 1, 1)
        prior = count / count.sum()
        conditional = (joint + 0.5 * prior) / (joint.sum(axis=1, keepdims=True) + 0.5)
        np.testing.assert_allclose(found[example], -np.log(conditional[:, label]), rtol=1e-5)
    # The predictor is the price without its logarithm.
    guess = costs.leave_one_out_predictor(PROBABILITIES, LABELS, 3, smoothing=0.5)
    likelihood = jnp.sum(PROBABILITIES * jnp.exp(-found), axis=1)
    np.testing.assert_allclose(likelihood, guess[jnp.arange(6), LABELS], rtol=1e-5)
    more = costs.leave_one_out_surprise(
        jnp.pad(PROBABILITIES, ((0, 1), (0, 2))), jnp.append(LABELS, -1), 3, smoothing=0.5
    )
    np.testing.assert_allclose(more[:6, :4], found, rtol=1e-6)
    np.testing.assert_array_equal(more[6], 0.0)
    traced = jax.jit(costs.leave_one_out_surprise, static_argnums=2)(PROBABILITIES, LABELS, 3)
    assert jnp.isfinite(traced).all() and (traced >= 0).all()


def test_log_prior_makes_a_cost_one_of_evidence():
    labels = jnp.append(LABELS, -1)
    np.testing.assert_allclose(
        jnp.exp(costs.log_prior(labels, 3)), [1 / 3, 1 / 2, 1 / 6], rtol=1e-6
    )
    flat = jnp.full((6, 4), 0.25)
    evidence = costs.from_predictions(flat, LABELS, 3) + costs.log_prior(LABELS, 3)
    np.testing.assert_allclose(evidence, 0.0, atol=1e-6)


def test_names_that_differ_in_case_spaces_and_underscores_are_the_same():
    theirs, ours = ("Pickup Truck", "cat", "CAT", "dog"), ("pickup_truck", "bird", " Cat")
    expected = np.ones((4, 3))
    expected[0, 0] = expected[1, 2] = expected[2, 2] = 0
    np.testing.assert_array_equal(costs.from_names(theirs, ours), expected)
    # Where both sides know the same labels, moving mass costs total variation.
    np.testing.assert_array_equal(costs.from_names(("a", "b"), ("a", "b")), 1 - np.eye(2))


def test_a_label_with_a_namesake_speaks_for_it_alone():
    cost = np.arange(15, dtype=np.float32).reshape(5, 3)
    names = ("x", "b", "y", "A"), ("a", "b", "c")
    found = np.asarray(costs.with_names(jnp.asarray(cost), *names, strength=3.0))
    odds = np.exp(3.0)
    said = np.array([[1, odds, 1], [odds, 1, 1]]) / (odds + 2)
    np.testing.assert_allclose(np.exp(-found[[1, 3]]), said, rtol=1e-6)
    # The last row is padding.
    np.testing.assert_array_equal(found[[0, 2, 4]], cost[[0, 2, 4]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: costs.from_names(("a",), ("b", "c")), "have no name in common"),
        (lambda: costs.from_names(("a",), ("a", "A")), "`student_names` holds 'A' twice"),
        (lambda: costs.with_names(jnp.ones((1, 2)), ("x",), ("a", "b")), "no name in common"),
        (lambda: costs.with_names(jnp.ones((1, 1)), ("a", "b"), ("a",)), "has 1 rows, too few"),
        (lambda: costs.with_names(jnp.ones((1, 2)), ("a",), ("a",)), "`cost` must have shape"),
        (
            lambda: costs.with_names(jnp.ones((1, 1)), ("a",), ("a",), strength=0.0),
            "`strength` must be positive",
        ),
        (lambda: costs.class_centres(jnp.ones((6, 2)), LABELS, 2), "`labels` must lie in"),
        (lambda: costs.class_centres(jnp.ones((6, 2)), LABELS, 5), "no example of class 3"),
        (lambda: costs.from_predictions(PROBABILITIES, LABELS, 3, smoothing=0.0), "`smoothing`"),
        (lambda: costs.from_predictions(PROBABILITIES, LABELS, 4), "no example of class 3"),
        (lambda: costs.leave_one_out_predictor(PROBABILITIES, LABELS, 4), "no example of class 3"),
        (lambda: costs.leave_one_out_surprise(PROBABILITIES, LABELS, 4), "no example of class 3"),
        (lambda: costs.log_prior(LABELS, 2), "`labels` must lie in"),
        (lambda: costs.predictor(jnp.ones((4, 3)), PROBABILITIES, epsilon=0.0), "`epsilon`"),
        (lambda: costs.calibrate(jnp.ones((4, 2)), PROBABILITIES, LABELS), "`labels` must lie"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(checks.InputError, match=message):
        call()
