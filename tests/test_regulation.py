"""Self-regulation: who takes part, how it is counted, and what others would choose instead."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.special
import scipy.stats

from fdjax import checks, regulation
from fdjax.regulation import SELECTIONS

LOGITS = jnp.log(jnp.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.95, 0.05]]))
LABELS = jnp.array([0, 0, 0, -1])


@functools.cache
def sample():
    """Logits, labels (the last unlabelled) and features of thirty examples, as NumPy arrays."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 4, 30).astype(np.int32)
    labels[-5:] = -1
    logits = 2 * draw.standard_normal((30, 4)).astype(np.float32)
    return logits, labels, draw.standard_normal((30, 6)).astype(np.float32)


@functools.cache
def shown():
    return jax.jit(regulation.look)(*map(jnp.asarray, sample()))


# Who takes part


def test_the_wrong_and_the_unsure_take_part():
    took = regulation.participates(LOGITS, LABELS, confidence=0.8)
    np.testing.assert_array_equal(took, [False, True, True, False])


def test_the_limits_are_everyone_and_the_wrong_ones():
    sure = LOGITS.at[0].set(jnp.array([200.0, -200.0]))
    assert regulation.participates(sure, LABELS, confidence=1.0).all()
    np.testing.assert_array_equal(
        regulation.participates(LOGITS, LABELS, confidence=0.0), [False, False, True, False]
    )


def test_participation_under_jit_and_vmap_is_that_of_numpy():
    logits, labels, _ = sample()
    own = jnp.asarray(logits), jnp.asarray(labels)
    p = scipy.special.softmax(logits, axis=1)
    wrong = (p.argmax(axis=1) != labels) & (labels >= 0)
    thresholds = np.linspace(0, 1, 7, dtype=np.float32)
    want = [wrong | (p.max(axis=1) < c) | (c >= 1) for c in thresholds]

    def took(confidence):
        return regulation.participates(*own, confidence=confidence)

    np.testing.assert_array_equal(jax.jit(jax.vmap(took))(thresholds), want)


def test_counts_add_up_and_significance_has_mean_one_over_the_used():
    counts = jnp.zeros(5, jnp.int32)
    count = jax.jit(regulation.count)
    counts = count(counts, jnp.array([1, 3]), jnp.array([True, True]))
    counts = count(counts, jnp.array([3, 4]), jnp.array([True, False]))
    np.testing.assert_array_equal(counts, [0, 1, 0, 2, 0])
    weights = regulation.significance(counts)
    np.testing.assert_allclose(weights, [0, 2 / 3, 0, 4 / 3, 0], rtol=1e-6)
    np.testing.assert_array_equal(regulation.significance(jnp.zeros(3, jnp.int32)), 0.0)


def test_forms_of_significance():
    counts = jnp.array([0, 1, 1, 10])
    np.testing.assert_array_equal(regulation.significance(counts, form="raw"), counts)
    # The mean of the used is 4; capped at once that, they are 1, 1, 4 with mean 2.
    capped = regulation.significance(counts, form="capped", cap=1.0)
    np.testing.assert_allclose(capped, [0, 0.5, 0.5, 2.0], rtol=1e-6)
    costs = 1e-6 * jnp.array([1.0, 3.0])
    np.testing.assert_allclose(regulation.significance(costs), [0.5, 1.5], rtol=1e-5)
    with pytest.raises((checks.InputError, jaxtyping.TypeCheckError), match="form"):
        regulation.significance(counts, form="square")
    with pytest.raises(checks.InputError, match="`cap` must be positive"):
        regulation.significance(counts, form="capped", cap=0.0)


def test_a_confidence_outside_the_unit_interval_is_refused():
    with pytest.raises(checks.InputError, match="`confidence` must lie in"):
        regulation.participates(LOGITS, LABELS, confidence=1.5)


# What is seen


def test_what_is_seen_is_that_of_scipy():
    logits, labels, _ = sample()
    p = scipy.special.softmax(logits.astype(np.float64), axis=1)
    target = np.where(labels >= 0, labels, p.argmax(axis=1))
    want = {
        "confidence": p.max(axis=1),
        "loss": -np.log(p[np.arange(30), target]),
        "entropy": scipy.stats.entropy(p, axis=1),
        "error_norm": np.linalg.norm(p - np.eye(4)[target], axis=1),
    }
    for name, value in want.items():
        np.testing.assert_allclose(getattr(shown(), name), value, rtol=1e-4, err_msg=name)
    np.testing.assert_array_equal(shown().wrong, target != p.argmax(axis=1))
    np.testing.assert_array_equal(shown().learnt, (labels == p.argmax(axis=1)))


