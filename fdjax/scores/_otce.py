"""How well source labels foretell target labels when examples are paired by optimal transport."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fdjax import checks
from fdjax.scores._labelled import HIGHEST


class OtceParts(NamedTuple):
    """What `otce` weighs.

    Attributes:
        distance: Exact cost of carrying the source examples to the target examples, in squared
            units of the features.
        conditional_entropy: H(target label | source label) of examples paired by the plan, in
            nats.
    """

    distance: Float[Array, ""]
    conditional_entropy: Float[Array, ""]


def _exact_plan(cost: Any, source: Any, target: Any) -> np.ndarray:
    """Cheapest plan between the examples for which source and target are True, all equal."""
    from scipy import optimize, sparse

    plan = np.zeros(cost.shape, cost.dtype)
    rows, columns = np.flatnonzero(source), np.flatnonzero(target)
    cost = np.asarray(cost, np.float64)[np.ix_(rows, columns)]
    if not cost.size or not np.isfinite(cost).all():
        return np.full_like(plan, np.nan)
    copies = math.lcm(*cost.shape)
    if copies <= 2 * max(cost.shape):
        # With so many copies of each example masses are whole: an assignment, solved fastest.
        repeats = [copies // size for size in cost.shape]
        copied = np.repeat(np.repeat(cost, repeats[0], axis=0), repeats[1], axis=1)
        left, right = optimize.linear_sum_assignment(copied)
        np.add.at(plan, (rows[left // repeats[0]], columns[right // repeats[1]]), 1 / copies)
        return plan
    height, width = cost.shape
    ones = [np.ones((1, size)) for size in cost.shape]
    sums = sparse.vstack(
        [sparse.kron(sparse.eye(height), ones[1]), sparse.kron(ones[0], sparse.eye(width))]
    )
    # Masses in units in which they are whole numbers.
    masses = np.concatenate([np.full(height, width), np.full(width, height)])
    found = optimize.linprog(cost.ravel(), A_eq=sums.tocsr(), b_eq=masses, method="highs-ds")
    if not found.success:
        return np.full_like(plan, np.nan)
    plan[np.ix_(rows, columns)] = found.x.reshape(cost.shape) / (height * width)
    return plan


@jax.custom_jvp
def _plan(
    cost: Float[Array, "source target"], source: Array, target: Array
) -> Float[Array, "source target"]:
    shape = jax.ShapeDtypeStruct(cost.shape, cost.dtype)
    return jax.pure_callback(_exact_plan, shape, cost, source, target, vmap_method="sequential")


@_plan.defjvp
def _no_change(primals: Any, tangents: Any) -> Any:
    """A vertex stays the best one for small changes of the cost."""
    plan = _plan(*primals)
    return plan, jnp.zeros_like(plan)


def otce_parts(
    source_features: Float[Array, "source source_features"],
    source_labels: Int[Array, " source"],
    target_features: Float[Array, "target target_features"],
    target_labels: Int[Array, " target"],
    num_source_classes: int,
    num_classes: int,
) -> OtceParts:
    """Distance and conditional entropy of OTCE, to be weighed by `otce`.

    Examples of both sides have equal masses, the cost is the squared Euclidean distance of
    their features under the same teacher, and the plan is exact, as in the reference code: an
    entropic plan moves the entropy by several per cent. It is found on the host by SciPy, also
    under `jit` and `vmap`: a second for 1,000 examples a side, the number that the authors
    use; numbers that have no small common multiple take a linear program and minutes.

    Args:
        source_features: Features of examples of the task that the teacher was trained for.
        source_labels: Their labels; unlabelled ones (-1) take no part.
        target_features: Features of the task's examples under the same teacher.
        target_labels: Their classes; unlabelled ones (-1) take no part.
        num_source_classes: Number of the teacher's labels.
        num_classes: Number of classes of the task.

    Returns:
        The parts, NaN where a side has no labelled example or a feature is not finite. The
        entropy is constant almost everywhere: its gradient is zero.

    Raises:
        InputError: If the features differ in number.

    References:
        Tan, Li, Huang, OTCE: A Transferability Metric for Cross-Domain Cross-Task
        Representations, CVPR 2021.
    """
    checks.require(
        source_features.shape[1] == target_features.shape[1],
        f"`source_features` and `target_features` must have the same number of features, got "
        f"{source_features.shape[1]} and {target_features.shape[1]}; take both of one teacher.",
    )
    # About their common middle: lengths far above the distances would cost digits.
    middle = jax.lax.stop_gradient(target_features.mean(axis=0))
    source, target = source_features - middle, target_features - middle
    inner = jnp.matmul(source, target.T, precision=HIGHEST)
    square = jnp.sum(source**2, axis=1)[:, None] + jnp.sum(target**2, axis=1) - 2 * inner
    cost = jnp.maximum(square, 0.0)
    plan = _plan(cost, source_labels >= 0, target_labels >= 0)
    member = jax.nn.one_hot(source_labels, num_source_classes, dtype=plan.dtype)
    target_member = jax.nn.one_hot(target_labels, num_classes, dtype=plan.dtype)
    joint = jnp.matmul(
        jnp.matmul(member.T, plan, precision=HIGHEST), target_member, precision=HIGHEST
    )
    mass = joint.sum(axis=1, keepdims=True)
    conditional = jnp.where(joint > 0, joint / jnp.where(joint > 0, mass, 1.0), 1.0)
    entropy = -jnp.sum(joint * jnp.log(conditional))
    undefined = jnp.isnan(plan).any()
    return OtceParts(jnp.sum(plan * cost), jnp.where(undefined, jnp.nan, entropy))


def otce(
    source_features: Float[Array, "source source_features"],
    source_labels: Int[Array, " source"],
    target_features: Float[Array, "target target_features"],
    target_labels: Int[Array, " target"],
    num_source_classes: int,
    num_classes: int,
    *,
    distance_weight: float = 0.0,
    entropy_weight: float = -1.0,
    constant: float = 0.0,
) -> Float[Array, ""]:
    """OTCE: distance_weight W + entropy_weight H(target label | source label) + constant.

    Without tasks to fit the weights to, the authors recommend -H alone (OT-based NCE), which
    is the default. For the full form fit weights and constant by least squares of the
    accuracies of auxiliary tasks to their `otce_parts`; both weights come out negative.

    It needs examples of the teacher's own task, which `TeacherOutputs` does not hold: it is no
    score of one teacher's outputs and not in `SCORES`.

    Args:
        source_features: As in `otce_parts`.
        source_labels: As in `otce_parts`.
        target_features: As in `otce_parts`.
        target_labels: As in `otce_parts`.
        num_source_classes: As in `otce_parts`.
        num_classes: As in `otce_parts`.
        distance_weight: Of the distance, in one over squared units of the features.
        entropy_weight: Of the conditional entropy, in one over nats.
        constant: Added to both.

    Returns:
        The score, <= 0 by default and zero where source labels tell target labels; NaN as in
        `otce_parts`.

    Raises:
        InputError: As `otce_parts`.

    References:
        Tan, Li, Huang, OTCE: A Transferability Metric for Cross-Domain Cross-Task
        Representations, CVPR 2021.
    """
    parts = otce_parts(
        source_features,
        source_labels,
        target_features,
        target_labels,
        num_source_classes,
        num_classes,
    )
    entropy = entropy_weight * parts.conditional_entropy
    return distance_weight * parts.distance + entropy + constant
