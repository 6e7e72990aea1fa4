"""How much the classes overlap in feature space if each is a Gaussian."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fdjax import checks
from fdjax.scores._labelled import HIGHEST, class_means, labelled
from fdjax.types import TeacherOutputs

# In squared units of the features, as in the reference code; a class of one example has it.
SMALLEST_VARIANCE = 1e-4


def gbc(
    outputs: TeacherOutputs,
    labels: Int[Array, " examples"],
    num_classes: int,
    *,
    covariance: Literal["spherical", "diagonal"] = "spherical",
    logarithm: bool = False,
) -> Float[Array, ""]:
    """Minus the sum of the Bhattacharyya coefficients of all ordered pairs of classes.

    The reference code counts the logarithm of a spherical Gaussian's variance once; here it
    counts once a feature, as in the determinant. A feature that never varies does not count,
    for it is no different from padding. The paper first keeps 64 principal components; here
    all features count.

    Args:
        outputs: What the teacher says of the examples.
        labels: Class of each example; unlabelled ones (-1) take no part.
        num_classes: Number of classes of the task; those without an example do not count.
        covariance: "diagonal" has a variance for each feature; "spherical" one for all,
            their mean.
        logarithm: Give minus the logarithm of the sum. It ranks teachers alike, and still does
            so where many features make every coefficient underflow to zero, as 256 do.

    Returns:
        The score, in [-C (C - 1), 0] for C classes, in nats with `logarithm`; NaN for a black
        box, features that do not vary and fewer than two classes.

    Raises:
        InputError: If `covariance` is unknown or a label is out of range.

    References:
        Pándy et al., Transferability Estimation using Bhattacharyya Class Separability, CVPR
        2022.
    """
    checks.choice("covariance", covariance, ("spherical", "diagonal"))
    sample = labelled(outputs, labels, num_classes)
    means = class_means(sample.features, sample.member)
    residual = sample.features - jnp.matmul(sample.member, means, precision=HIGHEST)
    variance = jnp.maximum(class_means(residual**2, sample.member), SMALLEST_VARIANCE)
    if covariance == "spherical":
        total = jnp.sum(variance, axis=1, where=sample.varies, keepdims=True)
        variance = jnp.broadcast_to(total / jnp.maximum(sample.width, 1.0), variance.shape)
    # Equal variances of a feature that does not count cancel in the distance.
    variance = jnp.where(sample.varies, variance, 1.0)
    present = sample.counts > 0
    logs = jnp.sum(jnp.log(variance), axis=1)

    def of_class(one: tuple[Array, Array, Array, Array]) -> Float[Array, " num_classes"]:
        place, mean, own_variance, own_logs = one
        middle = (variance + own_variance) / 2
        distance = jnp.sum((means - mean) ** 2 / middle, axis=1) / 8
        distance += jnp.sum(jnp.log(middle), axis=1) / 2 - (logs + own_logs) / 4
        pair = present & present[place] & (jnp.arange(num_classes) != place)
        return jnp.where(pair, -distance, -jnp.inf)

    coefficients = jax.lax.map(of_class, (jnp.arange(num_classes), means, variance, logs))
    if logarithm:
        # Without a pair the logarithm is not defined, nor is its gradient.
        pairs = jnp.where(sample.defined, coefficients, 0.0)
        return jnp.where(sample.defined, -jax.nn.logsumexp(pairs), jnp.nan)
    return jnp.where(sample.defined, -jnp.sum(jnp.exp(coefficients)), jnp.nan)
