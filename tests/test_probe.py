"""The linear probe is scikit-learn's logistic regression."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from experiments import _probe
from fdjax import checks

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 3, 120).astype(np.int32)
FEATURES = RANDOM.normal(size=(120, 5)).astype(np.float32) + 0.7 * np.eye(3, 5)[LABELS]


def test_the_fit_is_scikit_learns():
    decay = 0.02
    kernel, bias, size = _probe.fit(jnp.asarray(FEATURES, jnp.float32), LABELS, 3, decay)
    assert size < 1e-3
    ours = FEATURES @ np.asarray(kernel) + np.asarray(bias)
    theirs = LogisticRegression(C=1 / (len(LABELS) * decay), tol=1e-8, max_iter=1000)
    theirs.fit(FEATURES, LABELS)
    wanted = theirs.decision_function(FEATURES)
    np.testing.assert_allclose(
        ours - ours.mean(axis=1, keepdims=True),
        wanted - wanted.mean(axis=1, keepdims=True),
        atol=5e-3,
    )


def test_the_accuracy_does_not_hang_on_units_or_dead_features():
    found = _probe.accuracy((FEATURES, LABELS), (FEATURES, LABELS), 3)
    assert 0.5 < found <= 1
    dead = np.concatenate([FEATURES, np.full((120, 1), 3.0)], axis=1)
    other = dead * np.array([1e3, 1, 1e-2, 1, 5, 1], np.float32)
    assert _probe.accuracy((other, LABELS), (other, LABELS), 3) == pytest.approx(found, abs=0.01)
    with pytest.raises(checks.InputError, match="must be finite"):
        _probe.accuracy((FEATURES * np.nan, LABELS), (FEATURES, LABELS), 3)
