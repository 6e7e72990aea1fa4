"""Losses on how the images of a batch relate to each other, in the student and in the teacher.

Each returns one value an example, the part that the example's own relations have; their mean
over the batch is the published loss.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fdjax import checks
from fdjax.losses.pairs import EXACT, check_relations, inner_products, unit


def similarity(
    student: Float[Array, "batch ..."], teacher: Float[Array, "batch ..."]
) -> Float[Array, " batch"]:
    """Similarity preserving: images that look alike to the teacher look alike to the student.

    The similarities of an image are its inner products with all images of the batch, divided
    by their length.

    Args:
        student: Maps or features; flattened.
        teacher: Maps or features, of any other size.

    Returns:
        For each example the squared difference of its similarities, divided by the number of
        images: their mean is the paper's loss. RepDistiller's weight is 3000.

    Raises:
        InputError: If the batch has fewer than two images, or the sides' batches differ.

    References:
        Tung, Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019.
    """
    check_relations("similarity", student, teacher, vectors=False)

    def similarities(array: Float[Array, "batch ..."]) -> Float[Array, "batch batch"]:
        return unit(inner_products(array.reshape(array.shape[0], -1)))

    return jnp.mean((similarities(student) - similarities(teacher)) ** 2, axis=1)


def correlation(
    student: Float[Array, "batch features"], teacher: Float[Array, "batch features"]
) -> Float[Array, " batch"]:
    """Correlation congruence of neighbours in the batch: |d_i| . |d_j|, d = student - teacher.

    The order of the batch counts, which is drawn anew at each step.

    Args:
        student: Embedded features.
        teacher: Embedded features, of the same size.

    Returns:
        Half the value of each pair to each of its two images, so scaled that their mean is
        the mean over pairs. RepDistiller's weight is 0.02.

    Raises:
        InputError: If the batch has fewer than two images, or the shapes differ.

    References:
        Peng et al., Correlation Congruence for Knowledge Distillation, ICCV 2019, in the form
        of RepDistiller, which has it from an author.
    """
    check_relations("correlation", student, teacher)
    checks.require(
        student.shape == teacher.shape,
        f"`correlation` compares features of one size, got {student.shape[-1]} of the student and "
        f"{teacher.shape[-1]} of the teacher; embed both, as the objective of this name does.",
    )
    gap = jnp.abs(student - teacher)
    pairs = jnp.sum(gap[:-1] * gap[1:], axis=1)
    share = len(student) / (2 * (len(student) - 1))
    return share * (jnp.pad(pairs, (0, 1)) + jnp.pad(pairs, (1, 0)))


def _huber(gap: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """gap^2 / 2 up to 1, then |gap| - 1/2."""
    size = jnp.abs(gap)
    return jnp.where(size < 1, 0.5 * gap**2, size - 0.5)


def _relative_distances(features: Float[Array, "batch features"]) -> Float[Array, "batch batch"]:
    """Distances of all pairs, divided by their mean; zero on the diagonal."""
    batch = len(features)
    # Distances do not see the mean, but the rounding of the inner products does.
    centred = features - jax.lax.stop_gradient(features.mean(axis=0))
    inner = inner_products(centred)
    length = jnp.diagonal(inner)
    square = length[:, None] + length - 2 * inner
    # Equal images are 1e-6 apart, as in the authors' code, and no gradient passes.
    apart = square > 1e-12
    distance = jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), 1e-6)
    distance = jnp.where(jnp.eye(batch, dtype=bool), 0.0, distance)
    return distance / (distance.sum() / (batch * (batch - 1)))


def rkd_distance(
    student: Float[Array, "batch student_features"], teacher: Float[Array, "batch teacher_features"]
) -> Float[Array, " batch"]:
    """Relational distillation of distances: images are as far apart as to the teacher.

    Distances of two images are divided by their mean over the batch, so that the scale of
    the features plays no part.

    Args:
        student: Features.
        teacher: Features, of any other size.

    Returns:
        For each example the mean over the batch of Huber's loss between the distances from
        it. The authors' weight is 25.

    Raises:
        InputError: If the batch has fewer than two images, or the sides' batches differ.

    References:
        Park, Kim, Lu, Cho, Relational Knowledge Distillation, CVPR 2019, the distance-wise loss.
    """
    check_relations("rkd_distance", student, teacher)
    gap = _relative_distances(student) - _relative_distances(teacher)
    return jnp.mean(_huber(gap), axis=1)


def _cosines(
    features: Float[Array, "batch features"], shortest: float
) -> Float[Array, "batch batch batch"]:
    """Cosine of the angle at image i between images j and k, as [i, j, k]."""
    side = features[None] - features[:, None]
    square = jnp.sum(side**2, axis=-1, keepdims=True)
    long = square > shortest**2
    direction = side * jnp.where(long, jax.lax.rsqrt(jnp.where(long, square, 1.0)), 1 / shortest)
    return jnp.einsum("ijd,ikd->ijk", direction, direction, precision=EXACT)


def rkd_angle(
    student: Float[Array, "batch student_features"],
    teacher: Float[Array, "batch teacher_features"],
    *,
    shortest: float = 1e-12,
) -> Float[Array, " batch"]:
    """Relational distillation of angles: three images make the angles that the teacher sees.

    Args:
        student: Features.
        teacher: Features, of any other size.
        shortest: Differences of two images shorter than this, in units of the features, are
            divided by it and not by their length; > 0. The authors' 1e-12 never matters but
            for images that are equal to the student and not to the teacher: on these it lets
            a gradient of the order of 1 / `shortest` act, which no training survives, so the
            objective `rkd` takes more.

    Returns:
        For each example the mean over pairs of images of Huber's loss between the cosines of
        the angles at it. The authors' weight is 50. Takes memory for batch^3 numbers.

    Raises:
        InputError: If the batch has fewer than three images, the sides' batches differ, or
            `shortest` is not positive.

    References:
        Park, Kim, Lu, Cho, Relational Knowledge Distillation, CVPR 2019, the angle-wise loss.
    """
    check_relations("rkd_angle", student, teacher, smallest=3)
    checks.positive("shortest", shortest)
    gap = _cosines(student, shortest) - _cosines(teacher, shortest)
    return jnp.mean(_huber(gap), axis=(1, 2))


def pkt(
    student: Float[Array, "batch student_features"],
    teacher: Float[Array, "batch teacher_features"],
    *,
    epsilon: float = 1e-7,
) -> Float[Array, " batch"]:
    """Probabilistic knowledge transfer: an image has the neighbours that the teacher gives it.

    The probability that an image picks another (or itself) is proportional to 1 + the cosine
    of their features.

    Args:
        student: Features; an image of zeros is at a right angle to all, and no gradient passes.
        teacher: Features, of any other size.
        epsilon: Added to lengths and to probabilities, > 0.

    Returns:
        For each example the divergence of the student's probabilities from the teacher's in
        nats, divided by the number of images as in the authors' code: small, whence
        RepDistiller's weight of 30000.

    Raises:
        InputError: If the batch has fewer than two images, the sides' batches differ, or
            `epsilon` is not positive.

    References:
        Passalis, Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer,
        ECCV 2018, with the cosine kernel.
    """
    check_relations("pkt", student, teacher)
    checks.positive("epsilon", epsilon)

    def probabilities(features: Float[Array, "batch features"]) -> Float[Array, "batch batch"]:
        square = jnp.sum(features**2, axis=1, keepdims=True)
        some = square > 0
        length = jnp.sqrt(jnp.where(some, square, 1.0)) + epsilon
        direction = jnp.where(some, features / length, 0.0)
        kernel = (inner_products(direction) + 1) / 2
        return kernel / kernel.sum(axis=1, keepdims=True)

    wanted, got = probabilities(teacher), probabilities(student)
    return jnp.mean(wanted * jnp.log((wanted + epsilon) / (got + epsilon)), axis=1)
