"""LogME against exact Gaussian evidence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats
from test_scores import of_oracle, teacher

from fdjax import scores
from fdjax.types import TeacherOutputs

logme = jax.jit(scores.logme, static_argnums=2)


def outputs_of(features: jax.Array) -> TeacherOutputs:
    probabilities = jnp.ones((features.shape[0], 1), features.dtype)
    return TeacherOutputs(probabilities, features, None, jnp.ones(1, bool))


@pytest.mark.parametrize("name", ["t01", "t04_wide", "t06_deficient", "t10_many"])
def test_largest_evidence_matches_the_exact_one(x64, name):
    data, outputs, labels, classes = of_oracle(name)
    found = logme(outputs, labels, classes)
    np.testing.assert_allclose(found, data["logme_exact_max"], rtol=1e-7, atol=1e-8)
    # The published fixed point stops short of the maximum by up to 0.002.
    stopped = data["logme_fixed_point_exact_at_fit"].mean()
    assert stopped - 1e-8 <= found < stopped + 2e-3


@pytest.mark.parametrize("name", ["t04_wide", "t10_many"])
def test_single_precision_is_enough(name):
    data, outputs, labels, classes = of_oracle(name)
    assert outputs.features.dtype == jnp.float32
    found = logme(outputs, labels, classes)
    np.testing.assert_allclose(found, data["logme_exact_max"], atol=2e-6)


def test_single_precision_bears_an_outlier_and_double_beside_it(x64):
    rng = np.random.default_rng(0)
    labels = jnp.arange(100) % 5
    features = rng.standard_normal((100, 16)) + 0.5 * rng.standard_normal((5, 16))[labels]
    features[0] *= 300
    single = logme(outputs_of(jnp.asarray(features, jnp.float32)), labels, 5)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(
        single, logme(outputs_of(jnp.asarray(features)), labels, 5), atol=2e-4
    )


def test_matches_scipy_on_a_wide_problem(x64):
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(12, 20)), np.arange(12) % 2
    features[:, 0] += labels

    def minus_evidence(logs, target):
        covariance = np.exp(-logs[1]) * np.eye(12) + np.exp(-logs[0]) * features @ features.T
        return -stats.multivariate_normal(np.zeros(12), covariance).logpdf(target) / 12

    best = [
        -optimize.minimize(minus_evidence, [2.0, 1.0], (labels == c,), method="Nelder-Mead").fun
        for c in (0, 1)
    ]
    found = logme(outputs_of(jnp.asarray(features)), jnp.asarray(labels), 2)
    np.testing.assert_allclose(found, np.mean(best), rtol=1e-5)


def test_a_class_without_example_does_not_count(x64):
    data, outputs, labels, classes = of_oracle("missing_class")
    found = logme(outputs, labels, classes)
    np.testing.assert_allclose(found, data["logme_fixed_point_relabelled"], atol=1e-5)


def test_features_without_information_by_hand():
    # With dead features only the noise is left: variance n_c / n for class c.
    labels = jnp.array([0, 0, 0, 1])
    expected = -0.5 * np.mean([np.log(2 * np.pi * share) + 1 for share in (0.75, 0.25)])
    found = logme(outputs_of(jnp.zeros((4, 3))), labels, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_perfect_fit_is_finite_and_best():
    labels = jnp.arange(30) % 3
    perfect = logme(outputs_of(jnp.eye(3)[labels]), labels, 3)
    noisy = jnp.eye(3)[labels] + 0.1 * jax.random.normal(jax.random.key(0), (30, 3))
    assert jnp.isfinite(perfect)
    assert perfect > logme(outputs_of(noisy), labels, 3)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_scale_of_features_changes_nothing(scale):
    outputs, labels = teacher()
    expected = logme(outputs, labels, 3)
    scaled = outputs._replace(features=outputs.features * scale)
    np.testing.assert_allclose(logme(scaled, labels, 3), expected, atol=2e-6)


@pytest.mark.parametrize("shape", [(200, 32), (40, 90)])
@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_a_large_mean_costs_no_precision(shape, mean):
    rng = np.random.default_rng(3)
    labels = np.arange(shape[0]) % 4
    features = rng.normal(size=shape) + rng.normal(size=(4, shape[1]))[labels] * 0.5 + mean
    single = np.float32(features)
    found = logme(outputs_of(jnp.asarray(single)), jnp.asarray(labels), 4)
    with jax.enable_x64():
        exact = logme(outputs_of(jnp.asarray(single, jnp.float64)), jnp.asarray(labels), 4)
    np.testing.assert_allclose(found, exact, atol=2e-5)


@pytest.mark.parametrize("shape", [(20, 6), (12, 15)])
def test_gradient_is_that_of_the_evidence(x64, shape):
    rng = np.random.default_rng(4)
    labels = (jnp.arange(shape[0]) % 3).at[4].set(-1)  # one has no label, and no say
    features = jnp.asarray(rng.normal(size=shape)) + jnp.eye(3, shape[1])[labels]
    step = 1e-4 * jnp.asarray(rng.normal(size=shape))

    @jax.jit
    def of(features):
        return scores.logme(outputs_of(features), labels, 3)

    gradient = jax.jit(jax.grad(of))(features)
    np.testing.assert_array_equal(gradient[4], 0.0)
    slope = jnp.vdot(gradient, step)
    np.testing.assert_allclose((of(features + step) - of(features - step)) / 2, slope, rtol=1e-3)
