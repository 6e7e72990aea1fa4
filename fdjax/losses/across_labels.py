"""Losses between a student and a teacher whose label spaces differ."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fdjax import checks
from fdjax import transport as ot

Value = Literal["regularised", "sharp", "debiased", "unbalanced"]


def student_distance(
    cost: Float[Array, "teacher_classes student_classes"],
    *,
    where: Bool[Array, " teacher_classes"] | None = None,
) -> Float[Array, "student_classes student_classes"]:
    """Distance between student labels that a cost implies: how far apart teachers find them.

    The largest difference over the teacher's labels of the prices of the two,

        d(c, k) = max_s |cost[s, c] - cost[s, k]|,

    which is the smallest distance for which  cost[s, c] <= cost[s, k] + d(k, c)  holds: no way
    is made cheaper by a detour. If both label spaces are one and the cost is a distance, it is
    that cost.

    Args:
        cost: Price of moving mass from teacher label to student label.
        where: True for the teacher labels that exist.

    Returns:
        A symmetric distance with a diagonal of zeros, in units of `cost`.

    References:
        Kuratowski's embedding of a metric space; its use for a self-term is ours.
    """
    apart = jnp.abs(cost[:, :, None] - cost[:, None, :])
    if where is not None:
        apart = jnp.where(where[:, None, None], apart, 0.0)
    return apart.max(axis=0)


def _debiased(cost: Array, source: Array, target: Array, exists: Array, epsilon: Any) -> Array:
    # A difference of two solves, which near the best student is far smaller than both.
    relative: Any = {"epsilon": epsilon, "entropy": "relative", "threshold": 1e-4}
    apart = student_distance(cost, where=exists)
    away = ot.transport_cost(cost, source, target, **relative)
    return away - ot.transport_cost(apart, target, target, **relative) / 2


def transport(
    student_logits: Float[Array, "batch student_classes"],
    teacher_logits: Float[Array, "batch teacher_classes"],
    cost: Float[Array, "teacher_classes student_classes"],
    *,
    temperature: float = 1.0,
    epsilon: float = 1.0,
    entropy: ot.Entropy = "plain",
    value: Value = "regularised",
    tau: float = 1.0,
) -> Float[Array, " batch"]:
    """Entropic cost of carrying the teacher's prediction to the student's.

    The same cost that scores teachers, minimised over the student. It needs no label, so
    unlabelled images teach as well. Variants share the entropic plan, but not what is taken of it:

    - "regularised": the cost with its entropy; its gradient costs one solve.
    - "sharp": <P, cost> alone, as rankings use it. The entropy no longer keeps the student soft,
      and the gradient costs a linear system an example.
    - "debiased": the Sinkhorn divergence. From the "relative" cost it takes half of that of the
      student to itself, by `student_distance`, so that one label space with a distance for its
      cost has the teacher itself as the best student. The teacher's self-term does not depend
      on the student and is left out: the least value is not zero.
    - "unbalanced": teacher labels without a counterpart may stay at home, at a price of `tau`;
      see `transport.unbalanced_cost`. The student's prediction is carried whole.

    Args:
        student_logits: Over the task's classes.
        teacher_logits: Over the teacher's classes; -inf for padding.
        cost: Price of moving mass from teacher label to student label; with `epsilon` = 1
            in nats, as `costs.from_predictions` and `costs.calibrate` give it.
        temperature: Softening of both predictions, > 0.
        epsilon: Entropic regularisation in units of `cost`, > 0.
        entropy: "plain" is least at the projected teacher; "relative" sharpens. The values
            "sharp" and "debiased" do not use it.
        value: What is taken of the plan, see above.
        tau: Of the "unbalanced" value: price in units of `cost` at which the teacher's marginal
            may change, > 0; large is balanced.

    Returns:
        Cost of each example, in units of `cost`. "plain" and "debiased" may be negative.

    Raises:
        InputError: If the cost does not fit the logits or a setting is out of range.

    References:
        Lu, Ye, Zhan, Selective Cross-Task Distillation, 2022 (our reconstruction); Cuturi,
        Sinkhorn Distances, NeurIPS 2013 (sharp); Genevay, Peyre, Cuturi, Learning Generative
        Models with Sinkhorn Divergences, AISTATS 2018 (debiased); Chizat et al., Scaling
        Algorithms for Unbalanced Optimal Transport Problems, 2018.
    """
    checks.positive("temperature", temperature)
    checks.choice("value", value, get_args(Value))
    checks.choice("entropy", entropy, get_args(ot.Entropy))
    checks.positive("tau", tau)
    checks.shape("cost", cost, (teacher_logits.shape[-1], student_logits.shape[-1]))
    source = jax.nn.softmax(teacher_logits / temperature)
    target = jax.nn.softmax(student_logits / temperature)
    match value:
        case "regularised":
            return ot.transport_cost(cost, source, target, epsilon=epsilon, entropy=entropy)
        case "sharp":
            return ot.sharp_cost(cost, source, target, epsilon=epsilon)
        case "debiased":
            exists = (teacher_logits > -jnp.inf).any(axis=0)
            return _debiased(cost, source, target, exists, epsilon)
        case "unbalanced":
            return ot.unbalanced_cost(
                cost, source, target, epsilon=epsilon, tau=tau, entropy=entropy
            )
