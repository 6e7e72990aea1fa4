"""How sure linear discriminants in the feature space are of the labels."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fdjax import checks
from fdjax.scores._labelled import HIGHEST, Labelled, class_means, labelled, scatter
from fdjax.types import TeacherOutputs

LEAST_SHRINKAGE = 1e-10
POWER_STEPS = 5


def _norm(vector: Float[Array, " features"]) -> Float[Array, ""]:
    square = jnp.sum(vector**2)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def _shrinkage(within: Float[Array, "features features"]) -> Float[Array, ""]:
    """exp(-5 e) for the largest eigenvalue e as a few power steps find it.

    As few as in the reference code, and from the same start: the shrinkage is part of the
    score's definition, and at a small e it depends on how far the iteration came.
    """
    vector = within.sum(axis=1)
    for _ in range(POWER_STEPS):
        vector = jnp.matmul(within, vector, precision=HIGHEST)
        norm = _norm(vector)
        vector = vector / jnp.where(norm > 0, norm, 1.0)
    largest = _norm(jnp.matmul(within, vector, precision=HIGHEST))
    return jnp.maximum(jnp.exp(-5 * largest), LEAST_SHRINKAGE)


def _within(
    features: Float[Array, "examples features"], sample: Labelled
) -> Float[Array, "features features"]:
    """Covariance of the features about the means of their classes."""
    means = class_means(features, sample.member)
    residual = features - jnp.matmul(sample.member, means, precision=HIGHEST)
    return scatter(residual) / jnp.maximum(sample.examples, 1.0)


def _posterior(
    features: Float[Array, "examples features"], sample: Labelled, shrinkage: Float[Array, ""]
) -> Float[Array, "examples num_classes"]:
    """Class probabilities by discriminants of the class means and the shrunk covariance.

    The reference code goes through generalised eigenvectors, which cancel: its classifier is
    `means @ inverse(covariance)`.
    """
    means = class_means(features, sample.member)
    within = _within(features, sample)
    trace = jnp.trace(within)
    variance = trace / jnp.maximum(sample.width, 1.0)
    # Below the rounding of the covariance no shrinkage would keep it regular.
    shrinkage = jnp.maximum(shrinkage, 4 * jnp.finfo(within.dtype).eps * sample.width)
    # Ones where nothing varies (or where a class is one point) keep the matrix regular.
    usual = sample.varies & (trace > 0)
    diagonal = jnp.diag(jnp.where(usual, shrinkage * variance, 1.0))
    factor = jax.scipy.linalg.cho_factor((1 - shrinkage) * within + diagonal)
    weights = jax.scipy.linalg.cho_solve(factor, means.T)
    present = sample.counts > 0
    prior = jnp.where(present, sample.counts, 1.0) / jnp.maximum(sample.examples, 1.0)
    constant = jnp.log(prior) - jnp.sum(means.T * weights, axis=0) / 2
    evidence = jnp.matmul(features, weights, precision=HIGHEST) + constant
    return jax.nn.softmax(jnp.where(present, evidence, -jnp.inf))


def _away_from_others(
    features: Float[Array, "examples features"],
    posterior: Float[Array, "examples num_classes"],
    sample: Labelled,
) -> Float[Array, "examples features"]:
    """Features mixed with the mean of the other classes' means, the more the less sure."""
    present = sample.counts > 0
    sure = jax.nn.softmax(jnp.where(present, posterior, -jnp.inf))
    sure = jnp.sum(sure * sample.member, axis=1, keepdims=True)
    means = class_means(features, sample.member)
    others = (means.sum(axis=0) - means) / jnp.maximum(jnp.sum(present) - 1, 1)
    # An unlabelled row is of no class, and stays zero.
    return sure * features + (1 - sure) * jnp.matmul(sample.member, others, precision=HIGHEST)


def _mean_probability(
    posterior: Float[Array, "examples num_classes"], sample: Labelled
) -> Float[Array, ""]:
    """Mean probability of the label; NaN also where each class is a single point."""
    mean = jnp.sum(posterior * sample.member) / jnp.maximum(sample.examples, 1.0)
    spread = jnp.trace(_within(sample.features, sample)) > 0
    return jnp.where(sample.defined & spread, mean, jnp.nan)


