"""How sure the scores are: intervals, who truly outranks whom, and whether a score says anything.

Everything rests on scoring the same teachers under other labellings, in one compiled pass.

*Resamples* are random halves of each class, drawn without replacement. The scores are not means:
a leave-one-out score (`reference`, `knn`) of a sample with repeated examples meets an example's
twin among the others and is far too high, and so the bootstrap with replacement does not hold
for it. Half the examples without replacement need no correction of their spread: the variance of
a mean over n - m of n examples left out is s^2 / n * (n - m) / m, which is that of the mean over
all n where m = n / 2. Classes are halved apart, so that none becomes empty.

*Nulls* are the labels in random order: what a score is worth if the teacher knows nothing of the
task.

References:
    Shao, Wu, A general theory for jackknife variance estimation, Annals of Statistics 1989 (the
    delete-half jackknife). Politis, Romano, Wolf, Subsampling, 1999.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jax.scipy.stats import norm
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from fdjax import checks
from fdjax.selection.scoring import ScoreFn, score_labellings
from fdjax.selection.stacking import Faculty
from fdjax.types import UNLABELLED


class Resamples(NamedTuple):
    """Scores of a faculty, and what they would have been on other examples.

    Attributes:
        scores: On all labelled examples.
        resampled: On random halves of the examples, the same for all teachers. Their spread
            about their mean is that of `scores`; their mean is not `scores` if a score depends on
            the number of examples.
        null: With the labels in random order, the same for all teachers.
    """

    scores: Float[Array, " teachers"]
    resampled: Float[Array, "resamples teachers"]
    null: Float[Array, "nulls teachers"]


def _seed(key: Array) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())


def halves(
    key: Array, labels: Int[Array | np.ndarray, " examples"], *, resamples: int
) -> Int[np.ndarray, "resamples examples"]:
    """Labels of random halves of the examples of each class, -1 for those left out.

    Of an odd number n of examples the smaller half is drawn in (n - 1) of 2 n cases, so that the
    variance is right on average.

    Args:
        key: Randomness.
        labels: Class of each example; unlabelled ones (-1) stay so.
        resamples: How many to draw.

    Raises:
        InputError: If a class has one example, which leaves nothing to draw from.
    """
    checks.positive("resamples", resamples)
    labels, random = np.asarray(labels, np.int32), _seed(key)
    drawn = np.full((resamples, len(labels)), UNLABELLED, np.int32)
    for label in np.unique(labels[labels != UNLABELLED]):
        rows = np.flatnonzero(labels == label)
        number = len(rows)
        checks.require(
            number > 1,
            f"`labels` has one example of class {label}, and whatever is drawn from it is the "
            "same; label at least two examples of each class to see how sure a score is.",
        )
        odd = number % 2
        smaller = random.uniform(size=resamples) < (number - 1) / (2 * number)
        size = number // 2 + np.where(smaller, 0, odd)
        order = random.permuted(np.tile(np.arange(number), (resamples, 1)), axis=1)
        drawn[:, rows] = np.where(order < size[:, None], label, UNLABELLED)
    return drawn


def permutations(
    key: Array, labels: Int[Array | np.ndarray, " examples"], *, nulls: int
) -> Int[np.ndarray, "nulls examples"]:
    """Labels of the labelled examples in random order, as many of each class as there are."""
    labels = np.asarray(labels, np.int32)
    rows = np.flatnonzero(labels != UNLABELLED)
    mixed = np.tile(labels, (nulls, 1))
    mixed[:, rows] = _seed(key).permuted(mixed[:, rows], axis=1)
    return mixed


def resample(
    score_fn: ScoreFn,
    faculty: Faculty,
    labels: Int[Array | np.ndarray, " examples"],
    num_classes: int,
    *,
    key: Array,
    resamples: int = 200,
    nulls: int = 0,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Resamples:
    """Scores of a faculty with resampled examples and with permuted labels, in one pass.

    Args:
        score_fn: Score of one teacher.
        faculty: As for `score_faculty`.
        labels: Class of each example; unlabelled examples (-1) take no part.
        num_classes: Number of classes of the task.
        key: Randomness; the same key gives the same halves for every score and faculty.
        resamples: Random halves of the examples. The time is as if so many faculties were scored.
        nulls: Random orders of the labels.
        batch_size: As for `score_faculty`.
        mesh: As for `score_faculty`.

    Returns:
        The scores, NaN where a teacher does not define the score.

    Raises:
        InputError: As `score_faculty`, and if a class has one example only.
    """
    checks.labels("labels", labels, num_classes, unlabelled=True)
    checks.every_class_present("labels", labels, num_classes)
    checks.require(nulls >= 0, f"`nulls` must not be negative, got {nulls}.")
    draw_key, null_key = jax.random.split(key)
    drawn = halves(draw_key, labels, resamples=resamples)
    mixed = permutations(null_key, labels, nulls=nulls)
    whole = np.asarray(labels, np.int32)[None]
    values = score_labellings(
        score_fn,
        faculty,
        np.concatenate([whole, drawn, mixed]),
        num_classes,
        batch_size=batch_size,
        mesh=mesh,
    )
    return Resamples(values[0], values[1 : 1 + resamples], values[1 + resamples :])


def standard_errors(found: Resamples) -> Float[Array, " teachers"]:
    """Standard deviation of each score over its resamples."""
    return found.resampled.std(axis=0, ddof=1)


def _check_level(level: float) -> None:
    checks.require(0 < level < 1, f"`level` must lie between 0 and 1, got {level}.")


def intervals(found: Resamples, *, level: float = 0.95) -> Float[Array, "teachers 2"]:
    """Lower and upper end of the normal interval about each score.

    A teacher's interval says how far its score may be from what more examples of the same kind
    would give; it may pass the bounds of the score, and has no width where all resamples agree.

    Args:
        found: From `resample`.
        level: Share of all cases in which an interval should hold the truth, in (0, 1).

    Raises:
        InputError: If `level` is not a share.
    """
    _check_level(level)
    margin = ndtri((1 + level) / 2) * standard_errors(found)
    return found.scores[:, None] + margin[:, None] * np.asarray([-1.0, 1.0], np.float32)


def outranks(found: Resamples) -> Float[Array, "teachers others"]:
    """Probability that one teacher (row) truly has the higher score than another (column).

    The normal probability of the sign of their difference, whose spread is that of the paired
    differences over the resamples: what is hard for all teachers alike does not blur who is
    better. One half for a teacher and itself; with its mirror image it sums to one.

    Args:
        found: From `resample`.
    """

    def row(score: Array, draws: Array) -> Array:
        gap = score - found.scores
        spread = (draws[:, None] - found.resampled).std(axis=0, ddof=1)
        # Halves that all agree leave no doubt but for a tie.
        sure = 0.5 * (1 + jnp.sign(gap))
        return jnp.where(spread == 0, sure, norm.cdf(gap / jnp.where(spread == 0, 1.0, spread)))

    return jax.lax.map(lambda pair: row(*pair), (found.scores, found.resampled.T))


def p_values(found: Resamples) -> Float[np.ndarray, " teachers"]:
    """Share of labels in random order under which a teacher scores as high as it does.

    (1 + number of nulls as high) / (1 + nulls), so that it never is zero: with 99 nulls 0.01 is
    the least. Near one half or above the score says nothing of this teacher and task; a score
    that does not look at the labels has one.

    Args:
        found: From `resample` with `nulls`.

    Raises:
        InputError: If there are no nulls.
    """
    scores, null = np.asarray(found.scores), np.asarray(found.null)
    checks.require(len(null) > 0, "there are no nulls; call `resample` with `nulls` of 20 or more.")
    # As high up to rounding: a score of no labels is rounded differently in another order.
    slack = 1e-6 * np.maximum(np.abs(scores), np.abs(null).max(axis=0))
    share = (1 + (null >= scores - slack).sum(axis=0)) / (1 + len(null))
    return np.where(np.isnan(scores) | np.isnan(null).any(axis=0), np.nan, share)


def bootstrap(
    score_fn: ScoreFn,
    faculty: Faculty,
    labels: Int[Array | np.ndarray, " examples"],
    num_classes: int,
    *,
    level: float = 0.95,
    **settings: Any,
) -> Float[Array, "teachers 2"]:
    """Intervals of the scores of a faculty: `intervals` of `resample`.

    Args:
        score_fn: Score of one teacher.
        faculty: As for `score_faculty`.
        labels: Class of each example; at least two of each class.
        num_classes: Number of classes of the task.
        level: Share of all cases in which an interval should hold the truth.
        **settings: Of `resample`; `key` must be among them.

    Returns:
        Lower and upper end for each teacher; NaN where the score is.

    Raises:
        InputError: As `resample`, and if `level` is not a share.
    """
    # The resamples take long: a level that cannot be is refused before them.
    _check_level(level)
    found = resample(score_fn, faculty, labels, num_classes, **settings)
    return intervals(found, level=level)
