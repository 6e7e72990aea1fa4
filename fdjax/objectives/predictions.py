"""Objectives on how student and teacher predict the same classes: decoupled, and by relations."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from fdjax import checks
from fdjax.losses import decoupled, prediction_relations
from fdjax.objectives.base import Objective, stateless
from fdjax.types import Batch, Outputs


def labelled_share(batch: Batch) -> Float[Array, ""]:
    """By what a loss of labelled examples is multiplied, so that the mean is over them alone."""
    return batch.labels.shape[0] / jnp.maximum(jnp.sum(batch.labels >= 0), 1)


def dkd(*, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0) -> Objective:
    """Decoupled distillation of the labelled examples; see `losses.dkd`.

    The mean over the batch is the mean over its labelled examples.

    Raises:
        InputError: If a setting is out of range; later, if the label spaces differ in size.
    """
    checks.positive("temperature", temperature)
    checks.require(alpha >= 0, f"`alpha` must be >= 0, got {alpha}.")
    checks.require(beta >= 0, f"`beta` must be >= 0, got {beta}.")

    def loss(batch: Batch, student: Outputs, teacher: Outputs) -> Float[Array, " batch"]:
        value = decoupled.dkd(
            student.logits,
            teacher.logits,
            batch.labels,
            alpha=alpha,
            beta=beta,
            temperature=temperature,
        )
        return labelled_share(batch) * value

    return stateless(loss)


def dist(*, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0) -> Objective:
    """Correlation of predictions by image and by class; see `losses.dist`.

    Each example carries the loss of the batch, so that their mean is that loss.

    Raises:
        InputError: If a setting is out of range; later, if the label spaces differ in size or a
            batch has one image only.
    """
    checks.positive("temperature", temperature)
    checks.require(beta >= 0, f"`beta` must be >= 0, got {beta}.")
    checks.require(gamma >= 0, f"`gamma` must be >= 0, got {gamma}.")

    def loss(batch: Batch, student: Outputs, teacher: Outputs) -> Float[Array, " batch"]:
        value = prediction_relations.dist(
            student.logits, teacher.logits, beta=beta, gamma=gamma, temperature=temperature
        )
        return jnp.broadcast_to(value, batch.labels.shape)

    return stateless(loss)