def sfda(
    outputs: TeacherOutputs, labels: Int[Array, " examples"], num_classes: int
) -> Float[Array, ""]:
    """SFDA: mean probability of the label under Fisher discriminants on hardened features.

    Regularised linear discriminants are fitted; each example is then moved towards the mean
    of the other classes, the more the less sure they are of its label; the score is the mean
    probability that discriminants fitted anew, with the same shrinkage, give to the labels.
    The shrinkage depends on the scale of the features. A feature that never varies does not
    count. Where there are not many more examples than features the score is one for every
    teacher and says nothing.

    Args:
        outputs: What the teacher says of the examples.
        labels: Class of each example; unlabelled ones (-1) take no part.
        num_classes: Number of classes of the task; those without an example do not count.

    Returns:
        The score, in [0, 1]; NaN for a black box, features that do not vary (within any
        class) and fewer than two classes.

    Raises:
        InputError: If a label is out of range.

    References:
        Shao et al., Not All Models Are Equal: Predicting Model Transferability in a
        Self-challenging Fisher Space, ECCV 2022.
    """
    sample = labelled(outputs, labels, num_classes)
    shrinkage = _shrinkage(_within(sample.features, sample))
    first = _posterior(sample.features, sample, shrinkage)
    hardened = _away_from_others(sample.features, first, sample)
    return _mean_probability(_posterior(hardened, sample, shrinkage), sample)


def etran_lda(
    outputs: TeacherOutputs, labels: Int[Array, " examples"], num_classes: int
) -> Float[Array, ""]:
    """Classification part of ETran: mean probability of the label under linear discriminants.

    The first stage of `sfda`. The reference code gives a symmetric eigen-solver a matrix that
    is not symmetric, so that the covariance drops out and the nearest class mean decides;
    here it is the linear discriminant that the paper describes.

    Args:
        outputs: What the teacher says of the examples.
        labels: Class of each example; unlabelled ones (-1) take no part.
        num_classes: Number of classes of the task; those without an example do not count.

    Returns:
        The score, in [0, 1]; NaN for a black box, features that do not vary (within any
        class) and fewer than two classes.

    Raises:
        InputError: If a label is out of range.

    References:
        Gholami et al., ETran: Energy-Based Transferability Estimation, ICCV 2023.
    """
    sample = labelled(outputs, labels, num_classes)
    shrinkage = _shrinkage(_within(sample.features, sample))
    return _mean_probability(_posterior(sample.features, sample, shrinkage), sample)


def etran_energy(
    outputs: TeacherOutputs,
    labels: Int[Array, " examples"],
    num_classes: int,
    *,
    share: float = 0.005,
) -> Float[Array, ""]:
    """Energy part of ETran: mean log-sum-exp of the features where it is lowest.

    Over the `share` of the labelled examples in which it is lowest, at least one of them (the
    reference code averages none below 200 examples and gives NaN). A feature that is zero in
    all labelled examples does not count: it is no different from padding.

    Args:
        outputs: What the teacher says of the examples.
        labels: Class of each example; unlabelled ones (-1) take no part.
        num_classes: Number of classes of the task.
        share: Part of the examples to average, in (0, 1].

    Returns:
        The score in nats; NaN for a black box, features that do not vary and fewer than two
        classes.

    Raises:
        InputError: If `share` does not fit or a label is out of range.

    References:
        Gholami et al., ETran: Energy-Based Transferability Estimation, ICCV 2023.
    """
    checks.positive("share", share)
    checks.in_range("share", share, 0.0, 1.0)
    sample = labelled(outputs, labels, num_classes)
    counts_in = sample.varies | (sample.mean != 0)
    features = jnp.where(counts_in, sample.features + sample.mean, -jnp.inf)
    # Without any feature there is no energy, and its gradient would be NaN elsewhere, too.
    energy = jax.nn.logsumexp(jnp.where(sample.defined, features, 0.0), axis=1)
    known = sample.member.sum(axis=1) > 0
    energy = jnp.sort(jnp.where(known, energy, jnp.inf))
    # A thousandth on top, as 0.005 times 200 may be just below one.
    lowest = jnp.maximum(jnp.floor(share * sample.examples + 1e-3), 1.0)
    taken = jnp.arange(energy.shape[0]) < lowest
    mean = jnp.sum(energy, where=taken & jnp.isfinite(energy)) / lowest
    return jnp.where(sample.defined, mean, jnp.nan)


def etran(
    energy: Float[Array, " teachers"], lda: Float[Array, " teachers"]
) -> Float[Array, " teachers"]:
    """ETran score of each teacher of a set, from its two parts.

    Each part is stretched to [0, 1] over the set, so that the score of one teacher depends on
    the others: it is no score of one teacher's outputs and not in `SCORES`.

    Args:
        energy: `etran_energy` of each teacher.
        lda: `etran_lda` of each teacher.

    Returns:
        0.15 of the stretched energy and 0.85 of the stretched discriminant part, in [0, 1];
        NaN where a part is. A part that is equal for all teachers adds nothing.

    References:
        Gholami et al., ETran: Energy-Based Transferability Estimation, ICCV 2023 (the
        weights are those of the authors' code).
    """

    def stretched(part: Float[Array, " teachers"]) -> Float[Array, " teachers"]:
        least, most = jnp.nanmin(part), jnp.nanmax(part)
        return (part - least) / jnp.where(most > least, most - least, 1.0)

    return 0.15 * stretched(energy) + 0.85 * stretched(lda)
