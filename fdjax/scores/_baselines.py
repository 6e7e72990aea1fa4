"""Scores that never look at the task: what a metric has to beat."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fdjax.types import TeacherOutputs


def source_accuracy(
    outputs: TeacherOutputs, labels: Int[Array, " examples"], num_classes: int
) -> Float[Array, ""]:
    """Teacher's accuracy, in [0, 1], on the task it was trained for; NaN where unknown."""
    del labels, num_classes
    return jnp.asarray(outputs.source_accuracy, outputs.probabilities.dtype)


def size(
    outputs: TeacherOutputs, labels: Int[Array, " examples"], num_classes: int
) -> Float[Array, ""]:
    """Natural logarithm of the number of trained parameters; NaN where unknown."""
    del labels, num_classes
    return jnp.log(jnp.asarray(outputs.num_parameters, outputs.probabilities.dtype))


def random(
    outputs: TeacherOutputs, labels: Int[Array, " examples"], num_classes: int, *, seed: int = 0
) -> Float[Array, ""]:
    """A number from [0, 1) that depends on nothing but the seed and the teacher's predictions.

    A ranking by chance, the same every time. Two teachers with equal predictions get the
    same number, whatever the order of examples and labels, and so does a padded teacher.

    Args:
        outputs: What the teacher says of the examples.
        labels: Only which examples are labelled; unlabelled ones (-1) take no part.
        num_classes: Not used.
        seed: Another seed gives another ranking.
    """
    del num_classes
    probabilities = jnp.where(labels[:, None] >= 0, outputs.probabilities, 0.0)
    bits = jax.lax.bitcast_convert_type(probabilities.astype(jnp.float32), jnp.uint32)
    # Zero has no bit set and the sum wraps around: neither padding nor order can change it.
    key = jax.random.fold_in(jax.random.key(seed), jnp.sum(bits, dtype=jnp.uint32))
    return jax.random.uniform(key, dtype=outputs.probabilities.dtype)
