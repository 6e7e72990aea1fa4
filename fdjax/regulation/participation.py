"""Who takes part in self-regulated learning, how often, and how significant that makes each."""

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fdjax import checks
from fdjax.regulation.looking import Seen, look

Form = Literal["mean_one", "raw", "capped"]
FORMS: tuple[Form, ...] = get_args(Form)


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
            [0, 1]; 1 lets every example take part, 0 the wrong ones only.

    Returns:
        The participants.

    References:
        Data-efficient distillation by self-regulated learning, arXiv 2102.07125 (the rule is
        that of the abstract; a threshold on the probability is our reconstruction).
    """
    return takes_part(look(logits, labels), confidence=confidence)


def takes_part(seen: Seen, *, confidence: float | Float[Array, ""]) -> Bool[Array, " batch"]:
    """The participants, from what the learner showed of them; see `participates`."""
    if checks.is_concrete(confidence):
        checks.in_range("confidence", float(confidence), 0.0, 1.0)
    # "<=" at 1 would let a saturated softmax rest; "not above" keeps everyone in.
    return seen.wrong | (seen.confidence < confidence) | (jnp.asarray(confidence) >= 1.0)


def count(
    counts: Int[Array, " examples"],
    indices: Int[Array, " batch"],
    took_part: Bool[Array, " batch"],
) -> Int[Array, " examples"]:
    """Adds one to the count of every example of the batch that took part."""
    return counts.at[indices].add(took_part.astype(counts.dtype))


def significance(
    counts: Int[Array, " examples"] | Float[Array, " examples"],
    *,
    form: Form = "mean_one",
    cap: float = 2.0,
) -> Float[Array, " examples"]:
    """Weights of the examples: how often each took part, or how much each costs.

    Args:
        counts: How often each took part while a teacher of the same data learnt; or, from a
            teacher of other labels, the transport cost of carrying what it says of an example
            to the example's label. Values >= 0.
        form: "raw" takes them as they are; "mean_one" divides them by their mean over those
            above zero; "capped" does so after it has lowered what is above `cap` times that mean.
        cap: In units of the mean, > 0; for "capped" only.

    Returns:
        Weights >= 0; zero for an example that never took part; all zero if none did.

    Raises:
        InputError: If `form` is unknown or `cap` is not positive.
    """
    checks.choice("form", form, FORMS)
    checks.positive("cap", cap)
    weights = counts.astype(jnp.float32)
    if form == "raw":
        return weights
    used = jnp.maximum(jnp.sum(weights > 0), 1)
    if form == "capped":
        weights = jnp.minimum(weights, cap * weights.sum() / used)
    # The least normal number, and not 1: costs may be small.
    return weights * used / jnp.maximum(weights.sum(), jnp.finfo(weights.dtype).tiny)
