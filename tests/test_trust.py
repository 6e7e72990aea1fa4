"""Trust in a belief and in teachers: against a generic optimiser, and what it must not trust."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize
from scipy.special import log_softmax

from fdjax import checks, trust

EXAMPLES, CLASSES = 60, 4
RNG = np.random.default_rng(0)
LABELS = jnp.asarray(np.arange(EXAMPLES) % CLASSES, jnp.int32)
TRUTH = np.eye(CLASSES)[np.arange(EXAMPLES) % CLASSES]


def voice(strength, noise=1.0, seed=0):
    """Log-probabilities that know the labels as well as `strength` is above `noise`."""
    rng = np.random.default_rng(seed)
    logits = strength * TRUTH + noise * rng.normal(size=(EXAMPLES, CLASSES))
    return jnp.asarray(log_softmax(logits, axis=1), jnp.float32)


BELIEF = 3 * voice(1.0, seed=1)  # knows something, and is three times as sure as it should be
GOOD, USELESS = voice(2.0, seed=2), voice(0.0, seed=5)


def test_fit_is_the_optimum_of_the_stated_problem():
    voices = np.asarray(jnp.stack([jax.nn.log_softmax(BELIEF), GOOD, USELESS]), np.float64)

    def loss(weights):
        logs = log_softmax(np.tensordot(weights, voices, 1), axis=1)
        return -np.sum(logs * TRUTH) + 2.0 * (weights[1] + weights[2])

    least = optimize.minimize(loss, np.full(3, 0.5), bounds=[(0, 3)] * 3)
    found = trust.fit(BELIEF, jnp.stack([GOOD, USELESS]), LABELS, penalty=2.0)
    weights = np.array([found.belief, *found.teachers])
    assert loss(weights) <= least.fun + 1e-3
    np.testing.assert_allclose(weights, least.x, atol=5e-3)
    alone = optimize.minimize(lambda w: loss([w[0], 0.0, 0.0]), [0.5], bounds=[(0, 3)])
    np.testing.assert_allclose(found.gain, alone.fun - least.fun, atol=2e-3)


def test_a_useless_teacher_gets_nothing_and_a_good_one_its_due():
    found = trust.fit(BELIEF, jnp.stack([GOOD, USELESS, jnp.zeros_like(GOOD)]), LABELS)
    assert found.teachers[0] > 0.3
    assert found.teachers[1] < 0.1 * found.teachers[0]
    assert found.teachers[2] == 0.0 and found.gain > 3.0
    nobody = trust.fit(BELIEF, USELESS[None], LABELS)
    assert nobody.gain == 0.0 and nobody.teachers[0] == 0.0
    # An overconfident belief is taken back.
    assert 0.1 < nobody.belief < 0.7


def test_a_belief_as_good_as_the_teacher_leaves_it_little_to_say():
    knowing = trust.fit(voice(4.0, seed=4), GOOD[None], LABELS)
    ignorant = trust.fit(voice(0.0, seed=4), GOOD[None], LABELS)
    assert ignorant.gain > 4 * knowing.gain
    share = [
        found.teachers[0] / (found.teachers[0] + found.belief) for found in (knowing, ignorant)
    ]
    assert share[1] > 2 * share[0]


def test_unlabelled_examples_take_no_part_and_impossible_classes_do_no_harm():
    more = jnp.concatenate([BELIEF, jnp.full((5, CLASSES), 9.0)])
    heard = jnp.concatenate([GOOD, voice(0.0, seed=9)[:5]])
    labels = jnp.concatenate([LABELS, jnp.full(5, -1, jnp.int32)])
    base = trust.fit(BELIEF, GOOD[None], LABELS)
    np.testing.assert_allclose(trust.fit(more, heard[None], labels).teachers, base.teachers)
    impossible = jnp.where(jnp.asarray(TRUTH) > 0, 0.0, -jnp.inf)
    found = trust.fit(impossible, GOOD[None], LABELS)
    assert all(np.isfinite(value).all() for value in found)


def test_jit_and_vmap_over_teachers_change_nothing():
    teachers = jnp.stack([GOOD, USELESS])
    one_by_one = jax.jit(jax.vmap(lambda u: trust.fit(BELIEF, u[None], LABELS)))(teachers)
    for row, update in enumerate(teachers):
        wanted = trust.fit(BELIEF, update[None], LABELS)
        np.testing.assert_allclose(one_by_one.teachers[row], wanted.teachers, atol=1e-4)
        np.testing.assert_allclose(one_by_one.gain[row], wanted.gain, atol=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: trust.fit(BELIEF, GOOD[None], LABELS, largest=0.0), "`largest` must be positive"),
        (lambda: trust.fit(BELIEF, GOOD[None], LABELS + 1), "`labels` must lie in"),
        (lambda: trust.fit(BELIEF, GOOD[None], LABELS, penalty=-1.0), "`penalty` must be >= 0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(checks.InputError, match=message):
        call()
