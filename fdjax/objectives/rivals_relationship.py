"""Objectives by relationship matching: the two stages of ReFilled, and GKD's second."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from fdjax import checks, losses
from fdjax.losses.relationship import Comparison
from fdjax.objectives.base import Objective, stateless
from fdjax.objectives.rivals import Tree, features, require_classes
from fdjax.types import Batch, Outputs

Centres = Float[Array, "classes features"] | None


def refilled_relations(
    *, comparison: Comparison = "tuples", margin: float = 0.2, temperature: float = 4.0
) -> Objective:
    """Stage 1 of ReFilled, on the labelled part; see `losses.refilled_relations`.

    Each example carries the loss of the batch, so that their mean is that loss. It trains
    features only: the authors take it alone, and let stage 2 follow with its own head.

    Raises:
        InputError: If a setting is out of range; later, if a side shows no features or a
            batch has fewer than three images.
    """
    checks.choice("comparison", comparison, ("tuples", "triplets"))
    checks.positive("margin", margin)
    checks.positive("temperature", temperature)

    def loss(batch: Batch, student: Outputs, teacher: Outputs) -> Float[Array, " batch"]:
        value = losses.refilled_relations(
            features(student, "student", "refilled_relations"),
            features(teacher, "teacher", "refilled_relations"),
            batch.labels,
            comparison=comparison,
            margin=margin,
            temperature=temperature,
        )
        return jnp.broadcast_to(value, batch.labels.shape)

    return stateless(loss)


def _with_centres(
    loss: Callable[[Batch, Outputs, Outputs, Centres], Float[Array, " batch"]], centres: Centres
) -> Objective:
    """Objective of a loss that reads fixed class centres, carried in its state."""
    if centres is not None:
        checks.finite("centres", centres)

    def evaluate(
        params: Tree, state: Tree, key: Array, batch: Batch, student: Outputs, teacher: Outputs
    ) -> tuple[Float[Array, " batch"], Tree]:
        return loss(batch, student, teacher, state), state

    return Objective(init=lambda key, batch, student, teacher: ((), centres), loss=evaluate)


def refilled_classifier(centres: Centres = None, *, temperature: float = 2.0) -> Objective:
    """Stage 2 of ReFilled; see `losses.refilled_classifier`.

    Args:
        centres: Class centres of the task in the teacher's features; see the loss. Without
            them each batch takes its own.
        temperature: Softening of both sides, > 0.

    Raises:
        InputError: If `temperature` is not positive or the centres hold NaN or infinity;
            later, if they do not fit or the teacher shows no features.
    """
    checks.positive("temperature", temperature)
    return _with_centres(
        lambda batch, student, teacher, fixed: losses.refilled_classifier(
            student.logits,
            features(teacher, "teacher", "refilled_classifier"),
            batch.labels,
            fixed,
            temperature=temperature,
        ),
        centres,
    )


def gkd_classifier(centres: Centres = None, *, temperature: float = 1.0) -> Objective:
    """Stage 2 of weighted GKD; see `losses.gkd_classifier`.

    Args:
        centres: As for `refilled_classifier`.
        temperature: Softening of the teacher, > 0.

    Raises:
        InputError: As for `refilled_classifier`.
    """
    checks.positive("temperature", temperature)

    def loss(
        batch: Batch, student: Outputs, teacher: Outputs, fixed: Centres
    ) -> Float[Array, " batch"]:
        require_classes(teacher, "gkd_classifier")
        return losses.gkd_classifier(
            student.logits,
            features(teacher, "teacher", "gkd_classifier"),
            teacher.logits,
            batch.labels,
            fixed,
            temperature=temperature,
        )

    return _with_centres(loss, centres)
