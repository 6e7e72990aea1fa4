"""Intervals against closed forms, against a slow loop, and by how often they hold the truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from test_scores import CLASSES, padded, teacher
from test_selection import LABELS, small

from fdjax import scores, selection
from fdjax.checks import InputError
from fdjax.types import TeacherOutputs

KEY = jax.random.key(0)


def mean_of_classes(outputs, labels, num_classes):
    """Mean over classes of a class's mean first feature: its standard error is known."""
    member = jax.nn.one_hot(labels, num_classes)
    means = member.T @ outputs.features[:, 0] / member.sum(axis=0)
    return means.mean()


def of_features(features):
    """Black boxes with features [teachers, examples]."""
    features = jnp.asarray(features, jnp.float32)[..., None]
    even = jnp.full((*features.shape[:2], 2), 0.5)
    return TeacherOutputs(even, features, None, jnp.ones(2, bool))


def test_halves_by_hand():
    labels = np.array([0, -1, 1, 0, 1, 1, 2, 0, 2, 0, -1])
    drawn = selection.halves(KEY, labels, resamples=3000)
    assert set(np.unique(np.where(drawn == labels, 0, drawn))) == {0, -1}, "kept or left out"
    counts = np.stack([(drawn == label).sum(axis=1) for label in range(3)], axis=1)
    assert set(counts[:, 0]) == {2} and set(counts[:, 2]) == {1}
    # Of three examples one in a third of the cases, so that (n - m) / m is one on average.
    assert set(counts[:, 1]) == {1, 2}
    np.testing.assert_allclose((counts[:, 1] == 1).mean(), 1 / 3, atol=0.03)
    np.testing.assert_allclose((drawn[:, 0] == 0).mean(), 0.5, atol=0.03)
    np.testing.assert_array_equal(drawn, selection.halves(KEY, labels, resamples=3000))


def test_permutations_keep_the_counts():
    labels = np.array([0, -1, 1, 0, 1, 1, 2])
    mixed = selection.permutations(KEY, labels, nulls=500)
    np.testing.assert_array_equal(np.sort(mixed, axis=1), np.tile(np.sort(labels), (500, 1)))
    assert (mixed[:, 1] == -1).all()
    np.testing.assert_allclose((mixed[:, 0] == 1).mean(), 0.5, atol=0.06)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("reference", "knn")]


@pytest.mark.parametrize("name", ["leep", *SLOW])
def test_one_pass_is_a_loop_over_teachers_and_labellings(name):
    score_fn = scores.SCORES[name]
    teachers = [teacher(0)[0], small(1), padded(teacher(2)[0])]
    found = selection.resample(score_fn, teachers, LABELS, CLASSES, key=KEY, resamples=3, nulls=2)
    draw_key, null_key = jax.random.split(KEY)
    drawn = selection.halves(draw_key, LABELS, resamples=3)
    mixed = selection.permutations(null_key, LABELS, nulls=2)

    def slow(labels):
        rows = np.flatnonzero(labels >= 0)
        cut = [
            one._replace(probabilities=one.probabilities[rows], features=one.features[rows])
            for one in teachers
        ]
        return [float(score_fn(one, jnp.asarray(labels[rows]), CLASSES)) for one in cut]

    np.testing.assert_allclose(found.scores, slow(np.asarray(LABELS)), rtol=1e-4)
    np.testing.assert_allclose(found.resampled, [slow(labels) for labels in drawn], rtol=1e-4)
    np.testing.assert_allclose(found.null, [slow(labels) for labels in mixed], rtol=1e-4)
    # Padding and company change nothing.
    stacked = selection.resample(
        score_fn, selection.stack(teachers), LABELS, CLASSES, key=KEY, resamples=3, nulls=2
    )
    for one, other in zip(found, stacked, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)


@pytest.mark.parametrize("examples", [30, 31 * 3])
def test_error_of_a_mean_is_the_closed_form(examples):
    labels = np.arange(examples) % 3
    features = np.random.default_rng(0).normal(size=(4, examples)) * [[1.0], [2.0], [3.0], [0.0]]
    found = selection.resample(
        mean_of_classes, of_features(features), labels, 3, key=KEY, resamples=4000
    )
    parts = [features[:, labels == label] for label in range(3)]
    wanted = np.sqrt(sum(p.var(axis=1, ddof=1) / p.shape[1] for p in parts)) / 3
    np.testing.assert_allclose(selection.standard_errors(found), wanted, rtol=0.05, atol=1e-6)
    ends = np.asarray(selection.intervals(found, level=0.9))
    np.testing.assert_allclose(ends.mean(axis=1), found.scores, rtol=1e-5, atol=1e-6)
    width = 2 * stats.norm.ppf(0.95) * np.asarray(selection.standard_errors(found))
    np.testing.assert_allclose(ends[:, 1] - ends[:, 0], width, rtol=1e-4, atol=1e-6)


