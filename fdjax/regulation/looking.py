"""What a learner shows of each example when it looks at it, and what is remembered of that."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Seen(NamedTuple):
    """What a learner showed of examples when it last looked at them.

    An unlabelled example is measured against the class predicted for it, and is not wrong.

    Attributes:
        confidence: Probability of the predicted class.
        wrong: Whether another class is predicted than the label's.
        loss: Cross-entropy, in nats.
        entropy: Of the prediction, in nats.
        error_norm: Euclidean length of prediction minus label; the EL2N score.
        gradient_norm: Length of the gradient of the cross-entropy by the last linear layer, a
            part of the GraNd score; by its bias alone where the learner shows no features.
        learnt: Whether it was right at any look.
        forgotten: Looks at which it was wrong after it had been right at the look before.
    """

    confidence: Float[Array, " examples"]
    wrong: Bool[Array, " examples"]
    loss: Float[Array, " examples"]
    entropy: Float[Array, " examples"]
    error_norm: Float[Array, " examples"]
    gradient_norm: Float[Array, " examples"]
    learnt: Bool[Array, " examples"]
    forgotten: Int[Array, " examples"]


def never_seen(num_examples: int) -> Seen:
    """What is known before the first look: nothing, so that every example comes first."""
    infinite = jnp.full(num_examples, jnp.inf)
    return Seen(
        confidence=jnp.zeros(num_examples),
        wrong=jnp.ones(num_examples, bool),
        loss=infinite,
        entropy=infinite,
        error_norm=infinite,
        gradient_norm=infinite,
        learnt=jnp.zeros(num_examples, bool),
        forgotten=jnp.zeros(num_examples, jnp.int32),
    )


def look(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    features: Float[Array, "batch features"] | None = None,
    *,
    before: Seen | None = None,
) -> Seen:
    """What a learner shows of a batch.

    Args:
        logits: The learner's own prediction.
        labels: True classes; -1 where unknown.
        features: Input of its last linear layer.
        before: What was known of these examples; nothing if None.

    References:
        Toneva et al., An empirical study of example forgetting, ICLR 2019; Paul, Ganguli,
        Dziugaite, Deep learning on a data diet, NeurIPS 2021 (EL2N, GraNd).
    """
    before = never_seen(logits.shape[0]) if before is None else before
    predicted = jnp.argmax(logits, axis=-1)
    known = labels >= 0
    wrong = (predicted != labels) & known
    log_p = jax.nn.log_softmax(logits)
    p = jnp.exp(log_p)
    target = jax.nn.one_hot(jnp.where(known, labels, predicted), logits.shape[-1])
    error_norm = jnp.linalg.norm(p - target, axis=-1)
    # The gradient by weights and bias is the outer product of (p - target) and (features, 1).
    inputs = 1.0 if features is None else jnp.sqrt(1.0 + jnp.sum(features**2, axis=-1))
    return Seen(
        confidence=p.max(axis=-1),
        wrong=wrong,
        loss=-jnp.sum(jnp.where(target > 0, log_p, 0.0), axis=-1),
        # 0 log 0 is zero, but a logit of -inf would make it NaN.
        entropy=-jnp.sum(jnp.where(p > 0, p * log_p, 0.0), axis=-1),
        error_norm=error_norm,
        gradient_norm=error_norm * inputs,
        learnt=before.learnt | (known & ~wrong),
        # Before the first look all are wrong, so none is forgotten then.
        forgotten=before.forgotten + (wrong & ~before.wrong),
    )


def remember(memory: Seen, indices: Int[Array, " batch"], seen: Seen) -> Seen:
    """The memory of all examples after a look at some of them."""
    return jax.tree.map(lambda old, new: old.at[indices].set(new), memory, seen)
