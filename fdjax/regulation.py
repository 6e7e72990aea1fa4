"""Self-regulated learning: which examples take part, and how significant that makes them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fdjax import checks


def participates(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    *,
    confidence: float | Float[Array, ""],
) -> Bool[Array, " batch"]:
    """True for examples that are misclassified, or classified with too little confidence.

    Args:
        logits: The learner's own prediction.
        labels: True classes; an unlabelled example (-1) cannot be misclassified.
        confidence: Least probability of the predicted class at which an example rests, in
            [0, 1]; 1 lets every example take part (up to rounding), 0 the wrong ones only.

    Returns:
        The participants.

    References:
        Data-efficient distillation by self-regulated learning, arXiv 2102.07125 (the rule is
        that of the abstract; a threshold on the probability is our reconstruction).
    """
    if checks.is_concrete(confidence):
        checks.in_range("confidence", float(confidence), 0.0, 1.0)
    wrong = (jnp.argmax(logits, axis=-1) != labels) & (labels >= 0)
    # "<=" at 1 would let a saturated softmax rest; "not above" keeps everyone in.
    unsure = jax.nn.softmax(logits).max(axis=-1) < confidence
    return wrong | unsure | (jnp.asarray(confidence) >= 1.0)


def count(
    counts: Int[Array, " examples"],
    indices: Int[Array, " batch"],
    took_part: Bool[Array, " batch"],
) -> Int[Array, " examples"]:
    """Adds one to the count of every example of the batch that took part."""
    return counts.at[indices].add(took_part.astype(counts.dtype))


def significance(counts: Int[Array, " examples"]) -> Float[Array, " examples"]:
    """Weights of the examples: how often each took part, with mean one over those that did.

    Returns:
        Weights >= 0; zero for an example that never took part; all zero if none did.
    """
    counts = counts.astype(jnp.float32)
    used = jnp.sum(counts > 0)
    return counts * used / jnp.maximum(counts.sum(), 1.0)