def test_the_norm_of_the_gradient_is_that_of_autodiff():
    logits, labels, features = sample()
    kernel = np.linalg.lstsq(features, logits, rcond=None)[0].astype(np.float32)

    def loss(head, feature, label):
        return -jax.nn.log_softmax(feature @ head["kernel"] + head["bias"])[label]

    head = {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(4)}
    gradients = jax.vmap(jax.grad(loss), (None, 0, 0))(head, features[:25], labels[:25])
    leaves = [np.asarray(leaf).reshape(25, -1) for leaf in jax.tree.leaves(gradients)]
    want = np.linalg.norm(np.concatenate(leaves, axis=1), axis=1)
    said = jnp.asarray(features[:25] @ kernel), jnp.asarray(labels[:25])
    seen = regulation.look(*said, jnp.asarray(features[:25]))
    np.testing.assert_allclose(seen.gradient_norm, want, rtol=1e-4)
    # Without features only the bias is known.
    blind = regulation.look(*said)
    np.testing.assert_array_equal(blind.gradient_norm, blind.error_norm)


def test_forgetting_is_counted_as_by_hand():
    right = np.random.default_rng(1).random((12, 8)) < 0.6
    labels = jnp.zeros(8, jnp.int32)
    memory = regulation.never_seen(8)
    rows = jnp.arange(8)
    for look in right:
        logits = jnp.where(jnp.asarray(look)[:, None], jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))
        seen = regulation.look(logits, labels, before=memory)
        memory = regulation.remember(memory, rows, seen)
    np.testing.assert_array_equal(memory.forgotten, (right[:-1] & ~right[1:]).sum(axis=0))
    np.testing.assert_array_equal(memory.learnt, right.any(axis=0))


def test_what_no_logit_can_say_stays_finite():
    logits = jnp.array([[0.0, -jnp.inf], [500.0, -500.0]])
    seen = regulation.look(logits, jnp.array([0, 1]))
    np.testing.assert_array_equal(seen.entropy, [0.0, 0.0])
    np.testing.assert_array_equal(seen.loss, [0.0, 1000.0])
    assert not any(bool(jnp.isnan(leaf).any()) for leaf in seen)


# Thresholds


def run(rule, steps, wrong=0.1, share=lambda now: 0.5):
    now, values = jnp.float32(rule.first), []
    for step in range(1, steps + 1):
        values.append(float(now))
        now = rule.after(now, jnp.int32(step), jnp.float32(wrong), jnp.float32(share(now)))
    return values


def test_thresholds_move_as_they_say():
    assert run(regulation.threshold(0.25), 3) == [0.25] * 3
    np.testing.assert_allclose(
        run(regulation.annealed(1.0, 0.5, 4), 7), [1, 0.875, 0.75, 0.625, 0.5, 0.5, 0.5]
    )
    want = [0.1 + 0.8 * 0.9**step for step in range(40)]
    np.testing.assert_allclose(run(regulation.by_error(0.9, 0.9), 40), want, rtol=1e-4)


def test_by_share_finds_the_quantile():
    confident = scipy.special.expit(np.random.default_rng(0).normal(3.0, 2.0, 4000))
    values = run(regulation.by_share(0.3), 400, share=lambda now: (confident < float(now)).mean())
    assert values[-1] == pytest.approx(np.quantile(confident, 0.3), abs=2e-3)
    # Out of reach: it goes to its end, and comes back.
    low = run(regulation.by_share(0.3), 200, share=lambda now: 0.9)
    assert 0 < low[-1] < 1e-5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: regulation.fixed(1.1), "`confidence` must lie in"),
        (lambda: regulation.annealed(0.5, -0.1, 5), "`end` must lie in"),
        (lambda: regulation.annealed(0.5, 0.1, 0), "`steps` must be positive"),
        (lambda: regulation.by_error(0.5, 1.0), "`decay` must lie in"),
        (lambda: regulation.by_share(1.0), "`target` must lie in"),
        (lambda: regulation.by_share(0.5, rate=0.0), "`rate` must be positive"),
    ],
)
def test_thresholds_out_of_range_are_refused(make, message):
    with pytest.raises(checks.InputError, match=message):
        make()


