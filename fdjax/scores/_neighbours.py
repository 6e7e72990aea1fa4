"""How well the nearest neighbours in the teacher's feature space foretell the labels."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fdjax import checks
from fdjax.types import TeacherOutputs


def knn(
    outputs: TeacherOutputs, labels: Int[Array, " examples"], num_classes: int, *, k: int = 1
) -> Float[Array, ""]:
    """Leave-one-out accuracy of the k nearest neighbours by cosine similarity.

    The neighbours vote; among classes with as many votes the one of the nearest neighbour
    wins. Memory grows with the square of the number of examples.

    Args:
        outputs: What the teacher says of the examples.
        labels: Class of each example; unlabelled ones (-1) take no part.
        num_classes: Number of classes of the task.
        k: Number of neighbours, at least 1 and below the number of examples.

    Returns:
        The accuracy in [0, 1]; NaN for a black box and for no more than `k` labelled examples.

    Raises:
        InputError: If `k` does not fit.

    References:
        Bolya, Mittapalli, Hoffman, Scalable Diverse Model Selection for Accessible Transfer
        Learning, NeurIPS 2021 (1-NN as a baseline).
    """
    if outputs.features is None or outputs.features.shape[-1] == 0:
        return jnp.full((), jnp.nan, outputs.probabilities.dtype)
    known = labels >= 0
    features = jnp.where(known[:, None], outputs.features, 0.0)
    checks.require(
        1 <= k < features.shape[0],
        f"`k` must be at least 1 and below the {features.shape[0]} examples, got {k}.",
    )
    square = jnp.sum(features**2, axis=-1, keepdims=True)
    # A zero vector stays zero: it is as far from everything as a right angle.
    unit = features * jax.lax.rsqrt(jnp.where(square > 0, square, 1.0))
    similarity = jnp.matmul(unit, unit.T, precision=jax.lax.Precision.HIGHEST)
    others = known & ~jnp.eye(features.shape[0], dtype=bool)
    similarity = jnp.where(others, similarity, -jnp.inf)
    _, nearest = jax.lax.top_k(similarity, k)
    # Extra votes of 1/4, 1/8, ... sum to less than one: they only part equal votes.
    ballots = 1.0 + 0.5 ** jnp.arange(2, k + 2, dtype=features.dtype)
    votes = jax.nn.one_hot(labels[nearest], num_classes, dtype=features.dtype)
    elected = jnp.argmax(jnp.einsum("nkc,k->nc", votes, ballots), axis=-1)
    accuracy = jnp.mean(elected == labels, dtype=features.dtype, where=known)
    defined = ~jnp.isnan(features).any() & (jnp.sum(known) > k)
    return jnp.where(defined, accuracy, jnp.nan)
