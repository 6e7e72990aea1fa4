"""How cheaply the teacher's predictions are carried to the right labels."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fdjax import checks, costs
from fdjax.transport import solve, transport_cost_to_labels
from fdjax.types import TeacherOutputs

Cost = Literal["centres", "predictions"]


def _ground_cost(
    outputs: TeacherOutputs,
    labels: Int[Array, " examples"],
    num_classes: int,
    kind: Cost,
    metric: costs.Metric,
) -> Float[Array, "teacher_classes num_classes"]:
    mask = jnp.asarray(outputs.class_mask)
    # Said here and not left to the arithmetic: a NaN that a comparison swallows on its way
    # would come out as a score like any other.
    defined = jax.nn.one_hot(labels, num_classes, dtype=bool).any(axis=0).all()
    if kind == "predictions":
        cost = costs.from_predictions(outputs.probabilities, labels, num_classes)
    elif (
        outputs.features is None
        or outputs.class_vectors is None
        # Where there is nothing to compare everything would be equal, and every cost zero.
        or outputs.features.shape[-1] == 0
    ):
        return jnp.full((mask.shape[-1], num_classes), jnp.nan, outputs.probabilities.dtype)
    else:
        defined &= ~(jnp.isnan(outputs.features).any() | jnp.isnan(outputs.class_vectors).any())
        centres = costs.class_centres(outputs.features, labels, num_classes)
        cost = costs.between_vectors(outputs.class_vectors, centres, metric=metric, where=mask)
    return jnp.where(defined, costs.normalise(cost, where=mask), jnp.nan)


def _of_others(
    probabilities: Float[Array, "examples teacher_classes"],
    labels: Int[Array, " examples"],
    num_classes: int,
) -> Float[Array, ""]:
    """The score at the cost of predictions, each label judged by the others."""
    price = costs.leave_one_out_surprise(probabilities, labels, num_classes)
    member = jax.nn.one_hot(labels, num_classes, dtype=bool)
    cost = jnp.sum(probabilities * price, axis=-1).mean(where=labels >= 0)
    return jnp.where(member.any(axis=0).all(), -cost, jnp.nan)


def transport(
    outputs: TeacherOutputs,
    labels: Int[Array, " examples"],
    num_classes: int,
    *,
    cost: Cost | Float[Array, "teacher_classes num_classes"] = "predictions",
    level: Literal["example", "task"] = "example",
    smoothing: float = 0.0,
    epsilon: float = 0.05,
    metric: costs.Metric = "cosine",
    leave_one_out: bool = True,
) -> Float[Array, ""]:
    """Minus the mean cost of carrying the teacher's prediction to the label.

    The score is sharp: the cost of the plan without its entropy, for a regularised value
    favours teachers by the number of their labels. To one label there is one plan only, so
    the default needs no solver.

    Args:
        outputs: What the teacher says of the examples.
        labels: Class of each example; unlabelled ones (-1) take no part.
        num_classes: Number of classes of the task.
        cost: "predictions" is -log P(label | teacher label), which a black box has too;
            "centres" is the centred distance of the rows of the teacher's last layer to the
            class centres of the task under its backbone, which foretold the student's gain
            worse on the tuning tasks of experiments/README.md. Both are divided by their
            largest entry, unless a label is left out. An array is taken as it is.
        level: "example" carries every prediction to the label of its example; "task"
            carries the mean prediction to the class frequencies, one problem a teacher.
        smoothing: Share of the target that is spread evenly over all classes, in [0, 1].
        epsilon: Entropic regularisation in units of the cost; unused where no solver is.
        metric: Distance for "centres": "cosine", "sqeuclidean" or "euclidean".
        leave_one_out: Whether each label is judged by the cost of "predictions" that the other
            labels make, in nats. A cost that has seen the label it judges, divided by its
            largest entry, favours teachers with many labels; on the tuning tasks this foretold
            the student's gain worse, too. Unused for a cost of another kind and where a solver
            is.

    Returns:
        The score, in [-1, 0] for the two named costs; with a label left out in nats, <= 0, and
        for a teacher that says nothing near minus the entropy of the classes. NaN for a black
        box with "centres", for a class without an example, and where the solver did not
        converge.

    Raises:
        InputError: If a setting or a shape does not fit.

    References:
        Lu, Ye, Zhan, Selective Cross-Task Distillation, 2022 (the idea; the cost, the
        target and the level are our reconstruction).
    """
    checks.choice("level", level, ("example", "task"))
    checks.in_range("smoothing", smoothing, 0.0, 1.0)
    checks.positive("epsilon", epsilon)
    known = labels >= 0
    outputs = outputs._replace(
        probabilities=jnp.where(known[:, None], outputs.probabilities, 0.0),
        features=None
        if outputs.features is None
        else jnp.where(known[:, None], outputs.features, 0.0),
    )
    if isinstance(cost, str):
        checks.choice("cost", cost, ("centres", "predictions"))
        if cost == "predictions" and level == "example" and smoothing == 0 and leave_one_out:
            return _of_others(outputs.probabilities, labels, num_classes)
        cost = _ground_cost(outputs, labels, num_classes, cost, metric)
    checks.shape("cost", cost, (outputs.probabilities.shape[-1], num_classes))
    source = outputs.probabilities
    if level == "example" and smoothing == 0:
        return -transport_cost_to_labels(cost, source, labels).mean(where=known)
    target = jax.nn.one_hot(labels, num_classes, dtype=source.dtype)
    # An unlabelled example has no mass on either side, and costs nothing.
    target = ((1 - smoothing) * target + smoothing / num_classes) * known[:, None]
    if level == "task":
        source = source.mean(axis=0, keepdims=True, where=known[:, None])
        target = target.mean(axis=0, keepdims=True, where=known[:, None])
    # All teachers are solved as one problem: an undefined cost must not reach the others.
    defined = jnp.isfinite(cost).all()
    solution = solve(jnp.where(defined, cost, 0.0), source, target, epsilon=epsilon)
    sharp = jnp.where(defined & solution.converged, solution.transport_cost, jnp.nan)
    return -(sharp.mean() if level == "task" else sharp.mean(where=known))
