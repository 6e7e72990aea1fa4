"""Scores that need no more than the teacher's predictions and the labels."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fdjax.types import TeacherOutputs


def leep(
    outputs: TeacherOutputs, labels: Int[Array, " examples"], num_classes: int
) -> Float[Array, ""]:
    """Mean log-likelihood of the labels under the teacher read through P(label | teacher label).

    The conditional P(y|z) is counted from the same examples. A teacher label that is never
    predicted contributes nothing, as in the limit; the reference code gives NaN there.

    Args:
        outputs: What the teacher says of the examples.
        labels: Class of each example; unlabelled ones (-1) take no part.
        num_classes: Number of classes of the task.

    Returns:
        The score in nats, <= 0.

    References:
        Nguyen, Hassner, Seeger, Archambeau, LEEP, ICML 2020, eq. 1-2.
    """
    known = labels >= 0
    probabilities = jnp.where(known[:, None], outputs.probabilities, 0.0)
    member = jax.nn.one_hot(labels, num_classes, dtype=probabilities.dtype)
    joint = jnp.einsum("nz,nc->zc", probabilities, member, precision=jax.lax.Precision.HIGHEST)
    mass = probabilities.sum(axis=0)[:, None]
    # The inner `where` keeps the gradient of the unused branch finite.
    conditional = jnp.where(mass > 0, joint / jnp.where(mass > 0, mass, 1.0), 0.0)
    likelihood = jnp.sum(probabilities * conditional.T[labels], axis=-1)
    return jnp.log(jnp.where(known, likelihood, 1.0)).mean(where=known)


def nce(
    outputs: TeacherOutputs, labels: Int[Array, " examples"], num_classes: int
) -> Float[Array, ""]:
    """Minus the entropy of the labels that the teacher's hard predictions leave open.

    Args:
        outputs: What the teacher says of the examples; its most likely label counts.
        labels: Class of each example; unlabelled ones (-1) take no part.
        num_classes: Number of classes of the task.

    Returns:
        The negative conditional entropy -H(label | teacher label) in nats, <= 0.

    References:
        Tran, Nguyen, Hassner, Transferability and Hardness of Supervised Classification
        Tasks, ICCV 2019, eq. 6.
    """
    known = labels >= 0
    probabilities = jnp.where(known[:, None], outputs.probabilities, 0.0)
    predicted = jnp.argmax(probabilities, axis=-1)
    counts = jnp.zeros((probabilities.shape[-1], num_classes), probabilities.dtype)
    counts = counts.at[predicted, labels].add(known.astype(probabilities.dtype))
    entropy = jnp.log(counts.sum(axis=-1)[predicted]) - jnp.log(counts[predicted, labels])
    return jnp.where(jnp.isnan(probabilities).any(), jnp.nan, -entropy.mean(where=known))
