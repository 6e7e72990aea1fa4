"""How good a classifier is, and how well a score foretells it."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from numpy.typing import ArrayLike

from fdjax import checks

# Classifiers: over arrays, for use under jit. Unlabelled examples (-1) take no part; without
# a labelled example the value is NaN, and so it is where a counted row of logits holds NaN.


def _labelled_mean(
    values: Float[Array, " examples"], labels: Int[Array, " examples"]
) -> Float[Array, ""]:
    return jnp.mean(values, where=labels >= 0)


def _hits(
    logits: Float[Array, "examples classes"], hit: Bool[Array, " examples"]
) -> Float[Array, " examples"]:
    """One where `hit`, else zero; NaN where the network has diverged."""
    return jnp.where(jnp.isnan(logits).any(axis=-1), jnp.nan, hit.astype(logits.dtype))


def accuracy(
    logits: Float[Array, "examples classes"], labels: Int[Array, " examples"]
) -> Float[Array, ""]:
    """Share of labelled examples whose largest logit is the label's, in [0, 1]."""
    return _labelled_mean(_hits(logits, jnp.argmax(logits, axis=-1) == labels), labels)


def top_k_accuracy(
    logits: Float[Array, "examples classes"], labels: Int[Array, " examples"], *, k: int = 5
) -> Float[Array, ""]:
    """Share of labelled examples whose label is among the k largest logits, in [0, 1].

    Among equal logits the lower class comes first, so k = 1 is `accuracy`.

    Raises:
        InputError: If k is not between 1 and the number of classes.
    """
    checks.require(
        1 <= k <= logits.shape[-1],
        f"`k` must lie between 1 and the {logits.shape[-1]} classes, got {k}.",
    )
    _, best = jax.lax.top_k(logits, k)
    return _labelled_mean(_hits(logits, (best == labels[:, None]).any(axis=-1)), labels)


def negative_log_likelihood(
    logits: Float[Array, "examples classes"], labels: Int[Array, " examples"]
) -> Float[Array, ""]:
    """Mean of -log softmax(logits)[label] over the labelled examples, in nats."""
    log_probabilities = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_probabilities, jnp.maximum(labels, 0)[:, None], axis=-1)
    return _labelled_mean(-chosen[:, 0], labels)


