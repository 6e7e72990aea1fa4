"""The labelled part of a teacher's features, as every score of features sees it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fdjax import checks
from fdjax.types import TeacherOutputs

HIGHEST = jax.lax.Precision.HIGHEST


class Labelled(NamedTuple):
    """Features of the labelled examples, ready for scores that shifting does not change.

    A feature that is equal in all labelled examples says nothing, and where it is zero nobody
    can tell it from padding: it does not count as a feature.

    Attributes:
        features: Features less their mean; zero rows for unlabelled examples, zero columns
            for features that do not vary, zero everywhere unless `defined`.
        mean: Mean of each feature over the labelled examples.
        member: One-hot classes; zero rows for unlabelled examples.
        counts: Labelled examples of each class.
        examples: Number of labelled examples.
        varies: Features that differ between labelled examples.
        width: Number of features that vary.
        defined: Whether a score of features has a meaning: they are known and finite, not
            all examples have the same ones, and at least two classes have an example.
    """

    features: Float[Array, "examples features"]
    mean: Float[Array, " features"]
    member: Float[Array, "examples num_classes"]
    counts: Float[Array, " num_classes"]
    examples: Float[Array, ""]
    varies: Bool[Array, " features"]
    width: Float[Array, ""]
    defined: Bool[Array, ""]


def labelled(
    outputs: TeacherOutputs, labels: Int[Array, " examples"], num_classes: int
) -> Labelled:
    """Takes the labelled examples of one teacher; a black box has one feature, undefined.

    Raises:
        InputError: If a label is out of range; not under `jit`.
    """
    checks.labels("labels", labels, num_classes, unlabelled=True)
    features = outputs.features
    if features is None or features.shape[-1] == 0:
        features = jnp.full((labels.shape[0], 1), jnp.nan, outputs.probabilities.dtype)
    member = jax.nn.one_hot(labels, num_classes, dtype=features.dtype)
    known = (labels >= 0)[:, None]
    defined = jnp.isfinite(features).all(where=known)
    features = jnp.where(known & defined, features, 0.0)
    counts = member.sum(axis=0)
    examples = counts.sum()
    mean = features.sum(axis=0) / jnp.maximum(examples, 1.0)
    lowest = jnp.min(features, axis=0, where=known, initial=jnp.inf)
    varies = jnp.max(features, axis=0, where=known, initial=-jnp.inf) > lowest
    return Labelled(
        # Exactly zero where nothing varies: the mean of equal numbers is rounded.
        features=jnp.where(known & varies, features - mean, 0.0),
        mean=mean,
        member=member,
        counts=counts,
        examples=examples,
        varies=varies,
        width=varies.sum(dtype=features.dtype),
        defined=defined & varies.any() & (jnp.sum(counts > 0) > 1),
    )


def class_sums(
    values: Float[Array, "examples columns"], member: Float[Array, "examples num_classes"]
) -> Float[Array, "num_classes columns"]:
    """Sum of the rows of each class."""
    return jnp.matmul(member.T, values, precision=HIGHEST)


def class_means(
    values: Float[Array, "examples columns"], member: Float[Array, "examples num_classes"]
) -> Float[Array, "num_classes columns"]:
    """Mean of the rows of each class; zero for a class without an example."""
    return class_sums(values, member) / jnp.maximum(member.sum(axis=0), 1.0)[:, None]


def scatter(rows: Float[Array, "examples columns"]) -> Float[Array, "columns columns"]:
    """Sum of the outer products of the rows."""
    return jnp.matmul(rows.T, rows, precision=HIGHEST)
