"""Whether examples that the features call alike carry the same label."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fdjax.scores._labelled import HIGHEST, class_sums, labelled, scatter
from fdjax.types import TeacherOutputs


def lfc(
    outputs: TeacherOutputs, labels: Int[Array, " examples"], num_classes: int
) -> Float[Array, ""]:
    """Label-feature correlation: of inner products of features with equality of labels.

    The cosine of the angle between two matrices over pairs of examples, each less its mean
    entry: the inner products, and +1 for equal and -1 for different labels. It is computed
    without any matrix of pairs.

    Args:
        outputs: What the teacher says of the examples.
        labels: Class of each example; unlabelled ones (-1) take no part.
        num_classes: Number of classes of the task; those without an example do not count.

    Returns:
        The correlation, in [-1, 1]; NaN for a black box, features that do not vary and fewer
        than two classes.

    Raises:
        InputError: If a label is out of range.

    References:
        Deshpande et al., A linearized framework and a new benchmark for model selection for
        fine-tuning, 2021.
    """
    sample = labelled(outputs, labels, num_classes)
    examples = jnp.maximum(sample.examples, 1.0)
    # The scale drops out of the cosine, but its fourth power would overflow on the way.
    energy = jnp.sum(sample.features**2)
    scale = jax.lax.rsqrt(jnp.where(energy > 0, energy, 1.0) / examples)
    features, mean = sample.features * scale, sample.mean * scale
    # With features 1 m' + F and u = F m the centred inner products are 1 u' + u 1' + F F'.
    # The cross terms vanish, as the sum of F over the examples does, and so nothing large is
    # subtracted where the mean is far above the spread.
    tilt = jnp.matmul(features, mean, precision=HIGHEST)
    rows, columns = features.shape
    smaller = features if columns <= rows else features.T
    of_features = 2 * examples * jnp.sum(tilt**2) + jnp.sum(scatter(smaller) ** 2)
    same = jnp.sum(sample.counts**2)
    of_labels = 4 * (same - (same / examples) ** 2)
    both = 2 * jnp.sum(class_sums(features, sample.member) ** 2)
    both += 4 * jnp.sum(sample.counts * class_sums(tilt[:, None], sample.member)[:, 0])
    defined = sample.defined & (of_labels > 0)
    bottom = jnp.where(defined, of_features * of_labels, 1.0)
    return jnp.where(defined, both * jax.lax.rsqrt(bottom), jnp.nan)


def parc(
    outputs: TeacherOutputs, labels: Int[Array, " examples"], num_classes: int
) -> Float[Array, ""]:
    """PARC: rank correlation of distances between features with distances between labels.

    The distance of two examples is one less the correlation of their standardised features;
    that of two labels is zero or one. Spearman's correlation over all pairs, ties sharing
    their mean rank. The reference code takes the label distances from a correlation, too, whose
    rounding then breaks ties among them and moves the score by up to 0.8. The paper first keeps
    32 principal components: left out here, because a correlation across components depends on
    their signs, which are arbitrary. A feature that never varies does not count, for it is no
    different from padding; in the reference code it shifts the correlations.

    Time and memory grow with the square of the number of examples. Ranks jump where
    distances meet, so gradients are zero.

    Args:
        outputs: What the teacher says of the examples.
        labels: Class of each example; unlabelled ones (-1) take no part.
        num_classes: Number of classes of the task; those without an example do not count.

    Returns:
        100 times the correlation, in [-100, 100]. NaN for a black box, fewer than two
        features that vary, an example in whose standardised features nothing varies, fewer
        than two classes and classes of one example each.

    Raises:
        InputError: If a label is out of range.

    References:
        Bolya, Mittapalli, Hoffman, Scalable Diverse Model Selection for Accessible Transfer
        Learning, NeurIPS 2021.
    """
    sample = labelled(outputs, labels, num_classes)
    known = sample.member.sum(axis=1) > 0
    examples = known.shape[0]
    variance = jnp.sum(sample.features**2, axis=0) / jnp.maximum(sample.examples, 1.0)
    unit = sample.features * jax.lax.rsqrt(jnp.where(variance > 0, variance, 1.0))
    centre = jnp.sum(unit, axis=1, keepdims=True) / jnp.maximum(sample.width, 1.0)
    unit = jnp.where(sample.varies, unit - centre, 0.0)
    square = jnp.sum(unit**2, axis=1, keepdims=True)
    unit = unit * jax.lax.rsqrt(jnp.where(square > 0, square, 1.0))
    distance = jnp.clip(1.0 - scatter(unit.T), 0.0, 2.0)

    # Non-negative numbers are ordered as their bits are, and integers are sorted several
    # times faster. As none is above two, the first bit is free: whether the labels differ
    # goes along as the last bit.
    word = jnp.dtype(f"uint{8 * distance.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(distance), word)
    key = (bits << 1) | (labels[:, None] != labels).astype(word)
    last_of_all = jnp.asarray(np.iinfo(word).max, word)
    key = jnp.where(known[:, None] & known, key, last_of_all)
    # Row i, shifted by i, starts with the pairs (i, i + 1), (i, i + 2), ...: each pair stands
    # in the first half, those half way round twice.
    step = jnp.arange(1, examples // 2 + 1)
    key = jnp.take_along_axis(key, (jnp.arange(examples)[:, None] + step) % examples, axis=1)
    if examples % 2 == 0:
        key = key.at[examples // 2 :, -1].set(last_of_all)
    key = jnp.sort(key.reshape(-1))

    place = jnp.arange(key.size)
    pairs = jnp.sum(known) * (jnp.sum(known) - 1) // 2
    value = key >> 1
    rises = value[1:] != value[:-1]
    edge = jnp.ones(1, bool)
    first = jax.lax.cummax(jnp.where(jnp.concatenate([edge, rises]), place, 0))
    last = jax.lax.cummin(
        jnp.where(jnp.concatenate([rises, edge]), place, key.size - 1), reverse=True
    )
    # Twice the mean rank less its mean, as a part of the number of pairs.
    rank = (first + last - (pairs - 1)).astype(distance.dtype) / jnp.maximum(pairs, 1)
    counted = place < pairs
    different = jnp.sum(counted & (key & 1 == 1), dtype=rank.dtype)
    spread = jnp.sum(rank**2, where=counted) * different * (1 - different / jnp.maximum(pairs, 1))
    together = jnp.sum(rank, where=counted & (key & 1 == 1))
    defined = sample.defined & (square > 0).all(where=known[:, None]) & (spread > 0)
    return jnp.where(defined, 100 * together / jnp.sqrt(jnp.where(defined, spread, 1.0)), jnp.nan)