def test_intervals_hold_the_truth_as_often_as_they_say():
    random = np.random.default_rng(1)
    labels = np.arange(60) % 3
    # Every teacher is a data set of its own with the truth 0.3; the features are skew.
    features = 0.3 + random.exponential(size=(600, 60)) - 1
    ends = selection.bootstrap(
        mean_of_classes, of_features(features), labels, 3, key=KEY, resamples=200, level=0.9
    )
    held = (np.asarray(ends)[:, 0] < 0.3) & (np.asarray(ends)[:, 1] > 0.3)
    assert 0.86 <= held.mean() <= 0.93


def test_a_leave_one_out_score_meets_no_twins():
    # With repeated examples the nearest neighbour is the twin and the accuracy near one.
    outputs = of_features(np.random.default_rng(2).normal(size=(1, 200)))
    outputs = outputs._replace(features=jax.random.normal(KEY, (1, 200, 5)))
    labels = np.arange(200) % 2
    found = selection.resample(scores.knn, outputs, labels, 2, key=KEY, resamples=100)
    assert abs(float(found.resampled.mean()) - 0.5) < 0.05


def test_who_outranks_whom():
    random = np.random.default_rng(3)
    labels = np.arange(90) % 3
    common = random.normal(size=90)
    noise = random.normal(size=(4, 90))
    # Two that differ by little beside what is common, and their like without the common part.
    features = np.stack(
        [common + 0.2 + 0.1 * noise[0], common + 0.1 * noise[1], noise[2] + 0.2, noise[3]]
    )
    found = selection.resample(
        mean_of_classes, of_features(features), labels, 3, key=KEY, resamples=1000
    )
    odds = np.asarray(selection.outranks(found))
    np.testing.assert_allclose(odds + odds.T, 1.0, atol=1e-5)
    np.testing.assert_allclose(np.diag(odds), 0.5)
    gap = features[0] - features[1]
    spread = np.sqrt(sum(gap[labels == c].var(ddof=1) / 30 for c in range(3))) / 3
    np.testing.assert_allclose(odds[0, 1], stats.norm.cdf(gap.mean() / spread), atol=0.02)
    assert odds[0, 1] > 0.99, "paired, what is common to both does not blur the difference"
    ends = np.asarray(selection.intervals(found))
    assert ends[1, 1] > ends[0, 0], "though their intervals overlap"
    assert 0.2 < odds[2, 3] < 0.99


def test_who_outranks_whom_without_doubt_or_knowledge():
    draws = np.tile(np.float32([1.0, 2.0, 2.0, np.nan]), (5, 1))
    odds = selection.outranks(selection.Resamples(jnp.asarray(draws[0]), jnp.asarray(draws), None))
    np.testing.assert_array_equal(
        odds[:3], [[0.5, 0, 0, np.nan], [1, 0.5, 0.5, np.nan], [1, 0.5, 0.5, np.nan]]
    )
    assert np.isnan(odds[3]).all()


def test_a_null_tells_what_says_something():
    good, _ = teacher(0)
    random = np.random.default_rng(0)
    nonsense = [
        good._replace(probabilities=jnp.asarray(random.dirichlet(np.ones(6), 40), jnp.float32))
        for _ in range(60)
    ]
    found = selection.resample(
        scores.reference, [good, *nonsense], LABELS, CLASSES, key=KEY, resamples=2, nulls=99
    )
    values = selection.p_values(found)
    assert values[0] == 0.01
    # Uniform for those that know nothing.
    assert stats.kstest(values[1:], "uniform").pvalue > 0.01
    blind = selection.resample(scores.size, [good], LABELS, CLASSES, key=KEY, resamples=2, nulls=20)
    assert selection.p_values(blind) == 1.0
    with pytest.raises(InputError, match="there are no nulls"):
        selection.p_values(found._replace(null=jnp.zeros((0, 61))))


def test_undefined_scores_stay_undefined():
    spoilt = teacher(1)[0]._replace(probabilities=teacher(1)[0].probabilities * jnp.nan)
    found = selection.resample(
        scores.leep, [teacher(0)[0], spoilt], LABELS, CLASSES, key=KEY, resamples=4, nulls=3
    )
    assert np.isnan(selection.intervals(found)).all(axis=1).tolist() == [False, True]
    assert np.isnan(selection.p_values(found)).tolist() == [False, True]


def test_what_cannot_be_resampled_is_refused():
    labels = np.array(LABELS)
    labels[np.flatnonzero(labels == 2)[1:]] = -1
    with pytest.raises(InputError, match="`labels` has one example of class 2"):
        selection.bootstrap(scores.leep, [teacher(0)[0]], labels, CLASSES, key=KEY)
    for settings, message in (
        ({"resamples": 0}, "`resamples` must be positive"),
        ({"level": 1.0}, "`level` must lie between 0 and 1, got 1.0"),
    ):
        with pytest.raises(InputError, match=message):
            selection.bootstrap(scores.leep, [teacher(0)[0]], LABELS, CLASSES, key=KEY, **settings)
