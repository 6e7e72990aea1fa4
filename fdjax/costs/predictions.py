"""Prices from what a teacher predicts of labelled examples, and the labels that they foretell."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fdjax import checks


def from_predictions(
    probabilities: Float[Array, "examples teacher_classes"],
    labels: Int[Array, " examples"],
    num_classes: int,
    *,
    smoothing: float | Float[Array, ""] = 1.0,
) -> Float[Array, "teacher_classes num_classes"]:
    """Surprise of a student label, given a teacher label: -log P(student | teacher).

    The conditional is counted from the teacher's predictions on labelled examples and
    shrunk towards the class prior by `smoothing` virtual examples, so that a teacher label
    that was hardly seen says nothing. With epsilon = 1 the student distribution that
    minimises the (plain) entropic transport cost is then the LEEP predictor
    sum_s p(s|x) P(c|s).

    Args:
        probabilities: Teacher's predictions; each row sums to one.
        labels: Class of each example; unlabelled examples (-1) take no part.
        num_classes: Number of classes of the task.
        smoothing: Virtual examples of each teacher label, > 0.

    Returns:
        The cost in nats, >= 0.

    Raises:
        InputError: If a label is out of range, a class is empty or `smoothing` is not positive.

    References:
        Nguyen et al., LEEP, ICML 2020, eq. 1-2 (the conditional without smoothing).
    """
    checks.positive("smoothing", smoothing)
    checks.labels("labels", labels, num_classes, unlabelled=True)
    checks.every_class_present("labels", labels, num_classes)
    member = jax.nn.one_hot(labels, num_classes, dtype=probabilities.dtype)
    joint = jnp.einsum("ns,nc->sc", probabilities, member, precision=jax.lax.Precision.HIGHEST)
    prior = member.sum(axis=0) / member.sum()
    mass = joint.sum(axis=1, keepdims=True)
    # At most one, but rounding may pass it by an ulp, and a cost is never negative.
    return jnp.maximum(jnp.log(mass + smoothing) - jnp.log(joint + smoothing * prior), 0.0)


def log_prior(labels: Int[Array, " examples"], num_classes: int) -> Float[Array, " num_classes"]:
    """Logarithm of the share of each class among the labels.

    A belief knows how frequent the classes are; what a teacher label adds to it must not say so
    again. `from_predictions(...) + log_prior(...)` is -log P(c|s) / P(c), the cost of evidence:
    of either sign, and with a row of zeros for a teacher label that tells nothing. Where all
    classes are equally frequent this changes no plan, for each row is moved by a constant.

    Args:
        labels: Class of each example; unlabelled examples (-1) take no part.
        num_classes: Number of classes of the task.

    Raises:
        InputError: If a label is out of range or a class is empty.
    """
    checks.labels("labels", labels, num_classes, unlabelled=True)
    checks.every_class_present("labels", labels, num_classes)
    count = jax.nn.one_hot(labels, num_classes).sum(axis=0)
    return jnp.log(count / count.sum())


def predictor(
    cost: Float[Array, "teacher_classes student_classes"],
    probabilities: Float[Array, "examples teacher_classes"],
    *,
    epsilon: float | Float[Array, ""] = 1.0,
) -> Float[Array, "examples student_classes"]:
    """Student distribution of least plain entropic cost: sum_s p(s|x) softmin_c(cost[s, c]).

    With the student marginal free, each teacher label sends its mass to the student labels
    in proportion to exp(-cost / epsilon). This is the teacher projected onto the task.

    Args:
        cost: Prices.
        probabilities: Teacher's predictions.
        epsilon: Entropic regularisation, in units of `cost`, > 0.

    Returns:
        A distribution over the student labels for each example.
    """
    checks.positive("epsilon", epsilon)
    return jnp.matmul(
        probabilities, jax.nn.softmax(-cost / epsilon, axis=-1), precision=jax.lax.Precision.HIGHEST
    )


class _LeftOut(NamedTuple):
    """Joint of teacher and student labels, with the smoothing, less each example's own label.

    Leaving an example out changes one column of the joint, that of its own class.
    """

    member: Float[Array, "examples num_classes"]
    joint: Float[Array, "teacher_classes num_classes"]
    own: Float[Array, "examples teacher_classes"]
    mass: Float[Array, "examples teacher_classes"]


def _left_out(
    probabilities: Float[Array, "examples teacher_classes"],
    labels: Int[Array, " examples"],
    num_classes: int,
    smoothing: float | Float[Array, ""],
) -> _LeftOut:
    checks.positive("smoothing", smoothing)
    checks.labels("labels", labels, num_classes, unlabelled=True)
    checks.every_class_present("labels", labels, num_classes)
    exact = jax.lax.Precision.HIGHEST
    member = jax.nn.one_hot(labels, num_classes, dtype=probabilities.dtype)
    count = member.sum(axis=0)
    prior = count / count.sum()
    joint = jnp.einsum("ns,nc->sc", probabilities, member, precision=exact)
    own = jnp.matmul(member, joint.T, precision=exact)
    size = jnp.matmul(member, count, precision=exact)[:, None]
    known = jnp.where(labels[:, None] >= 0, probabilities, 0.0)
    # Rounding may leave a hair below zero where the example was alone in its column.
    left = jnp.maximum(own - known, 0.0) * size / jnp.maximum(size - 1, 1)
    mass = joint.sum(axis=1) - own + left
    own_prior = jnp.matmul(member, prior, precision=exact)[:, None]
    return _LeftOut(
        member, joint + smoothing * prior, left + smoothing * own_prior, mass + smoothing
    )


def leave_one_out_surprise(
    probabilities: Float[Array, "examples teacher_classes"],
    labels: Int[Array, " examples"],
    num_classes: int,
    *,
    smoothing: float | Float[Array, ""] = 1.0,
) -> Float[Array, "examples teacher_classes"]:
    """Price of each teacher label to the label of an example, counted from the other examples.

    It is the column of `from_predictions` for the example's label, with this label left out as
    in `leave_one_out_predictor`: a cost that has seen the label it judges flatters a teacher
    with many labels, each of which few examples have shaped.

    Args:
        probabilities: Teacher's predictions; each row sums to one, padding is zero.
        labels: Class of each example; unlabelled examples (-1) make no cost.
        num_classes: Number of classes of the task.
        smoothing: Virtual examples of each teacher label, > 0.

    Returns:
        The prices in nats, >= 0; zero for an unlabelled example.

    Raises:
        InputError: If a label is out of range, a class is empty or `smoothing` is not positive.
    """
    left = _left_out(probabilities, labels, num_classes, smoothing)
    known = labels[:, None] >= 0
    # At most one, but rounding may pass it by an ulp, and a price is never negative.
    price = jnp.log(left.mass) - jnp.log(jnp.where(known, left.own, 1.0))
    return jnp.where(known, jnp.maximum(price, 0.0), 0.0)


def leave_one_out_predictor(
    probabilities: Float[Array, "examples teacher_classes"],
    labels: Int[Array, " examples"],
    num_classes: int,
    *,
    smoothing: float | Float[Array, ""] = 1.0,
) -> Float[Array, "examples num_classes"]:
    """The teacher projected onto the task, each labelled example judged by the others' labels.

    For every example it is `predictor(from_predictions(...))` with the example's own label
    left out, so that the same few labels can make the cost and judge it. The other examples of
    its class are weighed up, so that the class keeps its prior: otherwise the label left out
    would be the least likely of all, and a teacher that says nothing would look worse than that.
    Nothing is left out for an unlabelled example (-1).

    Args:
        probabilities: Teacher's predictions; each row sums to one, padding is zero.
        labels: Class of each example; unlabelled examples make no cost.
        num_classes: Number of classes of the task.
        smoothing: Virtual examples of each teacher label, > 0.

    Returns:
        A distribution over the student labels for each example. With one example of a class its
        own prediction rests on the smoothing alone.

    Raises:
        InputError: If a label is out of range, a class is empty or `smoothing` is not positive.
    """
    left = _left_out(probabilities, labels, num_classes, smoothing)
    exact = jax.lax.Precision.HIGHEST
    share = probabilities / left.mass
    others = jnp.matmul(share, left.joint, precision=exact)
    itself = jnp.sum(share * left.own, axis=1)
    return jnp.where(left.member > 0, itself[:, None], others)