def calibration_error(
    logits: Float[Array, "examples classes"], labels: Int[Array, " examples"], *, bins: int = 15
) -> Float[Array, ""]:
    """Expected calibration error: mean gap of confidence and accuracy, in [0, 1].

    Examples are put into bins of equal width by the largest softmax probability; the gaps of
    the bins are weighted by their numbers of examples.

    Args:
        logits: Unnormalised log-probabilities.
        labels: Class of each example; unlabelled examples (-1) take no part.
        bins: Number of bins over [0, 1].

    Returns:
        The error.

    Raises:
        InputError: If `bins` is not positive.

    References:
        Guo, Pleiss, Sun, Weinberger, On Calibration of Modern Neural Networks, ICML 2017, eq. 3.
    """
    checks.positive("bins", bins)
    confidence = jnp.max(jax.nn.softmax(logits), axis=-1)
    gap = _hits(logits, jnp.argmax(logits, axis=-1) == labels) - confidence
    # Bins are open below and closed above, as in the reference.
    position = jnp.clip(jnp.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    labelled = labels >= 0
    total = jnp.zeros(bins, logits.dtype).at[position].add(jnp.where(labelled, gap, 0.0))
    return jnp.abs(total).sum() / labelled.sum()


def agreement(
    logits: Float[Array, "examples classes"], other: Float[Array, "examples classes"]
) -> Float[Array, ""]:
    """Share of examples on which two networks choose the same class, in [0, 1].

    Raises:
        InputError: If the shapes differ.
    """
    checks.shape("other", other, logits.shape)
    same = jnp.argmax(logits, axis=-1) == jnp.argmax(other, axis=-1)
    return jnp.mean(_hits(logits + other, same))


# Rankings: on the host. `scores` is what was foretold, `truth` what came to be, one number a
# teacher and higher is better in both.


def _pair(scores: ArrayLike, truth: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(scores, np.float64), np.asarray(truth, np.float64)
    checks.shape("scores", first, (None,))
    checks.require(
        first.shape == second.shape,
        f"`scores` and `truth` must be as long as each other, got shapes {first.shape} and "
        f"{second.shape}; give one number of each for every teacher.",
    )
    return first, second


def _comparable(*arrays: np.ndarray) -> bool:
    """False where a correlation is not defined: a NaN, or all numbers equal."""
    return all(
        array.size > 1 and not np.isnan(array).any() and array.min() < array.max()
        for array in arrays
    )


def pearson(scores: ArrayLike, truth: ArrayLike) -> float:
    """Linear correlation in [-1, 1]; NaN if an input holds NaN or infinity or is constant."""
    first, second = _pair(scores, truth)
    finite = bool(np.isfinite(first).all() and np.isfinite(second).all())
    if not finite or not _comparable(first, second):
        return float("nan")
    first, second = first - first.mean(), second - second.mean()
    first, second = first / np.abs(first).max(), second / np.abs(second).max()
    product = first @ second / np.sqrt((first @ first) * (second @ second))
    return float(np.clip(product, -1.0, 1.0))


def spearman(scores: ArrayLike, truth: ArrayLike) -> float:
    """Linear correlation of the ranks in [-1, 1], ties averaged; NaN as in `kendall_tau`."""
    from scipy import stats

    first, second = _pair(scores, truth)
    if not _comparable(first, second):
        return float("nan")
    return pearson(stats.rankdata(first), stats.rankdata(second))


def kendall_tau(scores: ArrayLike, truth: ArrayLike) -> float:
    """Kendall's tau-b in [-1, 1]; NaN if an input holds NaN or is constant."""
    from scipy import stats

    first, second = _pair(scores, truth)
    if not _comparable(first, second):
        return float("nan")
    return float(stats.kendalltau(first, second).statistic)


def weighted_kendall_tau(
    scores: ArrayLike, truth: ArrayLike, *, rank: Literal["both", "truth"] = "both"
) -> float:
    """Kendall's tau with hyperbolic weights: a swap among the best teachers counts most.

    Published values follow two conventions and must not be compared across them: SFDA, ETran,
    PED and tllib give "both", Model Spider gives "truth".

    Args:
        scores: What was foretold.
        truth: What came to be.
        rank: Which order says who is best. "both" averages the value by the scores with
            the value by the truth, as `scipy.stats.weightedtau(scores, truth)` does;
            "truth" is `scipy.stats.weightedtau(truth, scores, rank=None)`.

    Returns:
        The correlation in [-1, 1]; NaN if an input holds NaN or is constant.

    Raises:
        InputError: If the lengths differ or `rank` is unknown.

    References:
        Vigna, A Weighted Correlation Index for Rankings with Ties, WWW 2015.
    """
    from scipy import stats

    checks.choice("rank", rank, ("both", "truth"))
    first, second = _pair(scores, truth)
    if not _comparable(first, second):
        return float("nan")
    if rank == "truth":
        return float(stats.weightedtau(second, first, rank=None).statistic)
    return float(stats.weightedtau(first, second).statistic)


def _best(values: np.ndarray, k: int) -> np.ndarray:
    checks.require(
        1 <= k <= values.size,
        f"`k` must lie between 1 and the {values.size} teachers, got {k}.",
    )
    return np.argsort(-values, kind="stable")[:k]


def regret_at_k(scores: ArrayLike, truth: ArrayLike, *, k: int = 1) -> float:
    """What is lost by trying only the k teachers of highest score, in the unit of `truth`.

    The best truth of all less the best among the k; zero is best. Equal scores keep the
    given order, as in `selection.rank`.

    Returns:
        The regret, >= 0; NaN if an input holds NaN.

    Raises:
        InputError: If the lengths differ or k is not between 1 and the number of teachers.
    """
    first, second = _pair(scores, truth)
    chosen = _best(first, k)
    if np.isnan(first).any() or np.isnan(second).any():
        return float("nan")
    return float(second.max() - second[chosen].max())


def recall_at_k(scores: ArrayLike, truth: ArrayLike, *, k: int = 1) -> float:
    """Share of the k truly best teachers that are among the k of highest score, in [0, 1].

    Whoever is as good as the k-th best counts as one of the best.

    Returns:
        The recall; NaN if an input holds NaN.

    Raises:
        InputError: If the lengths differ or k is not between 1 and the number of teachers.
    """
    first, second = _pair(scores, truth)
    chosen = _best(first, k)
    if np.isnan(first).any() or np.isnan(second).any():
        return float("nan")
    return float(np.mean(second[chosen] >= np.sort(second)[-k]))


# How sure a judgement is: over tasks, where there are several; over teachers, of one task.


class Estimate(NamedTuple):
    """A number and how far chance may have moved it.

    Attributes:
        value: The number.
        standard_error: Its standard deviation over what it was taken from; NaN where unknown.
    """

    value: float
    standard_error: float


def over_tasks(values: ArrayLike) -> Estimate:
    """Mean of a metric over tasks, with its standard error s / sqrt(tasks).

    Tasks are the sample: the error says how the mean would differ on other tasks of the kind, and
    holds for every metric. A task for which the metric is NaN makes both NaN: leave it out by
    name, not in silence.

    Args:
        values: The metric on each task.

    Returns:
        The mean; the error is NaN for a single task.

    Raises:
        InputError: If there is no task.
    """
    array = np.asarray(values, np.float64)
    checks.shape("values", array, (None,))
    checks.require(array.size > 0, "`values` is empty; hand in the metric of at least one task.")
    error = array.std(ddof=1) / np.sqrt(array.size) if array.size > 1 else np.nan
    return Estimate(float(array.mean()), float(error))


def over_teachers(
    metric: Callable[[np.ndarray, np.ndarray], float],
    scores: ArrayLike,
    truth: ArrayLike,
    *,
    seed: int = 0,
    resamples: int = 500,
) -> Estimate:
    """A correlation on one task, with its standard error over teachers by the bootstrap.

    Teachers are drawn with replacement. For correlations only: regret and recall are about the
    best of these teachers, which half of the resamples lack, so that no resample tells of them;
    take those over tasks.

    Args:
        metric: `(scores, truth) -> number`, such as `kendall_tau`.
        scores: What was foretold of each teacher.
        truth: What came to be.
        seed: Of the resamples.
        resamples: How many to draw, at least two.

    Returns:
        The metric of all teachers, with the standard deviation over the resamples; resamples in
        which the metric is undefined (all teachers the same) are left out.

    Raises:
        InputError: If the lengths differ or there are too few resamples.
    """
    checks.require(resamples > 1, f"`resamples` must be at least 2, got {resamples}.")
    first, second = _pair(scores, truth)
    value = float(metric(first, second))
    if np.isnan(value):
        return Estimate(value, float("nan"))
    rows = np.random.default_rng(seed).integers(0, first.size, (resamples, first.size))
    drawn = np.asarray([metric(first[row], second[row]) for row in rows])
    drawn = drawn[~np.isnan(drawn)]
    return Estimate(value, float(drawn.std(ddof=1)) if drawn.size > 1 else float("nan"))
