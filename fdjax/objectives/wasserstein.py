"""Objectives by Wasserstein distances between predictions, and between feature maps."""

from typing import Any

import jax
from jaxtyping import Array, Float

from fdjax import checks
from fdjax.losses import wasserstein
from fdjax.objectives import layers as learned
from fdjax.objectives.base import Objective
from fdjax.objectives.features import one_layer
from fdjax.objectives.predictions import labelled_share
from fdjax.types import Batch, Outputs

Tree = Any


def wkd_logits(
    cost: Float[Array, "classes classes"],
    *,
    gamma: float = 30.0,
    temperature: float = 2.0,
    epsilon: float = 0.05,
    iterations: int | None = 10,
) -> Objective:
    """Transport between predictions for the same classes, on labelled examples.

    See `losses.wkd_logits`. The cost is carried in the state, so a step compiled once serves
    every teacher whose arrays have the same shapes. The mean over the batch is the mean over
    its labelled examples.

    Raises:
        InputError: If the cost is not square or holds NaN or infinity, or a setting is out of
            range; later, if the label spaces or the cost do not fit.
    """
    checks.shape("cost", cost, (cost.shape[-1], cost.shape[-1]))
    checks.finite("cost", cost)
    checks.positive("temperature", temperature)
    checks.positive("epsilon", epsilon)
    checks.require(gamma >= 0, f"`gamma` must be >= 0, got {gamma}.")
    if iterations is not None:
        checks.positive("iterations", iterations)

    def loss(
        params: Tree, state: Tree, key: Array, batch: Batch, student: Outputs, teacher: Outputs
    ) -> tuple[Float[Array, " batch"], Tree]:
        value = wasserstein.wkd_logits(
            student.logits,
            teacher.logits,
            batch.labels,
            state,
            gamma=gamma,
            temperature=temperature,
            epsilon=epsilon,
            iterations=iterations,
        )
        return labelled_share(batch) * value, state

    return Objective(init=lambda key, batch, student, teacher: ((), cost), loss=loss)


def wkd_features(*, layer: int = -1, mean_weight: float = 2.0, grid: int = 1) -> Objective:
    """Distance of Gaussians fitted to maps; see `losses.wkd_features`.

    A learned regressor, convolution, batch normalisation and ReLU as for `hint`, brings the
    student's maps to the teacher's channels.

    Args:
        layer: Whose maps are compared.
        mean_weight: As for the loss.
        grid: As for the loss.

    Raises:
        InputError: If a setting is out of range; later, if a side has no such layer, the sizes
            have no regressor, or a cell has one position only.
    """
    checks.require(mean_weight >= 0, f"`mean_weight` must be >= 0, got {mean_weight}.")
    checks.positive("grid", grid)

    def init(key: Array, batch: Batch, student: Outputs, teacher: Outputs) -> tuple[Tree, Tree]:
        return learned.regressor(key, *one_layer(student, teacher, layer, "wkd_features")), ()

    def loss(
        params: Tree, state: Tree, key: Array, batch: Batch, student: Outputs, teacher: Outputs
    ) -> tuple[Float[Array, " batch"], Tree]:
        own, given = one_layer(student, teacher, layer, "wkd_features")
        guess = jax.nn.relu(learned.apply_regressor(params, own, given))
        return wasserstein.wkd_features(guess, given, mean_weight=mean_weight, grid=grid), state

    return Objective(init, loss)
