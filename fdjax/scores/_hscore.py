"""How much of the features' variance the classes explain, in units of that variance."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fdjax.scores._labelled import HIGHEST, class_means, labelled, scatter
from fdjax.types import TeacherOutputs

# Steps of iterated Tikhonov regularisation: a direction whose variance is t times the ridge
# is counted to a part of (1 + t) ** -STEPS.
STEPS = 8


def _pseudo_solve(
    matrix: Float[Array, "size size"],
    right: Float[Array, "size columns"],
    ridge: Float[Array, ""],
) -> Float[Array, "size columns"]:
    """Pseudo-inverse of a positive semi-definite matrix times `right`, which is in its range.

    A ridge makes the matrix safe to factorise and a few corrections take its effect away
    again, which costs a fraction of the eigenvectors.
    """
    factor = jax.scipy.linalg.cho_factor(matrix + ridge * jnp.eye(len(matrix), dtype=matrix.dtype))
    solution = jnp.zeros_like(right)
    for _ in range(STEPS):
        rest = right - jnp.matmul(matrix, solution, precision=HIGHEST)
        solution = solution + jax.scipy.linalg.cho_solve(factor, rest)
    return solution


def hscore(
    outputs: TeacherOutputs, labels: Int[Array, " examples"], num_classes: int
) -> Float[Array, ""]:
    """H-score tr(cov(features)^-1 cov(class means)).

    The inverse is a pseudo-inverse: directions without variance do not count. With as many
    features as examples the score is the number of classes less one for every teacher and says
    nothing; take `regularised_hscore` there. Classes without an example do not count.

    Args:
        outputs: What the teacher says of the examples.
        labels: Class of each example; unlabelled ones (-1) take no part.
        num_classes: Number of classes of the task.

    Returns:
        The score, in [0, num_classes - 1]; NaN for a black box, features that do not vary and
        fewer than two classes.

    Raises:
        InputError: If a label is out of range.

    References:
        Bao et al., An Information-Theoretic Approach to Transferability in Task Transfer
        Learning, ICIP 2019.
    """
    sample = labelled(outputs, labels, num_classes)
    # The score is the same in any units of the features, and equal ones condition best.
    variance = jnp.sum(sample.features**2, axis=0) / sample.examples
    spread = jnp.where(variance > 0, variance, 1.0)
    features = sample.features * jax.lax.rsqrt(spread)
    weight = jnp.sqrt(sample.counts / sample.examples)[:, None]
    means = (weight * class_means(features, sample.member)).T
    total = scatter(features) / sample.examples
    ridge = 4 * jnp.finfo(features.dtype).eps * jnp.maximum(sample.width, 1.0)
    score = jnp.sum(means * _pseudo_solve(total, means, ridge))
    return jnp.where(sample.defined, score, jnp.nan)


def regularised_hscore(
    outputs: TeacherOutputs, labels: Int[Array, " examples"], num_classes: int
) -> Float[Array, ""]:
    """H-score with the covariance shrunk towards a multiple of one, after Ledoit and Wolf.

    With shrinkage a in [0, 1] it is (1 - a) tr(cov_a(features)^-1 cov(class means)), and it
    tells teachers apart also where there are more features than examples. As in the reference
    code the covariance of the features is divided by the number of examples n and that of the
    means by n - 1. Other than there a feature that never varies does not count: it is no
    different from padding, and the target of the shrinkage would depend on it.

    Args:
        outputs: What the teacher says of the examples.
        labels: Class of each example; unlabelled ones (-1) take no part.
        num_classes: Number of classes of the task; those without an example do not count.

    Returns:
        The score, >= 0; NaN for a black box, features that do not vary and fewer than two
        classes.

    Raises:
        InputError: If a label is out of range.

    References:
        Ibrahim, Ponomareva, Mazumder, Newer is not always better: Rethinking transferability
        metrics, their peculiarities, stability and performance, ECML PKDD 2022; Ledoit, Wolf,
        A well-conditioned estimator for large-dimensional covariance matrices, 2004.
    """
    sample = labelled(outputs, labels, num_classes)
    examples, width = sample.examples, jnp.maximum(sample.width, 1.0)
    # In units of the mean variance, the target of the shrinkage is one.
    unit = jnp.sum(sample.features**2) / (examples * width)
    features = sample.features * jax.lax.rsqrt(jnp.where(unit > 0, unit, 1.0))
    covariance = scatter(features) / examples
    square = jnp.sum(covariance**2)
    fourth = jnp.sum(jnp.sum(features**2, axis=1) ** 2) / examples
    distance = square - width
    noise = jnp.minimum((fourth - square) / examples, distance)
    shrinkage = jnp.where(noise > 0, noise / jnp.where(distance > 0, distance, 1.0), 0.0)
    # Ones for features that do not vary keep the matrix regular; their means are zero.
    target = jnp.diag(jnp.where(sample.varies, shrinkage, 1.0))
    factor = jax.scipy.linalg.cho_factor((1 - shrinkage) * covariance + target)
    weight = jnp.sqrt(sample.counts / jnp.maximum(examples - 1, 1.0))[:, None]
    means = (weight * class_means(features, sample.member)).T
    score = (1 - shrinkage) * jnp.sum(means * jax.scipy.linalg.cho_solve(factor, means))
    return jnp.where(sample.defined, score, jnp.nan)
