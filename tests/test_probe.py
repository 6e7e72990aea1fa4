"""The linear probe is the optimum that it promises."""

import numpy as np
import pytest
import scipy.optimize
import scipy.special

from experiments import _probe
from fdjax import checks

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 3, 90).astype(np.int32)
FEATURES = RANDOM.normal(size=(90, 5)) + 0.7 * np.eye(3, 5)[LABELS]
TRAIN, TEST = (FEATURES[:60], LABELS[:60]), (FEATURES[60:], LABELS[60:])


@pytest.mark.parametrize("decay", [0.01, 0.5])
def test_the_classifier_is_the_minimum(decay):
    mean, std = TRAIN[0].mean(axis=0), TRAIN[0].std(axis=0)
    train, test = ((features - mean) / std for features in (TRAIN[0], TEST[0]))

    def loss(flat):
        kernel, bias = flat[:15].reshape(5, 3), flat[15:]
        surprise = -scipy.special.log_softmax(train @ kernel + bias, axis=1)
        return surprise[np.arange(60), TRAIN[1]].mean() + decay / 2 * (kernel**2).sum()

    found = scipy.optimize.minimize(loss, np.zeros(18)).x
    wanted = ((test @ found[:15].reshape(5, 3) + found[15:]).argmax(axis=1) == TEST[1]).mean()
    assert _probe.accuracy(TRAIN, TEST, decay=decay) == pytest.approx(wanted)


def test_the_accuracy_does_not_hang_on_units_or_dead_features():
    found = _probe.accuracy(TRAIN, TEST)
    units = np.array([1e3, 1, 1e-2, 1, 5, 1])
    train, test = (
        (np.concatenate([features, np.full((len(features), 1), 3.0)], axis=1) * units, labels)
        for features, labels in (TRAIN, TEST)
    )
    assert 0.4 < found < 1
    assert _probe.accuracy(train, test) == pytest.approx(found)


def test_bad_features_are_refused():
    with pytest.raises(checks.InputError, match="must be finite"):
        _probe.accuracy((FEATURES * np.nan, LABELS), TEST)
    with pytest.raises(checks.InputError, match="`decay` must be positive"):
        _probe.accuracy(TRAIN, TEST, decay=0.0)