# Who is chosen


def test_orders_are_those_of_their_scores():
    key = jax.random.key(0)
    for name, score in {
        "hardest": "loss",
        "entropy": "entropy",
        "el2n": "error_norm",
        "grand": "gradient_norm",
    }.items():
        np.testing.assert_array_equal(SELECTIONS[name](key, shown()), getattr(shown(), score))
    order = np.argsort(-SELECTIONS["least_confident"](key, shown()), kind="stable")
    np.testing.assert_array_equal(order, np.argsort(shown().confidence, kind="stable"))


def test_the_never_learnt_come_before_the_often_forgotten():
    seen = shown()._replace(
        learnt=jnp.arange(30) >= 2, forgotten=jnp.arange(30, dtype=jnp.int32) % 3
    )
    order = np.argsort(-SELECTIONS["forgetting"](jax.random.key(0), seen))
    assert set(order[:2]) == {0, 1}
    forgotten = np.asarray(seen.forgotten)[order[2:]]
    assert (np.diff(forgotten) <= 0).all()


@pytest.mark.parametrize("name", SELECTIONS)
def test_selections_hold_under_jit_and_put_the_unseen_first(name):
    key = jax.random.key(3)
    priority = SELECTIONS[name](key, shown())
    assert priority.shape == (30,)
    assert np.isfinite(priority).all()
    np.testing.assert_allclose(jax.jit(SELECTIONS[name])(key, shown()), priority, rtol=1e-5)
    if name in ("uniform", "prioritised"):
        return  # by chance
    unseen = regulation.remember(shown(), jnp.array([7]), regulation.never_seen(1))
    if name == "forgetting":  # as one that was never learnt, of which there are others
        unseen = unseen._replace(learnt=jnp.arange(30) != 7)
    assert int(jnp.argmax(SELECTIONS[name](key, unseen))) == 7


def test_prioritised_draws_have_the_odds_of_selective_backpropagation():
    seen = jax.tree.map(lambda leaf: leaf[:5], shown())
    keys = jax.random.split(jax.random.key(0), 20_000)
    first = jax.vmap(lambda key: jnp.argmax(SELECTIONS["prioritised"](key, seen)))(keys)
    place = scipy.stats.rankdata(seen.loss)
    odds = (place / 5) ** 2
    found = np.bincount(first, minlength=5)
    assert scipy.stats.chisquare(found, 20_000 * odds / odds.sum()).pvalue > 1e-3


# Compaction


def test_compaction_takes_the_highest_and_says_which_slots_are_filled():
    priority = jnp.array([0.1, -jnp.inf, 0.9, 0.5])
    rows, filled = jax.jit(regulation.compact, static_argnums=1)(priority, 2)
    np.testing.assert_array_equal(rows, [2, 3])
    assert filled.all()
    rows, filled = regulation.compact(priority, 4)
    np.testing.assert_array_equal(rows, [0, 1, 2, 3])
    np.testing.assert_array_equal(filled, [True, False, True, True])
    with pytest.raises(checks.InputError, match=r"`slots` must lie in \[1, 4\], got 5"):
        regulation.compact(priority, 5)


def test_participants_find_a_slot_with_equal_probability():
    took = np.asarray(regulation.takes_part(shown(), confidence=0.7))
    assert 8 < took.sum() < 30
    keys = jax.random.split(jax.random.key(1), 8000)

    def used(key):
        priority = regulation.regulated(key, shown(), confidence=0.7)
        rows, filled = regulation.compact(priority, 8)
        return jnp.zeros(30, jnp.int32).at[rows].add(filled)

    found = np.asarray(jax.vmap(used)(keys).sum(axis=0))
    assert (found[~took] == 0).all()
    # Eight slots a draw, evenly over the participants (draws without replacement: at most this).
    assert scipy.stats.chisquare(found[took]).pvalue > 1e-3
    assert found.sum() == 8 * 8000


def test_the_top_share_keeps_as_many_as_it_says():
    priority = np.array([3.0, 1.0, 2.0, 5.0])
    np.testing.assert_array_equal(regulation.top_share(priority, 0.5), [0, 3])
    np.testing.assert_array_equal(regulation.top_share(priority, 0.01), [3])
    np.testing.assert_array_equal(regulation.top_share(priority, 1.0), [0, 1, 2, 3])
    with pytest.raises(checks.InputError, match="`share` must lie in"):
        regulation.top_share(priority, 0.0)
