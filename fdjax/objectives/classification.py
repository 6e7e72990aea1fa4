"""Objectives over labels, and over a teacher's logits for the same labels."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from fdjax import losses
from fdjax.objectives.base import Objective, stateless
from fdjax.types import Batch, Outputs


def cross_entropy() -> Objective:
    """Cross-entropy of the labelled examples.

    Each labelled example weighs batch / labelled, so that the mean over the batch is the
    mean over its labelled examples, however many unlabelled ones stand beside them.
    """

    def loss(batch: Batch, student: Outputs, teacher: Outputs) -> Float[Array, " batch"]:
        labelled = jnp.sum(batch.labels >= 0)
        share = batch.labels.shape[0] / jnp.maximum(labelled, 1)
        return share * losses.cross_entropy(student.logits, batch.labels)

    return stateless(loss)


def kd(*, temperature: float = 4.0) -> Objective:
    """Hinton's distillation for one label space; see `losses.kd`."""
    return stateless(
        lambda batch, student, teacher: losses.kd(
            student.logits, teacher.logits, temperature=temperature
        )
    )
