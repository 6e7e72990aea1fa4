"""Self-regulation: who takes part, and how it is counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import checks, regulation

LOGITS = jnp.log(jnp.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.95, 0.05]]))
LABELS = jnp.array([0, 0, 0, -1])


def test_the_wrong_and_the_unsure_take_part():
    took = regulation.participates(LOGITS, LABELS, confidence=0.8)
    np.testing.assert_array_equal(took, [False, True, True, False])


def test_the_limits_are_everyone_and_the_wrong_ones():
    sure = LOGITS.at[0].set(jnp.array([200.0, -200.0]))
    assert regulation.participates(sure, LABELS, confidence=1.0).all()
    np.testing.assert_array_equal(
        regulation.participates(LOGITS, LABELS, confidence=0.0), [False, False, True, False]
    )


def test_counts_add_up_and_significance_has_mean_one_over_the_used():
    counts = jnp.zeros(5, jnp.int32)
    count = jax.jit(regulation.count)
    counts = count(counts, jnp.array([1, 3]), jnp.array([True, True]))
    counts = count(counts, jnp.array([3, 4]), jnp.array([True, False]))
    np.testing.assert_array_equal(counts, [0, 1, 0, 2, 0])
    weights = regulation.significance(counts)
    np.testing.assert_allclose(weights, [0, 2 / 3, 0, 4 / 3, 0], rtol=1e-6)
    np.testing.assert_array_equal(regulation.significance(jnp.zeros(3, jnp.int32)), 0.0)


def test_a_confidence_outside_the_unit_interval_is_refused():
    with pytest.raises(checks.InputError, match="`confidence` must lie in"):
        regulation.participates(LOGITS, LABELS, confidence=1.5)
