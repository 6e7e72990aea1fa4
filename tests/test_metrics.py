"""Metrics against worked values and the numbers of scipy and of published tables."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import oracle_files
import pytest
from scipy import stats

from fdjax import metrics
from fdjax.checks import InputError

LOGITS = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6], [0.4, 0.35, 0.25]]))
LABELS = jnp.array([0, 2, 2, -1])

RANKS = [
    "r00_n5_cont",
    "r01_n10_cont",
    "r02_n10_tied_x",
    "r03_n10_tied_both",
    "r04_n11_rounded",
    "r05_n25_neg",
    "r06_n25_tied_both",
    "r07_n60_cont",
    "r08_n60_rounded",
    "r09_n8_perfect",
    "r10_n8_reversed",
    "r11_n12_heavy_ties",
    "r12_n200_rounded",
    "r13_n2_cont",
    "r14_n3_tied_x",
]


@pytest.mark.parametrize(
    "metric, expected",
    [
        (metrics.accuracy, 2 / 3),
        (lambda logits, labels: metrics.top_k_accuracy(logits, labels, k=2), 1.0),
        (metrics.negative_log_likelihood, -np.log(0.7 * 0.3 * 0.6) / 3),
        # Bins (0.6, 0.8] and (0.4, 0.6]: gap 0.3 of one, gap |1 - 0.5 - 0.6| of two.
        (
            lambda logits, labels: metrics.calibration_error(logits, labels, bins=5),
            (0.3 + abs(1 - 0.5 - 0.6)) / 3,
        ),
    ],
)
def test_classifier_metric_by_hand(metric, expected):
    np.testing.assert_allclose(metric(LOGITS, LABELS), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(metric)(LOGITS, LABELS), expected, rtol=1e-5)
    assert jnp.isnan(metric(LOGITS, jnp.full(4, -1)))
    diverged = LOGITS.at[1, 0].set(jnp.nan)
    assert jnp.isnan(metric(diverged, LABELS))
    np.testing.assert_allclose(
        metric(LOGITS.at[3].set(jnp.nan), LABELS), expected, rtol=1e-5, err_msg="unlabelled row"
    )


def test_top_one_is_accuracy_also_with_ties():
    logits = jnp.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 2.0, 2.0]])
    labels = jnp.array([1, 0, 1])
    assert metrics.top_k_accuracy(logits, labels, k=1) == metrics.accuracy(logits, labels)
    assert metrics.top_k_accuracy(logits, labels, k=3) == 1.0


def test_agreement():
    other = LOGITS.at[0].set(LOGITS[0, ::-1])
    assert metrics.agreement(LOGITS, LOGITS) == 1.0
    assert metrics.agreement(LOGITS, other) == 0.75
    assert jnp.isnan(metrics.agreement(LOGITS, LOGITS * jnp.nan))


def test_perfectly_calibrated_bins_have_no_error():
    # Ten examples of confidence 0.8, eight of them right.
    logits = jnp.tile(jnp.log(jnp.array([0.8, 0.2])), (10, 1))
    labels = jnp.array([0] * 8 + [1] * 2)
    np.testing.assert_allclose(metrics.calibration_error(logits, labels), 0.0, atol=1e-6)


@pytest.mark.parametrize("name", RANKS)
def test_rank_statistics_match_scipy(name):
    data = oracle_files.load(f"rank/{name}")
    x, y = data["x"], data["y"]
    found = {
        "kendall_tau_b": metrics.kendall_tau(x, y),
        "spearman": metrics.spearman(x, y),
        "pearson": metrics.pearson(x, y),
        "wtau_xy_rank_true": metrics.weighted_kendall_tau(x, y),
        "wtau_yx_rank_none": metrics.weighted_kendall_tau(x, y, rank="truth"),
    }
    for key, value in found.items():
        np.testing.assert_allclose(value, data[key], atol=1e-12, err_msg=key)


TABLES = [
    *(f"tllib_{name}" for name in ("Aircraft", "CIFAR10", "DTD", "OxfordIIITPets")),
    *(f"modelspider_{name}" for name in ("Aircraft", "CIFAR10", "DTD", "Pet")),
]
# Published numbers that are not those of the printed table, by table and metric: in tllib's the
# tables of two data sets are another run's and a column is a copy; the others are rounded.
NOT_OF_THE_TABLE = {
    "tllib_DTD": {"NCE", "LogME"},
    "modelspider_Aircraft": {"LEEP", "NLEEP", "LogME"},
}


@pytest.mark.parametrize("table", TABLES)
def test_published_tables(table):
    data = oracle_files.load(f"rank/published_{table}")
    truth = data["accuracy"]
    found = {
        "scipy_wtau_xy_rank_true": metrics.weighted_kendall_tau,
        "scipy_wtau_yx_rank_none": lambda x, y: metrics.weighted_kendall_tau(x, y, rank="truth"),
        "scipy_kendall_tau_b": metrics.kendall_tau,
        "scipy_spearman": metrics.spearman,
        "scipy_pearson": metrics.pearson,
    }
    for key, metric in found.items():
        values = [metric(scores, truth) for scores in data["scores"]]
        np.testing.assert_allclose(values, data[key], atol=1e-12, err_msg=key)


@pytest.mark.parametrize(
    "table", [t for t in TABLES if t not in ("tllib_Aircraft", "tllib_OxfordIIITPets")]
)
def test_published_numbers_follow_the_convention_of_their_field(table):
    data = oracle_files.load(f"rank/published_{table}")
    rank = "truth" if table.startswith("modelspider") else "both"
    compared = 0
    for name, scores, wanted in zip(
        data["metric_names"], data["scores"], data["published_weighted_tau"], strict=True
    ):
        if name in NOT_OF_THE_TABLE.get(table, ()):
            continue
        found = metrics.weighted_kendall_tau(scores, data["accuracy"], rank=rank)
        # Printed with three digits.
        np.testing.assert_allclose(found, wanted, atol=1e-3, err_msg=name)
        compared += 1
    assert compared >= 2


# Ten ImageNet networks on Stanford Cars, as printed at github.com/thuml/Transfer-Learning-Library,
# examples/model_selection/README.md: accuracy after fine-tuning; scores, Pearson, weighted tau.
CARS = [91.0, 92.3, 91.7, 91.7, 92.0, 91.5, 91.5, 91.0, 91.0, 88.5]
CARS_SCORES = {
    "H-score": (
        [41.47, 73.68, 72.94, 73.98, 76.17, 45.82, 63.4, 70.5, 51.12, 51.91],
        *(0.503, 0.638),
    ),
    "LEEP": (
        [-4.612, -4.268, -4.366, -4.281, -4.215, -4.437, -4.286, -4.319, -4.463, -4.423],
        *(0.433, 0.703),
    ),
    "NCE": (
        [-4.312, -4.11, -4.221, -4.218, -4.142, -4.271, -4.175, -4.151, -4.306, -4.338],
        *(0.695, 0.750),
    ),
}


@pytest.mark.parametrize("name", CARS_SCORES)
def test_a_published_table_is_recomputed_from_its_own_numbers(name):
    values, pearson, weighted_tau = CARS_SCORES[name]
    # Of scores printed with three or four digits.
    assert metrics.pearson(values, CARS) == pytest.approx(pearson, abs=2e-3)
    assert metrics.weighted_kendall_tau(values, CARS) == pytest.approx(weighted_tau, abs=1e-3)


def test_correlations_are_nan_where_undefined():
    for correlation in (
        metrics.pearson,
        metrics.spearman,
        metrics.kendall_tau,
        metrics.weighted_kendall_tau,
    ):
        assert np.isnan(correlation([1.0, 2.0, np.nan], [1.0, 2.0, 3.0]))
        assert np.isnan(correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))
        assert np.isnan(correlation([1.0], [2.0]))
        assert correlation(jnp.array([1.0, 2.0, 3.0]), [0.1, 0.5, 0.9]) == pytest.approx(1.0)
    assert np.isnan(metrics.pearson([-np.inf, 1.0, 2.0], [1.0, 2.0, 3.0]))
    assert metrics.kendall_tau([-np.inf, 1.0, 2.0], [1.0, 2.0, 3.0]) == pytest.approx(1.0)


def test_regret_and_recall_by_hand():
    scores, truth = [0.9, 0.8, 0.1, 0.5], [70.0, 90.0, 95.0, 80.0]
    assert metrics.regret_at_k(scores, truth, k=1) == 25.0
    assert metrics.regret_at_k(scores, truth, k=2) == 5.0
    assert metrics.regret_at_k(scores, truth, k=4) == 0.0
    assert metrics.recall_at_k(scores, truth, k=1) == 0.0
    assert metrics.recall_at_k(scores, truth, k=2) == 0.5
    assert metrics.recall_at_k(scores, truth, k=4) == 1.0
    assert metrics.recall_at_k([1.0, 0.0], [5.0, 5.0], k=1) == 1.0, "as good as the best"
    assert metrics.regret_at_k([1.0, 1.0], [3.0, 5.0]) == 2.0, "equal scores keep their order"
    assert np.isnan(metrics.regret_at_k([np.nan, 1.0], [3.0, 5.0]))
    assert np.isnan(metrics.recall_at_k([0.0, 1.0], [3.0, np.nan]))


def test_error_over_tasks_by_hand():
    found = metrics.over_tasks([1.0, 2.0, 3.0, 6.0])
    assert found.value == 3.0
    np.testing.assert_allclose(found.standard_error, stats.sem([1.0, 2.0, 3.0, 6.0]))
    alone = metrics.over_tasks([0.5])
    assert alone.value == 0.5 and np.isnan(alone.standard_error)
    assert np.isnan(metrics.over_tasks([0.5, np.nan, 1.0]).value)
    with pytest.raises(InputError, match="`values` is empty"):
        metrics.over_tasks([])


@pytest.mark.parametrize("correlation", [0.0, 0.7])
def test_error_over_teachers_is_the_closed_form(correlation):
    random = np.random.default_rng(1)
    x, noise = random.normal(size=(2, 300))
    y = correlation * x + np.sqrt(1 - correlation**2) * noise
    found = metrics.over_teachers(metrics.pearson, x, y)
    assert found.value == metrics.pearson(x, y)
    # Of normal numbers: (1 - r^2) / sqrt(n).
    np.testing.assert_allclose(found.standard_error, (1 - found.value**2) / np.sqrt(300), rtol=0.12)
    if correlation == 0:
        tau = metrics.over_teachers(metrics.kendall_tau, x, y, resamples=200)
        exact = np.sqrt(2 * (2 * 300 + 5) / (9 * 300 * 299))
        np.testing.assert_allclose(tau.standard_error, exact, rtol=0.15)
    by_scipy = stats.bootstrap(
        (x, y),
        lambda a, b: stats.pearsonr(a, b)[0],
        paired=True,
        vectorized=False,
        n_resamples=500,
        method="basic",
        rng=np.random.default_rng(2),
    )
    np.testing.assert_allclose(found.standard_error, by_scipy.standard_error, rtol=0.12)


def test_error_over_teachers_where_there_is_none():
    found = metrics.over_teachers(metrics.kendall_tau, [1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    assert np.isnan(found).all()
    # Of two teachers half of the resamples are one of them twice.
    pair = metrics.over_teachers(metrics.spearman, [1.0, 2.0], [1.0, 2.0])
    assert pair.value == pytest.approx(1.0) and pair.standard_error == pytest.approx(0.0)
    with pytest.raises(InputError, match="`resamples` must be at least 2"):
        metrics.over_teachers(metrics.spearman, [1.0, 2.0], [1.0, 2.0], resamples=1)


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="as long as each other"):
        metrics.kendall_tau([1.0, 2.0], [1.0])
    with pytest.raises(InputError, match="`rank` must be one of both, truth"):
        inspect.unwrap(metrics.weighted_kendall_tau)([1.0, 2.0], [2.0, 1.0], rank="first")
    with pytest.raises(InputError, match="`k` must lie between"):
        metrics.regret_at_k([1.0, 2.0], [1.0, 2.0], k=3)
    with pytest.raises(InputError, match="`k` must lie between"):
        metrics.top_k_accuracy(LOGITS, LABELS, k=4)
    with pytest.raises(InputError, match="`bins` must be positive"):
        metrics.calibration_error(LOGITS, LABELS, bins=0)
