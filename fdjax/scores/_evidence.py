"""How probable the labels are under Bayesian linear regression from the teacher's features."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fdjax.scores._labelled import HIGHEST, class_sums, scatter
from fdjax.types import TeacherOutputs

# Labels are 0 or 1: noise of a smaller variance than this is not believed. Without a floor a
# perfect linear fit has infinite evidence, and float32 could not tell it from a good one.
SMALLEST_NOISE = 1e-5

# Natural logarithm of prior precision over noise precision, relative to the sum of the squared
# singular values: from "every direction is free" to "no direction has any effect". The lower end
# is raised to what rounding leaves of the small ones, the upper by how far the mean is above.
COARSE = (-30.0, 12.0, 48)
# Steps of the parabolas after the first, whose step is the grid's, as a share of it.
CLOSER = (0.3, 0.1, 0.03)


class _Problem(NamedTuple):
    """Regressions of every class, after a change of basis that makes the features tridiagonal.

    The first example after a reflection holds the mean g of the features, times the root of
    their number, and of each class a; the others hold what is centred. So a mean far above the
    spread never meets the spread in a sum.

    Attributes:
        diagonal: Of the tridiagonal matrix, whose eigenvalues are the squared singular values of
            the centred features.
        beside: Beside the diagonal; the first is zero.
        columns: Classes and, last, the mean, in the same basis.
        level: Mean of each class, a.
        spread: Squares of what is centred of each class.
        mean_square: Square of g.
        examples: Number of examples.
        energy: Sum of the squares of the centred features, by which all squares are divided.
    """

    diagonal: Float[Array, " rank"]
    beside: Float[Array, " rank"]
    columns: Float[Array, "rank columns"]
    level: Float[Array, " num_classes"]
    spread: Float[Array, " num_classes"]
    mean_square: Float[Array, ""]
    examples: Float[Array, ""]
    energy: Float[Array, ""]


def _reduce(
    features: Float[Array, "examples features"], member: Float[Array, "examples num_classes"]
) -> _Problem:
    known = member.sum(axis=1, keepdims=True) > 0
    counts = member.sum(axis=0)
    examples = jnp.maximum(counts.sum(), 1.0)
    # Less one of them, equal features are exactly zero; less their mean its rounding would be left.
    first = jnp.where(known.any(), features[jnp.argmax(known[:, 0])], 0.0)
    ahead = jnp.sum(features - first, axis=0, where=known) / examples
    centred = jnp.where(known, features - first - ahead, 0.0)
    rows, width = features.shape
    square = scatter(centred if width <= rows else centred.T)
    energy, mean_energy = jnp.trace(square), examples * jnp.sum((first + ahead) ** 2)
    energy = jnp.where(energy > 0, energy, jnp.where(mean_energy > 0, mean_energy, 1.0))
    scale = jax.lax.rsqrt(energy)
    mean = (first + ahead) * scale * jnp.sqrt(examples)
    share = counts / examples
    if width <= rows:
        columns = jnp.concatenate([class_sums(centred, member).T * scale, mean[:, None]], axis=1)
    else:
        tilt = jnp.matmul(centred, mean[:, None], precision=HIGHEST) * scale
        columns = jnp.concatenate([member - share * known, tilt], axis=1)
    packed, diagonal, beside, scales = jax.lax.linalg.tridiagonal(square / energy, lower=True)
    if len(diagonal) > 1:
        turned = jax.lax.linalg.ormqr(packed[1:, :-1], scales, columns[1:], transpose=True)
        columns = jnp.concatenate([columns[:1], turned])
    beside = jnp.concatenate([jnp.zeros(1, beside.dtype), beside])
    level, spread = share * jnp.sqrt(examples), counts - counts * share
    return _Problem(diagonal, beside, columns, level, spread, jnp.sum(mean**2), examples, energy)


def _log_evidence(
    problem: _Problem, ratio: Float[Array, "rows grid"], by_examples: bool
) -> Float[Array, "num_classes grid"]:
    """Log of N(y; 0, noise * (I + F F' / ratio)) / N at the noise that makes it largest.

    With A the tridiagonal matrix and its bordering by the mean g, by elimination: A + ratio =
    L D L', so that log det and all inner products x' (A + ratio)^-1 y are sums over its rows.
    The ratios are one row for each class, or one for all.
    """
    tiny = jnp.finfo(ratio.dtype).tiny

    def row(state: Any, values: Any) -> Any:
        pivot, own, mean, log_det, own_own, own_mean, mean_mean = state
        diagonal, beside, column = values
        factor = beside / pivot
        # Rounding may leave less than nothing of a direction without data.
        pivot = jnp.maximum(diagonal + ratio - beside * factor, ratio)
        own = column[:-1, None] - factor * own
        mean = column[-1] - factor * mean
        return (
            pivot,
            own,
            mean,
            log_det + jnp.log(pivot / ratio),
            own_own + own * own / pivot,
            own_mean + own * mean / pivot,
            mean_mean + mean * mean / pivot,
        ), None

    shared = jnp.zeros_like(ratio)
    each = jnp.zeros((len(problem.level), ratio.shape[1]), ratio.dtype)
    start = (jnp.ones_like(ratio), each, shared, shared, each, each, shared)
    rows = (problem.diagonal, problem.beside, problem.columns)
    (_, _, _, log_det, own_own, own_mean, mean_mean), _ = jax.lax.scan(row, start, rows, unroll=8)
    spread, level = problem.spread[:, None], problem.level[:, None]
    if by_examples:
        rest, gain = ratio * own_own, (problem.mean_square - mean_mean) / ratio
    else:
        rest, gain = spread - own_own, mean_mean
    gain = jnp.maximum(gain, 0.0)
    misfit = jnp.maximum(rest, 0.0) + (level - own_mean) ** 2 / (1 + gain)
    noise = jnp.maximum(misfit / problem.examples, SMALLEST_NOISE)
    return -0.5 * (
        (log_det + jnp.log1p(gain)) / problem.examples
        + jnp.log(2 * math.pi * jnp.maximum(noise, tiny))
        + misfit / (problem.examples * noise)
    )


@jax.custom_jvp
def _largest(
    features: Float[Array, "examples features"], member: Float[Array, "examples num_classes"]
) -> tuple[Float[Array, " num_classes"], Float[Array, " num_classes"]]:
    """Largest evidence of each class, and the logarithm of the ratio that has it."""
    problem = _reduce(features, member)
    by_examples = features.shape[1] > features.shape[0]

    def value(log_ratio: Float[Array, "rows grid"]) -> Float[Array, "num_classes grid"]:
        return _log_evidence(problem, jnp.exp(log_ratio), by_examples)

    low = max(COARSE[0], math.log(4 * jnp.finfo(features.dtype).eps))
    high = COARSE[1] + jnp.log1p(problem.mean_square)
    grid = jnp.linspace(low, high, COARSE[2], dtype=features.dtype)
    sampled = value(grid[None])
    middle = jnp.clip(jnp.argmax(sampled, axis=1), 1, COARSE[2] - 2)
    around = middle[:, None] + jnp.arange(-1, 2)
    width = grid[1] - grid[0]
    best = grid[middle] + width * _vertex(jnp.take_along_axis(sampled, around, axis=1))

    def nearer(best: Float[Array, " num_classes"], step: Float[Array, ""]) -> Any:
        # Not below what rounding leaves.
        best = jnp.maximum(best, low + step)
        offsets = step * jnp.arange(-1, 2, dtype=best.dtype)
        return best + step * _vertex(value(best[:, None] + offsets)), None

    best, _ = jax.lax.scan(nearer, best, width * jnp.asarray(CLOSER, grid.dtype))
    return value(best[:, None])[:, 0], best + jnp.log(problem.energy)


def _vertex(values: Float[Array, "rows three"]) -> Float[Array, " rows"]:
    """Where, in [-1, 1], parabolas through values at -1, 0 and 1 are highest."""
    left, middle, right = values.T
    curved, rise = left - 2 * middle + right, (right - left) / 2
    vertex = -rise / jnp.where(curved < 0, curved, 1.0)
    return jnp.clip(jnp.where(curved < 0, vertex, jnp.sign(rise)), -1.0, 1.0)


@_largest.defjvp
def _at_the_largest(primals: Any, tangents: Any) -> Any:
    """The best ratio does not move the evidence: only the features do, at that ratio."""
    evidence, log_ratio = _largest(*primals)
    features, member = primals
    known = member.sum(axis=1, keepdims=True) > 0
    examples = jnp.maximum(member.sum(), 1.0)

    def at(features: Array) -> Float[Array, " num_classes"]:
        features = jnp.where(known, features, 0.0)

        def of_class(one: tuple[Array, Array]) -> Float[Array, ""]:
            target, log_ratio = one
            scaled = features * jnp.exp(-log_ratio / 2)
            factor = jnp.linalg.cholesky(scatter(scaled.T) + jnp.eye(len(features)))
            misfit = jnp.sum(jax.scipy.linalg.solve_triangular(factor, target, lower=True) ** 2)
            noise = jnp.maximum(misfit / examples, SMALLEST_NOISE)
            log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))
            return -0.5 * (log_det / examples + jnp.log(noise) + misfit / (examples * noise))

        return jax.lax.map(of_class, (member.T, log_ratio))

    _, change = jax.jvp(at, (features,), (tangents[0],))
    return (evidence, log_ratio), (change, jnp.zeros_like(log_ratio))


def logme(
    outputs: TeacherOutputs, labels: Int[Array, " examples"], num_classes: int
) -> Float[Array, ""]:
    """Largest log evidence of the labels given the features, per example, mean over classes.

    Each class is a regression from the features to 0 or 1 with Gaussian weights and noise,
    whose two precisions are chosen to make the evidence largest. Along the curve on which
    the noise is best in closed form only their ratio is left, which a grid and parabolas
    find; the published fixed point stops after at most 11 steps on the way to the same
    maximum. The published code pairs all features with the singular values of only
    min(examples, features) directions and is too large when there are more features than
    examples; the value here is the exact Gaussian evidence in every case.

    No singular value is computed: a tridiagonal form is enough for every ratio at once, and
    less than half of the work. Single precision knows the squares of singular values to 1e-7 of
    their sum: it agrees with double to 1e-5, to 1e-4 where one example holds nearly all of that
    sum, and to 2e-3 of itself where a nearly perfect fit rests on smaller ones.

    Args:
        outputs: What the teacher says of the examples.
        labels: Class of each example; unlabelled ones (-1) take no part.
        num_classes: Number of classes of the task; those without an example do not count.

    Returns:
        The evidence in nats; NaN for a black box.

    References:
        You, Liu, Wang, Long, LogME: Practical Assessment of Pre-trained Models for Transfer
        Learning, ICML 2021, eq. 2-3.
    """
    if outputs.features is None or outputs.features.shape[-1] == 0:
        return jnp.full((), jnp.nan, outputs.probabilities.dtype)
    member = jax.nn.one_hot(labels, num_classes, dtype=outputs.features.dtype)
    evidence, _ = _largest(outputs.features, member)
    return jnp.mean(evidence, where=member.sum(axis=0) > 0)
