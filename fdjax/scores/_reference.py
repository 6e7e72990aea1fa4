"""How well a teacher's evidence alone tells the label of an example that made no evidence."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fdjax import checks, costs
from fdjax.types import TeacherOutputs


def reference(
    outputs: TeacherOutputs,
    labels: Int[Array, " examples"],
    num_classes: int,
    *,
    smoothing: float = 1.0,
) -> Float[Array, ""]:
    """Mean log-likelihood of each label under the teacher projected by the other labels.

    The assessment that belongs to reference transport: with the class prior as the belief, the
    target of an example is the projected teacher, sum_s p(s|x) P(c|s). It is LEEP with the
    example's own label left out of P(c|s), which LEEP counts in favour of teachers with many
    labels. A teacher that says nothing scores near minus the entropy of the classes.

    Args:
        outputs: What the teacher says of the examples.
        labels: Class of each example; unlabelled ones (-1) take no part.
        num_classes: Number of classes of the task.
        smoothing: Virtual examples of each teacher label, > 0.

    Returns:
        The score in nats, <= 0; NaN for a class without an example.

    References:
        Nguyen et al., LEEP, ICML 2020, eq. 1-2 (the likelihood, nothing left out).
    """
    checks.positive("smoothing", smoothing)
    known = labels >= 0
    probabilities = jnp.where(known[:, None], outputs.probabilities, 0.0)
    guess = costs.leave_one_out_predictor(probabilities, labels, num_classes, smoothing=smoothing)
    member = jax.nn.one_hot(labels, num_classes, dtype=guess.dtype)
    # Rounding may pass one by an ulp, and a likelihood never does.
    likelihood = jnp.minimum(jnp.sum(guess * member, axis=-1), 1.0)
    score = jnp.log(jnp.where(known, likelihood, 1.0)).mean(where=known)
    return jnp.where((member.sum(axis=0) > 0).all(), score, jnp.nan)
