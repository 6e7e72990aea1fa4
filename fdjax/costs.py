"""Prices of carrying mass from a teacher's labels to the student's labels."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fdjax import checks

Metric = Literal["cosine", "sqeuclidean", "euclidean"]


def class_centres(
    features: Float[Array, "examples features"],
    labels: Int[Array, " examples"],
    num_classes: int,
) -> Float[Array, "num_classes features"]:
    """Mean feature vector of each class.

    Args:
        features: One vector an example, in the feature space of a teacher.
        labels: Class of each example; unlabelled examples (-1) take no part.
        num_classes: Number of classes of the task.

    Returns:
        The centres. Under `jit` a class without an example has a centre of NaN.

    Raises:
        InputError: If a label is out of range or a class has no example.
    """
    checks.labels("labels", labels, num_classes, unlabelled=True)
    checks.every_class_present("labels", labels, num_classes)
    member = jax.nn.one_hot(labels, num_classes, dtype=features.dtype)
    total = jnp.einsum("nc,nd->cd", member, features, precision=jax.lax.Precision.HIGHEST)
    return total / member.sum(axis=0)[:, None]


def _centred(
    vectors: Float[Array, "classes features"], where: Bool[Array, " classes"] | None
) -> Float[Array, "classes features"]:
    if where is None:
        return vectors - vectors.mean(axis=0)
    return (vectors - vectors.mean(axis=0, where=where[:, None])) * where[:, None]


def _unit(vectors: Float[Array, "classes features"]) -> Float[Array, "classes features"]:
    # A zero vector (padding, or a centre equal to the mean) stays zero with zero gradient;
    # compared with "==" so that NaN stays NaN.
    square = jnp.sum(vectors**2, axis=-1, keepdims=True)
    zero = square == 0
    return jnp.where(zero, 0.0, vectors * jax.lax.rsqrt(jnp.where(zero, 1.0, square)))


def between_vectors(
    teacher: Float[Array, "teacher_classes features"],
    student: Float[Array, "student_classes features"],
    *,
    metric: Metric = "cosine",
    centre: bool = True,
    where: Bool[Array, " teacher_classes"] | None = None,
) -> Float[Array, "teacher_classes student_classes"]:
    """Distance of every teacher class vector to every student class vector.

    With the rows of a teacher's last layer and the class centres of the task under the
    teacher's backbone, this is the ground cost of selective cross-task distillation as we
    reconstruct it: it needs no class names and no source data.

    Args:
        teacher: One vector for each teacher label.
        student: One vector for each student label, in the same feature space.
        metric: "cosine" is 1 - cosine similarity, in [0, 2]; "sqeuclidean" and
            "euclidean" are in (squared) units of the features.
        centre: Subtract from each side its own mean. Features after a ReLU are
            non-negative, so without it all centres point the same way.
        where: True for the teacher labels that exist; the others do not enter the mean.

    Returns:
        The cost, >= 0.

    Raises:
        InputError: If the feature spaces differ in size or the metric is unknown.

    References:
        Lu, Ye, Zhan, Selective Cross-Task Distillation, 2022 (the setting); Ye, Lu, Zhan,
        Distilling Cross-Task Knowledge via Relationship Matching, CVPR 2020 (the centres).
    """
    checks.choice("metric", metric, ("cosine", "sqeuclidean", "euclidean"))
    checks.require(
        teacher.shape[-1] == student.shape[-1],
        f"`teacher` and `student` vectors must have the same number of features, got "
        f"{teacher.shape[-1]} and {student.shape[-1]}; take the class centres under this teacher.",
    )
    if centre:
        teacher, student = _centred(teacher, where), _centred(student, None)
    if metric == "cosine":
        teacher, student = _unit(teacher), _unit(student)
    inner = jnp.einsum("sd,cd->sc", teacher, student, precision=jax.lax.Precision.HIGHEST)
    if metric == "cosine":
        return jnp.clip(1.0 - inner, 0.0, 2.0)
    square = jnp.maximum(
        jnp.sum(teacher**2, axis=-1)[:, None] + jnp.sum(student**2, axis=-1) - 2 * inner, 0.0
    )
    if metric == "sqeuclidean":
        return square
    zero = square == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


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


def _namesakes(
    teacher_names: Sequence[str], student_names: Sequence[str]
) -> Bool[np.ndarray, "teacher_classes student_classes"]:
    """True where a teacher label and a student label are called the same."""

    def plain(names: Sequence[str]) -> list[str]:
        return ["".join(name.casefold().replace("_", " ").split()) for name in names]

    teacher, student = plain(teacher_names), plain(student_names)
    for place, name in enumerate(student):
        checks.require(
            name not in student[:place],
            f"`student_names` holds {student_names[place]!r} twice, but for case, spaces and "
            "underscores; name the classes apart.",
        )
    same = np.array([[theirs == ours for ours in student] for theirs in teacher], bool)
    checks.require(
        bool(same.any()),
        "`teacher_names` and `student_names` have no name in common; take a cost from data, such "
        "as `costs.from_predictions`.",
    )
    return same


def from_names(
    teacher_names: Sequence[str], student_names: Sequence[str]
) -> Float[Array, "teacher_classes student_classes"]:
    """Zero between labels of one name, one between all others.

    The cost of total variation where the two label spaces are the same. Its scale means nothing:
    find it from labelled examples by `calibrate`. All that it says of a teacher label without a
    namesake is that it says nothing.

    Args:
        teacher_names: Of the teacher's labels; several may have one name.
        student_names: Of the student's labels. Names are compared without regard to case,
            spaces and underscores.

    Returns:
        The cost, of zeros and ones.

    Raises:
        InputError: If no name is shared, or two student labels have one name.
    """
    return jnp.asarray(~_namesakes(teacher_names, student_names), jnp.float32)


def with_names(
    cost: Float[Array, "teacher_classes student_classes"],
    teacher_names: Sequence[str],
    student_names: Sequence[str],
    *,
    strength: float = 4.0,
) -> Float[Array, "teacher_classes student_classes"]:
    """Cost in which a teacher label of the same name as a student label speaks for it alone.

    The row of such a label becomes the surprise -log P(student | teacher) of a label that makes
    its namesake exp(strength) times as likely as each other class; all other rows stay. Few
    labelled examples tell little of a teacher label, and a name may tell more.

    Args:
        cost: In nats, as `from_predictions` and `calibrate` give it.
        teacher_names: Of the teacher's labels; rows of `cost` beyond them are padding.
        student_names: Of the student's labels, compared as in `from_names`.
        strength: Log-odds of the namesake against each other class, in nats, > 0. By default
            about what ten labelled examples of one class, all seen as one label, tell.

    Returns:
        The cost in nats.

    Raises:
        InputError: If no name is shared, two student labels have one name, there are more
            names than rows or columns, or `strength` is not positive.
    """
    checks.positive("strength", strength)
    checks.shape("cost", cost, (None, len(student_names)))
    checks.require(
        len(teacher_names) <= len(cost),
        f"`cost` has {len(cost)} rows, too few for {len(teacher_names)} `teacher_names`.",
    )
    same = _namesakes(teacher_names, student_names)
    same = np.pad(same, ((0, len(cost) - len(same)), (0, 0)))
    told = -jax.nn.log_softmax(jnp.where(same, strength, 0.0).astype(cost.dtype), axis=-1)
    return jnp.where(same.any(axis=1, keepdims=True), told, cost)


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


def normalise(
    cost: Float[Array, "*faculty teacher_classes student_classes"],
    *,
    where: Bool[Array, "*faculty teacher_classes"] | None = None,
) -> Float[Array, "*faculty teacher_classes student_classes"]:
    """Cost divided by its largest entry, so that teachers and epsilons are comparable.

    Args:
        cost: Prices, >= 0.
        where: True for the teacher labels that exist; rows of padding become zero.

    Returns:
        The cost in [0, 1]; a cost of zeros stays so, one that is not finite becomes NaN.
    """
    if where is not None:
        cost = jnp.where(where[..., None], cost, 0.0)
    largest = cost.max(axis=(-2, -1), keepdims=True)
    divisor = jnp.where(largest == 0, 1.0, largest)
    return cost / jnp.where(jnp.isfinite(largest), divisor, jnp.nan)


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


def calibrate(
    cost: Float[Array, "teacher_classes student_classes"],
    probabilities: Float[Array, "examples teacher_classes"],
    labels: Int[Array, " examples"],
    *,
    where: Bool[Array, " teacher_classes"] | None = None,
) -> Float[Array, "teacher_classes student_classes"]:
    """Cost on the scale at which it explains the labels best, in nats.

    The scale maximises the likelihood of the labels under `predictor` with epsilon = 1. A
    cost that says nothing about the labels is scaled to zero, so its predictor is uniform.

    Args:
        cost: Prices, >= 0, on any scale.
        probabilities: Teacher's predictions on labelled examples.
        labels: Class of each example; unlabelled examples (-1) take no part.
        where: True for the teacher labels that exist; rows of padding become zero.

    Returns:
        `scale * cost`, to be used with epsilon = 1.
    """
    checks.labels("labels", labels, cost.shape[-1], unlabelled=True)
    base = normalise(cost, where=where)
    labelled = labels >= 0

    def likelihood(scale: Float[Array, ""]) -> Float[Array, ""]:
        guess = predictor(scale * base, probabilities)
        chosen = jnp.take_along_axis(guess, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
        tiny = jnp.finfo(guess.dtype).tiny
        return jnp.sum(jnp.where(labelled, jnp.log(jnp.maximum(chosen, tiny)), 0.0))

    # The likelihood of one scale has no second peak that matters in practice, but it is not
    # concave: a coarse grid over the whole range first, then a fine one around its best point.
    coarse = jnp.concatenate([jnp.zeros(1), jnp.geomspace(1e-2, 1e3, 51)])
    best = jnp.argmax(jax.lax.map(likelihood, coarse))
    low, high = coarse[jnp.maximum(best - 1, 0)], coarse[jnp.minimum(best + 1, coarse.size - 1)]
    fine = jnp.concatenate([coarse[best][None], jnp.linspace(low, high, 64)])
    return fine[jnp.argmax(jax.lax.map(likelihood, fine))].astype(base.dtype) * base
